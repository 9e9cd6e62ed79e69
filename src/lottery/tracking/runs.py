"""The contents of runs, read from the outputs: the same while a stage works and when its runs are made later."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Run, RunTag
from mlflow.utils import mlflow_tags as tags
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from safetensors.torch import save

from lottery.core.pruning import density, weights_kept
from lottery.core.stack import Masks
from lottery.evaluation.statistics import by_level, early_stopping
from lottery.evaluation.structure import of_networks
from lottery.evaluation.tables import load_table, measured_on
from lottery.files.artifacts import load_contents, load_history, load_masks
from lottery.params import Params
from lottery.provenance import git
from lottery.ticket import load as load_ticket
from lottery.tracking.outputs import DIRTY, KEY, MissingError, Output
from lottery.tracking.store import Content, Points, Store, is_deleted, metric, milliseconds

if TYPE_CHECKING:
    from lottery.report.page import Findings

PARENT, NAME, NOTE = tags.MLFLOW_PARENT_RUN_ID, tags.MLFLOW_RUN_NAME, tags.MLFLOW_RUN_NOTE
APART = " · "  # between what a run is and where it comes from, in its name
SECTIONS = {"data", "network", "train", "prune"}  # of params.yaml: what makes a network
# What an evaluation adds to a network's run, by its column. MLflow makes a group of charts of what has the same word
# before the slash, in the alphabet's order; the chief ones have plain names, which filters need not quote.
MEASURES = {
    "test_accuracy": "test_accuracy",
    "test_accuracy_last": "test/accuracy_last",
    "test_accuracy_start": "test/accuracy_start",
    "train_accuracy": "train/accuracy",
    "train_accuracy_last": "train/accuracy_last",
    "barrier_test": "test/barrier",
    "barrier_train": "train/barrier",
}
LAST_ARTIFACT = {
    "evaluate": "reports/tables",
    "export": "ticket",
    "plot": "report",
}  # of what a stage's run has, what is logged last
CURVES = ("train_loss", "validation_loss", "validation_accuracy")  # a history's columns


@dataclass(frozen=True)
class Origin:
    """The origin of a run: circumstances, which are not part of what it shows."""

    commit: str = ""
    dirty: bool = False
    experiment: str = ""  # DVC's

    def tags(self, stage: str) -> dict[str, str]:
        """Tags for a run of this DVC stage, with those that fill the UI's Source column."""
        values = {
            tags.MLFLOW_SOURCE_NAME: stage,
            tags.MLFLOW_SOURCE_TYPE: "PROJECT",
            tags.MLFLOW_GIT_COMMIT: self.commit,
            DIRTY: "true" if self.commit and self.dirty else "",
            "lottery.experiment": self.experiment,
        }
        return {key: value for key, value in values.items() if value}

    def named(self, name: str) -> str:
        """A run's name, with the DVC experiment's. Without one, the first pipeline that reads the run is added."""
        return f"{name}{APART}{self.experiment}" if self.experiment else name


def origin_of_workspace(environment: Mapping[str, str]) -> Origin:
    """The checked-out commit, and the DVC experiment that this process belongs to."""
    # dvc.lock and reports/ are what a running pipeline writes itself
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    return Origin(commit=git("rev-parse", "HEAD"), dirty=bool(changed), experiment=environment.get("DVC_EXP_NAME", ""))


# --- contents --------------------------------------------------------------------------------------------------------


def settings(params: Params) -> dict[str, str]:
    """The settings that all networks of a pipeline share, by their keys in params.yaml; names are of what they name."""
    dumped = params.model_dump(mode="json", exclude_none=True, by_alias=True, exclude=params.unread)
    sections = {section: dumped[section] for section in SECTIONS}
    for section in ("data", "network"):
        if file := sections[section].pop("file", None):
            sections[section][f"{section}_file"] = file
    names = {"dataset": sections["data"].pop("name"), "network": sections["network"].pop("name")}
    values = names | {key: value for section in sections.values() for key, value in section.items()}
    values |= {"validation": params.validation_images, "iterations": params.iterations}  # what the settings come to
    return {key: _shown(value) for key, value in values.items()}


