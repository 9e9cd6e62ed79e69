"""How fast a stack trains, against the loops that people write: `python -m benchmarks.throughput [--network lenet-5]`.

MNIST, batch 60, Adam, float32, all on this machine in one run. Every loop trains in turn and several times over, and
its median counts, because a machine that others use drifts. Seconds are per network and epoch of 55,000 images,
training alone: loading images, and evaluating validation images, come on top, for every loop alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lottery.core.images import Images, Split
from lottery.core.layout import Layout, perceptron, published
from lottery.core.networks.convolutional import Convolutional
from lottery.core.pruning import prune_layers
from lottery.core.randomness import generator
from lottery.core.stack import Stack, everything, initialize
from lottery.core.training import Recipe, train
from lottery.files.data import load_split, torchvision_datasets

LAYOUTS = {"lenet-300-100": perceptron((784, 300, 100, 10)), "lenet-5": published("lenet-5", (28, 28), 10)}
STACKS = {"lenet-300-100": (1, 3, 15, 45), "lenet-5": (1, 2, 6)}
BATCH = 60
LEARNING_RATE = 0.0012
Loop = Callable[[int], None]  # trains for so many iterations
PLACES = {"convolution1": 24 * 24, "convolution2": 8 * 8}  # in an image, at which a layer's weights are used


def multiply_adds(layout: Layout) -> int:
    """Multiply-adds of an image: forward and the gradient of the weights for each weight, blank pixels and all, and the
    gradient of the inputs for all but the first layer.
    """
    first, *others = (piece.size * PLACES.get(piece.layer, 1) for piece in layout.weights)
    return 2 * first + 3 * sum(others)


def stacked(networks: int, layout: Layout, split: Split, threads: int) -> Loop:
    """Our loop, on a level's masked networks."""
    start = initialize(layout, "glorot-normal", [generator("benchmark", seed) for seed in range(networks)])
    slower = {"output": 0.5, "convolution": 0.5}
    masks = prune_layers(Stack(start.flat.abs(), layout), everything(networks, layout), 0.8, 0.0, slower)
    start = start.masked(masks)
    few = Split(split.train, Images(split.validation.pixels[:60], split.validation.labels[:60]), split.scaling)

    def loop(iterations: int) -> None:
        # four turns for each network, so that the workers finish together as they do in a pipeline's twenty
        recipe = Recipe(iterations, BATCH, LEARNING_RATE, evaluate_every=-(-iterations // 4))
        train(start, masks, range(networks), (0.8,), few, recipe, threads=threads)

    return loop


def module() -> nn.Module:
    """LeNet-300-100 as everybody writes it."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


class Transformed(Dataset[tuple[torch.Tensor, int]]):
    """What torchvision.datasets.MNIST does for each item: an image object, then the transforms."""

    def __init__(self, images: Images) -> None:
        torchvision_datasets()  # makes torchvision's import work beside a CPU build of torch
        from torchvision import transforms

        self.images = images
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.fromarray(self.images.pixels[index].view(28, 28).numpy(), mode="L")
        return self.transform(picture), int(self.images.labels[index])


def data_loader(split: Split) -> Loop:
    """DataLoader, transforms, nn.Module, Adam: one network."""
    model, loader = module(), DataLoader(Transformed(split.train), batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def loop(iterations: int) -> None:
        for _, (inputs, labels) in zip(range(iterations), loader, strict=False):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs.view(BATCH, -1)), labels).backward()
            optimizer.step()

    return loop


def in_memory(split: Split, model: nn.Module) -> Loop:
    """Images in memory, nn.Module, fused Adam: one network, on all cores."""
    inputs, labels = split.scaling(split.train.pixels), split.train.labels
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def loop(iterations: int) -> None:
        order = torch.randperm(len(labels))
        for batch in order[: iterations * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()

    return loop


def matmul_rate() -> float:
    """The machine's float32 multiply-adds a second, in products of 2048 x 2048 matrices."""
    left, right, out = (torch.randn(2048, 2048) for _ in range(3))
    torch.mm(left, right, out=out)
    start = time.perf_counter()
    for _ in range(10):
        torch.mm(left, right, out=out)
    return 10 * 2048**3 / (time.perf_counter() - start)


def main() -> None:
    """Time every loop in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=916, help="a loop and round; an epoch has 916")
    parser.add_argument("--network", choices=LAYOUTS, default="lenet-300-100")
    arguments = parser.parse_args()
    layout, iterations, threads = LAYOUTS[arguments.network], arguments.iterations, torch.get_num_threads()
    split = load_split(Path("data/mnist.safetensors"), 5000, "standard")
    epoch = len(split.train) // BATCH

    loops = {"DataLoader + transforms + nn.Module + Adam": (data_loader(split), 1)}
    model = module()
    if arguments.network == "lenet-5":  # whose convolutions are faster with their channels last, in any loop
        loops, model = {}, Convolutional(LAYOUTS["lenet-5"]).to(memory_format=torch.channels_last)
    loops["in memory + fused Adam"] = (in_memory(split, model), 1)
    for networks in STACKS[arguments.network]:
        loops[f"a stack of {networks}"] = (stacked(networks, layout, split, threads), networks)
    times: dict[str, list[float]] = {name: [] for name in loops}
    rates = []
    for _ in range(arguments.rounds):
        torch.set_num_threads(threads)
        rates.append(matmul_rate())
        for name, (loop, networks) in loops.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            loop(iterations)
            times[name].append((time.perf_counter() - start) / iterations * epoch / networks)

    median = {name: statistics.median(values) for name, values in times.items()}
    rate = statistics.median(rates)
    print(
        f"{threads} threads; matrix products reach {2 * rate / 1e9:.0f} GFLOP/s; medians of {arguments.rounds} rounds\n"
    )
    print("| loop | s per network and epoch | first / this | in memory / this | of the matmul rate |")
    print("|---|---|---|---|---|")
    by_hand, in_store = next(iter(median.values())), median["in memory + fused Adam"]
    for name, time_taken in median.items():
        share = multiply_adds(layout) * epoch * BATCH / time_taken / rate
        print(f"| {name} | {time_taken:.2f} | {by_hand / time_taken:.1f} | {in_store / time_taken:.2f} | {share:.0%} |")


if __name__ == "__main__":
    main()
