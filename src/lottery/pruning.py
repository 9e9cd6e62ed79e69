"""Masks from trained weights.

Scores are a float tensor [R, in, out] a layer, masks a boolean one; among the weights that the parent keeps, those with
the highest scores are kept, counted exactly: no threshold, so ties and zeros cannot prune too many or too few.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from lottery.network import Masks, Parameters


def magnitude(trained: Parameters) -> tuple[Tensor, ...]:
    """|w| of the trained weights (Han et al. 2015; Frankle & Carbin 2019, section 2)."""
    return tuple(weight.abs() for weight in trained.weights)


CRITERIA: dict[str, Callable[[Parameters], tuple[Tensor, ...]]] = {"magnitude": magnitude}


def everything(networks: int, sizes: tuple[int, ...]) -> Masks:
    """The dense networks' masks: every weight kept."""
    return tuple(torch.ones(networks, n, m, dtype=torch.bool) for n, m in pairwise(sizes))


def keep_highest(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """For each row keep the ``count`` highest scores of those that ``mask`` keeps; ties keep the lower index.

    scores float [R, n], mask bool [R, n]; gives bool [R, n].
    """
    ranked = scores.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(mask).scatter_(1, ranked[:, :count], True)


def prune_layers(
    scores: tuple[Tensor, ...], masks: Masks, sparsity: float, parent_sparsity: float, output_rate: float
) -> Masks:
    """Prune layer by layer.

    Of n weights a hidden layer keeps round((1 - sparsity) n). The step from the parent prunes the fraction
    rate = 1 - (1 - sparsity) / (1 - parent_sparsity) of what it kept; the output layer, which is small, is pruned at
    output_rate * rate of what the parent kept there (the paper's 20 % and 10 %, section 2).
    """
    rate = 1 - (1 - sparsity) / (1 - parent_sparsity)
    kept = [round((1 - sparsity) * mask[0].numel()) for mask in masks[:-1]]
    kept.append(round((1 - output_rate * rate) * int(masks[-1][0].sum())))
    return tuple(
        keep_highest(score.flatten(1), mask.flatten(1), count).view_as(mask)
        for score, mask, count in zip(scores, masks, kept, strict=True)
    )


def prune_globally(scores: tuple[Tensor, ...], masks: Masks, sparsity: float) -> Masks:
    """Prune all layers by one ranking: of all n prunable weights together keep round((1 - sparsity) n)."""
    flat_scores = torch.cat([score.flatten(1) for score in scores], dim=1)
    flat_masks = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    kept = keep_highest(flat_scores, flat_masks, round((1 - sparsity) * flat_masks.shape[1]))
    layers = torch.split(kept, [mask[0].numel() for mask in masks], dim=1)
    return tuple(layer.reshape(mask.shape) for layer, mask in zip(layers, masks, strict=True))


def weights_kept(masks: Masks) -> Tensor:
    """How many weights each network keeps in each layer, int64 [R, layers]."""
    return torch.stack([mask.flatten(1).sum(dim=1) for mask in masks], dim=1)


def density(masks: Masks) -> Tensor:
    """Weights kept / prunable weights over all layers, float64 [R]."""
    return weights_kept(masks).sum(dim=1).double() / sum(mask[0].numel() for mask in masks)
