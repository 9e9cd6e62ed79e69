"""R networks of one layout as one tensor, a row each: weights and biases, masks, scores or gradients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from lottery.core.layout import Initialization, Layout


@dataclass(frozen=True)
class Stack:
    """R networks of one layout, one row of ``flat`` per network.

    One tensor, because an optimizer that updates one long tensor beats one that updates many. The padding between
    pieces is zero in weights and gradients, and stays zero.
    """

    flat: Tensor  # [R, P]
    layout: Layout

    @classmethod
    def zeros(cls, networks: int, layout: Layout, dtype: torch.dtype = torch.float32) -> "Stack":
        """R networks of zeros."""
        return cls(torch.zeros(networks, layout.starts[-1], dtype=dtype), layout)

    def __len__(self) -> int:
        return len(self.flat)

    def __getitem__(self, name: str) -> Tensor:
        """A piece of all networks, a view [R, *shape]."""
        return self._views[name]

    @cached_property
    def _views(self) -> dict[str, Tensor]:
        views = {}
        for piece, start in zip(self.layout.pieces, self.layout.starts, strict=False):
            memory = piece.memory or tuple(range(len(piece.shape)))
            lying = self.flat[:, start : start + piece.size].view(-1, *(piece.shape[axis] for axis in memory))
            views[piece.name] = lying.permute(0, *(1 + memory.index(axis) for axis in range(len(memory))))
        return views

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """A view per layer of what can be pruned, [R, *shape], from the inputs to the outputs."""
        return tuple(self._views[piece.name] for piece in self.layout.weights)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """A view per layer, [R, units]."""
        return tuple(self._views[piece.name] for piece in self.layout.biases)

    def rows(self, rows: slice | Sequence[int]) -> "Stack":
        """The networks of these rows: views of a slice, copies of a list."""
        return Stack(self.flat[rows], self.layout)

    def clone(self) -> "Stack":
        """A copy."""
        return Stack(self.flat.clone(), self.layout)

    def to(self, device: torch.device) -> "Stack":
        """The networks on a device; themselves where they are there."""
        return Stack(self.flat.to(device), self.layout)

    def masked(self, masks: "Masks") -> "Stack":
        """A copy whose pruned weights are 0."""
        return Stack(self.flat.masked_fill(~masks.flat, 0), self.layout)


Masks = Stack  # of booleans, True where a weight is kept and in all that is never pruned


def stack(networks: Sequence[Stack]) -> Stack:
    """All networks of several stacks in one, in this order."""
    return Stack(torch.cat([each.flat for each in networks]), networks[0].layout)


def everything(networks: int, layout: Layout) -> Masks:
    """The dense networks' masks: every weight kept."""
    return Stack(torch.ones(networks, layout.starts[-1], dtype=torch.bool), layout)


def initialize(layout: Layout, scheme: Initialization, generators: Sequence[Generator]) -> Stack:
    """Draw fresh networks, one per generator.

    ``glorot-normal`` draws weights from N(0, 2 / (in + out)) and starts biases at 0 (Glorot & Bengio 2010; Frankle &
    Carbin 2019, figure 2). ``kaiming-uniform`` draws both from U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default.
    ``kaiming-normal`` draws weights from N(0, 2 / in) (He et al. 2015, section 2.2) and biases as kaiming-uniform:
    open_lth's default, which leaves biases as PyTorch made them. Normalization begins as PyTorch's: it scales by 1 and
    shifts by 0, and has seen means of 0 and variances of 1.
    """
    networks = Stack.zeros(len(generators), layout)
    for piece in layout.others:
        own_name = piece.name.rpartition(".")[2]
        if piece.kind in ("normalization", "statistics") and own_name not in ("bias", "running_mean"):
            networks[piece.name].fill_(1)
    biases = {piece.layer: networks[piece.name] for piece in layout.biases}
    for row, generator in enumerate(generators):
        for piece, weight in zip(layout.weights, networks.weights, strict=True):
            inputs, outputs = piece.fans
            drawn = torch.empty(piece.shape)  # in the order of its shape, however the piece lies in memory
            bound = 1 / math.sqrt(inputs)
            if scheme == "kaiming-uniform":
                drawn.uniform_(-bound, bound, generator=generator)
            else:
                fans = inputs + outputs if scheme == "glorot-normal" else inputs
                drawn.normal_(0, math.sqrt(2 / fans), generator=generator)
            weight[row] = drawn
            if scheme != "glorot-normal" and piece.layer in biases:
                biases[piece.layer][row].uniform_(-bound, bound, generator=generator)
    return networks
