"""What a GPU gives: `python -m benchmarks.gpu [--part compare|stacks|same|paper]`, without --part all of it.

- compare: 15 networks as one stack against an ordinary loop (data on the GPU, fused Adam, one network after another)
- stacks: networks a second, and memory, from 1 to 1,024 LeNet-300-100 in a stack
- same: whether two runs give the same bytes
- paper: the training of the preset `paper` alone, without DVC and MLflow, on data/mnist.safetensors. What --folder has
  is not trained again, so that --seconds can cut it into several calls.

The first three train on noise.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lottery.core import device as devices
from lottery.core import experiment
from lottery.core.experiment import Pruning
from lottery.core.images import Images, Scaling, Split
from lottery.core.ingredients import Ingredients
from lottery.core.layout import Layout, perceptron, published
from lottery.core.networks.convolutional import Convolutional
from lottery.core.pruning import Evidence
from lottery.core.randomness import generator
from lottery.core.stack import Masks, Stack, everything, initialize
from lottery.core.training import Recipe, Trained, train
from lottery.files.artifacts import load_contents, load_masks, load_parameters, save_level
from lottery.files.data import load_split
from lottery.params import load
from lottery.stages.training import recipe as recipe_of

BATCH, RATE = 60, 0.0012
DATA = Path("data/mnist.safetensors")
LAYOUTS = {"LeNet-300-100": perceptron((784, 300, 100, 10)), "Conv-2": published("conv-2", (32, 32, 3), 10)}
TARGETS = {"LeNet-300-100": 20, "Conv-2": 3}  # times as fast as the ordinary loop


def noise(layout: Layout, count: int = 6000) -> Split:
    """Images and classes of noise."""
    draws = generator("benchmark")
    pixels = torch.randint(256, (count, layout.inputs), dtype=torch.uint8, generator=draws)
    images = Images(pixels, torch.randint(10, (count,), generator=draws))
    channels = 3 if len(layout.example) == 3 else 1
    few = Images(images.pixels[:BATCH], images.labels[:BATCH])
    return Split(images, few, Scaling((127.5,) * channels, (73.6,) * channels))


def on(device: str) -> dict[str, object]:
    """The arguments of `train` by which networks train on a device."""
    there = torch.device(device)
    return {
        "engine": devices.engine(device, print),
        "lessons": lambda layout, split: devices.Lessons(layout, split, there),
    }


def stacked(layout: Layout, networks: int, split: Split, iterations: int, device: str) -> Trained:
    """Train a stack."""
    start = initialize(layout, "glorot-normal", [generator("benchmark", seed) for seed in range(networks)])
    recipe = Recipe(iterations, BATCH, RATE, evaluate_every=iterations)
    masks = everything(networks, layout)
    return train(start, masks, range(networks), (), split, recipe, group=networks, **on(device))  # type: ignore[arg-type]


def ordinary(layout: Layout, split: Split, iterations: int, device: str) -> None:
    """Train one network as people do where the data are on the device."""
    model: nn.Module = Convolutional(layout) if layout.family != "perceptron" else _perceptron()
    model = model.to(device)
    inputs, labels = split.scaling(split.train.pixels.to(device)), split.train.labels.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    order = torch.cat(
        [torch.randperm(len(labels), device=device) for _ in range(-(-iterations * BATCH // len(labels)))]
    )
    for batch in order[: iterations * BATCH].view(-1, BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def seconds(work: Callable[[int], object], few: int, many: int, device: str) -> float:
    """The seconds of an iteration: of many less those of few, which pay for the start."""

    def took(iterations: int) -> float:
        before = time.perf_counter()
        work(iterations)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    took(few)
    return (took(many) - took(few)) / (many - few)


def compare(device: str, many: int) -> None:
    """15 networks as a stack, and one after another."""
    print(
        "| 15 networks | ordinary loop, ms an iteration | one stack | times as fast | target |\n|---|---|---|---|---|"
    )
    for name, layout in LAYOUTS.items():
        split = noise(layout)
        one = seconds(partial(ordinary, layout, split, device=device), many // 5, many, device)
        stack = seconds(
            lambda n, own=layout, images=split: stacked(own, 15, images, n, device), many // 5, many, device
        )
        print(
            f"| {name} | {15e3 * one:.2f} | {1e3 * stack:.2f} | {15 * one / stack:.1f} | {TARGETS[name]} |", flush=True
        )


def stacks(device: str, many: int, sizes: Sequence[int]) -> None:
    """Speed and memory by the number of networks in the stack."""
    print("| networks | network iterations a second | memory, MB |\n|---|---|---|")
    layout = LAYOUTS["LeNet-300-100"]
    split = noise(layout)
    for size in sizes:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda n, own=size: stacked(layout, own, split, n, device), many // 5, many, device)
        memory = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else float("nan")
        print(f"| {size:,} | {size / took:,.0f} | {memory:,.0f} |", flush=True)


def same(device: str, many: int) -> None:
    """Whether two runs give the same bytes."""
    for name, layout in LAYOUTS.items():
        split, sums = noise(layout), set()
        for _ in range(2):
            final = stacked(layout, 5, split, many, device).final.flat
            sums.add(hashlib.sha256(final.numpy(force=True).tobytes()).hexdigest())
        print(
            f"{name}: two runs of {many} iterations give {'the same' if len(sums) == 1 else 'OTHER'} bytes", flush=True
        )


def paper(device: str, folder: Path, limit: float, iterations: int | None) -> None:
    """Train the networks of the preset `paper`, level after level."""
    p = load(Path("presets/paper.yaml"))
    split = load_split(DATA, p.validation_images, p.data.scale)
    recipe = replace(recipe_of(p), **({"iterations": iterations} if iterations else {}))
    began, networks = time.perf_counter(), 0

    def training(
        start: Stack, masks: Masks, seeds: Sequence[int], path: Sequence[float], recipes: Sequence[Recipe]
    ) -> Trained:
        return train(start, masks, seeds, path, split, recipes, group=len(start), **on(device))  # type: ignore[arg-type]

    for name in ("dense", *p.order):
        if (folder / name).exists():
            continue
        if time.perf_counter() - began > limit:
            print(f"before {name}: {limit:.0f} s are over; call it again")
            return
        before = time.perf_counter()
        if name == "dense":
            level = experiment.dense(p.layout, p.network.initialization, p.train.seeds, recipe, training)
        else:
            parent = folder / p.levels[name].parent
            held = load_contents(parent)
            rows = held.rows.of("ticket" if held.path else "dense")
            initial, final = (load_parameters(parent, state).rows(rows) for state in ("initial", "final"))
            path = (*held.path, p.levels[name].sparsity)
            masks = experiment.prune(
                Evidence(initial, final, p.train.seeds, path, split),
                load_masks(parent).rows(rows),
                Pruning(p.criterion(name), p.scope(name), p.slower),
            )
            rewound = load_parameters(folder / "dense", "initial")
            ingredients = Ingredients(masks, rewound, final, p.train.seeds, path, p.network.initialization, recipe)
            level = experiment.level(ingredients, p.arms(name), training)
        save_level(level, folder / name, {})
        networks += len(level.rows)
        best = torch.stack([history.validation_accuracy.max() for history in level.trained.histories]).mean()
        print(
            f"{name}: {len(level.rows)} networks, {time.perf_counter() - before:.1f} s, validation accuracy at best "
            f"{100 * best:.2f} %",
            flush=True,
        )
    print(f"paper: {networks} networks in {time.perf_counter() - began:.0f} s")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["compare", "stacks", "same", "paper"])
    parser.add_argument("--device", default="cuda", help="cpu tries the code, and says nothing of a GPU")
    parser.add_argument("--iterations", type=int, help="of each measurement, and of paper's networks")
    parser.add_argument("--largest", type=int, default=1024, help="networks in the largest stack")
    parser.add_argument("--folder", type=Path, default=Path(".lottery/paper"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which paper begins no level")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "torch sees no GPU here; --device cpu tries the code\n")
    if arguments.part in (None, "paper") and not DATA.exists():
        parser.exit(2, f"{DATA}: missing; `dvc repro download` fetches it, or give another --part\n")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "a processor"
    many = arguments.iterations or 1000
    print(f"torch {torch.__version__} on {name}\n")
    parts: dict[str, Callable[[], None]] = {
        "compare": lambda: compare(arguments.device, many),
        "stacks": lambda: stacks(
            arguments.device, many, [size for size in (1, 4, 15, 64, 256, 1024) if size <= arguments.largest]
        ),
        "same": lambda: same(arguments.device, many),
        "paper": lambda: paper(arguments.device, arguments.folder, arguments.seconds, arguments.iterations),
    }
    for part, run in parts.items():
        if arguments.part in (None, part):
            print(f"## {part}\n")
            run()
            print(flush=True)


if __name__ == "__main__":
    main()
