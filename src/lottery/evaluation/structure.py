"""The structure of masks: what they connect, how much those of different seeds agree, and which weights they keep.

Units are the inputs, the units of each hidden layer, and the outputs, in this order; layer l of a mask lies between
units l and l + 1. Two networks' masks overlap by their Jaccard index: of the connections that either keeps, the
fraction that both keep. To say that it is large takes what chance would give masks that keep as much.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lottery.core.families import family
from lottery.core.pruning import weights_kept
from lottery.core.stack import Masks

# of reports/tables/structure.csv
COLUMNS = ("level", "arm", "layer", "density", "connected_in", "connected_out", "overlap", "chance", "chance_by_input")
WEIGHTS_COLUMNS = ("level", "layer", "low", "high", "start", "end")  # of reports/tables/kept_weights.csv
BINS, REACH = 96, 16.0  # of the distribution of weights: how many bins, and standard deviations at its ends

Connections = Sequence[Tensor]  # as `families.Family.connections` gives them

# --- connected units -------------------------------------------------------------------------------------------------


def connected(connections: Connections) -> tuple[Tensor, ...]:
    """Mark the units with at least one kept connection on each of their sides, bool [R, units] for each kind of units.

    Inputs and outputs have one side. A connected unit need not lie on a path from an input to an output.
    """
    above = [kept.any(dim=2) for kept in connections]
    below = [kept.any(dim=1) for kept in connections]
    hidden = [after & before for after, before in zip(above[1:], below[:-1], strict=True)]
    return (above[0], *hidden, below[-1])


def weights_on_paths(connections: Connections) -> Tensor:
    """Count the weights that lie on a path from an input to an output, int64 [R].

    The others change no output but by the bias of a unit that no input reaches (Vysogorets & Kempe 2023).
    """
    reached = [torch.ones_like(connections[0][:, :, 0], dtype=torch.bool)]  # by a path from an input, [R, units]
    for kept in connections[:-1]:
        reached.append(((kept != 0) & reached[-1][:, :, None]).any(dim=1))
    leads = torch.ones_like(connections[-1][:, 0], dtype=torch.bool)  # to an output, [R, units]
    on_path = torch.zeros(len(leads), dtype=torch.int64)
    for kept, before in zip(reversed(connections), reversed(reached), strict=True):
        onward = kept * leads[:, None, :]
        on_path += (onward * before[:, :, None]).sum(dim=(1, 2))
        leads = onward.any(dim=2)
    return on_path


def of_networks(masks: Masks) -> dict[str, Tensor]:
    """The measures of each network alone, [R], by their names in reports/tables/networks.csv and MLflow.

    The effective density is the weights on a path from an input to an output / prunable weights; NaN, and the only one,
    where nobody knows which layer reads which.
    """
    connections = family(masks.layout).connections(masks)
    if connections is None:
        return {"effective_density": torch.full((len(masks),), torch.nan, dtype=torch.float64)}
    inputs, *hidden, _ = (units.sum(dim=1) for units in connected(connections))
    counts = {f"connected_hidden{layer}": units for layer, units in enumerate(hidden, start=1)}
    effective = weights_on_paths(connections).double() / masks.layout.prunable
    return {"effective_density": effective, "connected_inputs": inputs, **counts}


# --- overlap ---------------------------------------------------------------------------------------------------------


def jaccard(first: Tensor, second: Tensor) -> float:
    """|A and B| / |A or B| of two masks of one shape; NaN where both are empty."""
    both, either = (np.count_nonzero(mask.numpy()) for mask in (first & second, first | second))  # fifty sums a level
    return both / either if either else math.nan


@lru_cache(maxsize=1024)
def chance(size: int, first: int, second: int) -> float:
    """The expected Jaccard index of two independent uniform masks that keep ``first`` and ``second`` of ``size``.

    Exact: their intersection is hypergeometric. At one density d it is about d / (2 - d). NaN where both are empty.
    """
    from scipy.stats import hypergeom  # takes a second, which a stage that tracks its networks need not spend

    if not first + second:
        return math.nan
    lowest, highest = max(0, first + second - size), min(first, second)
    mean = first * second / size
    reach = 40 * math.sqrt(mean * (1 - first / size)) + 100  # 40 deviations at least: a double loses the rest
    both = np.arange(max(lowest, math.floor(mean - reach)), min(highest, math.ceil(mean + reach)) + 1)
    # a dot product's last bits would depend on the number of threads
    return math.fsum(hypergeom.pmf(both, size, first, second) * both / (first + second - both))


def chance_by_group(sizes: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """The expected Jaccard index of masks that are uniform within groups, [groups], each of which keeps its own count.

    The groups are layers, or the inputs of the first layer with their connections. This is the ratio of expectations,
    E|A and B| / E|A or B|, and not the expectation of the ratio, from which it differs little where much is kept.
    NaN where both are empty.
    """
    both = float((first * second / sizes).sum())
    either = int(first.sum() + second.sum()) - both
    return both / either if either else math.nan


def over_pairs(measure: Callable[[Any, Any], float], networks: Sequence[Any]) -> float:
    """The mean of a measure of two networks over all pairs of them; NaN where there is one network."""
    values = [measure(first, second) for first, second in combinations(networks, 2)]
    return math.fsum(values) / len(values) if values else math.nan


def describe(arms: Mapping[str, Masks]) -> pd.DataFrame:
    """A level's rows of reports/tables/structure.csv, without its name: each arm's networks are the seeds.

    One row per arm and layer, and one for all layers, whose connected units are the inputs and the outputs and whose
    chance is given the layers' counts.
    """
    return pd.DataFrame([row for each in arms.items() for row in _describe_arm(*each)], columns=COLUMNS[1:])


def _describe_arm(arm: str, masks: Masks) -> Iterable[tuple[Any, ...]]:
    sizes = np.array([piece.size for piece in masks.layout.weights])
    kept = weights_kept(masks).numpy()
    connections = family(masks.layout).connections(masks)
    units = [math.nan] * (len(sizes) + 1)
    if connections is not None:
        units = [float(units.sum(dim=1).double().mean()) for units in connected(connections)]
    for layer, (mask, size) in enumerate(zip(masks.weights, sizes.tolist(), strict=True)):
        density, overlap = kept[:, layer].mean() / size, over_pairs(jaccard, list(mask))
        by_chance = over_pairs(partial(chance, size), kept[:, layer].tolist())
        by_input = math.nan if layer or mask.dim() > 3 or not connections else _chance_by_input(connections[0], size)
        yield arm, str(layer), density, units[layer], units[layer + 1], overlap, by_chance, by_input
    together = torch.cat([mask.flatten(1) for mask in masks.weights], dim=1)
    density, overlap = kept.sum(axis=1).mean() / sizes.sum(), over_pairs(jaccard, list(together))
    by_chance = over_pairs(partial(chance_by_group, sizes), list(kept))
    yield arm, "all", density, units[0], units[-1], overlap, by_chance, math.nan


def _chance_by_input(connections: Tensor, size: int) -> float:
    """The chance overlap of first layers of so many weights, [R, in, out], whose inputs keep their own counts."""
    counts = connections.sum(dim=2).numpy()
    sizes = np.full(counts.shape[1], size // counts.shape[1])
    return over_pairs(partial(chance_by_group, sizes), list(counts))


# --- kept weights ----------------------------------------------------------------------------------------------------


def edges(initial: Tensor) -> NDArray[np.float64]:
    """The bins' limits [BINS + 1] for a layer's weights: 16 standard deviations of its ``initial`` weights each way."""
    # numpy's deviation, because the last bits of torch's depend on the number of threads
    return np.linspace(-REACH, REACH, BINS + 1) * float(initial.double().numpy().std())


def histogram(weights: Tensor, mask: Tensor, limits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count the kept weights, both [R, *shape], in each bin, [bins]; the outermost bins are open."""
    kept = weights[mask].double().numpy()
    return np.histogram(kept.clip(limits[0], limits[-1]), limits)[0]


def kept_weights(
    masks: Sequence[Tensor], start: Sequence[Tensor], end: Sequence[Tensor], limits: Sequence[NDArray[np.float64]]
) -> pd.DataFrame:
    """The distribution of the weights that an arm keeps, before and after training: reports/tables/kept_weights.csv.

    One row per layer and bin: its limits ``low`` and ``high``, and the numbers of weights in it, over all networks.
    """
    tables = []
    for layer, (mask, bins) in enumerate(zip(masks, limits, strict=True)):
        counts = {"start": histogram(start[layer], mask, bins), "end": histogram(end[layer], mask, bins)}
        tables.append(pd.DataFrame({"layer": layer, "low": bins[:-1], "high": bins[1:], **counts}))
    return pd.concat(tables, ignore_index=True)
