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

from lottery.core.arms import ARMS, TWINNED, Rows
from lottery.core.ingredients import Ingredients, Start
from lottery.core.layout import Initialization, Layout
from lottery.core.pruning import CRITERIA, Evidence, Slower, prune_globally, prune_layers, rounds
from lottery.core.randomness import generator
from lottery.core.stack import Masks, Stack, everything, initialize, stack
from lottery.core.training import Recipe, Trained

Train = Callable[[Stack, Masks, Sequence[int], Sequence[float], Sequence[Recipe]], Trained]
"""`training.train` with the data filled in: start, masks, seeds, path and recipes in, trained networks out."""


@dataclass(frozen=True)
class Pruning:
    """The making of a level's mask; see `pruning`."""

    criterion: str
    scope: str
    slower: Slower


@dataclass(frozen=True)
class Level:
    """The trained networks of a level."""

    path: tuple[float, ...]
    rows: Rows
    start: Stack
    masks: Masks
    trained: Trained
    # final parameters of the networks trained again, from the same start on other batches (Frankle et al. 2020):
    # whether a line of low error joins the two is what `connectivity` asks
    twins: tuple[Rows, Stack] | None = None


def dense(
    layout: Layout,
    initialization: Initialization,
    seeds: Sequence[int],
    recipe: Recipe,
    train: Train,
    twins: bool = False,
) -> Level:
    """Steps 1 and 2, for every seed."""
    initial = initialize(layout, initialization, [generator("initialization", seed) for seed in seeds])
    start = Start(everything(len(seeds), layout), initial, recipe)
    return _train({"dense": start}, (), seeds, train, twins)


def prune(evidence: Evidence, masks: Masks, pruning: Pruning) -> Masks:
    """Step 3: the masks of the level at the end of the evidence's path, from those of its parent."""
    *_, parent_sparsity, sparsity = (0.0, *evidence.path)
    score = CRITERIA[pruning.criterion]
    if pruning.scope == "layer":
        return prune_layers(score(evidence, masks), masks, sparsity, parent_sparsity, pruning.slower)
    for reached in rounds(pruning.criterion, sparsity):
        masks = prune_globally(score(evidence, masks), masks, reached, pruning.slower)
    return masks


def level(ingredients: Ingredients, arms: Sequence[str], train: Train, twins: bool = False) -> Level:
    """Step 4: rewind and train the ticket, and the other arms."""
    starts = {arm: ARMS[arm].begin(ingredients) for arm in arms}
    return _train(starts, ingredients.path, ingredients.seeds, train, twins)


def _train(
    starts: Mapping[str, Start], path: Sequence[float], seeds: Sequence[int], train: Train, twins: bool
) -> Level:
    """Train all arms, and the twins of some, as one stack."""
    own = Rows(tuple(starts), tuple(seeds))
    again = Rows(tuple(arm for arm in starts if twins and arm in TWINNED), own.seeds)
    every = [*starts.values(), *(starts[arm].twin() for arm in again.arms)]
    start, masks = stack([each.parameters for each in every]), stack([each.masks for each in every])
    trained = train(start, masks, [*seeds] * len(every), path, [each.recipe for each in every for _ in seeds])
    first, rest = slice(len(own)), slice(len(own), None)
    twin = (again, trained.final.rows(rest)) if again.arms else None
    return Level(tuple(path), own, start.rows(first), masks.rows(first), trained.rows(first), twin)
