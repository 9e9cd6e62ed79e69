"""DVC's records of the outputs of stages, and the keys of the runs that show them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lottery import LotteryError
from lottery.files.digests import digest_of_files
from lottery.files.workplace import is_inside
from lottery.params import RECORDED, Params

# One network, one identity: level, arm, seed and the DVC hash of the level's files. Written last: a run that has it is
# complete, and what it shows is never changed.
KEY = "lottery.key"
DIRTY = "lottery.dirty"  # the commit of a run that has it is not all that it was made from
PIPELINE = "lottery.pipeline."  # begins the tag of a pipeline's runs
TABLES = "reports/tables"
SECTIONS = ("network", "train", "prune")  # of params.yaml, of which each stage records its own


class MissingError(Exception):
    """An output's files are not there, or are others than those that DVC records: one line, with the remedy."""


class _UnknownError(Exception):
    """Parameters that this version does not know."""


def digest_of_outs(outs: Mapping[str, str]) -> str:
    """One sum for all that a stage left, from those in dvc.lock by path; a single output has its own."""
    return digest_of_files(outs) if len(outs) > 1 else next(iter(outs.values()))


def pipeline_of(tables: str) -> str:
    """The name of a pipeline: the first digits of the MD5 sum of its tables, which its report names."""
    return tables[:8]


@dataclass(frozen=True)
class Output:
    """The output of a stage: enough to make its runs."""

    name: str  # the run's: a level, or download, evaluate, export or plot
    stage: str  # DVC's: prune@p80
    digest: str
    data_digest: str
    params: Params
    files: Callable[[], AbstractContextManager[Path]]  # its folder, fetched if need be; raises MissingError
    pipeline: str = ""  # of `evaluate`, `export` and `plot`: the first digits of the MD5 sum of the tables

    @property
    def key(self) -> str:
        """`lottery.key` of the stage's run."""
        return f"{self.name}/{self.digest}"

    def network_key(self, arm: str, seed: int) -> str:
        """`lottery.key` of a network's run."""
        return f"{self.name}/{arm}/{seed}/{self.digest}"

    @property
    def pipeline_tag(self) -> str:
        """The tag of all runs of a pipeline: what its evaluation read, and what it left."""
        return f"{PIPELINE}{self.pipeline}"


@dataclass(frozen=True)
class Recorded:
    """A stage as dvc.lock records it."""

    name: str  # as `Output.name`
    stage: str
    params: Params
    outs: Mapping[str, str]  # MD5 sums by path
    deps: Mapping[str, str]  # likewise
    data_digest: str

    @property
    def folder(self) -> str:
        """The path of the folder or file that the stage left, or of the folder that has them all."""
        first = next(iter(self.outs))
        return first if len(self.outs) == 1 else first.rpartition("/")[0]

    @property
    def pipeline(self) -> str:
        """The name of the pipeline, as `Output.pipeline`."""
        return pipeline_of({**self.deps, **self.outs}.get(TABLES, ""))

    def output(self, files: Callable[["Recorded"], AbstractContextManager[Path]]) -> Output:
        """Convert to an output; ``files`` gives `folder` with its files."""
        total = digest_of_outs(self.outs)
        return Output(self.name, self.stage, total, self.data_digest, self.params, lambda: files(self), self.pipeline)


def recorded(lock: str, params: Params, commit: str = "") -> list[Recorded]:
    """The stages of a dvc.lock, in the pipeline's order, with the parameters that it records for them.

    ``params`` supplies what no stage depends on: where to track. ``commit`` has the dvc.lock; empty: the workspace.
    Raises LotteryError.
    """
    try:
        stages: dict[str, Any] = (yaml.safe_load(lock) or {}).get("stages", {})
        return list(_stages(stages, params))
    except _UnknownError as error:
        reader = f"the code of {commit}" if commit else "the code that wrote it"
        raise LotteryError(f"dvc.lock: this version does not know its parameters ({error}); {reader} does") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        remedy = f"the code of {commit} can" if commit else "`dvc repro` or `git checkout dvc.lock` mends it"
        raise LotteryError(f"dvc.lock: this version cannot read it; {remedy}") from error


def _stages(stages: dict[str, Any], current: Params) -> Iterable[Recorded]:
    if "train" not in stages:
        return
    values = {stage: _nested(entry.get("params", {}).get("params.yaml", {})) for stage, entry in stages.items()}
    levels = {stage.partition("@")[2]: stage for stage in stages if stage.startswith("prune@")}
    if "evaluate" in stages:  # DVC keeps the entries of levels that were removed since
        present = {**values["evaluate"]["levels"], **current.levels}
        levels = {level: stage for level, stage in levels.items() if level in present}
        parents = {level: values[stage]["levels"][level]["parent"] for level, stage in levels.items()}
        while old := {level for level in levels if parents[level] not in {"dense", *levels}}:  # added anew, not run yet
            levels = {level: stage for level, stage in levels.items() if level not in old}
    every: dict[str, Any] = current.model_dump(exclude_unset=True)
    every |= {section: values["train"][section] for section in ("data", "network", "train")}
    for stage in levels.values():
        every["prune"] = values[stage]["prune"]
    if levels:
        every["levels"] = {name: values[stage]["levels"][name] for name, stage in levels.items()}
    whole = _params(every)
    data = {entry["path"]: entry["md5"] for entry in stages["train"]["deps"]}[str(whole.data_file)]
    names = {"download": "download", "train": "dense"} | {f"prune@{level}": level for level in whole.order}
    for stage, name in (names | {stage: stage for stage in ("evaluate", "export", "plot")}).items():
        if stage in stages:
            own = {section: values[stage][section] for section in SECTIONS if section in values[stage]}
            if name == "dense":  # of `prune` it depends on `rewind` alone
                own["prune"] = every["prune"] | own["prune"]
            outs, deps = (
                {entry["path"]: entry["md5"].removesuffix(".dir") for entry in stages[stage].get(which, ())}
                for which in ("outs", "deps")
            )
            if not all(map(is_inside, outs)):  # fetched files go there
                raise ValueError(outs)
            yield Recorded(name, stage, _params(every | own), outs, deps, data)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """dvc.lock's `levels.p80: {...}` as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _params(values: dict[str, Any]) -> Params:
    try:
        return Params.model_validate(values, context=RECORDED)
    except ValidationError as error:
        raise _UnknownError(error.errors()[0]["msg"]) from error
