"""What `dvc repro` would do, stage by stage, and what that takes on this machine: time, memory and disk.

Seconds of training = networks x iterations x a(network, density), shared among the processors; `calibration` measures
a. docs/scaling.md has the model, and how far off it is.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from lottery import LotteryError
from lottery.calibration import Machine, calibrated
from lottery.core.training import group_size
from lottery.params import Params
from lottery.stages.faults import BASE, OTHER_ROOM, memory, room
from lottery.stages.progress import duration
from lottery.tracking.address import first_line

Fate = Literal["run", "restore", "skip"]

FILE = Path(".lottery/outlook.json")  # where the stages find it, whose progress is the whole pipeline's too
# of the time that importing torch and MLflow takes: what a stage of `lottery repro` needs beside its work
FIXED = {"download": 1.0, "train": 0.7, "prune": 0.4, "evaluate": 0.8, "export": 1.0, "plot": 1.3}
RESTORED = 1.0  # seconds in which DVC checks a stage's results out
JOINED = 2.0  # of the time that the imports take: in which a stage joins a cluster and workers import torch
TESTED, TRAINED = 3, 2  # states of a network that `evaluate` measures on test images and on training images
TEST_IMAGES = 10_000
FORWARD = 0.2  # of an iteration's time that a forward pass takes, for as many images


@dataclass(frozen=True)
class Step:
    """A stage, what DVC would do with it, and what that takes."""

    stage: str
    fate: Fate
    networks: int = 0  # to train, twins included
    iterations: int = 0  # of each of them
    parameters: int = 0  # of each of them
    fixed: float = 0.0  # seconds beside the work
    work: float = 0.0  # seconds of one processor
    beside: int = 0  # networks of its siblings: while one leaves processors idle, others are trained ahead
    memory: int = 0  # bytes
    disk: int = 0  # bytes that stay

    def seconds(self, processors: int, alone: bool = False) -> float:
        """The time that it takes on so many processors; ``alone``: where nothing is trained ahead."""
        if not self.networks:
            return self.fixed + self.work / processors
        groups = -(-self.networks // group_size(self.networks, self.parameters, processors))
        if self.networks < processors and not alone:
            groups += self.beside
        return self.fixed + self.work / min(processors, groups)


@dataclass(frozen=True)
class Outlook:
    """What DVC would do with every stage, in its order."""

    steps: Sequence[Step]
    threads: int
    join: float  # seconds that a stage which trains on a cluster needs in addition
    gpu: str = ""  # the name of one that would train, of which the model of times knows nothing

    @property
    def at_work(self) -> list[Step]:
        """The steps that take time."""
        return [step for step in self.steps if step.fate != "skip"]

    @property
    def seconds(self) -> Mapping[str, float]:
        """The time of each stage that DVC would run or restore."""
        return {step.stage: step.seconds(self.threads) for step in self.at_work}

    def on_nodes(self, nodes: int) -> float:
        """Seconds on a cluster of so many machines like this one, whose first does what is no training."""
        train = [step for step in self.at_work if step.networks]
        other = [step for step in self.at_work if not step.networks]
        on_cluster = sum(self.join + step.seconds(nodes * self.threads, alone=True) for step in train)
        return on_cluster + sum(step.seconds(self.threads) for step in other)

    def __str__(self) -> str:
        if not self.at_work:
            return "all results are up to date: nothing has to run"
        networks = sum(step.networks for step in self.steps)
        trained = f", {networks} networks to train" if networks else ""
        fates = (("to run", "run"), ("to restore from DVC's cache", "restore"))
        stages = {told: [step.stage for step in self.at_work if step.fate == fate] for told, fate in fates}
        lines = [f"{told}: {', '.join(names)}" for told, names in stages.items() if names]
        return f"{'; '.join(lines)}{trained}\nabout {duration(sum(self.seconds.values()))}{self._without}"

    @property
    def _without(self) -> str:
        return f" without {self.gpu}, whose time is not known" if self.gpu else ""

    def table(self) -> str:
        """All that is known of each stage, and the sums."""
        rows = [("stage", "DVC would", "networks", "iterations", "time", "memory", "disk")]
        for step in self.steps:
            took = duration(step.seconds(self.threads)) if step.fate != "skip" else ""
            numbers = (f"{step.networks:,}", f"{step.iterations:,}") if step.networks else ("", "")
            sizes = (_shown(step.memory), _shown(step.disk)) if step.fate != "skip" else ("", "")
            rows.append((step.stage, step.fate, *numbers, took, *sizes))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([
                row[0].ljust(widths[0]), row[1].ljust(widths[1]),
                *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)),
            ]).rstrip()
            for row in rows
        ]  # fmt: skip
        work = sum(step.networks * step.iterations for step in self.steps)
        if not self.at_work:
            return "\n".join([*lines, str(self)])
        most, disk = max(step.memory for step in self.at_work), sum(step.disk for step in self.at_work)
        lines.append(
            f"in all: {sum(step.networks for step in self.steps):,} networks, {work:,} iterations, about "
            f"{duration(sum(self.seconds.values()))} on {self.threads} processors{self._without}, "
            f"{_shown(most)} of memory, {_shown(disk)} of disk"
        )
        if work:
            several = (2, 4, 8)
            times = ", ".join(duration(self.on_nodes(nodes)) for nodes in several)
            lines.append(f"on {', '.join(map(str, several))} nodes like this one (run.engine: ray): {times}")
        return "\n".join(lines)

    def save(self) -> None:
        """Leave the seconds of the stages that would run, for these."""
        seconds = {step.stage: step.seconds(self.threads) for step in self.steps if step.fate == "run"}
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(seconds), encoding="utf-8")


def outlook(params: Params, threads: int, gpu: str = "", anew: bool = False) -> Outlook:
    """Find out what `dvc repro` would do in this folder. Raises LotteryError where DVC cannot read its pipeline.

    ``gpu`` is the name of one that would train; ``anew``: calibrate again, and do not go by what is remembered.
    """
    try:
        found = fates()
    except DvcException as error:
        raise LotteryError(f"DVC cannot read its pipeline: {first_line(error)}") from error
    machine = calibrated(params, threads, anew) if "run" in found.values() else Machine(0.0, 0.0, 0.0)
    pending = [stage for stage, fate in found.items() if fate == "run"]
    steps = [_step(params, machine, stage, found[stage], pending) for stage in found if stage != "check"]
    return Outlook(steps, threads, JOINED * machine.start, gpu)


def fates() -> dict[str, Fate]:
    """Find what DVC would do with each stage, in its order.

    It skips what has not changed, and restores what its cache has; what depends on a stage that runs, runs: whether DVC
    has that in its cache is known then.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)
    with Repo(".") as repo, repo.lock:
        graph = repo.index.graph  # from each stage to those that it depends on
        found: dict[str, Fate] = {}
        restored: dict[str, Any] = {}  # the hashes of outputs by their paths
        for stage in networkx.dfs_postorder_nodes(graph):
            if isinstance(stage, PipelineStage):
                above = {found.get(each.addressing, "skip") for each in graph.successors(stage)}
                found[stage.addressing] = _fate(stage, above, restored)
        return found


