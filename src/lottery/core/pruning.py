"""Masks: by which scores weights are ranked, and how many of them are kept.

Scores are a stack of floats, masks one of booleans; among the weights that the parent keeps, those with the highest
scores are kept, counted exactly: no threshold, so ties and zeros cannot prune too many or too few. Adding a criterion
is one function here and its entry in `CRITERIA`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lottery.core.families import family
from lottery.core.images import Images, Split
from lottery.core.layout import Kind, Layout, weights_left
from lottery.core.networks.own import in_short
from lottery.core.randomness import generator
from lottery.core.stack import Masks, Stack, everything, initialize
from lottery.core.workers import one_thread

Scores = Stack  # of float32 or float64; the highest are kept

SNIP_IMAGES = 10  # per class
SYNFLOW_ROUNDS = 100


# --- criteria --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """The evidence that a criterion may look at: the parent's networks, one row per seed, and the images."""

    start: Stack  # what they started training from
    trained: Stack  # what they ended with
    seeds: Sequence[int]
    path: Sequence[float]  # sparsities from dense to the level that is pruned to
    split: Split


Criterion = Callable[[Evidence, Masks], Scores]  # the masks are those that are pruned further


def magnitude(evidence: Evidence, masks: Masks) -> Scores:
    """|w| of the trained weights (Han et al. 2015; Frankle & Carbin 2019, section 2)."""
    return Stack(evidence.trained.flat.abs(), masks.layout)


def magnitude_increase(evidence: Evidence, masks: Masks) -> Scores:
    """By how much |w| grew in training (Zhou et al. 2019, section 2)."""
    return Stack(evidence.trained.flat.abs() - evidence.start.flat.abs(), masks.layout)


def movement(evidence: Evidence, masks: Masks) -> Scores:
    """The distance that w moved (Zhou et al. 2019, section 2; not the movement pruning of Sanh et al. 2020)."""
    return Stack((evidence.trained.flat - evidence.start.flat).abs(), masks.layout)


def random(evidence: Evidence, masks: Masks) -> Scores:
    """Uniform noise, a draw for every seed and level."""
    scores = Stack.zeros(len(masks), masks.layout)
    for row, seed in enumerate(evidence.seeds):
        draws = generator("criterion", seed, evidence.path)
        for score in scores.weights:
            score[row].uniform_(generator=draws)
    return scores


@one_thread()
def snip(evidence: Evidence, masks: Masks) -> Scores:
    """|w dL/dw| before training, L the mean cross-entropy on training images (Lee et al. 2019, section 4).

    On 10 images of each class, drawn for every seed.
    """
    start, images = evidence.start, evidence.split.train
    chosen = torch.stack([_of_each_class(images, SNIP_IMAGES, seed) for seed in evidence.seeds])
    gradients = family(start.layout).gradients(start, images, evidence.split.scaling, chosen)
    return Stack((start.flat * gradients.flat).abs(), start.layout)


def _of_each_class(images: Images, count: int, seed: int) -> Tensor:
    """Indices of ``count`` images of each class, or of all of a class that has fewer."""
    order = torch.randperm(len(images), generator=generator("snip", seed))
    labels = images.labels[order]
    return torch.cat([order[labels == label][:count] for label in range(int(labels.max()) + 1)])


@one_thread()
def synflow(evidence: Evidence, masks: Masks) -> Scores:
    """|w| dR/d|w| before training, R the sum of the outputs of the network of kept |w| without biases for an input of
    ones (Tanaka et al. 2020, algorithm 1).

    All values are positive there, so the ReLUs do nothing. In float64, as in the paper's code, because paths through
    many layers are small.
    """
    return family(masks.layout).flow(evidence.start, masks)


