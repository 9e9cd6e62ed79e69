"""What a level compares: which mask and which weights each arm starts from, and by which recipe it trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import floor

import torch
from torch import Generator, Tensor

from lottery.network import Initialization, Masks, Parameters, initialize
from lottery.randomness import generator
from lottery.schedules import constant
from lottery.training import Recipe


@dataclass(frozen=True)
class Ticket:
    """What a level's arms are made from, a row a seed."""

    masks: Masks
    rewind: Parameters  # weights and biases of the dense run at iteration k
    trained: Parameters  # final weights and biases of the parent's networks that were pruned
    seeds: Sequence[int]
    path: Sequence[float]  # sparsities from dense to this level
    initialization: Initialization
    recipe: Recipe  # from iteration k on


@dataclass(frozen=True)
class Start:
    """What an arm's networks train from: masks, and parameters whose pruned weights are 0; and how they train."""

    masks: Masks
    parameters: Parameters
    recipe: Recipe

    def twin(self) -> "Start":
        """The same start, and a recipe that differs in the batch order alone."""
        return replace(self, recipe=replace(self.recipe, order="twin batches", rewind=None))


def ticket(level: Ticket) -> Start:
    """The mask and the dense run's own weights of iteration k: the candidate for a winning ticket."""
    return Start(level.masks, level.rewind.masked(level.masks), level.recipe)


def reinit(level: Ticket) -> Start:
    """The ticket's mask with a fresh initialization: is it the values? (Frankle & Carbin 2019, section 2).

    It trains all of T, from the start of the schedule.
    """
    fresh = [generator("reinit", seed, level.path) for seed in level.seeds]
    parameters = initialize(level.rewind.sizes, level.initialization, fresh)
    return Start(level.masks, parameters.masked(level.masks), replace(level.recipe, start=0))


def random(level: Ticket) -> Start:
    """The ticket's values and its weights a layer, at random places: is it the structure?"""
    return _at_random_places(level, "random", _anywhere)


def random_inputs(level: Ticket) -> Start:
    """As `random`, but each input keeps its number of connections: is the structure more than which pixels matter?

    They go to random hidden units. On MNIST many pixels are always 0, and masks drop these first.
    """
    return _at_random_places(level, "random-inputs", _as_many_an_input)


def small_dense(level: Ticket) -> Start:
    """A dense network of about the ticket's number of weights: is it enough to be small?

    Every hidden layer has `small_sizes` units. In the stack they are the first of each layer, with all connections
    between them, and their fresh initialization is drawn at the small size, as its fan-in and fan-out ask for. The
    other units have neither weights nor biases, and stay so. It trains all of T.
    """
    masks = tuple(torch.zeros_like(mask) for mask in level.masks)
    parameters = Parameters.zeros(len(level.seeds), level.rewind.sizes)
    for row, seed in enumerate(level.seeds):
        budget = sum(int(mask[row].sum()) for mask in level.masks)
        sizes = small_sizes(level.rewind.sizes, budget)
        small = initialize(sizes, level.initialization, [generator("small-dense", seed, level.path)])
        for layer, (n, m) in enumerate(pairwise(sizes)):
            masks[layer][row, :n, :m] = True
            parameters.weights[layer][row, :n, :m] = small.weights[layer][0]
            parameters.biases[layer][row, :, :m] = small.biases[layer][0]
    return Start(masks, parameters, replace(level.recipe, start=0))


def finetune(level: Ticket) -> Start:
    """The mask and the weights that were pruned, at the schedule's last learning rate (Han et al. 2015, section 3)."""
    recipe = replace(level.recipe, learning_rate=level.recipe.rates[-1], schedule=constant)
    return Start(level.masks, level.trained.masked(level.masks), recipe)


def lr_rewind(level: Ticket) -> Start:
    """As `finetune`, on the schedule from iteration k: only the learning rate is rewound (Renda et al. 2020)."""
    return Start(level.masks, level.trained.masked(level.masks), level.recipe)


ARMS: dict[str, Callable[[Ticket], Start]] = {
    "ticket": ticket,
    "reinit": reinit,
    "random": random,
    "random-inputs": random_inputs,
    "small-dense": small_dense,
    "finetune": finetune,
    "lr-rewind": lr_rewind,
}


def small_sizes(sizes: Sequence[int], budget: int) -> tuple[int, ...]:
    """The sizes of the largest dense network with at most ``budget`` weights, hidden layers in the ratio of ``sizes``.

    Each hidden layer has its units times one common factor, rounded half up, and 1 at least: a smaller budget than
    that takes is exceeded.
    """
    inputs, *hidden, classes = sizes

    def at(factor: Fraction) -> tuple[int, ...]:
        return (inputs, *(max(1, floor(factor * units + Fraction(1, 2))) for units in hidden), classes)

    # where a layer gains a unit, which are all factors that matter
    factors = sorted({Fraction(2 * unit + 1, 2 * units) for units in hidden for unit in range(units)})
    fitting = [small for small in map(at, factors) if sum(n * m for n, m in pairwise(small)) <= budget]
    return fitting[-1] if fitting else at(Fraction(0))


def _at_random_places(level: Ticket, purpose: str, first_layer: Callable[[Tensor, Generator], Tensor]) -> Start:
    """The ticket's values under masks of which ``first_layer`` draws the first, and the others keep as many weights."""
    masks = tuple(torch.zeros_like(mask) for mask in level.masks)
    for row, seed in enumerate(level.seeds):
        places = generator(purpose, seed, level.path)
        for layer, (mask, ticket_mask) in enumerate(zip(masks, level.masks, strict=True)):
            draw = _anywhere if layer else first_layer
            mask[row] = draw(ticket_mask[row], places)
    return Start(masks, level.rewind.masked(masks), level.recipe)


def _anywhere(ticket_mask: Tensor, places: Generator) -> Tensor:
    """As many kept weights as in a mask [in, out], at random places."""
    kept = torch.randperm(ticket_mask.numel(), generator=places)[: int(ticket_mask.sum())]
    mask = torch.zeros_like(ticket_mask)
    mask.view(-1)[kept] = True
    return mask


def _as_many_an_input(ticket_mask: Tensor, places: Generator) -> Tensor:
    """As many kept weights an input as in a mask [in, out], at random units."""
    ranks = torch.rand(ticket_mask.shape, generator=places).argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < ticket_mask.sum(dim=1, keepdim=True)
