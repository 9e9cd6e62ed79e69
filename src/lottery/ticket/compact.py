"""The compact network: a perceptron without what no output depends on, whatever the image.

A unit that no path leads to from an input is constant, and moves into the biases behind it; a unit from which no path
leads to an output goes; and so does a pixel. A pixel that happens to be 0 in every image that was ever seen stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Compact:
    """A perceptron on some of the pixels; weights [in, out], dense, zeros where the masks have some."""

    inputs: NDArray[np.int64]  # the pixels that it reads, in rising order
    weights: list[Weights]
    biases: list[Weights]

    @property
    def multiply_adds(self) -> int:
        """Multiplications, with an addition each, per image."""
        return sum(weight.size for weight in self.weights)


def compacted(weights: Sequence[Weights], masks: Sequence[NDArray[np.bool_]], biases: Sequence[Weights]) -> Compact:
    """Make the compact network of a perceptron, all arrays from the inputs to the outputs.

    It gives the network's logits but for rounding. A layer of which nothing is left keeps one unit, with weights 0.
    """
    weights = [np.where(mask, weight, np.float32(0)) for weight, mask in zip(weights, masks, strict=True)]
    biases = [bias.astype(np.float64) for bias in biases]  # into which constants are added
    varies: NDArray[np.bool_] = np.ones(len(weights[0]), dtype=bool)  # per unit: whether a path leads to it
    alive = [varies]
    for layer, mask in enumerate(masks):
        if layer:  # the units that do not vary have the value of their bias, rectified
            constant = np.where(varies, 0, np.maximum(biases[layer - 1], 0))
            biases[layer] += constant @ weights[layer].astype(np.float64)
        varies = np.asarray(mask[varies].any(axis=0))
        alive.append(varies)
    alive[-1] = np.ones(len(biases[-1]), dtype=bool)  # an output is one, whatever leads to it
    for layer in reversed(range(len(masks))):
        alive[layer] = alive[layer] & masks[layer][:, alive[layer + 1]].any(axis=1)
        if not alive[layer].any():
            alive[layer][0] = True
            weights[layer][0] = 0
    return Compact(
        np.flatnonzero(alive[0]),
        [weight[np.ix_(alive[at], alive[at + 1])] for at, weight in enumerate(weights)],
        [bias[alive[at + 1]].astype(np.float32) for at, bias in enumerate(biases)],
    )
