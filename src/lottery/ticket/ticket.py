"""A ticket: one network with its masks, what is known of it, and its predictions by numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lottery import LotteryError
from lottery.core.layout import Layout
from lottery.ticket.compact import Compact, compacted

CHUNK = 10_000  # images that are predicted together
Arrays = Mapping[str, NDArray[np.float32]]  # by the names of the layout's pieces, in their shapes


@dataclass(frozen=True)
class Facts:
    """What is known of a network beside its values."""

    layout: Layout
    level: str
    arm: str
    seed: int
    sparsity: float  # the level's setting
    accuracy: float  # of these values on the data set's test images, a fraction
    data: str  # the data set's name
    image: tuple[int, ...]  # an example's shape: (height, width), with channels as a third, or (features,)
    shift: tuple[float, ...]  # a network's input is (pixel - shift) / scale, by channels; see `core.images.Scaling`
    scale: tuple[float, ...]
    level_digest: str  # the MD5 sum by which DVC knows the level's files


@dataclass(frozen=True)
class Ticket:
    """A network of which pruned weights are 0; weights of a dense layer are [in, out]."""

    facts: Facts
    values: Arrays
    masks: Mapping[str, NDArray[np.bool_]]  # of the pieces that can be pruned, True where a weight is kept
    initial: Arrays | None = None  # what training started from

    @property
    def kept(self) -> int:
        """The number of weights that are kept."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def dtype(self) -> str:
        """The type of what the network takes: uint8 pixels, or float32 features."""
        return "uint8" if len(self.facts.image) > 1 else "float32"

    @property
    def density(self) -> float:
        """Weights kept / prunable weights."""
        return self.kept / self.facts.layout.prunable

    @cached_property
    def compact(self) -> Compact:
        """The network without what no output depends on. Raises LotteryError where it is no perceptron."""
        layout = self.facts.layout
        if layout.family != "perceptron":
            raise LotteryError(f"{layout.shown}: numpy reads its arrays alone; ticket.onnx predicts")
        weights, biases = ([self.values[each.name] for each in pieces] for pieces in (layout.weights, layout.biases))
        return compacted(weights, [self.masks[each.name] for each in layout.weights], biases)

    def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [N, C] of uint8 images, or float32 features, [N, ...].

        Raises LotteryError where the network or the images do not fit.
        """
        images = np.asarray(images)
        pixels = math.prod(self.facts.image)
        if images.dtype != self.dtype or images.ndim < 2 or math.prod(images.shape[1:]) != pixels:
            shape = ", ".join(map(str, self.facts.image))
            raise LotteryError(f"images: {images.dtype} {list(images.shape)}; give {self.dtype} [N, {shape}]")
        flat = images.reshape(len(images), pixels)
        parts = [self._of(flat[start : start + CHUNK]) for start in range(0, max(len(flat), 1), CHUNK)]
        return np.concatenate(parts)

    def _of(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        inputs = self.compact.inputs
        values = pixels[:, inputs].astype(np.float32)
        shift, scale = (np.array(each, np.float32) for each in (self.facts.shift, self.facts.scale))
        values -= shift[inputs % len(shift)]
        values /= scale[inputs % len(scale)]
        layers = list(zip(self.compact.weights, self.compact.biases, strict=True))
        for place, (weight, bias) in enumerate(layers):
            if place:
                np.maximum(values, 0, out=values)
            values = values @ weight + bias
        return values

    def __repr__(self) -> str:
        facts = self.facts
        return (
            f"<Ticket {facts.level} {facts.arm} {facts.seed}: {facts.layout.shown} on {facts.data}, "
            f"{self.kept:,} of {facts.layout.prunable:,} weights, {100 * facts.accuracy:.2f} % of the test images>"
        )
