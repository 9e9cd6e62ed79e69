"""Each criterion against a case worked by hand, or against autograd."""

import pytest
import torch
from conftest import random_masks
from torch import Tensor

from lottery.core.experiment import Pruning, prune
from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import perceptron
from lottery.core.pruning import CRITERIA, SYNFLOW_ROUNDS, Evidence, rounds, weights_kept
from lottery.core.randomness import generator
from lottery.core.stack import Stack, everything, initialize

IMAGES = Images(
    torch.randint(256, (400, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
    torch.arange(400) % 10,
)
SPLIT = Split(IMAGES, IMAGES, Scaling((128.0,), (74.0,)))


def _networks(sizes: tuple[int, ...], *layers: list[list[float]]) -> Stack:
    """One network with these weights."""
    parameters = Stack.zeros(1, perceptron(sizes))
    for weight, values in zip(parameters.weights, layers, strict=True):
        weight[0] = torch.tensor(values)
    return parameters


def _random(seeds: tuple[int, ...] = (0, 1)) -> Stack:
    return initialize(perceptron((9, 7, 6, 10)), "kaiming-uniform", [generator("test", seed) for seed in seeds])


def _scores(criterion: str, start: Stack, trained: Stack, path: tuple[float, ...] = (0.5,)) -> tuple[Tensor, ...]:
    evidence = Evidence(start, trained, range(len(start)), path, SPLIT)
    return CRITERIA[criterion](evidence, everything(len(start), start.layout)).weights


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("magnitude", [[2.0, 1.0, 4.0, 0.5]]),
        ("magnitude-increase", [[1.0, -2.0, 1.0, 0.0]]),
        ("movement", [[1.0, 2.0, 7.0, 1.0]]),  # the third and the fourth weight changed sign
    ],
)
def test_criteria_of_trained_weights_by_hand(criterion: str, expected: list[list[float]]) -> None:
    start = _networks((1, 4), [[1.0, 3.0, -3.0, -0.5]])
    trained = _networks((1, 4), [[2.0, 1.0, 4.0, 0.5]])
    assert _scores(criterion, start, trained)[0][0].tolist() == expected


def test_random_scores_are_uniform_and_each_seeds_and_levels_own() -> None:
    one = _scores("random", _random(), _random())
    assert all(((score >= 0) & (score < 1)).all() for score in one)
    assert not torch.equal(one[0][0], one[0][1])
    again, other = (_scores("random", _random(), _random(), path) for path in ((0.5,), (0.6,)))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])


def test_snip_is_autograds_on_ten_images_of_each_class() -> None:
    networks = _random()
    scores = _scores("snip", networks, networks)
    for seed in (0, 1):
        order = torch.randperm(400, generator=generator("snip", seed))
        labels = IMAGES.labels[order]
        chosen = torch.cat([order[labels == label][:10] for label in range(10)])
        assert torch.bincount(IMAGES.labels[chosen]).tolist() == [10] * 10
        weights = [weight[seed].clone().requires_grad_() for weight in networks.weights]
        values = SPLIT.scaling(IMAGES.pixels[chosen])
        for layer, (weight, bias) in enumerate(zip(weights, networks.biases, strict=True)):
            values = (values.relu() if layer else values) @ weight + bias[seed]
        torch.nn.functional.cross_entropy(values, IMAGES.labels[chosen]).backward()
        for score, weight in zip(scores, weights, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(score[seed], (weight * weight.grad).abs().detach(), rtol=1e-4, atol=1e-7)


def test_synflow_by_hand() -> None:
    """Inputs of 1 and absolute weights: a weight's score is the sum over its paths of the products along them."""
    network = _networks((2, 2, 1), [[1.0, -2.0], [3.0, 4.0]], [[5.0], [-6.0]])
    first, second = _scores("synflow", network, network)
    assert first[0].tolist() == [[5.0, 12.0], [15.0, 24.0]]
    assert second[0].tolist() == [[20.0], [36.0]]
    assert first.dtype == torch.float64


def test_synflow_is_autograds_of_the_masked_absolute_network() -> None:
    networks = _random()
    masks = random_masks(2, networks.layout, 0.6, seed=1)
    scores = CRITERIA["synflow"](Evidence(networks, networks, (0, 1), (0.5,), SPLIT), masks).weights
    for row in (0, 1):
        pairs = zip(networks.weights, masks.weights, strict=True)
        weights = [(w[row].double().abs() * m[row]).requires_grad_() for w, m in pairs]
        values = torch.ones(9, dtype=torch.float64)
        for weight in weights:
            values = values @ weight
        values.sum().backward()
        for score, weight in zip(scores, weights, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(score[row], (weight * weight.grad).detach())


def test_synflow_goes_in_100_rounds_and_the_others_in_one() -> None:
    reached = rounds("synflow", 0.9)
    assert len(reached) == SYNFLOW_ROUNDS == 100
    assert reached[49] == pytest.approx(1 - 0.1**0.5)
    assert reached[-1] == 0.9
    assert all(rounds(criterion, 0.9) == [0.9] for criterion in CRITERIA if criterion != "synflow")


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_every_criterion_keeps_exactly_as_many_and_none_that_the_parent_pruned(criterion: str, sparsity: float) -> None:
    networks = _random()
    masks = everything(2, networks.layout)
    kept = prune(
        Evidence(_random((5, 6)), networks, (0, 1), (sparsity,), SPLIT), masks, Pruning(criterion, "global", {})
    )
    weights = 9 * 7 + 7 * 6 + 6 * 10
    assert weights_kept(kept).sum(dim=1).tolist() == [round((1 - sparsity) * weights)] * 2


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_a_networks_scores_are_the_same_bits_alone_and_in_a_stack_and_on_any_number_of_threads(criterion: str) -> None:
    layout, seeds = perceptron((9, 300, 100, 10)), (0, 1, 2)
    start, trained = (
        initialize(layout, "kaiming-uniform", [generator(purpose, seed) for seed in seeds]) for purpose in ("a", "b")
    )
    masks = everything(3, layout)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = CRITERIA[criterion](Evidence(start, trained, seeds, (0.5,), SPLIT), masks)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        for row, seed in enumerate(seeds):
            evidence = Evidence(start.rows([row]), trained.rows([row]), [seed], (0.5,), SPLIT)
            alone = CRITERIA[criterion](evidence, everything(1, layout))
            assert torch.equal(alone.flat[0], together.flat[row])
    finally:
        torch.set_num_threads(before)


def test_synflow_leaves_no_layer_empty_where_one_round_would() -> None:
    """Tanaka et al. (2020), section 3: ranked once, a layer of many small scores is pruned whole."""
    networks = initialize(perceptron((30, 40, 40, 40, 10)), "kaiming-uniform", [generator("test", 0)])
    evidence = Evidence(networks, networks, (0,), (0.985,), SPLIT)
    kept = prune(evidence, everything(1, networks.layout), Pruning("synflow", "global", {}))
    assert (weights_kept(kept) > 0).all()
