"""What a network costs, by how many train, on this machine's processes and on Ray: `python -m benchmarks.scaling`.

LeNet-300-100 on MNIST, and 1,000 small networks on digits. With `--address` on a cluster that runs (docs/scaling.md
says how to start one on this machine), else on a Ray of its own. Each measurement is a process of its own, local and
Ray in turn; seconds count from when every processor has a network to train, and what comes before is told apart. It
writes docs/scaling.svg and prints the rows of the tables in docs/scaling.md.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from matplotlib.figure import Figure

from lottery.core import engines
from lottery.core.layout import Layout, perceptron
from lottery.core.pruning import prune_layers
from lottery.core.randomness import generator
from lottery.core.stack import Stack, everything, initialize
from lottery.core.training import Group, Recipe, train
from lottery.files.data import load_split

COUNTS = (1, 3, 10, 30, 100, 300)
LARGE, SMALL = perceptron((784, 300, 100, 10)), perceptron((64, 100, 50, 10))
MOST, WORK, LEAST = 4000, 12_000, 400  # iterations on MNIST: as many as make a few networks worth measuring
PICTURE = Path("docs/scaling.svg")


def iterations(data: str, count: int) -> int:
    """The iterations that each of so many networks trains for."""
    return max(LEAST, min(MOST, WORK // count)) if data == "mnist" else 1500


def measure(data: str, count: int, address: str | None, threads: int) -> dict[str, float]:
    """Train so many networks once: seconds until all processors train, seconds from there, and bytes at the most."""
    layout: Layout = LARGE if data == "mnist" else SMALL
    split = load_split(Path(f"data/{data}.safetensors"), 5000 if data == "mnist" else 143, "standard")
    start = initialize(layout, "glorot-normal", [generator("benchmark", seed) for seed in range(count)])
    masks = prune_layers(
        Stack(start.flat.abs(), layout), everything(count, layout), 0.8, 0.0, {"output": 0.5, "convolution": 0.5}
    )
    start, began_to_train = start.masked(masks), dict[int, float]()  # by the groups' first rows
    recipe = Recipe(iterations(data, count), 60, 0.0012, 250 if data == "mnist" else 100)

    def advanced(group: Group) -> None:
        began_to_train.setdefault(group.first, time.perf_counter())

    with ExitStack() as held:
        began = time.perf_counter()
        engine: engines.Engine = engines.run
        if address is not None:
            from lottery.cluster import connected

            cluster = held.enter_context(connected(address or None, threads))
            engine, threads = cluster.engine(), cluster.cores
        train(
            start, masks, range(count), (0.8,), split, recipe,
            threads=threads, advanced=advanced, engine=engine,
        )  # fmt: skip
        ended = time.perf_counter()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    all_busy = sorted(began_to_train.values())[:threads][-1]
    return {"start": all_busy - began, "training": ended - all_busy, "memory": most}


def pace(data: str, count: int, measured: dict[str, float]) -> float:
    """Milliseconds of training per network and iteration, those of all processors together."""
    return 1000 * measured["training"] / count / iterations(data, count)


def draw(paces: dict[int, dict[str, float]]) -> None:
    """Draw milliseconds per network and iteration by the number of networks and the engine."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for engine, marker in (("local", "o"), ("ray", "s")):
        axes.plot(list(paces), [each[engine] for each in paces.values()], marker=marker, label=engine)
    axes.set(xscale="log", xlabel="networks of a level", ylabel="ms per network and iteration", ylim=(0, None))
    axes.set_xticks(list(paces), [f"{count}" for count in paces])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="", help="host:port of a Ray cluster; default: a Ray of its own")
    parser.add_argument("--threads", type=int, default=2, help="processors; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--small", type=int, default=1000, help="small networks; default: %(default)s")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what to measure in this process
    arguments = parser.parse_args()
    if arguments.one:
        data, count, engine = arguments.one
        address = arguments.address if engine == "ray" else None
        print(json.dumps(measure(data, int(count), address, arguments.threads)))
        return

    def several(data: str, count: int) -> dict[str, dict[str, float]]:
        found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
        for _ in range(arguments.rounds):
            for engine in found:
                options = ["--address", arguments.address, "--threads", str(arguments.threads)]
                command = [sys.executable, "-m", "benchmarks.scaling", *options, "--one", data, str(count), engine]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[engine].append(json.loads(done.stdout))
        medians = {
            engine: {key: statistics.median(each[key] for each in values) for key in values[0]}
            for engine, values in found.items()
        }
        for engine, median in medians.items():
            print(
                f"| {data} | {count:,} | {engine} | {median['start']:.1f} | {median['training']:.1f} | "
                f"{pace(data, count, median):.2f} | {median['memory'] / 1e6:,.0f} |",
                flush=True,
            )
        return medians

    print("| data | networks | engine | s before | s of training | ms an iteration | MB of the driver |")
    print("|---|---|---|---|---|---|---|", flush=True)
    measured = {count: several("mnist", count) for count in arguments.counts}
    if arguments.small:
        small = several("digits", arguments.small)
        ratio = sum(small["ray"][key] for key in ("start", "training")) / small["local"]["training"]
        print(f"\n{arguments.small:,} small networks: Ray takes {ratio:.2f} times as long as local, its start included")
    draw(
        {
            count: {engine: pace("mnist", count, each) for engine, each in found.items()}
            for count, found in measured.items()
        }
    )


if __name__ == "__main__":
    main()
