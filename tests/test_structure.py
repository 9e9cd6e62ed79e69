"""The structure of masks, against cases worked by hand and by enumeration."""

import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from conftest import random_masks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lottery.core.layout import perceptron
from lottery.core.stack import Masks, everything
from lottery.evaluation.structure import (
    chance,
    chance_by_group,
    connected,
    describe,
    edges,
    histogram,
    jaccard,
    kept_weights,
    of_networks,
    over_pairs,
)


def _mask(size: tuple[int, int], *kept: tuple[int, int]) -> Tensor:
    """A layer's mask of one network, from the (input, output) pairs that it keeps."""
    mask = torch.zeros(1, *size, dtype=torch.bool)
    for place in kept:
        mask[0][place] = True
    return mask


def _masks(*layers: Tensor) -> Masks:
    """The masks of perceptrons from those of each layer, bool [R, in, out]."""
    masks = everything(len(layers[0]), perceptron((layers[0].shape[1], *(layer.shape[2] for layer in layers))))
    for mask, layer in zip(masks.weights, layers, strict=True):
        mask.copy_(layer)
    return masks


# input 2 keeps nothing, hidden unit 1 leads nowhere, and nothing leads to hidden unit 2
BROKEN = _masks(_mask((3, 3), (0, 0), (1, 1)), _mask((3, 2), (0, 0), (2, 1)))
# input 0 leads to an output; input 1 by two hidden units to a dead end
DEAD_END = _masks(_mask((2, 2), (0, 0), (1, 1)), _mask((2, 2), (0, 0), (1, 1)), _mask((2, 1), (0, 0)))


# --- connected units -------------------------------------------------------------------------------------------------


def test_a_unit_is_connected_by_a_kept_connection_on_each_of_its_sides() -> None:
    inputs, hidden, outputs = connected(BROKEN.weights)
    assert inputs.tolist() == [[True, True, False]]
    assert hidden.tolist() == [[True, False, False]]
    assert outputs.tolist() == [[True, True]]


def test_effective_density_counts_the_weights_on_a_path_from_an_input_to_an_output() -> None:
    assert of_networks(BROKEN)["effective_density"].tolist() == [2 / 15]
    assert of_networks(DEAD_END)["effective_density"].tolist() == [3 / 10]


def test_a_connected_unit_need_not_lie_on_a_path() -> None:
    assert {name: value.tolist() for name, value in of_networks(DEAD_END).items()} == {
        "effective_density": [0.3],
        "connected_inputs": [2],
        "connected_hidden1": [2],
        "connected_hidden2": [1],
    }


def test_dense_networks_connect_everything() -> None:
    measures = of_networks(everything(2, perceptron((4, 3, 2))))
    assert {name: value.tolist() for name, value in measures.items()} == {
        "effective_density": [1.0, 1.0],
        "connected_inputs": [4, 4],
        "connected_hidden1": [3, 3],
    }


def test_a_network_without_hidden_layers_has_effective_weights_alone() -> None:
    measures = of_networks(_masks(_mask((3, 2), (0, 1), (2, 1))))
    assert measures["effective_density"].tolist() == [2 / 6]


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_weights_on_a_path_are_those_on_which_the_number_of_paths_depends(
    sizes: list[int], density: float, seed: int
) -> None:
    masks = random_masks(3, perceptron(tuple(sizes)), density, seed)
    layers = [mask.double().requires_grad_() for mask in masks.weights]
    paths = torch.ones(3, 1, sizes[0], dtype=torch.float64)
    for layer in layers:
        paths = paths @ layer
    slopes = torch.autograd.grad(paths.sum(), layers)
    on_path = sum(((slope > 0) & mask).sum(dim=(1, 2)) for slope, mask in zip(slopes, masks.weights, strict=True))
    total = sum(n * m for n, m in pairwise(sizes))
    assert of_networks(masks)["effective_density"].tolist() == [count / total for count in on_path.tolist()]


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_the_jaccard_index_is_what_both_keep_of_what_either_keeps() -> None:
    first, second = torch.tensor([True, True, True, False, False]), torch.tensor([False, True, True, True, False])
    assert jaccard(first, second) == 2 / 4
    assert jaccard(first, first) == 1
    assert jaccard(first, ~first) == 0
    assert math.isnan(jaccard(first & ~first, first & ~first))


@pytest.mark.parametrize(("size", "first", "second"), [(4, 2, 2), (6, 4, 3), (7, 6, 6), (5, 5, 2), (5, 0, 3)])
def test_chance_is_the_mean_over_all_masks_that_keep_as_much(size: int, first: int, second: int) -> None:
    fixed = set(range(first))
    others = [set(other) for other in combinations(range(size), second)]
    mean = sum(Fraction(len(fixed & other), len(fixed | other)) for other in others) / len(others)
    assert chance(size, first, second) == pytest.approx(float(mean), rel=1e-12)


def test_chance_by_hand() -> None:
    # of 2 of 4 and 2 of 4: none, one or both in common with probability 1/6, 4/6 and 1/6
    assert chance(4, 2, 2) == pytest.approx(4 / 6 * 1 / 3 + 1 / 6 * 1)
    assert chance(235_200, 47_040, 47_040) == pytest.approx(0.2 / 1.8, rel=1e-4)
    assert chance(235_200, 10, 10) == pytest.approx(10 * 10 / 235_200 / 19, rel=0.01)  # one in common, or none
    assert chance(9, 9, 9) == 1
    assert math.isnan(chance(9, 0, 0))


