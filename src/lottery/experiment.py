"""The lottery ticket experiment, in the four steps of Frankle & Carbin (2019), section 1.

1. Randomly initialize a dense network.
2. Train it.
3. Prune its trained weights, which gives a mask.
4. Rewind the weights that the mask keeps to the values that they had before training, or early in it (Frankle et al.
   2020): the ticket. Train it, and controls beside it.

Steps 1 and 2 are `dense`, steps 3 and 4 `prune` and `level`; a level's trained tickets are what its children prune.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lottery.arms import ARMS, Start, Ticket
from lottery.network import Initialization, Masks, Parameters, initialize, stack
from lottery.pruning import CRITERIA, Evidence, everything, prune_globally, prune_layers, rounds
from lottery.randomness import generator
from lottery.training import Recipe, Trained

Train = Callable[[Parameters, Masks, Sequence[int], Sequence[float], Sequence[Recipe]], Trained]
"""`training.train` with the data filled in: start, masks, seeds, path and recipes in, trained networks out."""

TWINNED = ("dense", "ticket", "reinit")  # the arms that are trained a second time where twins are asked for


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
    # arms and final parameters of the networks trained again, from the same start on other batches (Frankle et al.
    # 2020): whether a line of low error joins the two is what `connectivity` asks
    twins: tuple[tuple[str, ...], Parameters] | None = None


def dense(
    sizes: Sequence[int],
    initialization: Initialization,
    seeds: Sequence[int],
    recipe: Recipe,
    train: Train,
    twins: bool = False,
) -> Level:
    """Steps 1 and 2, for every seed."""
    initial = initialize(sizes, initialization, [generator("initialization", seed) for seed in seeds])
    start = Start(everything(len(seeds), initial.sizes), initial, recipe)
    return _train({"dense": start}, (), seeds, train, twins)


def prune(evidence: Evidence, masks: Masks, pruning: Pruning) -> Masks:
    """Step 3: the masks of the level at the end of the evidence's path, from those of its parent."""
    *_, parent_sparsity, sparsity = (0.0, *evidence.path)
    score = CRITERIA[pruning.criterion]
    if pruning.scope == "layer":
        return prune_layers(score(evidence, masks), masks, sparsity, parent_sparsity, pruning.output_rate)
    for reached in rounds(pruning.criterion, sparsity):
        masks = prune_globally(score(evidence, masks), masks, reached, output_layer=pruning.output_rate > 0)
    return masks


def level(ticket: Ticket, arms: Sequence[str], train: Train, twins: bool = False) -> Level:
    """Step 4: rewind and train the ticket, and the other arms."""
    return _train({arm: ARMS[arm](ticket) for arm in arms}, ticket.path, ticket.seeds, train, twins)


def _train(
    starts: Mapping[str, Start], path: Sequence[float], seeds: Sequence[int], train: Train, twins: bool
) -> Level:
    """Train all arms, and the twins of some, as one stack."""
    arms, again = tuple(starts), tuple(arm for arm in starts if twins and arm in TWINNED)
    every = [*starts.values(), *(starts[arm].twin() for arm in again)]
    start = stack([s.parameters for s in every])
    masks = tuple(torch.cat(layer) for layer in zip(*(s.masks for s in every), strict=True))
    trained = train(start, masks, [*seeds] * len(every), path, [s.recipe for s in every for _ in seeds])
    own, of_twins = slice(len(arms) * len(seeds)), slice(len(arms) * len(seeds), None)
    return Level(
        tuple(path),
        arms,
        tuple(seeds),
        start.rows(own),
        tuple(mask[own] for mask in masks),
        trained.rows(own),
        (again, trained.final.rows(of_twins)) if again else None,
    )
