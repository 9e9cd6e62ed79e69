"""The arms: ways of training a masked network at a level, each one record of all that the project knows of it.

Adding an arm is a function from the level's `Ingredients` to its `Start`, and its record in `_ARMS`. Nothing here needs
torch, because params.yaml is checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lottery.core.schedules import Constant

if TYPE_CHECKING:
    from lottery.core.ingredients import Ingredients, Start


@dataclass(frozen=True)
class Look:
    """The look of an arm in every figure."""

    color: str  # of the palette of Okabe & Ito (2008), whose colours the colour-blind tell apart
    marker: str
    line: Any  # matplotlib's style of a curve; where lines are paths, only dense has its own


@dataclass(frozen=True)
class Arm:
    """One way of training a masked network at a level."""

    name: str
    what: str  # in the report and in MLflow; {start}: what tickets start from
    look: Look
    start: Callable[[Ingredients], Start]
    own_mask: bool = False  # another mask than the ticket's
    own_density: bool = False  # and another number of weights
    anew: bool = False  # trains all of T from a fresh initialization, whatever iteration tickets are rewound to
    goes_on: bool = False  # from the parent's trained weights
    twinned: bool = False  # trained a second time where twins are asked for
    control: bool = False  # a winning ticket beats it
    for_perceptrons: bool = False  # without a meaning for other networks
    untrained: bool = False  # goes with criteria that prune untrained networks

    def begin(self, level: Ingredients) -> Start:
        """Make the start that the arm's networks train from at a level."""
        return self.start(replace(level, recipe=replace(level.recipe, start=0)) if self.anew else level)


def ticket(level: Ingredients) -> Start:
    """The mask and the dense run's own weights of iteration k: the candidate for a winning ticket."""
    return level.under_its_masks(level.rewound)


def reinit(level: Ingredients) -> Start:
    """The ticket's mask with a fresh initialization: is it the values? (Frankle & Carbin 2019, section 2)."""
    return level.under_its_masks(level.fresh("reinit"))


def random(level: Ingredients) -> Start:
    """The ticket's values and its weights per layer, at random places: is it the structure?"""
    return level.at_random_places("random")


def random_inputs(level: Ingredients) -> Start:
    """As `random`, but each input keeps its number of connections: is the structure more than which pixels matter?

    They go to random hidden units. On MNIST many pixels are always 0, and masks drop these first.
    """
    return level.at_random_places("random-inputs", by_input=True)


def small_dense(level: Ingredients) -> Start:
    """A dense network of about the ticket's number of weights: is it enough to be small?"""
    return level.small("small-dense")


def finetune(level: Ingredients) -> Start:
    """The mask and the weights that were pruned, at the schedule's last learning rate (Han et al. 2015, section 3)."""
    recipe = replace(level.recipe, learning_rate=level.recipe.rates[-1], schedule=Constant())
    return replace(level, recipe=recipe).under_its_masks(level.trained)


def lr_rewind(level: Ingredients) -> Start:
    """As `finetune`, on the schedule from iteration k: only the learning rate is rewound (Renda et al. 2020)."""
    return level.under_its_masks(level.trained)


_ARMS = (
    Arm(
        "ticket", "the pruned mask, and the dense network’s {start}", Look("#0072B2", "o", "-"), ticket,
        twinned=True, untrained=True,
    ),
    Arm(
        "reinit", "the ticket’s mask with fresh initial weights", Look("#D55E00", "s", "-."), reinit,
        anew=True, twinned=True, control=True, untrained=True,
    ),
    Arm(
        "random", "as many weights at random places, and the dense network’s {start}", Look("#009E73", "^", ":"),
        random, own_mask=True, control=True, untrained=True,
    ),
    Arm(
        "random-inputs", "random places, but as many connections of each input as in the ticket",
        Look("#56B4E9", "v", (0, (5, 1, 1, 1, 1, 1))), random_inputs, own_mask=True, for_perceptrons=True,
    ),
    Arm(
        "small-dense", "a dense network of about as many weights", Look("#999999", "X", (0, (9, 3))), small_dense,
        own_mask=True, own_density=True, anew=True, for_perceptrons=True,
    ),
    Arm(
        "finetune", "the ticket’s mask, trained on from its parent’s trained weights",
        Look("#CC79A7", "D", (0, (2, 1))), finetune, goes_on=True,
    ),
    Arm(
        "lr-rewind", "the same as finetune, but with the schedule of learning rates from its start",
        Look("#E69F00", "P", (0, (1, 3))), lr_rewind, goes_on=True,
    ),
)  # fmt: skip
ARMS = {arm.name: arm for arm in _ARMS}
CONTROLS = tuple(name for name, arm in ARMS.items() if arm.control)
TWINNED = ("dense", *(name for name, arm in ARMS.items() if arm.twinned))


@dataclass(frozen=True)
class Rows:
    """Which network of a level stands in which row of its stack: all seeds of the first arm, then of the next."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(arm, seed) of each row."""
        return ((arm, seed) for arm in self.arms for seed in self.seeds)

    def __len__(self) -> int:
        return len(self.arms) * len(self.seeds)

    def of(self, arm: str) -> slice:
        """An arm's rows. Raises ValueError where there is no such arm."""
        first = self.arms.index(arm) * len(self.seeds)
        return slice(first, first + len(self.seeds))
