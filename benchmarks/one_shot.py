"""How long the student experiment takes, tracked, against the loop that people write: `python -m benchmarks.one_shot`.

`lottery preset one-shot` and `dvc repro` in a temporary clone of the last commit, after its `download`: every network
and every report, in MLflow too. Before and after it a DataLoader + transforms + nn.Module + Adam loop trains an epoch.
The experiment as it is widely copied trains nine networks for five epochs each with such a loop, and its evaluations
come on top.
"""

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.throughput import BATCH, Loop, data_loader
from lottery.data import load_split

NETWORKS, EPOCHS = 9, 5


def seconds(loop: Loop, iterations: int) -> float:
    """What so many iterations take."""
    started = time.perf_counter()
    loop(iterations)
    return time.perf_counter() - started


def main() -> None:
    """Time both in turn and print the ratio."""
    with TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", ".", folder], check=True)

        def run(*command: str) -> None:
            subprocess.run(command, cwd=folder, check=True)

        run("lottery", "preset", "one-shot")
        run("dvc", "repro", "download")
        split = load_split(Path(folder) / "data/mnist.safetensors", 5000, "standard")
        loop, epoch = data_loader(split), len(split.train) // BATCH
        before = seconds(loop, epoch)
        started = time.perf_counter()
        run("dvc", "repro")
        pipeline = time.perf_counter() - started
        after = seconds(loop, epoch)
    usual = NETWORKS * EPOCHS * (before + after) / 2
    print(f"DataLoader loop: {before:.1f} and {after:.1f} s an epoch, {usual:.0f} s for {NETWORKS} x {EPOCHS} of them")
    print(f"`lottery preset one-shot && dvc repro`: {pipeline:.0f} s, {usual / pipeline:.1f} times faster")


if __name__ == "__main__":
    main()
