"""The layout of a network: its tensors by name, kind and shape, in the order in which they lie in memory.

Nothing here needs torch, because params.yaml is checked before torch is imported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

CACHE_LINE = 16  # float32 values

Initialization = Literal["glorot-normal", "kaiming-uniform", "kaiming-normal"]
# `normalization` is what a normalizing layer scales and shifts by, `statistics` the means and variances that batch
# normalization keeps, which no gradient changes
Kind = Literal["convolution", "hidden", "output", "bias", "normalization", "statistics"]
TITLES = {"convolution": "convolution {}", "hidden": "hidden layer {}", "output": "output layer"}


def padded(size: int) -> int:
    """Round a number of float32 values up to whole cache lines."""
    return -(-size // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True)
class Piece:
    """A tensor of a network. The weights of convolutions, hidden layers and the output are pruned, no others are."""

    name: str  # LAYER.weight, LAYER.bias, ...
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


def weights_left(piece: Piece, kept: int, sparsity: float, parent_sparsity: float, slower: Mapping[Kind, float]) -> int:
    """The number of weights that a level leaves of those that its parent ``kept`` in a layer; see `pruning`."""
    rate, own = 1 - (1 - sparsity) / (1 - parent_sparsity), slower.get(piece.kind)
    return round((1 - sparsity) * piece.size) if own is None else round((1 - own * rate) * kept)


@dataclass(frozen=True)
class Own:
    """A torch module that a person wrote: where, and how it is made."""

    file: str  # from the repository's root
    name: str  # of the class
    arguments: str  # of the class, as JSON
    code: str  # the SHA-256 sum of the file


@dataclass(frozen=True)
class Layout:
    """The tensors of a network of one family. In a row of memory each begins on a cache line."""

    family: str
    example: tuple[int, ...]  # the shape of what it reads: (height, width), with channels as a third, or (features,)
    pieces: tuple[Piece, ...]  # in memory, statistics last; weights and biases each from the inputs to the outputs
    own: Own | None = None  # of family own

    @property
    def inputs(self) -> int:
        """The number of values of an example."""
        return math.prod(self.example)

    @cached_property
    def weights(self) -> tuple[Piece, ...]:
        """The pieces that are pruned, from the inputs to the outputs."""
        return tuple(piece for piece in self.pieces if piece.kind in TITLES)

    @cached_property
    def biases(self) -> tuple[Piece, ...]:
        """The biases of the pruned layers, in their order; a person's own network may have fewer of them."""
        return tuple(piece for piece in self.pieces if piece.kind == "bias")

    @cached_property
    def others(self) -> tuple[Piece, ...]:
        """The pieces that are never pruned."""
        return tuple(piece for piece in self.pieces if piece.kind not in TITLES)

    @cached_property
    def trained(self) -> int:
        """The length of the part of a row that gradients change; the statistics, which none changes, come after it."""
        moved = [start for piece, start in zip(self.pieces, self.starts, strict=False) if piece.kind == "statistics"]
        return min(moved, default=self.starts[-1])

    @property
    def classes(self) -> int:
        """The number of classes that it tells apart."""
        output = next(piece for piece in self.weights if piece.kind == "output")
        return output.fans[1] // math.prod(output.shape[2:])

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
        if self.weights[0].kind == "convolution":
            return "place of a kernel"
        return "pixel" if len(self.example) > 1 else "feature"

    @property
    def shown(self) -> str:
        """The network in a few words: 784-300-100-10, lenet-5, or the name of a person's own class."""
        if self.own is not None:
            return self.own.name
        return "-".join(map(str, _sizes(self))) if self.family == "perceptron" else self.family


def perceptron(sizes: tuple[int, ...], example: tuple[int, ...] = ()) -> Layout:
    """Lay out a multilayer perceptron of these inputs, units of each hidden layer, and classes.

    Without an ``example`` the inputs are a square, grey image where they can be. All weights but the last layer's lie
    in memory transposed, because products with the longer side first are faster.
    """
    layers = list(enumerate(pairwise(sizes)))
    last = len(layers) - 1
    weights = [
        Piece(f"layer{i}.weight", "output" if i == last else "hidden", nm, nm, (0, 1) if i == last else (1, 0))
        for i, nm in layers
    ]
    biases = [Piece(f"layer{i}.bias", "bias", nm[1:], nm) for i, nm in layers]
    return Layout("perceptron", example or _square(sizes[0]), (*weights, *biases))


def _square(inputs: int) -> tuple[int, ...]:
    side = math.isqrt(inputs)
    return (side, side) if side * side == inputs else (inputs,)


