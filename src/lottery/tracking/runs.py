"""What runs say, read from the outputs: the same while a stage works and when its runs are made later."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run, RunTag, ViewType
from mlflow.utils import mlflow_tags as tags
from safetensors.torch import save
from torch import Tensor

from lottery.artifacts import load_contents, load_history, load_masks
from lottery.connectivity import BARRIERS
from lottery.params import Params
from lottery.provenance import git
from lottery.pruning import density, weights_kept
from lottery.reports import load_table
from lottery.statistics import ACCURACIES, by_level, early_stopping
from lottery.structure import of_networks
from lottery.tracking.outputs import Output
from lottery.tracking.store import (
    CLAIMED,
    KEY,
    WRITING,
    Content,
    Points,
    Store,
    is_complete,
    is_deleted,
    milliseconds,
)

PARENT = tags.MLFLOW_PARENT_RUN_ID
MEASURES = (*ACCURACIES, *BARRIERS)  # what an evaluation adds to a network's run
LAST_ARTIFACT = {"evaluate": "reports/tables", "plot": "report"}  # of what a stage's run has, what is logged last
CURVES = ("train_loss", "validation_loss", "validation_accuracy")  # a history's columns


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: circumstances, which are not part of what it shows."""

    commit: str = ""
    dirty: bool = False
    experiment: str = ""  # DVC's
    baseline: str = ""

    def tags(self, stage: str) -> dict[str, str]:
        """As tags of a run of this DVC stage, with those that fill the UI's Source column."""
        values = {
            tags.MLFLOW_SOURCE_NAME: stage,
            tags.MLFLOW_SOURCE_TYPE: "PROJECT",
            "dvc.stage": stage,
            tags.MLFLOW_GIT_COMMIT: self.commit,
            "git.dirty": str(self.dirty).lower() if self.commit else "",
            "dvc.experiment": self.experiment,
            "dvc.baseline": self.baseline,
        }
        return {key: value for key, value in values.items() if value}


def origin_of_workspace(environment: Mapping[str, str]) -> Origin:
    """The checked-out commit, and the DVC experiment that this process belongs to."""
    # dvc.lock and reports/ are what a running pipeline writes itself
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    return Origin(
        commit=git("rev-parse", "HEAD"),
        dirty=bool(changed),
        experiment=environment.get("DVC_EXP_NAME", ""),
        baseline=environment.get("DVC_EXP_BASELINE_REV", ""),
    )


# --- contents --------------------------------------------------------------------------------------------------------


