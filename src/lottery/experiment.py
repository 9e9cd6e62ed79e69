"""The lottery ticket experiment, in the four steps of Frankle & Carbin (2019), section 1.

1. Randomly initialize a dense network.
2. Train it.
3. Prune its trained weights, which gives a mask.
4. Rewind the weights that the mask keeps to their initial values: the ticket. Train it, and controls beside it.

Steps 1 and 2 are `dense`, steps 3 and 4 `level`; a level's trained tickets are what its children prune.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lottery.arms import ARMS, Ticket
from lottery.network import Initialization, Masks, Parameters, initialize, stack
from lottery.pruning import CRITERIA, everything, prune_globally, prune_layers
from lottery.randomness import generator
from lottery.training import Trained

Train = Callable[[Parameters, Masks | None, Sequence[int], Sequence[float]], Trained]
"""`training.train` with the data and the recipe filled in: start, masks, seeds and path in, trained networks out."""


@dataclass(frozen=True)
class Pruning:
    """How a level's mask is made; see `pruning`."""

    criterion: str
    scope: str
    output_rate: float


@dataclass(frozen=True)
class Level:
    """The trained networks of a level, an arm and a seed each, in this order: all seeds of the first arm first."""

    path: tuple[float, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    start: Parameters
    masks: Masks
    trained: Trained


def dense(sizes: Sequence[int], initialization: Initialization, seeds: Sequence[int], train: Train) -> Level:
    """Steps 1 and 2, for every seed."""
    start = initialize(sizes, initialization, [generator("initialization", seed) for seed in seeds])
    trained = train(start, None, seeds, ())
    return Level((), ("dense",), tuple(seeds), start, everything(len(seeds), start.sizes), trained)


def prune(trained: Parameters, masks: Masks, path: Sequence[float], pruning: Pruning) -> Masks:
    """Step 3: the masks of the level at the end of ``path`` from its parent's trained weights and masks."""
    parent_sparsity, sparsity = (0.0, *path)[-2:]
    scores = CRITERIA[pruning.criterion](trained)
    if pruning.scope == "global":
        return prune_globally(scores, masks, sparsity)
    return prune_layers(scores, masks, sparsity, parent_sparsity, pruning.output_rate)


def level(
    masks: Masks,
    rewind: Parameters,
    path: Sequence[float],
    arms: Sequence[str],
    seeds: Sequence[int],
    initialization: Initialization,
    train: Train,
) -> Level:
    """Step 4: from the masks that `prune` gave and the dense run's initial parameters, a row a seed."""
    ticket = Ticket(masks, rewind, seeds, path, initialization)
    starts = [ARMS[arm](ticket) for arm in arms]
    start = stack([s.parameters for s in starts])
    stacked = tuple(torch.cat(layer) for layer in zip(*(s.masks for s in starts), strict=True))
    trained = train(start, stacked, [*seeds] * len(arms), path)
    return Level(tuple(path), tuple(arms), tuple(seeds), start, stacked, trained)
