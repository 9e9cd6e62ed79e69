"""The layout of a network: its tensors by name, kind and shape, in the order in which they lie in memory.

Nothing here needs torch, because params.yaml is checked before torch is imported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

CACHE_LINE = 16  # float32 values
CLASSES = 10  # of every data set

Initialization = Literal["glorot-normal", "kaiming-uniform", "kaiming-normal"]
Kind = Literal["convolution", "hidden", "output", "bias"]
TITLES = {"convolution": "convolution {}", "hidden": "hidden layer {}", "output": "output layer"}


def padded(size: int) -> int:
    """Round a number of float32 values up to whole cache lines."""
    return -(-size // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True)
class Piece:
    """A tensor of a network. All are trained; all but biases are pruned."""

    name: str  # LAYER.weight or LAYER.bias
    kind: Kind
    shape: tuple[int, ...]  # as its layer takes it
    fans: tuple[int, int]  # inputs and outputs of a unit of its layer
    memory: tuple[int, ...] = ()  # its axes in the order in which they lie in memory; empty: as in ``shape``

    @property
    def size(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)

    @property
    def layer(self) -> str:
        """The name of its layer."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """The tensors of a network of one family. In a row of memory each begins on a cache line."""

    family: str
    inputs: int  # pixels of an image
    pieces: tuple[Piece, ...]  # in memory; weights and biases each from the inputs to the outputs

    @cached_property
    def weights(self) -> tuple[Piece, ...]:
        """The pieces that are pruned, from the inputs to the outputs."""
        return tuple(piece for piece in self.pieces if piece.kind != "bias")

    @cached_property
    def biases(self) -> tuple[Piece, ...]:
        """The pieces that are never pruned, one per layer."""
        return tuple(piece for piece in self.pieces if piece.kind == "bias")

    @property
    def prunable(self) -> int:
        """The number of weights that can be pruned."""
        return sum(piece.size for piece in self.weights)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in a row each piece begins, and last the length of a row."""
        return tuple(accumulate((padded(piece.size) for piece in self.pieces), initial=0))

    @property
    def titles(self) -> list[str]:
        """The layers' names for people: hidden layer 1, output layer."""
        kinds = [piece.kind for piece in self.weights]
        return [TITLES[kind].format(kinds[: place + 1].count(kind)) for place, kind in enumerate(kinds)]

    @property
    def place(self) -> str:
        """The name of what a picture counts first-layer connections for."""
        return "place of a kernel" if self.weights[0].kind == "convolution" else "pixel"

    @property
    def shown(self) -> str:
        """The network in a few words: 784-300-100-10, or lenet-5."""
        return "-".join(map(str, _sizes(self))) if self.family == "perceptron" else self.family


def perceptron(sizes: tuple[int, ...]) -> Layout:
    """Lay out a multilayer perceptron of these inputs, units of each hidden layer, and classes.

    All weights but the last layer's lie in memory transposed, because products with the longer side first are faster.
    """
    layers = list(enumerate(pairwise(sizes)))
    last = len(layers) - 1
    weights = [
        Piece(f"layer{i}.weight", "output" if i == last else "hidden", nm, nm, (0, 1) if i == last else (1, 0))
        for i, nm in layers
    ]
    biases = [Piece(f"layer{i}.bias", "bias", nm[1:], nm) for i, nm in layers]
    return Layout("perceptron", sizes[0], (*weights, *biases))


def lenet_5() -> Layout:
    """Lay out LeNet-5 for 28x28 pixels, with 20 and 50 filters of 5x5 and 500 units: 430,500 weights.

    The form of Caffe's example, which Han et al. (2015), Lee et al. (2019) and others prune; that of LeCun et al.
    (1998) has 6 and 16 filters. Convolutions lie in memory with their channels last, which makes them twice as fast.
    """
    layers: dict[str, tuple[Kind, tuple[int, ...], tuple[int, int]]] = {
        "convolution1": ("convolution", (20, 1, 5, 5), (25, 500)),
        "convolution2": ("convolution", (50, 20, 5, 5), (500, 1250)),
        "hidden1": ("hidden", (500, 800), (800, 500)),
        "output": ("output", (CLASSES, 500), (500, CLASSES)),
    }
    weights = [
        Piece(f"{name}.weight", kind, shape, fans, (0, 2, 3, 1) if kind == "convolution" else ())
        for name, (kind, shape, fans) in layers.items()
    ]
    biases = [Piece(f"{name}.bias", "bias", shape[:1], fans) for name, (_, shape, fans) in layers.items()]
    return Layout("lenet-5", 28 * 28, (*weights, *biases))


FIXED = {"lenet-5": lenet_5}  # families whose networks are all of one layout


def description(layout: Layout) -> dict[str, Any]:
    """Describe a layout in JSON's types; `described` gives it back."""
    return {"network": layout.family} if layout.family in FIXED else {"sizes": _sizes(layout)}


def described(sizes: Sequence[int] = (), network: str = "perceptron") -> Layout:
    """The layout that a `description` describes, whose items are the arguments here."""
    return perceptron(tuple(sizes)) if network == "perceptron" else FIXED[network]()


def _sizes(layout: Layout) -> tuple[int, ...]:
    return (layout.inputs, *(piece.shape[1] for piece in layout.weights))