def _shown(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text[:MAX_PARAM_VAL_LENGTH]


def level_settings(params: Params, name: str) -> dict[str, str]:
    """The settings of a pipeline and those of one of its levels."""
    path = params.path(name)
    values: dict[str, object] = {
        "level": name,
        "parent": "" if name == "dense" else params.levels[name].parent,
        "path": path,
        "sparsity": path[-1] if path else 0.0,
    }
    if name != "dense":
        values |= {"arms": params.arms(name), "criterion": params.criterion(name), "scope": params.scope(name)}
    return settings(params) | {key: _shown(value) for key, value in values.items()}


def network_settings(params: Params, name: str, arm: str, seed: int) -> dict[str, str]:
    """The settings of a level, with arm and seed."""
    return level_settings(params, name) | {"arm": arm, "seed": str(seed)}


def data_input(output: Output) -> DatasetInput:
    """The data set as a run's input."""
    params = output.params
    source = json.dumps({"uri": str(params.data_file)})
    images = {"training images": params.training_images, "validation images": params.validation_images}
    data = Dataset(params.data.name, output.data_digest[:16], "local", source, profile=json.dumps(images))
    return DatasetInput(data, [InputTag(tags.MLFLOW_DATASET_CONTEXT, "training")])


def mean_points(arm: str, iteration: int, values: Mapping[str, Iterable[float]]) -> Iterator[tuple[str, float, int]]:
    """An arm's mean over its seeds at one iteration, one metric per curve: `curves/validation_loss.ticket`."""
    for curve, each in values.items():
        seeds = list(each)
        mean = math.fsum(seeds) / len(seeds)
        if not math.isnan(mean):  # nothing is trained before iteration 0
            yield f"curves/{curve}.{arm}", mean, iteration


def simple(output: Output, folder: Path) -> Content:
    """The content of the run of `download`, `evaluate`, `export` or `plot`; ``folder`` holds the output's files."""
    from lottery.tracking import notes  # which needs matplotlib, and only where a stage has ended

    points: Points = ()
    artifacts = {}
    params = settings(output.params) | {"pipeline": output.pipeline}
    if output.name == "download":
        params, note = {"dataset": output.params.data.name}, notes.of_data(output)
    elif output.name == "evaluate":
        found = findings(output, folder)
        points, note = list(summary(found.levels)), notes.of_evaluation(found)
        params |= {f"verdict.{each['level']}": each["verdict"] for each in found.judged}
        params |= {"device": name} if (name := measured_on(folder / "tables")) else {}
        files = [folder / "compression.json", folder / "metrics.json"]  # the first of later versions alone
        artifacts["reports"] = partial(_copy, [file for file in files if file.exists()])
        artifacts["reports/tables"] = partial(_copy, sorted((folder / "tables").iterdir()))
    elif output.name == "export":
        from lottery.tracking import registry

        ticket = load_ticket(folder / "ticket.safetensors")
        # not by the names that a network's run has: searches for networks would find this one too
        points = [("ticket/density", ticket.density, 0), ("ticket/test_accuracy", ticket.facts.accuracy, 0)]
        note = notes.of_ticket(output, ticket)
        params |= {f"ticket.{name}": str(getattr(ticket.facts, name)) for name in ("level", "arm", "seed")}
        artifacts["ticket"] = partial(registry.save, folder)
    else:
        note = notes.of_plot(output)
        artifacts["figures"] = partial(_copy, sorted((folder / "figures").iterdir()))
        artifacts["report"] = partial(_copy, [folder / "report.html"])
    return Content(output.name, params, points, note, [data_input(output)], artifacts)


def findings(output: Output, folder: Path) -> "Findings":
    """The findings of an evaluation, from the folder with its files, without those of the report's page alone."""
    from lottery.report.page import TABLES, Findings

    return Findings(
        **{name: _table(folder, name) for name in TABLES},
        claims=(),
        compression=(),
        warning="",
        settings={},
        iterations=output.params.iterations,
        layout=output.params.layout,
        data=output.data_digest,
        tables=output.pipeline,
    )


def _table(folder: Path, name: str) -> pd.DataFrame:
    try:
        return load_table(folder / "tables" / f"{name}.csv")
    except FileNotFoundError:
        raise MissingError(f"evaluate: left no reports/tables/{name}.csv, as this version does") from None


def _copy(files: Iterable[Path], target: Path) -> None:
    for file in files:
        shutil.copy(file, target)


def summary(levels: pd.DataFrame) -> Iterator[tuple[str, float, int]]:
    """Test accuracy against pruning: for each arm, and each path where the tree has several, from dense to a leaf.

    One metric per arm, its step round(1000 (1 - density)): the UI's chart of two pipelines shows two curves.
    """
    levels = levels.assign(parent=levels["parent"].fillna(""))
    parents = dict(zip(levels["level"], levels["parent"], strict=True))
    leaves = [level for level in parents if level not in parents.values()]
    accuracy = levels.set_index(["level", "arm"])["test_accuracy_mean"]
    pruned = by_level(levels)["density"].rsub(1).mul(1000).round().astype(int)
    for leaf in leaves:
        path = [leaf]
        while path[0] != "dense":
            path.insert(0, parents[path[0]])
        for arm in levels["arm"].unique():
            if arm != "dense":
                name = f"accuracy/{arm}" + (f".{leaf}" if len(leaves) > 1 else "")
                for level in path:
                    value = accuracy.get((level, arm if level != "dense" else "dense"))
                    if value is not None:
                        yield name, value, int(pruned[level])


def level(output: Output, folder: Path) -> tuple[Content, dict[tuple[str, int], Content]]:
    """The content of the run of a level's stage, and those of the runs of its networks, by arm and seed."""
    from lottery.tracking import notes

    contents, history, masks = load_contents(folder), load_history(folder), load_masks(folder)
    stops = early_stopping(history).set_index(["arm", "seed"])
    data = [data_input(output)]
    sparsity = contents.path[-1] if contents.path else 0.0
    densities, kept = density(masks).tolist(), weights_kept(masks).tolist()
    measures = {name: values.tolist() for name, values in of_networks(masks).items()}
    histories = dict(iter(history.groupby(["arm", "seed"], sort=False)))
    losses = history.set_index(["arm", "seed", "iteration"])["validation_loss"]
    device = {"device": contents.device} if contents.device else {}
    networks = {}
    for row, (arm, seed) in enumerate(contents.rows):
        stop = stops.loc[(arm, seed)]
        loss = losses[arm, seed, stop["early_stopping_iteration"]]
        points = [
            ("sparsity", sparsity, 0),
            ("density", densities[row], 0),
            ("structure/weights_kept", sum(kept[row]), 0),
            *((f"structure/{name}", values[row], 0) for name, values in measures.items() if values[row] == values[row]),
            ("early_stopping/iteration", stop["early_stopping_iteration"], 0),
            ("early_stopping/censored", stop["censored"], 0),
            ("early_stopping/validation_loss", loss, 0),
        ]
        for record in histories[arm, seed].to_dict("records"):  # nothing is trained before iteration 0
            curves = [(f"curves/{curve}", record[curve], record["iteration"]) for curve in CURVES]
            points += [point for point in curves if not math.isnan(point[1])]
        networks[arm, seed] = Content(
            _name(output, arm, seed),
            network_settings(output.params, output.name, arm, seed) | device,
            points,
            notes.of_network(output.name, arm, seed, sum(kept[row]), densities[row], stop, loss),
            data,
            {"mask": partial(_save_mask, masks.rows([row]))},
        )
    means = [("sparsity", sparsity, 0), ("density", math.fsum(densities) / len(densities), 0)]
    for (arm, iteration), rows in history.groupby(["arm", "iteration"], sort=False):
        means += mean_points(arm, iteration, {curve: rows[curve] for curve in CURVES})
    note = notes.of_level(output, len(networks))
    return Content(output.name, level_settings(output.params, output.name) | device, means, note, data), networks


def _save_mask(mask: Masks, folder: Path) -> None:
    from lottery.report.mask_figures import save_mask_picture  # matplotlib takes 0.2 s, while nobody waits for it here

    layers = {piece.layer: mask[piece.name][0].contiguous() for piece in mask.layout.weights}
    (folder / "mask.safetensors").write_bytes(save(layers))
    save_mask_picture(mask, folder / "mask.png")


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """The runs that a working stage has opened, and the (key, step) of the points on its own."""

    run: str
    networks: dict[tuple[str, int], str] = field(default_factory=dict)
    logged: set[tuple[str, int]] = field(default_factory=set)


@dataclass
class Tally:
    """The fates of the runs that outputs should have."""

    there: int = 0  # before
    made: int = 0
    completed: int = 0  # with artifacts that were lost
    restored: int = 0
    deleted: list[str] = field(default_factory=list)  # by a person, and so they stay


class Recorder:
    """Sees to it that an output's runs are there, once each and complete. Never changes a complete run.

    A run that a person deleted stays deleted unless ``restore``. Its methods raise MissingError where an output's files
    are needed and not there.
    """

    def __init__(self, store: Store, origin: Origin, restore: bool = False, is_current: bool = True) -> None:
        self.store = store
        self.is_current = is_current  # its outputs are the workspace's, and no other revision's or experiment's
        self.origin = origin
        self.restore = restore
        self.tally = Tally()

    def simple(self, output: Output, attempt: Attempt | None = None) -> None:
        """The run of `download`, `evaluate`, `export` or `plot`."""
        with self.store.lock():
            found = self._stage_run(output, attempt)
            wanted, bare = self._is_wanted(found, output.name), self._is_bare(found, LAST_ARTIFACT.get(output.name))
            if wanted or bare:
                with output.files() as folder:
                    content = simple(output, folder)
                    if found:
                        self._restore_artifacts(found, content)
                    else:
                        run = attempt.run if attempt else self._create(output, content, milliseconds())
                        self._complete(run, output.key, content, attempt)
            if output.pipeline:
                self._add(_first(self.store.find(output.key)), output)
            if output.name == "export":
                self._register(output)

    def _register(self, output: Output) -> None:
        """The registry's version of the exported ticket, which has the verdict of the pipeline's evaluation."""
        from lottery.tracking import registry

        run = _first(self.store.find(output.key))
        if run and not is_deleted(run):
            condition = f"tags.`{output.pipeline_tag}` = 'true' and tags.{tags.MLFLOW_SOURCE_NAME} = 'evaluate'"
            evaluated = _first(self.store.search(condition))
            verdict = evaluated.data.params.get(f"verdict.{run.data.params['ticket.level']}", "") if evaluated else ""
            registry.register(self.store, run, verdict, self.is_current)

    def level(self, output: Output, attempt: Attempt | None = None) -> None:
        """The run of a level's stage and those of its networks."""
        with self.store.lock():
            found = self._stage_run(output, attempt)
            unfinished = self._is_wanted(found, output.name)
            keys = {each: output.network_key(*each) for each in output.params.rows(output.name)}
            networks = self._networks(output, self.store.keep_one)
            wanted = [each for each, key in keys.items() if self._is_wanted(networks.get(key), _name(output, *each))]
            bare = [each for each, key in keys.items() if self._is_bare(networks.get(key), "mask")]
            if found:
                self._adopt(networks.values(), found.info.run_id)
                if is_deleted(found):
                    wanted = []  # below it they would not be seen
            if not unfinished and not wanted and not bare:
                return
            with output.files() as folder:
                content, contents = level(output, folder)
            for each in bare:
                self._restore_artifacts(networks[keys[each]], contents[each])
            start, opened = milliseconds(), {}
            if found:
                parent = found.info.run_id
            elif attempt:
                parent, opened = attempt.run, dict(attempt.networks)
                self._adopt(networks.values(), parent)
            else:
                parent = self._create(output, content, start, adopted=networks.values())
            for row, each in enumerate(wanted):
                run = opened.pop(each, None) or self._create(output, contents[each], start + 1 + row, parent)
                self._complete(run, keys[each], contents[each], attempt)
            for ghost in opened.values():  # of networks that have another run
                self.store.discard(ghost)
            if unfinished:
                self._complete(parent, output.key, content, attempt)

    def evaluation(self, output: Output, levels: Iterable[Output], attempt: Attempt | None = None) -> None:
        """The run of `evaluate`, and on all runs that it read the pipeline's tag, their test results and verdicts."""
        from lottery.tracking import notes

        with output.files() as folder:
            found, barriers = findings(output, folder), _table(folder, "connectivity")
        networks, means = found.networks.merge(barriers, "left", ["level", "arm", "seed"]), found.levels
        verdicts = dict(notes.of_verdicts(output, found))
        read = set(networks["level"])
        with self.store.lock():
            for of_level in (level for level in levels if level.name in read):
                # of two runs with one key none is deleted here: another machine may be at this, too
                runs = self._networks(of_level, _first)
                for row in networks[networks["level"] == of_level.name].to_dict("records"):
                    run = runs.get(of_level.network_key(row["arm"], row["seed"]))
                    self._add(run, output, {name: row.get(measure) for measure, name in MEASURES.items()})
                values = {
                    f"{name}.{row['arm']}": row.get(f"{measure}_mean")
                    for row in means[means["level"] == of_level.name].to_dict("records")
                    for measure, name in MEASURES.items()
                }
                run = _first(self.store.find(of_level.key))
                self._add(run, output, values, verdicts.get(of_level.name, ""))
            self._add(_first(self.store.find(f"download/{output.data_digest}")), output)
            self.simple(output, attempt)

    def _networks(self, output: Output, choose: Callable[[list[Run]], Run | None]) -> dict[str, Run]:
        """A run of each of a level's networks by their keys, chosen where there are several."""
        by_key: dict[str, list[Run]] = {}
        for run in self.store.find(f"{output.name}/%/{output.digest}", "LIKE"):
            by_key.setdefault(run.data.tags[KEY], []).append(run)
        return {key: chosen for key, runs in by_key.items() if (chosen := choose(runs))}

    def _stage_run(self, output: Output, attempt: Attempt | None) -> Run | None:
        """The run that an output's stage has in the store; an attempt beside it is discarded."""
        found = self.store.keep_one(self.store.find(output.key))
        if found and attempt:
            self.store.discard(attempt.run)
        return found

    def _is_wanted(self, found: Run | None, name: str) -> bool:
        """Whether a run has to be made."""
        if found and not is_deleted(found):
            self.tally.there += 1
        elif found and self.restore:
            self.store.call("restore_run", found.info.run_id)
            self.tally.restored += 1
        elif found:
            self.tally.deleted.append(name)
        return found is None

    def _is_bare(self, run: Run | None, artifact: str | None) -> bool:
        """Whether a run has lost its artifacts."""
        return bool(run and artifact and not is_deleted(run) and self.store.lacks(run, artifact))

    def _restore_artifacts(self, run: Run, content: Content) -> None:
        self.store.log_artifacts(run.info.run_id, content)
        self.tally.there -= 1
        self.tally.completed += 1

    @cached_property
    def _unfinished(self) -> list[Run]:
        return self.store.unfinished()

    def _create(
        self, output: Output, content: Content, start: int, parent: str = "", adopted: Iterable[Run] = ()
    ) -> str:
        """A new run for what an output shows; what dead processes left of such a run goes.

        ``adopted``: networks of the level that are complete and go below it.
        """
        own = self.origin.tags(output.stage) | ({PARENT: parent} if parent else {})
        run = self.store.create(self.origin.named(content.name), own, start)
        self._adopt(adopted, run)
        for ghost in self._unfinished:
            name = ghost.info.run_name.partition(APART)[0]
            if name == content.name and ghost.data.params.items() <= content.params.items():
                self.store.discard(ghost.info.run_id)
        return run

    def _complete(self, run: str, key: str, content: Content, attempt: Attempt | None) -> None:
        self.store.complete(run, key, content, attempt.logged if attempt and run == attempt.run else ())
        self.tally.made += 1

    def _adopt(self, networks: Iterable[Run], parent: str) -> None:
        """Put a level's networks below its run, when they have none or that of a process that died."""
        for network in networks:
            if not is_deleted(network) and network.data.tags.get(PARENT) != parent:
                self.store.call("set_tag", network.info.run_id, PARENT, parent)

    def _add(
        self, run: Run | None, evaluated: Output, values: Mapping[str, float | None] | None = None, verdict: str = ""
    ) -> None:
        """Add to a run that a pipeline has it: the tag, test results, a line of its note, and a name where none is."""
        if run and not is_deleted(run) and evaluated.pipeline_tag not in run.data.tags:
            # at a time that is always the same, so that two machines which add the same point add one
            at, has = run.info.start_time, run.data.metrics
            metrics = [
                metric(key, value, at)
                for key, value in (values or {}).items()
                if key not in has and value is not None and not math.isnan(value)
            ]
            added = {evaluated.pipeline_tag: "true"}
            if APART not in run.info.run_name:
                added[NAME] = f"{run.info.run_name}{APART}{evaluated.pipeline}"
            if verdict:
                added[NOTE] = f"{run.data.tags.get(NOTE, '')}\n\n{verdict}".strip()
            self.store.call("log_batch", run.info.run_id, metrics, tags=[RunTag(*item) for item in added.items()])


def _first(runs: list[Run]) -> Run | None:
    return next(iter(runs), None)


def _name(output: Output, arm: str, seed: int) -> str:
    return f"{output.name} {arm} {seed}"
