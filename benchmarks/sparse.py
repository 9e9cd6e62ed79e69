"""At which density sparse products pay: `python -m benchmarks.sparse`.

LeNet-300-100 with random masks, the last layer denser as in pipelines, in compressed sparse rows: times as fast
as dense, timed as `lottery measure` does. `SPARSE` in lottery/ticket/modules.py comes from here.
"""

import argparse
import math

import numpy as np
import torch

from lottery.core.images import Images
from lottery.core.layout import perceptron
from lottery.speed.measure import timed
from lottery.ticket import Facts, Ticket

DENSITIES = (0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01)
LAYOUT = perceptron((784, 300, 100, 10))


def ticket(level: str, density: float, draws: np.random.Generator) -> Ticket:
    """A network of random weights and masks."""
    *_, last = LAYOUT.weights
    masks = {
        piece.name: draws.random(piece.shape) < (math.sqrt(density) if piece is last else density)
        for piece in LAYOUT.weights
    }
    values = {
        piece.name: (draws.normal(size=piece.shape) * masks.get(piece.name, 1)).astype(np.float32)
        for piece in LAYOUT.pieces
    }
    facts = Facts(LAYOUT, level, "ticket", 0, 1 - density, math.nan, "mnist", (28, 28), 33.0, 78.0, "")
    return Ticket(facts, values, masks)


def main() -> None:
    """Print a row per density, a column per number of images at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of weights, masks and images; default: %(default)s")
    arguments = parser.parse_args()
    draws = np.random.default_rng(arguments.seed)
    tickets = {"dense": ticket("dense", 1.0, draws)} | {
        f"{each:g}": ticket(f"{each:g}", each, draws) for each in DENSITIES
    }
    pixels = torch.from_numpy(draws.integers(256, size=(256, LAYOUT.inputs), dtype=np.uint8))
    table = timed(tickets, Images(pixels, torch.zeros(len(pixels), dtype=torch.int64)), arguments.seconds)
    print(
        table[table["form"] == "csr"].pivot(index="level", columns="batch", values="ratio").round(2)[::-1].to_string()
    )


if __name__ == "__main__":
    main()