def settings(params: Params) -> dict[str, str]:
    """The settings that all networks of a pipeline share, by the names that people filter by."""
    train, prune = params.train, params.prune
    values: dict[str, Any] = {
        "dataset": params.data.name,
        "validation": params.validation_images,
        "scale": params.data.scale,
        "hidden": ", ".join(map(str, params.network.hidden)),
        "initialization": params.network.initialization,
        "iterations": params.iterations,
        "batch_size": train.batch_size,
        "optimizer": train.optimizer,
        "learning_rate": train.learning_rate,
        "schedule": train.schedule,
        "warm_up": train.warm_up,
        "drops": train.drops and ", ".join(map(str, train.drops)),
        "drop_factor": train.drop_factor,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "evaluate_every": train.evaluate_every,
        "criterion": prune.criterion,
        "scope": prune.scope,
        "output_rate": prune.output_rate,
        "rewind": prune.rewind,
        "from": prune.source,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def level_settings(params: Params, name: str) -> dict[str, str]:
    """Those and what a level adds."""
    path = params.path(name)
    own = {} if name == "dense" else {"criterion": params.criterion(name), "scope": params.scope(name)}
    return {
        **settings(params),
        **own,
        "level": name,
        "parent": "" if name == "dense" else params.levels[name].parent,
        "path": ", ".join(map(str, path)),
        "sparsity": str(path[-1] if path else 0.0),
    }


def network_settings(params: Params, name: str, arm: str, seed: int) -> dict[str, str]:
    """Those and what a network adds."""
    return level_settings(params, name) | {"arm": arm, "seed": str(seed)}


def data_input(output: Output) -> DatasetInput:
    """The data set as a run's input."""
    params = output.params
    profile = {"training images": params.training_images, "validation images": params.validation_images}
    data = Dataset(
        name=params.data.name,
        digest=output.data_digest[:16],
        source_type="local",
        source=json.dumps({"uri": str(params.data_file)}),
        profile=json.dumps(profile),
    )
    return DatasetInput(data, [InputTag(tags.MLFLOW_DATASET_CONTEXT, "training")])


def mean_points(arm: str, iteration: int, values: Mapping[str, Iterable[float]]) -> Iterator[tuple[str, float, int]]:
    """An arm's mean over its seeds at one iteration, a metric a curve: `validation_loss.ticket`."""
    for curve, each in values.items():
        seeds = list(each)
        mean = math.fsum(seeds) / len(seeds)
        if not math.isnan(mean):  # nothing is trained before iteration 0
            yield f"{curve}.{arm}", mean, iteration


def curve_points(iteration: int, values: Mapping[str, float]) -> Iterator[tuple[str, float, int]]:
    """A network's history at one iteration, a metric a curve."""
    for curve, value in values.items():
        if not math.isnan(value):
            yield curve, value, iteration


def simple(output: Output, folder: Path) -> Content:
    """What the run of `download`, `evaluate` or `plot` shows; ``folder`` holds the output's files."""
    points: Points = ()
    artifacts = {}
    params = settings(output.params)
    if output.name == "download":
        params = {"dataset": output.params.data.name}
    elif output.name == "evaluate":
        points = list(summary(load_table(folder / "tables/levels.csv")))
        verdicts = load_table(folder / "tables/verdicts.csv").set_index("level")["verdict"]
        params |= {f"verdict.{level}": verdict for level, verdict in verdicts.items()}
        artifacts["reports"] = partial(_copy, [folder / "metrics.json"])
        artifacts["reports/tables"] = partial(_copy, sorted((folder / "tables").iterdir()))
    else:
        artifacts["figures"] = partial(_copy, sorted((folder / "figures").iterdir()))
        artifacts["report"] = partial(_copy, [folder / "report.html"])
    return Content(output.name, params, points, [data_input(output)], artifacts)


def _copy(files: Iterable[Path], target: Path) -> None:
    for file in files:
        shutil.copy(file, target)


def summary(levels: pd.DataFrame) -> Iterator[tuple[str, float, int]]:
    """Test accuracy against pruning: for each arm, and each path where the tree has several, from dense to a leaf.

    One metric an arm, its step round(1000 (1 - density)): the UI's chart of two pipelines shows two curves.
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
                name = f"test_accuracy.{arm}" + (f".{leaf}" if len(leaves) > 1 else "")
                for level in path:
                    value = accuracy.get((level, arm if level != "dense" else "dense"))
                    if value is not None:
                        yield name, value, int(pruned[level])


def level(output: Output, folder: Path) -> tuple[Content, dict[tuple[str, int], Content]]:
    """What the run of a level's stage shows, and what those of its networks do, by arm and seed."""
    contents, history, masks = load_contents(folder), load_history(folder), load_masks(folder)
    stops = early_stopping(history).set_index(["arm", "seed"])
    data = [data_input(output)]
    sparsity = contents.path[-1] if contents.path else 0.0
    densities, kept = density(masks).tolist(), weights_kept(masks).tolist()
    measures = {name: values.tolist() for name, values in of_networks(masks).items()}
    histories = dict(iter(history.groupby(["arm", "seed"], sort=False)))
    networks = {}
    for row, (arm, seed) in enumerate(contents.networks):
        stop = stops.loc[(arm, seed)]
        points = [
            ("sparsity", sparsity, 0),
            ("density", densities[row], 0),
            ("weights_kept", sum(kept[row]), 0),
            *((name, values[row], 0) for name, values in measures.items()),
            ("early_stopping_iteration", stop["early_stopping_iteration"], 0),
            ("censored", stop["censored"], 0),
        ]
        for record in histories[arm, seed].to_dict("records"):
            points += curve_points(record["iteration"], {curve: record[curve] for curve in CURVES})
        networks[arm, seed] = Content(
            f"{output.name} {arm} {seed}",
            network_settings(output.params, output.name, arm, seed),
            points,
            data,
            {"mask": partial(_save_mask, [mask[row] for mask in masks])},
        )
    means = [("sparsity", sparsity, 0), ("density", math.fsum(densities) / len(densities), 0)]
    for (arm, iteration), rows in history.groupby(["arm", "iteration"], sort=False):
        means += mean_points(arm, iteration, {curve: rows[curve] for curve in CURVES})
    return Content(output.name, level_settings(output.params, output.name), means, data), networks


def _save_mask(masks: list[Tensor], folder: Path) -> None:
    from lottery.mask_figures import save_mask_picture  # matplotlib takes 0.2 s, while nobody waits for it here

    layers = {f"layer{i}": mask.contiguous() for i, mask in enumerate(masks)}
    (folder / "mask.safetensors").write_bytes(save(layers))
    save_mask_picture(masks[0], folder / "mask.png")


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """The runs that a working stage has opened, and the (key, step) of the points on each."""

    run: str
    networks: dict[tuple[str, int], str] = field(default_factory=dict)
    logged: dict[str, set[tuple[str, int]]] = field(default_factory=dict)


@dataclass
class Tally:
    """What became of the runs that outputs should have."""

    there: int = 0  # complete before
    elsewhere: int = 0  # being written by another machine
    restored: int = 0
    deleted: list[str] = field(default_factory=list)  # by a person, and so they stay


class Recorder:
    """Sees to it that an output's runs are there, once each and complete. Never changes a complete run.

    A run that a person deleted stays deleted unless ``restore``. Its methods raise MissingError where an output's files
    are needed and not there.
    """

    def __init__(self, store: Store, origin: Origin, restore: bool = False) -> None:
        self.store = store
        self.origin = origin
        self.restore = restore
        self.tally = Tally()

    def simple(self, output: Output, attempt: Attempt | None = None) -> None:
        """The run of `download`, `evaluate` or `plot`."""
        with self.store.lock():
            found = self._stage_run(output, attempt)
            if found and self._lacks(found, LAST_ARTIFACT.get(output.name)):
                with output.files() as folder:
                    self.store.restore_artifacts(found.info.run_id, simple(output, folder))
            elif self._is_wanted(found, output.name):
                with output.files() as folder:
                    run = self._claim(output, found, attempt)
                    if run:
                        self.store.complete(run, simple(output, folder), attempt.logged.get(run) if attempt else None)

    def level(self, output: Output, attempt: Attempt | None = None) -> None:
        """The run of a level's stage and those of its networks."""
        attempt = attempt or Attempt("")
        with self.store.lock():
            found = self._stage_run(output, attempt)
            unfinished = self._is_wanted(found, output.name)
            if found and not unfinished and not is_complete(found) and not is_deleted(found):
                return  # another machine is at it
            networks = self.networks(output)
            wanted = [
                (arm, seed)
                for arm, seed in expected(output.params, output.name)
                if self._is_wanted(networks.get(output.network_key(arm, seed)), f"{output.name} {arm} {seed}")
            ]
            if found and not unfinished:
                self._adopt(networks.values(), found.info.run_id)
            bare = [each for each in expected(output.params, output.name) if self._is_bare(networks, output, *each)]
            if not unfinished and not bare and (not wanted or found is None or is_deleted(found)):
                return
            with output.files() as folder:
                content, contents = level(output, folder)
            for arm, seed in bare:
                run = networks[output.network_key(arm, seed)].info.run_id
                self.store.restore_artifacts(run, contents[arm, seed])
            self.tally.there -= len(bare)
            if not unfinished and (not wanted or found is None or is_deleted(found)):
                return
            run = self._claim(output, found, attempt)
            if not run:
                return
            self._adopt(networks.values(), run)
            start = renewed = milliseconds()
            for row, (arm, seed) in enumerate(wanted):
                key, lacking = output.network_key(arm, seed), None
                if key in networks:
                    child = networks[key].info.run_id
                elif run == attempt.run and (arm, seed) in attempt.networks:
                    child, lacking = attempt.networks[arm, seed], key
                else:
                    own = self.origin.tags(output.stage) | {PARENT: run, KEY: key}
                    child = self.store.create(f"{output.name} {arm} {seed}", own, start + 1 + row)
                self.store.complete(child, contents[arm, seed], attempt.logged.get(child), lacking)
                if unfinished and milliseconds() - renewed > WRITING / 8:
                    self.store.renew(run)
                    renewed = milliseconds()
            for ghost in self.store.children(run):  # of an attempt that others completed
                if KEY not in ghost.data.tags:
                    self.store.discard(ghost.info.run_id)
            if unfinished:
                self.store.complete(run, content, attempt.logged.get(run))

    def evaluation(self, output: Output, levels: Iterable[Output], attempt: Attempt | None = None) -> None:
        """The run of `evaluate`, and on every network that it read its test results and the pipeline's tag."""
        with output.files() as folder:
            networks, barriers, means = (
                load_table(folder / f"tables/{name}.csv") for name in ("networks", "connectivity", "levels")
            )
        networks = networks.merge(barriers, "left", ["level", "arm", "seed"])
        read = set(networks["level"])
        with self.store.lock():
            for of_level in (level for level in levels if level.name in read):
                runs = self.networks(of_level)
                for row in networks[networks["level"] == of_level.name].to_dict("records"):
                    run = runs.get(of_level.network_key(row["arm"], row["seed"]))
                    self._add(run, output.pipeline_tag, {measure: row.get(measure) for measure in MEASURES})
                values = {
                    f"{measure}.{row['arm']}": row.get(f"{measure}_mean")
                    for row in means[means["level"] == of_level.name].to_dict("records")
                    for measure in MEASURES
                }
                self._add(next(iter(self.store.find(of_level.key)), None), output.pipeline_tag, values)
            self.simple(output, attempt)
            self._add(next(iter(self.store.find(output.key)), None), output.pipeline_tag, {})

    def networks(self, output: Output) -> dict[str, Run]:
        """The runs of a level's networks by their keys, deleted ones only where there is no other."""
        by_key: dict[str, list[Run]] = {}
        for run in self.store.search(f"tags.`{KEY}` LIKE '{output.name}/%/{output.digest}'", ViewType.ALL):
            by_key.setdefault(run.data.tags[KEY], []).append(run)
        return {key: kept for key, runs in by_key.items() if (kept := self.store.keep_one(runs))}

    def _stage_run(self, output: Output, attempt: Attempt | None) -> Run | None:
        """The run that an output's stage has in the store; an attempt beside it is discarded."""
        found = self.store.keep_one(self.store.find(output.key))
        if found and attempt and attempt.run and attempt.run != found.info.run_id:
            self.store.discard(attempt.run)
        return found

    def _is_wanted(self, found: Run | None, name: str) -> bool:
        """Whether a run has to be made or completed."""
        if found is None:
            return True
        if is_deleted(found):
            if not self.restore:
                self.tally.deleted.append(name)
                return False
            self.store.call("restore_run", found.info.run_id)
            self.tally.restored += 1
        elif is_complete(found):
            self.tally.there += 1
        elif self.store.is_being_written(found):
            self.tally.elsewhere += 1
            return False
        return not is_complete(found)

    def _lacks(self, run: Run, artifact: str | None) -> bool:
        return bool(artifact) and is_complete(run) and not is_deleted(run) and self.store.lacks(run, str(artifact))

    def _is_bare(self, networks: Mapping[str, Run], output: Output, arm: str, seed: int) -> bool:
        run = networks.get(output.network_key(arm, seed))
        return run is not None and self._lacks(run, "mask")

    def _adopt(self, networks: Iterable[Run], parent: str) -> None:
        """Put a level's networks below its run, after `mlflow gc` has purged the one that they had."""
        for network in networks:
            if not is_deleted(network) and network.data.tags.get(PARENT) != parent:
                self.store.call("set_tag", network.info.run_id, PARENT, parent)

    def _claim(self, output: Output, found: Run | None, attempt: Attempt | None) -> str | None:
        """The run to complete for an output's stage; None where another machine was faster, and completes its own."""
        if found:
            run = str(found.info.run_id)
            return run if is_complete(found) or self.store.take_over(run) else None
        run = attempt.run if attempt else ""
        if not run:
            own = self.origin.tags(output.stage) | {KEY: output.key, CLAIMED: self.store.claimed()}
            run = self.store.create(output.name, own, milliseconds())
        return run if self.store.claim(output.key, run) else None

    def _add(self, run: Run | None, tag: str, values: Mapping[str, float | None]) -> None:
        if run and not is_deleted(run) and tag not in run.data.tags:
            # at a time that is always the same, so that two machines which add the same point add one
            at, has = run.info.start_time, run.data.metrics
            metrics = [
                Metric(key, float(value), at, 0)
                for key, value in values.items()
                if key not in has and value is not None and not math.isnan(value)
            ]
            self.store.call("log_batch", run.info.run_id, metrics, tags=[RunTag(tag, "true")])


def expected(params: Params, level: str) -> list[tuple[str, int]]:
    """(arm, seed) of each network that a level has, in the order of the stack."""
    arms = ("dense",) if level == "dense" else params.arms(level)
    return [(arm, seed) for arm in arms for seed in params.train.seeds]
