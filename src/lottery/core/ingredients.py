"""The ingredients of a level's arms, and the start that each arm's networks train from."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lottery.core.layout import Initialization
from lottery.core.networks.perceptron import small_dense
from lottery.core.randomness import generator
from lottery.core.stack import Masks, Stack, initialize
from lottery.core.training import Recipe


@dataclass(frozen=True)
class Start:
    """The masks, the parameters (pruned weights are 0) and the recipe that an arm's networks train from."""

    masks: Masks
    parameters: Stack
    recipe: Recipe

    def twin(self) -> "Start":
        """The same start, and a recipe that differs in the batch order alone."""
        return replace(self, recipe=replace(self.recipe, order="twin batches", rewind=0))


@dataclass(frozen=True)
class Ingredients:
    """The ingredients of a level's arms, one row per seed."""

    masks: Masks  # the tickets'
    rewound: Stack  # weights and biases of the dense run at iteration k
    trained: Stack  # final weights and biases of the parent's networks that were pruned
    seeds: tuple[int, ...]
    path: tuple[float, ...]  # sparsities from dense to this level
    initialization: Initialization
    recipe: Recipe  # from iteration k on

    def under_its_masks(self, parameters: Stack) -> Start:
        """These parameters under the tickets' masks."""
        return Start(self.masks, parameters.masked(self.masks), self.recipe)

    def fresh(self, purpose: str) -> Stack:
        """Networks with a fresh initialization."""
        return initialize(self.masks.layout, self.initialization, self._generators(purpose))

    def at_random_places(self, purpose: str, by_input: bool = False) -> Start:
        """The rewound values under masks of as many weights per layer, at random places.

        ``by_input``: each input of the first layer keeps its number of connections.
        """
        masks = self.masks.clone()
        for row, places in enumerate(self._generators(purpose)):
            for layer, mask in enumerate(masks.weights):
                draw: Callable[[Tensor, Generator], Tensor] = _anywhere if layer or not by_input else _as_many_per_input
                mask[row] = draw(mask[row], places)
        return Start(masks, self.rewound.masked(masks), self.recipe)

    def small(self, purpose: str) -> Start:
        """Perceptrons with all connections between few units; see `perceptron.small_dense`."""
        masks, parameters = small_dense(self.masks, self.initialization, self._generators(purpose))
        return Start(masks, parameters, self.recipe)

    def _generators(self, purpose: str) -> list[Generator]:
        return [generator(purpose, seed, self.path) for seed in self.seeds]


def _anywhere(ticket_mask: Tensor, places: Generator) -> Tensor:
    """As many kept weights as a mask has, at random places."""
    kept = torch.randperm(ticket_mask.numel(), generator=places)[: int(ticket_mask.sum())]
    mask = torch.zeros(ticket_mask.numel(), dtype=torch.bool)
    mask[kept] = True
    return mask.view(ticket_mask.shape)


def _as_many_per_input(ticket_mask: Tensor, places: Generator) -> Tensor:
    """As many kept weights per input as in a mask [in, out], at random units."""
    ranks = torch.rand(ticket_mask.shape, generator=places).argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < ticket_mask.sum(dim=1, keepdim=True)