def _fate(stage: PipelineStage, above: set[Fate], restored: dict[str, Any]) -> Fate:
    if "run" in above:
        return "run"
    if "restore" not in above and not stage.changed():
        return "skip"
    if not stage.outs or not all(dep.exists or dep.def_path in restored for dep in stage.deps):
        return "run"
    stage.save_deps(allow_missing=True)
    for dep in stage.deps:
        if dep.def_path in restored:
            dep.hash_info = restored[dep.def_path]
            dep.get_hash = partial(getattr, dep, "hash_info")  # which looks for the file, and it is not here yet
        elif any(Path(dep.def_path) in Path(path).parents for path in restored):
            return "run"  # a folder of outputs, whose hash is not known yet
    cache = repo_cache(stage)
    if cache is None:
        return "run"
    restored.update({out.def_path: out.hash_info for out in cache.outs})
    return "restore"


def repo_cache(stage: PipelineStage) -> PipelineStage | None:
    """What DVC's cache of runs has of a stage, if all its outputs are there."""
    runs = stage.repo.stage_cache
    entry = runs._load(stage)
    found = runs._create_stage(entry, wdir=stage.wdir) if entry else None
    return found if found and found.outs_cached() else None


def _step(params: Params, machine: Machine, stage: str, fate: Fate, pending: Sequence[str]) -> Step:
    name, _, level = stage.partition("@")
    trains = name in ("train", "prune")
    disk = room(params, level or "dense") if trains else OTHER_ROOM * (name == "download")
    if fate != "run":
        return Step(stage, fate, fixed=RESTORED, disk=disk)
    fixed = FIXED[name] * machine.start
    if name == "evaluate":
        needed = BASE + max(room(params, each) for each in ("dense", *params.levels))  # a level at a time
        return Step(stage, fate, fixed=fixed, work=_evaluating(params, machine), memory=needed)
    if not trains:
        return Step(stage, fate, fixed=fixed, memory=BASE, disk=disk)
    count, beside = params.networks(level or "dense"), 0
    if level:  # as `stages.ahead` has it, which one level after another profits from
        others = {each.removeprefix("prune@") for each in pending if "@" in each} - {level}
        beside = sum(params.networks(other) for other in others if _siblings(params, level, other))
    density = 1 - params.levels[level].sparsity if level else 1.0
    evaluated = FORWARD * params.validation_images / params.train.batch_size / params.train.evaluate_every
    work = count * params.iterations * (machine.at(density) + machine.at(1.0) * evaluated)
    parameters = sum(piece.size for piece in params.layout.pieces)
    needed = memory(params, level or "dense")
    return Step(stage, fate, count, params.iterations, parameters, fixed, work, beside, needed, disk)


def _siblings(params: Params, level: str, other: str) -> bool:
    return params.levels[level].parent == params.levels[other].parent


def _evaluating(params: Params, machine: Machine) -> float:
    """The seconds of a processor that measuring all networks takes."""
    images = TESTED * TEST_IMAGES + TRAINED * params.training_images
    trained = sum(len(params.rows(level)) for level in ("dense", *params.levels))
    return FORWARD * trained * images / params.train.batch_size * machine.at(1.0)


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"
