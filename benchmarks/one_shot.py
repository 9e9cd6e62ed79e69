"""How long the student experiment takes, tracked, against the loop that people write: `python -m benchmarks.one_shot`.

`lottery preset one-shot` and `dvc repro` in a temporary clone of the last commit, after its `download`: every network
and every report, in MLflow too. Before and after it a DataLoader + transforms + nn.Module + Adam loop trains an epoch
and looks at the validation images. The experiment as it is widely copied trains nine networks for five epochs each with
such a loop, the unpruned one twice.
"""

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.throughput import Transformed, module
from lottery.core.images import Split
from lottery.files.data import load_split

NETWORKS, EPOCHS, BATCH, LEARNING_RATE = 9, 5, 64, 0.001


def epoch(split: Split) -> float:
    """What an epoch of the usual loop takes, in seconds: training, and the accuracy on the validation images."""
    model = module()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    train = DataLoader(Transformed(split.train), batch_size=BATCH, shuffle=True)
    validation = DataLoader(Transformed(split.validation), batch_size=BATCH)
    started = time.perf_counter()
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.flatten(1)), labels).backward()
        optimizer.step()
    with torch.no_grad():
        right = sum(int((model(inputs.flatten(1)).argmax(1) == labels).sum()) for inputs, labels in validation)
    took = time.perf_counter() - started
    assert right > 0.9 * len(split.validation), "the loop learns nothing"
    return took


def main() -> None:
    """Time both in turn and print the ratio."""
    with TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", ".", folder], check=True)

        def run(*command: str) -> None:
            subprocess.run(command, cwd=folder, check=True)

        run("lottery", "preset", "one-shot")
        run("dvc", "repro", "download")
        split = load_split(Path(folder) / "data/mnist.safetensors", 5000, "standard")
        before = epoch(split)
        started = time.perf_counter()
        run("dvc", "repro")
        pipeline = time.perf_counter() - started
        after = epoch(split)
    usual = NETWORKS * EPOCHS * (before + after) / 2
    print(f"DataLoader loop: {before:.1f} and {after:.1f} s an epoch, {usual:.0f} s for {NETWORKS} x {EPOCHS} of them")
    print(f"`lottery preset one-shot && dvc repro`: {pipeline:.0f} s, {usual / pipeline:.1f} times faster")


if __name__ == "__main__":
    main()