def without_flow(layout: Layout) -> str:
    """The words that say why synflow cannot rank the weights of a layout; empty where it can."""
    networks = initialize(layout, "glorot-normal", [torch.Generator().manual_seed(0)])
    try:
        scores = family(layout).flow(networks, everything(1, layout))
    except Exception as error:
        return f", for which it fails: {in_short(error)}"
    for piece, score in zip(layout.weights, scores.weights, strict=True):
        if not score.isfinite().all() or not score.any():
            return f": it scores all weights of {piece.layer} 0, or not by finite numbers"
    return ""


CRITERIA: dict[str, Criterion] = {
    criterion.__name__.replace("_", "-"): criterion
    for criterion in (magnitude, magnitude_increase, movement, random, snip, synflow)
}


def rounds(criterion: str, sparsity: float) -> list[float]:
    """The sparsities at which weights are ranked anew on the way to ``sparsity``, itself the last.

    One but for synflow, which keeps the fraction density^(i/100) of the weights after round i of 100.
    """
    count = SYNFLOW_ROUNDS if criterion == "synflow" else 1
    return [*(1 - (1 - sparsity) ** (i / count) for i in range(1, count)), sparsity]


Slower = Mapping[Kind, float]  # kinds of layers that are pruned at a fraction of a step's rate, and which


# --- masks -----------------------------------------------------------------------------------------------------------


def keep_highest(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """For each row keep the ``count`` highest scores of those that ``mask`` keeps; ties keep the lower index.

    scores float [R, n], mask bool [R, n]; gives bool [R, n].
    """
    ranked = scores.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(mask).scatter_(1, ranked[:, :count], True)


def prune_layers(scores: Scores, masks: Masks, sparsity: float, parent_sparsity: float, slower: Slower) -> Masks:
    """Prune layer by layer.

    Of n weights a dense hidden layer keeps round((1 - sparsity) n). The step from the parent prunes the fraction
    rate = 1 - (1 - sparsity) / (1 - parent_sparsity) of what it kept. The output layer, which is small, and
    convolutions, whose weights are used many times, are pruned at ``slower`` * rate of what the parent kept there (in
    Frankle & Carbin 2019, figure 2, at 10 % where dense layers are pruned at 20 %).
    """
    pruned = masks.clone()
    for piece, kept in zip(masks.layout.weights, weights_kept(masks)[0].tolist(), strict=True):
        count = weights_left(piece, kept, sparsity, parent_sparsity, slower)
        mask = masks[piece.name]
        highest = keep_highest(scores[piece.name].flatten(1), mask.flatten(1), count)
        pruned[piece.name].copy_(highest.view(mask.shape))
    return pruned


def prune_globally(scores: Scores, masks: Masks, sparsity: float, slower: Slower) -> Masks:
    """Prune all layers by one ranking: of all n prunable weights together keep round((1 - sparsity) n).

    Layers whose ``slower`` is 0 are not pruned, and their weights count among those that are kept.
    """
    ranked = [piece for piece in masks.layout.weights if slower.get(piece.kind) != 0]
    whole = [masks[piece.name] for piece in masks.layout.weights if piece not in ranked]
    count = round((1 - sparsity) * masks.layout.prunable) - sum(int(mask[0].sum()) for mask in whole)
    flat_scores, flat_masks = (
        torch.cat([each[piece.name].flatten(1) for piece in ranked], dim=1) for each in (scores, masks)
    )
    highest, pruned = keep_highest(flat_scores, flat_masks, count), masks.clone()
    for piece, kept in zip(ranked, torch.split(highest, [piece.size for piece in ranked], dim=1), strict=True):
        pruned[piece.name].copy_(kept.view(-1, *piece.shape))
    return pruned


def weights_kept(masks: Masks) -> Tensor:
    """Count the weights that each network keeps in each layer, int64 [R, layers]."""
    return torch.stack([mask.flatten(1).sum(dim=1) for mask in masks.weights], dim=1)


def density(masks: Masks) -> Tensor:
    """Weights kept / prunable weights over all layers, float64 [R]."""
    return weights_kept(masks).sum(dim=1).double() / masks.layout.prunable
