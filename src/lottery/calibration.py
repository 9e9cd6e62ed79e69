"""What this machine needs for a stage's start and for an iteration, measured once and remembered."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from lottery.core.images import Images, Scaling, Split
from lottery.core.pruning import prune_layers
from lottery.core.randomness import generator
from lottery.core.stack import Masks, Stack, everything, initialize
from lottery.core.training import SPARSE, Recipe, train
from lottery.files.checkpoints import operators
from lottery.files.workplace import durable
from lottery.params import Params

FILE = Path(".lottery/calibration.json")
SPARSEST = 0.05  # the density below which the time of an iteration falls no more
ROUNDS = 3  # of measurements, of which the median counts: other work comes and goes within seconds
SPENT = 0.4  # seconds of processors that a measurement takes at least; they are counted in hundredths
CALLED = "import torch, mlflow.tracking"  # most of what a stage imports


@dataclass(frozen=True)
class Machine:
    """Seconds of one processor, which other work on the machine does not change much."""

    start: float  # to import torch and MLflow
    dense: float  # an iteration of one network, where all threads train
    sparse: float  # the same at the density SPARSEST

    def at(self, density: float) -> float:
        """The seconds of an iteration of one network with this density, which matters below SPARSE."""
        return float(np.interp(density, [SPARSEST, SPARSE], [self.sparse, self.dense]))


def calibrated(params: Params, threads: int, anew: bool = False) -> Machine:
    """Measure this machine; remembered from the last time with these networks, unless it is to be ``anew``."""
    t, how = params.train, ", ".join(operators().values())
    layout = params.layout
    form = hashlib.sha256(repr((layout.pieces, layout.own)).encode()).hexdigest()[:12]
    name = f"{layout.shown} {form}, {t.batch_size}, {t.optimizer}, {threads} threads, {how}"
    known = _known()
    if anew or name not in known:
        known[name] = Machine(_start(), *_seconds(params, threads))
        FILE.parent.mkdir(exist_ok=True)
        with durable(FILE) as path:
            path.write_text(json.dumps({each: asdict(known[each]) for each in known}, indent=2), encoding="utf-8")
    return known[name]


def _known() -> dict[str, Machine]:
    """What was measured before; nothing where the file is none of this version's."""
    try:
        return {name: Machine(**values) for name, values in json.loads(FILE.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _start() -> float:
    before = sum(os.times()[2:4])
    subprocess.run([sys.executable, "-c", CALLED], check=True)
    return sum(os.times()[2:4]) - before


def _seconds(params: Params, threads: int) -> tuple[float, float]:
    """Measure an iteration of a dense and of a sparse network, as many at once as keep all threads busy."""
    noise, t = generator("calibration"), params.train
    pixels = torch.randint(256, (10 * t.batch_size, params.layout.inputs), dtype=torch.uint8, generator=noise)
    images = Images(pixels, torch.randint(params.layout.classes, (len(pixels),), generator=noise))
    split = Split(images, Images(images.pixels[:1], images.labels[:1]), Scaling((127.5,), (73.6,)))
    rows = range(2 * threads)
    start = initialize(params.layout, params.network.initialization, [noise for _ in rows])
    magnitudes = Stack(start.flat.abs(), start.layout)
    masks = prune_layers(magnitudes, everything(len(rows), start.layout), 1 - SPARSEST, 0.0, params.slower)

    def spend(kept: Masks | None, iterations: int) -> float:
        recipe = Recipe(iterations, t.batch_size, 0.0, iterations, t.optimizer)
        begin = start if kept is None else start.masked(kept)
        before = sum(os.times()[:4])  # of processors, workers included: what else the machine does is left out
        train(begin, kept, rows, (), split, recipe, threads=threads)
        return sum(os.times()[:4]) - before

    spend(None, 1)  # for what only the first takes
    count = 33
    while spend(None, count) < SPENT + spend(None, 1):
        count *= 2
    both: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS):
        for kept, found in zip((None, masks), both, strict=True):
            few = count // 4  # the first iterations fill the caches
            found.append((spend(kept, count) - spend(kept, few)) / (count - few) / len(rows))
    dense, sparse = map(median, both)
    return dense, sparse
