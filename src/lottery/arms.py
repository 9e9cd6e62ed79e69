"""What a level compares: which mask and which weights each arm starts from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lottery.network import Initialization, Masks, Parameters, initialize
from lottery.randomness import generator


@dataclass(frozen=True)
class Ticket:
    """What a level's arms are made from, a row a seed."""

    masks: Masks
    rewind: Parameters  # weights and biases of the dense run at iteration k = 0
    seeds: Sequence[int]
    path: Sequence[float]  # sparsities from dense to this level
    initialization: Initialization


@dataclass(frozen=True)
class Start:
    """What an arm's networks train from: masks, and parameters whose pruned weights are 0."""

    masks: Masks
    parameters: Parameters


def ticket(level: Ticket) -> Start:
    """The mask and the dense run's own initialization: the candidate for a winning ticket."""
    return Start(level.masks, level.rewind.masked(level.masks))


def reinit(level: Ticket) -> Start:
    """The ticket's mask with a fresh initialization: is it the values? (Frankle & Carbin 2019, section 2)."""
    fresh = [generator("reinit", seed, level.path) for seed in level.seeds]
    parameters = initialize(level.rewind.sizes, level.initialization, fresh)
    return Start(level.masks, parameters.masked(level.masks))


def random(level: Ticket) -> Start:
    """The ticket's values and its weights a layer, at random places: is it the structure?"""
    masks = tuple(torch.zeros_like(mask) for mask in level.masks)
    for row, seed in enumerate(level.seeds):
        places = generator("random", seed, level.path)
        for mask, ticket_mask in zip(masks, level.masks, strict=True):
            kept = torch.randperm(mask[row].numel(), generator=places)[: int(ticket_mask[row].sum())]
            mask[row].view(-1)[kept] = True
    return Start(masks, level.rewind.masked(masks))


ARMS: dict[str, Callable[[Ticket], Start]] = {"ticket": ticket, "reinit": reinit, "random": random}
