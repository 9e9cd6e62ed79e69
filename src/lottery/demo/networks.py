"""The networks of the page: what they say, and which pixels they read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import convolve2d

from lottery import LotteryError
from lottery.core.images import Scaling
from lottery.core.layout import PUBLISHED
from lottery.demo.frame import Pixels, as_address
from lottery.evaluation.tables import load_table
from lottery.files.sealed import MISSING
from lottery.params import Params
from lottery.stages.levels import check_level
from lottery.ticket.modules import masked
from lottery.ticket.ticket import Ticket
from lottery.ticket.workspace import best_networks, ticket_of

MODELS, TABLE = Path("models"), Path("reports/tables/networks.csv")
FEW, MOST = np.array([13, 27, 42]), np.array([64, 150, 220])  # colours of a pixel with one connection, with the most
UNSEEN = np.array([213, 94, 0])  # of ink on a pixel that is not read, which is black
Logits = Callable[[Pixels], NDArray[np.float32]]  # [N, C] of images [N, side, side]


@dataclass(frozen=True)
class Network:
    """A network of the page."""

    level: str
    density: float  # percent
    accuracy: float  # percent of the test images
    logits: Logits
    connections: NDArray[np.int64]  # [side, side]: how many of the first layer's connections each pixel keeps

    @classmethod
    def of(cls, ticket: Ticket) -> "Network":
        """The ticket, which predicts by numpy where it is a perceptron, else by torch."""
        facts = ticket.facts
        perceptron = facts.layout.family == "perceptron"
        logits = ticket.logits if perceptron else _by_torch(ticket)
        return cls(facts.level, 100 * ticket.density, 100 * facts.accuracy, logits, connections(ticket))

    def picture(self, image: Pixels | None) -> str:
        """The pixels that it reads, the brighter the more connections they keep, and the drawing over them."""
        ink = np.zeros((*self.connections.shape, 1)) if image is None else image[..., None] / 255
        share = self.connections[..., None] / max(self.connections.max(), 1)
        paper = np.where(share > 0, FEW + share * (MOST - FEW), 0)
        return as_address(paper + ink * (np.where(share > 0, 255, UNSEEN) - paper))


def connections(ticket: Ticket) -> NDArray[np.int64]:
    """Count the first layer's connections that each pixel keeps, [H, W]; a pixel that no output depends on has none.

    Of a person's own network it is not known, and each has one.
    """
    layout = ticket.facts.layout
    mask = ticket.masks[layout.weights[0].name]
    if layout.own is not None:
        return np.ones(ticket.facts.image, np.int64)
    if layout.family in PUBLISHED:  # every pixel lies below several places of a kernel, at an edge below fewer
        padding, sides = PUBLISHED[layout.family].padding, zip(ticket.facts.image, mask.shape[2:], strict=True)
        moves = [side + 2 * padding - length + 1 for side, length in sides]
        found: NDArray[np.int64] = convolve2d(np.ones(moves, np.int64), mask.sum(axis=(0, 1)))
        height, width = ticket.facts.image
        return found[padding : padding + height, padding : padding + width]
    kept = np.zeros(len(mask), np.int64)
    kept[ticket.compact.inputs] = mask[ticket.compact.inputs].sum(axis=1)
    return kept.reshape(ticket.facts.image)


def _by_torch(ticket: Ticket) -> Logits:
    module = masked(ticket)

    def logits(images: Pixels) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = module(torch.tensor(images)).numpy()
        return found

    return logits


def load_networks(p: Params, scaling: Scaling) -> list[Network]:
    """Dense and the ticket of every level that has some, of each the one with the lowest validation loss.

    Raises LotteryError where an output is missing.
    """
    for level in ("dense", *p.order):
        check_level(p, level)
    if not TABLE.exists():
        raise LotteryError(f"{TABLE}: missing; {MISSING}")
    accuracies = load_table(TABLE).set_index(["level", "arm", "seed"])["test_accuracy"].to_dict()
    rows = [(level, *network) for level, network in best_networks(p, MODELS).items()]
    for row in rows:
        if row not in accuracies:
            raise LotteryError(f"{TABLE}: has no {' '.join(map(str, row))}; `dvc repro` makes it anew")
    return [Network.of(ticket_of(p, MODELS / row[0], row[1:], accuracies[row], scaling)) for row in rows]
