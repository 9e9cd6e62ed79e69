"""Masks: by which scores weights are ranked, and how many of them are kept.

Scores are a float tensor [R, in, out] a layer, masks a boolean one; among the weights that the parent keeps, those with
the highest scores are kept, counted exactly: no threshold, so ties and zeros cannot prune too many or too few. Adding a
criterion is one function here and its entry in `CRITERIA`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lottery.images import Images, Split
from lottery.network import Gradients, Masks, Parameters
from lottery.randomness import generator

Scores = tuple[Tensor, ...]  # a layer each: float [R, in, out], the highest are kept

SNIP_IMAGES = 10  # a class
SYNFLOW_ROUNDS = 100


# --- criteria --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at: the parent's networks, a row a seed, and the images."""

    start: Parameters  # what they started training from
    trained: Parameters  # what they ended with
    seeds: Sequence[int]
    path: Sequence[float]  # sparsities from dense to the level that is pruned to
    split: Split


Criterion = Callable[[Evidence, Masks], Scores]  # the masks are those that are pruned further


@contextmanager
def _one_thread() -> Iterator[None]:
    """The sums of several threads may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def magnitude(evidence: Evidence, masks: Masks) -> Scores:
    """|w| of the trained weights (Han et al. 2015; Frankle & Carbin 2019, section 2)."""
    return tuple(weight.abs() for weight in evidence.trained.weights)


def magnitude_increase(evidence: Evidence, masks: Masks) -> Scores:
    """By how much |w| grew in training (Zhou et al. 2019, section 2)."""
    ends, starts = evidence.trained.weights, evidence.start.weights
    return tuple(end.abs() - start.abs() for end, start in zip(ends, starts, strict=True))


def movement(evidence: Evidence, masks: Masks) -> Scores:
    """How far w moved in training (Zhou et al. 2019, section 2; not the movement pruning of Sanh et al. 2020)."""
    ends, starts = evidence.trained.weights, evidence.start.weights
    return tuple((end - start).abs() for end, start in zip(ends, starts, strict=True))


def random(evidence: Evidence, masks: Masks) -> Scores:
    """Uniform noise, a draw for every seed and level."""
    scores = tuple(torch.empty_like(weight) for weight in evidence.trained.weights)
    for row, seed in enumerate(evidence.seeds):
        draws = generator("criterion", seed, evidence.path)
        for score in scores:
            score[row].uniform_(generator=draws)
    return scores


@_one_thread()
def snip(evidence: Evidence, masks: Masks) -> Scores:
    """|w dL/dw| before training, L the mean cross-entropy on training images (Lee et al. 2019, section 4).

    On 10 images of each class, drawn for every seed.
    """
    images, scaling = evidence.split.train, evidence.split.scaling
    chosen = [_of_each_class(images, SNIP_IMAGES, seed) for seed in evidence.seeds]
    backward = Gradients(evidence.start, len(chosen[0]))
    scaling(images.pixels[torch.stack(chosen)], out=backward.inputs)
    backward.labels.copy_(images.labels[torch.stack(chosen)][..., None])
    backward(torch.empty_like(backward.labels, dtype=torch.float32))
    gradients = backward.gradients.weights
    return tuple((weight * gradient).abs() for weight, gradient in zip(evidence.start.weights, gradients, strict=True))


def _of_each_class(images: Images, count: int, seed: int) -> Tensor:
    """Indices of ``count`` images of each class, or of all of a class that has fewer."""
    order = torch.randperm(len(images), generator=generator("snip", seed))
    labels = images.labels[order]
    return torch.cat([order[labels == label][:count] for label in range(int(labels.max()) + 1)])


@_one_thread()
def synflow(evidence: Evidence, masks: Masks) -> Scores:
    """|w| dR/d|w| before training, R the sum of the outputs of the network of kept |w| without biases for an input of
    ones (Tanaka et al. 2020, algorithm 1).

    All values are positive there, so the ReLUs do nothing and R is a sum over paths: a weight's score is what flows
    into its input, times |w|, times what flows on from its output. In float64, as in the paper's code, because paths
    through many layers are small.
    """
    scores = tuple(torch.zeros_like(mask, dtype=torch.float64) for mask in masks)
    for row in range(len(evidence.start)):
        weights = [
            weight[row].double().abs() * mask[row] for weight, mask in zip(evidence.start.weights, masks, strict=True)
        ]
        into = [torch.ones(len(weights[0]), dtype=torch.float64)]
        for weight in weights[:-1]:
            into.append(into[-1] @ weight)
        on = torch.ones(weights[-1].shape[1], dtype=torch.float64)
        for layer in reversed(range(len(weights))):
            scores[layer][row] = into[layer][:, None] * weights[layer] * on
            on = weights[layer] @ on
    return scores


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "magnitude-increase": magnitude_increase,
    "movement": movement,
    "random": random,
    "snip": snip,
    "synflow": synflow,
}


def rounds(criterion: str, sparsity: float) -> list[float]:
    """The sparsities at which weights are ranked anew on the way to ``sparsity``, itself the last.

    One but for synflow, which keeps the fraction density^(i/100) of the weights after round i of 100.
    """
    count = SYNFLOW_ROUNDS if criterion == "synflow" else 1
    return [*(1 - (1 - sparsity) ** (i / count) for i in range(1, count)), sparsity]


# --- masks -----------------------------------------------------------------------------------------------------------


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


def prune_globally(scores: tuple[Tensor, ...], masks: Masks, sparsity: float, output_layer: bool = True) -> Masks:
    """Prune all layers by one ranking: of all n prunable weights together keep round((1 - sparsity) n).

    If ``output_layer`` is False, the output layer is not pruned, and its weights count among those that are kept.
    """
    kept = round((1 - sparsity) * sum(mask[0].numel() for mask in masks))
    ranked = masks if output_layer else masks[:-1]
    kept -= 0 if output_layer else int(masks[-1][0].sum())
    flat_scores = torch.cat([score.flatten(1) for score in scores[: len(ranked)]], dim=1)
    flat_masks = torch.cat([mask.flatten(1) for mask in ranked], dim=1)
    highest = keep_highest(flat_scores, flat_masks, kept)
    layers = torch.split(highest, [mask[0].numel() for mask in ranked], dim=1)
    return (*(layer.reshape(mask.shape) for layer, mask in zip(layers, ranked, strict=True)), *masks[len(ranked) :])


def weights_kept(masks: Masks) -> Tensor:
    """How many weights each network keeps in each layer, int64 [R, layers]."""
    return torch.stack([mask.flatten(1).sum(dim=1) for mask in masks], dim=1)


def density(masks: Masks) -> Tensor:
    """Weights kept / prunable weights over all layers, float64 [R]."""
    return weights_kept(masks).sum(dim=1).double() / sum(mask[0].numel() for mask in masks)
