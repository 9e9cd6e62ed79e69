"""Masks from trained weights: exact counts, the highest magnitudes, and nothing that the parent had pruned."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery.core.experiment import Pruning, prune
from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import perceptron
from lottery.core.pruning import (
    CRITERIA,
    Evidence,
    Scores,
    density,
    keep_highest,
    prune_globally,
    prune_layers,
    weights_kept,
)
from lottery.core.stack import Masks, Stack, everything, initialize

LENET = perceptron((784, 300, 100, 10))

seeds = st.integers(0, 2**32 - 1)
sizes_of_networks = st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), max_size=2), st.integers(2, 10)).map(
    lambda drawn: (drawn[0], *drawn[1], drawn[2])
)
sparsities = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.999999]), st.floats(0, 0.999))
paths = st.lists(sparsities, min_size=1, max_size=4, unique=True).map(lambda path: tuple(sorted(path)))


def _trained(networks: int, sizes: tuple[int, ...], seed: int, values: int | None = None) -> Stack:
    """Trained weights; where ``values`` is given, integers up to it of both signs: full of ties and zeros."""
    draws = torch.Generator().manual_seed(seed)
    parameters = Stack.zeros(networks, perceptron(sizes))
    for piece in parameters.weights + parameters.biases:
        if values is None:
            piece.normal_(generator=draws)
        else:
            piece.copy_(torch.randint(-values, values + 1, piece.shape, generator=draws))
    return parameters


NOTHING = Images(torch.zeros(0, 0, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
NO_IMAGES = Split(NOTHING, NOTHING, Scaling((0.0,), (1.0,)))


def _prune(trained: Stack, masks: Masks, path: tuple[float, ...], pruning: Pruning) -> Masks:
    return prune(Evidence(trained, trained, range(len(trained)), path, NO_IMAGES), masks, pruning)


def magnitude(trained: Stack) -> Scores:
    evidence = Evidence(trained, trained, range(len(trained)), (), NO_IMAGES)
    return CRITERIA["magnitude"](evidence, everything(len(trained), trained.layout))


def _chain(trained: Stack, path: tuple[float, ...], pruning: Pruning) -> list[Masks]:
    """The masks of the dense networks and of each level on the path, always by these trained weights."""
    chain = [everything(len(trained), trained.layout)]
    for length in range(1, len(path) + 1):
        chain.append(_prune(trained.masked(chain[-1]), chain[-1], path[:length], pruning))
    return chain


def _layer_scope(output_rate: float = 0.5) -> Pruning:
    return Pruning("magnitude", "layer", {"output": output_rate})


GLOBAL = Pruning("magnitude", "global", {})
ANY_SCOPE = [_layer_scope(), _layer_scope(0.0), _layer_scope(1.0), GLOBAL]


# --- which weights are kept ------------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 40), st.integers(1, 3))
def test_of_the_weights_that_the_parent_keeps_the_highest_scores_are_kept_and_ties_keep_the_lower_index(
    data: st.DataObject, size: int, networks: int
) -> None:
    rows = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=size, max_size=size)
    table = [data.draw(rows) for _ in range(networks)]
    scores = torch.tensor([[float(score) for score, _ in row] for row in table])
    mask = torch.tensor([[kept for _, kept in row] for row in table])
    count = data.draw(st.integers(0, int(mask.sum(dim=1).min())))
    kept = keep_highest(scores, mask, count)
    for row, keeps in zip(table, kept.tolist(), strict=True):
        ranked = sorted((-score, index) for index, (score, parent_keeps) in enumerate(row) if parent_keeps)
        assert [index for index, keep in enumerate(keeps) if keep] == sorted(index for _, index in ranked[:count])


def test_equal_weights_are_pruned_from_the_end() -> None:
    trained = Stack.zeros(1, perceptron((2, 4)))
    trained.weights[0][0] = torch.tensor([[0.5, -0.5, 0.5, 0.5], [-0.5, 0.5, 0.0, 0.5]])
    (kept,) = prune_globally(magnitude(trained), everything(1, trained.layout), 0.5, {}).weights
    assert kept[0].tolist() == [[True, True, True, True], [False, False, False, False]]
    (kept,) = prune_globally(magnitude(trained), everything(1, trained.layout), 0.25, {}).weights
    assert kept[0].tolist() == [[True, True, True, True], [True, True, False, False]]


def test_with_global_scope_equal_weights_are_pruned_from_the_last_layer() -> None:
    trained = Stack.zeros(1, perceptron((2, 2, 2)))
    for weight in trained.weights:
        weight.fill_(-1.0)
    hidden, output = prune_globally(magnitude(trained), everything(1, trained.layout), 0.25, {}).weights
    assert hidden.all()
    assert output[0].tolist() == [[True, True], [False, False]]


def test_the_sign_of_a_weight_and_the_biases_do_not_matter() -> None:
    trained = Stack.zeros(1, perceptron((2, 2)))
    trained.weights[0][0] = torch.tensor([[-3.0, 1.0], [2.0, -4.0]])
    trained.biases[0].fill_(100.0)
    (kept,) = prune_globally(magnitude(trained), everything(1, trained.layout), 0.5, {}).weights
    assert kept[0].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("pruning", ANY_SCOPE)
@given(sizes_of_networks, paths, seeds, st.sampled_from([None, 0, 1, 3]))
def test_no_pruned_weight_was_larger_than_a_kept_one(
    pruning: Pruning, sizes: tuple[int, ...], path: tuple[float, ...], seed: int, values: int | None
) -> None:
    trained = _trained(2, sizes, seed, values)
    for parent, masks in pairwise(_chain(trained, path, pruning)):
        for row in range(2):
            sizes_of_kept, sizes_of_pruned = [], []
            for weight, before, after in zip(trained.weights, parent.weights, masks.weights, strict=True):
                sizes_of_kept.append(weight[row][after[row]].abs())
                sizes_of_pruned.append(weight[row][before[row] & ~after[row]].abs())
            if pruning.scope == "global":
                sizes_of_kept, sizes_of_pruned = [torch.cat(sizes_of_kept)], [torch.cat(sizes_of_pruned)]
            for kept, pruned in zip(sizes_of_kept, sizes_of_pruned, strict=True):
                assert not len(kept) or not len(pruned) or kept.min() >= pruned.max()


@pytest.mark.parametrize("pruning", ANY_SCOPE)
@given(sizes_of_networks, paths, seeds)
def test_a_tickets_mask_is_a_subset_of_its_parents(
    pruning: Pruning, sizes: tuple[int, ...], path: tuple[float, ...], seed: int
) -> None:
    # a level's own trained weights may rank otherwise than its parent's did
    masks = everything(2, perceptron(sizes))
    for length in range(1, len(path) + 1):
        child = _prune(_trained(2, sizes, seed + length, values=2), masks, path[:length], pruning)
        assert not (child.flat & ~masks.flat).any()
        masks = child


@pytest.mark.parametrize("pruning", ANY_SCOPE)
@given(sizes_of_networks, st.floats(0, 0.99), seeds)
def test_a_networks_mask_depends_on_its_own_weights_alone(
    pruning: Pruning, sizes: tuple[int, ...], sparsity: float, seed: int
) -> None:
    trained = _trained(4, sizes, seed, values=3)
    together = _prune(trained, everything(4, perceptron(sizes)), (sparsity,), pruning)
    for row in range(4):
        alone = _prune(trained.rows([row]), everything(1, perceptron(sizes)), (sparsity,), pruning)
        assert torch.equal(alone.flat[0], together.flat[row])


# --- how many weights are kept ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 9), min_size=3, max_size=4).map(tuple), seeds, st.sampled_from([None, 1, 3]))
def test_globally_an_output_rate_of_0_leaves_the_output_layer_whole_and_the_others_share_the_count(
    sizes: tuple[int, ...], seed: int, values: int | None
) -> None:
    trained = _trained(2, sizes, seed, values)
    weights = [n * m for n, m in pairwise(sizes)]
    path = tuple(part * (1 - weights[-1] / sum(weights)) for part in (0.3, 0.8))
    for sparsity, masks in zip(
        path, _chain(trained, path, Pruning("magnitude", "global", {"output": 0}))[1:], strict=True
    ):
        assert masks.weights[-1].all()
        kept = round((1 - sparsity) * sum(weights))
        assert weights_kept(masks).sum(dim=1).tolist() == [kept, kept]
        for row in range(2):
            hidden = [
                (weight[row], mask[row]) for weight, mask in zip(trained.weights[:-1], masks.weights, strict=False)
            ]
            ours = torch.cat([weight[mask].abs() for weight, mask in hidden])
            theirs = torch.cat([weight[~mask].abs() for weight, mask in hidden])
            assert not len(ours) or not len(theirs) or ours.min() >= theirs.max()


@given(sizes_of_networks, paths, st.floats(0, 1), seeds, st.sampled_from([None, 0, 1, 3]))
def test_with_layer_scope_every_layer_keeps_its_exact_number_of_weights(
    sizes: tuple[int, ...], path: tuple[float, ...], output_rate: float, seed: int, values: int | None
) -> None:
    chain = _chain(_trained(2, sizes, seed, values), path, _layer_scope(output_rate))
    for (parent, masks), (parent_sparsity, sparsity) in zip(pairwise(chain), pairwise((0.0, *path)), strict=True):
        expected = [round((1 - sparsity) * n * m) for n, m in pairwise(sizes[:-1])]
        rate = 1 - (1 - sparsity) / (1 - parent_sparsity)
        expected.append(round((1 - output_rate * rate) * int(parent.weights[-1][0].sum())))
        assert weights_kept(masks).tolist() == [expected] * 2


@given(sizes_of_networks, paths, seeds, st.sampled_from([None, 0, 1, 3]))
def test_with_global_scope_all_layers_together_keep_the_exact_number_of_weights(
    sizes: tuple[int, ...], path: tuple[float, ...], seed: int, values: int | None
) -> None:
    total = sum(n * m for n, m in pairwise(sizes))
    chain = _chain(_trained(2, sizes, seed, values), path, GLOBAL)
    for masks, sparsity in zip(chain, (0.0, *path), strict=True):
        assert weights_kept(masks).sum(dim=1).tolist() == [round((1 - sparsity) * total)] * 2


@pytest.mark.parametrize("pruning", ANY_SCOPE)
def test_at_0_percent_no_weight_is_pruned_not_even_a_zero(pruning: Pruning) -> None:
    trained = _trained(1, (5, 4, 3), 0, values=1)
    assert any((weight == 0).any() for weight in trained.weights)
    assert _prune(trained, everything(1, trained.layout), (0.0,), pruning).flat.all()


@pytest.mark.parametrize("pruning", [_layer_scope(1.0), GLOBAL])
def test_almost_everything_can_be_pruned(pruning: Pruning) -> None:
    trained = _trained(1, (5, 4, 3), 0)
    masks = _prune(trained, everything(1, trained.layout), (0.9999,), pruning)
    assert not any(mask.any() for mask in masks.weights)
    assert all(bias.all() for bias in masks.biases)


def test_in_a_chain_of_20_percent_rounds_the_output_layer_is_pruned_by_10_percent_a_round() -> None:
    path = (0.2, 0.36, 0.488, 0.5904, 0.67232)
    trained = initialize(LENET, "glorot-normal", [torch.Generator().manual_seed(0)])
    kept = [weights_kept(masks)[0].tolist() for masks in _chain(trained, path, _layer_scope())]
    assert kept == [
        [235_200, 30_000, 1000],
        [188_160, 24_000, 900],
        [150_528, 19_200, 810],
        [120_422, 15_360, 729],
        [96_338, 12_288, 656],
        [77_070, 9830, 590],
    ]


def test_in_one_shot_the_output_layer_is_pruned_at_its_fraction_of_the_whole_rate() -> None:
    trained = initialize(LENET, "glorot-normal", [torch.Generator().manual_seed(0)])
    masks = prune_layers(magnitude(trained), everything(1, LENET), 0.8, 0.0, {"output": 0.5})
    assert weights_kept(masks).tolist() == [[47_040, 6000, 600]]
    masks = prune_layers(magnitude(trained), everything(1, LENET), 0.8, 0.0, {"output": 0.0})
    assert weights_kept(masks).tolist() == [[47_040, 6000, 1000]]


def test_a_network_without_hidden_layers_is_pruned_as_an_output_layer() -> None:
    masks = _prune(_trained(1, (10, 10), 0), everything(1, perceptron((10, 10))), (0.5,), _layer_scope())
    assert weights_kept(masks).tolist() == [[75]]


# --- counting --------------------------------------------------------------------------------------------------------


def test_density_counts_weights_and_no_biases() -> None:
    masks = everything(2, perceptron((4, 3, 2)))  # 12 + 6 weights
    assert density(masks).tolist() == [1.0, 1.0]
    masks.weights[0][1, :3] = False
    masks.weights[1][1, 0, 0] = False
    assert weights_kept(masks).tolist() == [[12, 6], [3, 5]]
    assert density(masks).tolist() == [1.0, 8 / 18]
