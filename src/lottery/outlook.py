"""The stages that `dvc repro` would run, and about how long they take on this machine."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx
import torch
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from lottery import LotteryError
from lottery.core.arms import TWINNED
from lottery.core.images import Images, Scaling, Split
from lottery.core.randomness import generator
from lottery.core.stack import initialize
from lottery.core.training import Recipe, train
from lottery.params import Params
from lottery.stages.progress import duration
from lottery.tracking.address import first_line

FILE = Path(".lottery/outlook.json")  # where the stages find it, whose progress is the whole pipeline's too
START = 5.0  # seconds in which a stage imports torch and MLflow, hashes what it reads, and ends
DRAWING = 10.0  # seconds for the figures and the report
CALIBRATION = 0.5  # seconds of processors at least, which are counted in hundredths
TESTED, TRAINED = 3, 2  # states of a network that `evaluate` measures on test images and on training images
TEST_IMAGES = 10_000


@dataclass(frozen=True)
class Outlook:
    """The stages that would run, in DVC's order, each with the seconds that it takes."""

    seconds: Mapping[str, float]
    networks: int  # to train

    def __str__(self) -> str:
        if not self.seconds:
            return "all results are up to date: nothing has to run"
        trained = f", {self.networks} networks to train" if self.networks else ""
        return (
            f"to run: {', '.join(self.seconds)}{trained}\n"
            f"about {duration(sum(self.seconds.values()))}, less where DVC's cache has a stage's results"
        )

    def save(self) -> None:
        """Leave the seconds for the stages."""
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(self.seconds), encoding="utf-8")


def outlook(params: Params, threads: int) -> Outlook:
    """Find out what `dvc repro` would run in this folder. Raises LotteryError where DVC cannot read its pipeline."""
    try:
        stages = to_run()
    except DvcException as error:
        raise LotteryError(f"DVC cannot read its pipeline: {first_line(error)}") from error
    work = {stage: iterations(params, stage) for stage in stages if stage != "check"}
    pace = seconds_per_iteration(params, threads) if any(work.values()) else 0.0
    seconds = {stage: START + pace * work[stage] + DRAWING * (stage == "plot") for stage in work}
    return Outlook(seconds, sum(networks(params, stage) for stage in work))


def to_run() -> list[str]:
    """List the stages that DVC would run or restore, in its order: what has changed, and what depends on it."""
    logging.getLogger("dvc").setLevel(logging.ERROR)
    with Repo(".") as repo, repo.lock:
        graph = repo.index.graph  # from each stage to those that it depends on
        found: list[str] = []
        for stage in networkx.dfs_postorder_nodes(graph):
            if isinstance(stage, PipelineStage) and (
                any(each.addressing in found for each in graph.successors(stage)) or stage.changed()
            ):
                found.append(stage.addressing)
        return found


def networks(params: Params, stage: str) -> int:
    """Count the networks that a stage trains, twins included."""
    name, _, level = stage.partition("@")
    arms = params.arms(level or "dense") if name in ("train", "prune") else ()
    twins = sum(arm in TWINNED for arm in arms) if params.train.twins else 0
    return (len(arms) + twins) * len(params.train.seeds)


def iterations(params: Params, stage: str) -> float:
    """A stage's work, in iterations of one network; the forward pass of a batch counts as a third."""
    if stage == "evaluate":
        images = TESTED * TEST_IMAGES + TRAINED * params.training_images
        training = ["train", *(f"prune@{level}" for level in params.levels)]
        return sum(networks(params, each) for each in training) * images / params.train.batch_size / 3
    return float(networks(params, stage) * params.iterations)


def seconds_per_iteration(params: Params, threads: int) -> float:
    """Measure an iteration of one network, its share of the evaluations included, where all threads train."""
    noise, t = generator("calibration"), params.train

    def images(count: int) -> Images:
        pixels = torch.randint(256, (count, params.layout.inputs), dtype=torch.uint8, generator=noise)
        return Images(pixels, torch.randint(10, (count,), generator=noise))

    split = Split(images(10 * t.batch_size), images(params.validation_images), Scaling(127.5, 73.6))
    rows = range(2 * threads)
    start = initialize(params.layout, params.network.initialization, [noise for _ in rows])

    def spend(iterations: int) -> float:
        recipe = Recipe(iterations, t.batch_size, 0.0, iterations, t.optimizer)
        before = sum(os.times()[:4])  # of processors, children included: what else the machine does is left out
        train(start, None, rows, (), split, recipe, threads=threads)
        return sum(os.times()[:4]) - before

    spend(1)  # for what only the first takes
    overhead, count = spend(1), 33
    while (spent := spend(count) - overhead) < max(CALIBRATION, 2 * overhead):  # which varies too
        count *= 2
    evaluations = params.validation_images / t.batch_size / 3 / t.evaluate_every
    return spent / (count - 1) / len(rows) / threads * (1 + evaluations)
