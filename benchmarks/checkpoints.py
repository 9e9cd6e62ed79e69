"""What checkpoints and checksums cost: `python -m benchmarks.checkpoints`.

A level of the default pipeline (15 networks of LeNet-300-100 on MNIST, masked, 4,580 iterations) trains as a stage
trains it: checkpoints every 20 seconds, and its folder written and read again. Counted are processor seconds of what
checkpoints and sums add, against those of the whole, which a machine that others use disturbs less than wall time.
"""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput import BATCH, LAYOUTS, LEARNING_RATE
from lottery.core.arms import Rows
from lottery.core.experiment import Level
from lottery.core.pruning import prune_layers
from lottery.core.randomness import generator
from lottery.core.stack import Stack, everything, initialize
from lottery.core.training import Recipe, Task, train
from lottery.files import artifacts, checkpoints, sealed
from lottery.files.artifacts import load_masks, load_parameters, save_level
from lottery.files.checkpoints import Checkpoints
from lottery.files.data import load_split


class Clock:
    """The processor seconds that some functions take, each counted where it is not called by another of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._thread = threading.local()

    def count(self, owner: Any, name: str, what: str) -> None:
        """Count a function of a module or a class."""
        function: Callable[..., Any] = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            if getattr(self._thread, "counts", False):
                return function(*arguments, **named)
            self._thread.counts, begin = True, time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self._thread.counts = False
                self.seconds[what] = self.seconds.get(what, 0.0) + time.thread_time() - begin

        setattr(owner, name, counted)


def _spent() -> float:
    """Processor seconds of this process and of those that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Train a level, and print what each part took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=4580, help="default: %(default)s")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between checkpoints; default: %(default)s")
    arguments = parser.parse_args()
    split, layout = load_split(Path("data/mnist.safetensors"), 5000, "standard"), LAYOUTS["lenet-300-100"]
    rows, path = Rows(("ticket", "reinit", "random"), (0, 1, 2, 3, 4)), (0.8,)
    start = initialize(layout, "glorot-normal", [generator("benchmark", row) for row in range(len(rows))])
    masks = prune_layers(Stack(start.flat.abs(), layout), everything(len(rows), layout), 0.8, 0.0, {"output": 0.5})
    start = start.masked(masks)
    recipe, seeds = Recipe(arguments.iterations, BATCH, LEARNING_RATE, evaluate_every=250), [seed for _, seed in rows]
    tasks = [Task(layout, (seed,), path, recipe) for seed in seeds]

    clock, began = Clock(), _spent()
    clock.count(checkpoints, "key", "the key")
    clock.count(Checkpoints, "keep", "copies of states")
    clock.count(Checkpoints, "_write", "writing checkpoints")
    clock.count(artifacts, "sealed", "sums of a level, writing")
    clock.count(sealed, "digest_of_tensor", "sums of a level, reading")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saved = Checkpoints(Path(folder), arguments.every)
        checkpoints.key({}, split, start, masks, tasks)
        trained = train(
            start, masks, seeds, path, split, recipe, threads=torch.get_num_threads(), advanced=saved.keep
        )  # fmt: skip
        saved.save()
        save_level(Level(path, rows, start, masks, trained), Path(folder) / "level", {})
        load_masks(Path(folder) / "level")
        for state in ("initial", "final", "early_stopping"):
            load_parameters(Path(folder) / "level", state)
    whole = _spent() - began
    for what, seconds in clock.seconds.items():
        print(f"{what:24} {seconds:7.2f} s  {seconds / whole:7.2%}")
    total = sum(clock.seconds.values())
    print(f"{'all of these':24} {total:7.2f} s  {total / whole:7.2%} of {whole:.1f} processor seconds")


if __name__ == "__main__":
    main()