@dataclass(frozen=True)
class Published:
    """A published network: convolutions, each followed by a ReLU and some by pooling over 2x2, then dense layers."""

    filters: tuple[int, ...]  # of each convolution
    kernel: int  # its height and width
    padding: int
    pool_every: int  # convolutions
    hidden: tuple[int, ...]  # units of each hidden dense layer

    def sides(self, example: tuple[int, ...]) -> tuple[int, ...]:
        """The height and the width of what the convolutions leave of an image; 0 or less where it is too small."""
        sides = example[:2]
        for place in range(1, len(self.filters) + 1):
            sides = tuple(side + 2 * self.padding - self.kernel + 1 for side in sides)
            if place % self.pool_every == 0:
                sides = tuple(side // 2 for side in sides)
            if min(sides) < 1:
                break
        return sides


# LeNet-5 is of the form of Caffe's example, which Han et al. (2015), Lee et al. (2019) and others prune; that of LeCun
# et al. (1998) has 6 and 16 filters. Conv-2, 4 and 6 are as in Frankle & Carbin (2019), figure 2, which says 4.3, 2.4
# and 1.7 million weights; the last has 2.3 million by its own description.
PUBLISHED = {
    "lenet-5": Published((20, 50), 5, 0, 1, (500,)),
    "conv-2": Published((64, 64), 3, 1, 2, (256, 256)),
    "conv-4": Published((64, 64, 128, 128), 3, 1, 2, (256, 256)),
    "conv-6": Published((64, 64, 128, 128, 256, 256), 3, 1, 2, (256, 256)),
}


def published(name: str, example: tuple[int, ...], classes: int) -> Layout:
    """Lay out a published network for images of this shape, which are not too small for it.

    Convolutions lie in memory with their channels last, which makes them twice as fast.
    """
    form = PUBLISHED[name]
    layers: dict[str, tuple[Kind, tuple[int, ...]]] = {}
    before = example[2] if len(example) == 3 else 1
    for place, filters in enumerate(form.filters, start=1):
        layers[f"convolution{place}"] = "convolution", (filters, before, form.kernel, form.kernel)
        before = filters
    before *= math.prod(form.sides(example))
    for place, units in enumerate(form.hidden, start=1):
        layers[f"hidden{place}"] = "hidden", (units, before)
        before = units
    layers["output"] = "output", (classes, before)
    weights = [
        Piece(f"{name}.weight", kind, shape, fans(shape), (0, 2, 3, 1) if kind == "convolution" else ())
        for name, (kind, shape) in layers.items()
    ]
    biases = [Piece(f"{name}.bias", "bias", shape[:1], fans(shape)) for name, (_, shape) in layers.items()]
    return Layout(name, example, (*weights, *biases))


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """The inputs and the outputs of a unit of a layer whose weight has this shape: [out, in, *kernel]."""
    return math.prod(shape[1:]), shape[0] * math.prod(shape[2:])


def description(layout: Layout) -> dict[str, Any]:
    """Describe a layout in JSON's types; `described` gives it back."""
    if layout.family == "perceptron":
        told = layout.example == _square(layout.inputs)
        return {"sizes": _sizes(layout)} | ({} if told else {"example": layout.example})
    if layout.own is None:
        return {"network": layout.family, "example": layout.example, "classes": layout.classes}
    return {"network": "own", "example": layout.example} | {"own": asdict(layout.own), "pieces": _said(layout.pieces)}


def described(
    sizes: Sequence[int] = (),
    network: str = "perceptron",
    example: Sequence[int] = (),
    classes: int = 0,
    own: Mapping[str, str] | None = None,
    pieces: Sequence[Sequence[Any]] = (),
) -> Layout:
    """The layout that a `description` describes, whose items are the arguments here. Raises ValueError or TypeError."""
    if network == "perceptron":
        return perceptron(tuple(sizes), tuple(example))
    if own is None:
        return published(network, tuple(example), classes)
    of_one = [Piece(name, kind, tuple(shape), (fan_in, fan_out)) for name, kind, shape, (fan_in, fan_out) in pieces]
    return Layout(network, tuple(example), tuple(of_one), Own(**own))


def _said(pieces: Sequence[Piece]) -> list[tuple[Any, ...]]:
    return [(piece.name, piece.kind, piece.shape, piece.fans) for piece in pieces]


def _sizes(layout: Layout) -> tuple[int, ...]:
    return (layout.inputs, *(piece.shape[1] for piece in layout.weights))