def test_chance_given_the_counts_of_groups_is_the_ratio_of_expectations() -> None:
    sizes = np.array([4, 4])
    # in common 4 * 2 / 4 + 1 * 2 / 4 = 2.5 are expected, of 5 + 4 - 2.5
    assert chance_by_group(sizes, np.array([4, 1]), np.array([2, 2])) == pytest.approx(2.5 / 6.5)
    assert chance_by_group(sizes, np.array([4, 0]), np.array([0, 4])) == 0
    assert math.isnan(chance_by_group(sizes, np.array([0, 0]), np.array([0, 0])))


def test_of_one_large_group_the_ratio_of_expectations_is_close_to_the_expectation() -> None:
    kept = np.array([8_000])
    assert chance_by_group(np.array([30_000]), kept, kept) == pytest.approx(chance(30_000, 8_000, 8_000), rel=1e-4)


def test_masks_of_inputs_with_their_own_counts_overlap_as_chance_says() -> None:
    draws = torch.Generator().manual_seed(0)
    counts = torch.tensor([190, 150, 60, 20, 5, 0])  # of 200 connections

    def drawn() -> Tensor:
        ranks = torch.rand(6, 200, generator=draws).argsort(dim=1).argsort(dim=1)
        return ranks < counts[:, None]

    seen = over_pairs(jaccard, [drawn() for _ in range(40)])
    assert seen == pytest.approx(chance_by_group(np.full(6, 200), counts.numpy(), counts.numpy()), rel=0.01)
    assert seen > 1.5 * chance(1_200, 425, 425)


def test_a_mean_over_pairs_counts_each_pair_once_and_one_network_has_none() -> None:
    assert over_pairs(lambda first, second: 10 * first + second, [1, 2, 3]) == (12 + 13 + 23) / 3
    assert math.isnan(over_pairs(jaccard, [torch.ones(2, dtype=torch.bool)]))


def test_the_table_has_a_row_an_arm_and_layer_and_one_for_all_layers() -> None:
    first = torch.cat([_mask((2, 2), (0, 0), (0, 1)), _mask((2, 2), (0, 0), (1, 1))])
    second = torch.cat([_mask((2, 1), (0, 0)), _mask((2, 1), (1, 0))])
    table = describe({"ticket": _masks(first, second), "random": _masks(first, second)})
    assert table["arm"].tolist() == ["ticket"] * 3 + ["random"] * 3
    rows = table[:3].drop(columns="arm").set_index("layer")
    assert rows.index.tolist() == ["0", "1", "all"]
    assert rows["density"].tolist() == [0.5, 0.5, 0.5]
    assert rows["connected_in"].tolist() == [1.5, 1.0, 1.5]
    assert rows["connected_out"].tolist() == [1.0, 1.0, 1.0]
    assert rows["overlap"].tolist() == [1 / 3, 0, 1 / 5]
    # all: 2 * 2 / 4 and 1 * 1 / 2 are expected in common, 1.5 of 3 + 3 - 1.5
    assert rows["chance"].tolist() == pytest.approx([7 / 18, 1 / 2, 1.5 / 4.5])
    # two connections of input 0 against one: 2 * 1 / 2 = 1 in common, of 2 + 2 - 1
    assert rows["chance_by_input"].tolist() == pytest.approx([1 / 3, math.nan, math.nan], nan_ok=True)


def test_of_one_seed_there_is_no_overlap() -> None:
    assert describe({"ticket": BROKEN})[["overlap", "chance", "chance_by_input"]].isna().all(axis=None)


# --- kept weights ----------------------------------------------------------------------------------------------------


def test_bins_reach_sixteen_deviations_of_the_initial_weights_each_way() -> None:
    limits = edges(torch.tensor([[[0.5, -0.5], [0.5, -0.5]]]))
    assert len(limits) == 97
    assert limits[[0, 48, 51, 96]].tolist() == [-8.0, 0.0, 0.5, 8.0]


def test_bins_do_not_depend_on_the_number_of_threads() -> None:
    initial = torch.randn(5, 784, 300, generator=torch.Generator().manual_seed(0))
    before, limits = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        limits.append(edges(initial).tolist())
    torch.set_num_threads(before)
    assert limits[0] == limits[1]


def test_a_histogram_counts_kept_weights_alone_and_its_outermost_bins_are_open() -> None:
    weights = torch.tensor([[[-9.0, -0.5, 0.0]], [[0.5, 1.5, 9.0]]])
    mask = torch.tensor([[[True, True, True]], [[False, True, True]]])
    assert histogram(weights, mask, np.array([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [1, 1, 1, 2]


def test_kept_weights_are_a_row_a_layer_and_bin_and_every_kept_weight_is_in_one() -> None:
    masks = random_masks(2, perceptron((4, 3, 2)), 0.5).weights
    draws = torch.Generator().manual_seed(1)
    start, end = ([torch.randn(mask.shape, generator=draws) for mask in masks] for _ in range(2))
    table = kept_weights(masks, start, end, [edges(weights) for weights in start])
    assert table.columns.tolist() == ["layer", "low", "high", "start", "end"]
    assert table["layer"].tolist() == [0] * 96 + [1] * 96
    assert (table["low"] < table["high"]).all()
    kept = [int(mask.sum()) for mask in masks]
    assert table.groupby("layer")["start"].sum().tolist() == kept
    assert table.groupby("layer")["end"].sum().tolist() == kept
