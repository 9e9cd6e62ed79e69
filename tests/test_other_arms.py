"""The arms beyond the ticket and its two controls, and how each trains."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_arms import RECIPE, _level, levels

from lottery.core.arms import ARMS
from lottery.core.ingredients import Ingredients
from lottery.core.layout import perceptron
from lottery.core.networks.perceptron import small_layout
from lottery.core.pruning import weights_kept
from lottery.core.schedules import Constant


@given(levels())
def test_random_inputs_keeps_each_pixels_count_and_each_layers(level: Ingredients) -> None:
    start = ARMS["random-inputs"].begin(level)
    assert torch.equal(start.masks.weights[0].sum(dim=2), level.masks.weights[0].sum(dim=2))
    assert torch.equal(weights_kept(start.masks), weights_kept(level.masks))
    for weight, mask, initial in zip(start.parameters.weights, start.masks.weights, level.rewound.weights, strict=True):
        assert torch.equal(weight[mask], initial[mask])
        assert (weight[~mask] == 0.0).all()


def test_random_inputs_gives_them_to_units_that_know_nothing_of_the_ticket() -> None:
    level = _level(sizes=(784, 300, 10), density=0.1)
    mask, ticket_mask = ARMS["random-inputs"].begin(level).masks.weights[0], level.masks.weights[0]
    assert float((mask & ticket_mask).sum() / ticket_mask.sum()) == pytest.approx(0.1, abs=0.01)
    assert float(mask.double().mean(dim=1).std()) < 0.02  # every unit about as many


@given(levels())
def test_small_dense_is_a_dense_network_of_the_first_units(level: Ingredients) -> None:
    start = ARMS["small-dense"].begin(level)
    for row in range(len(level.seeds)):
        small = small_layout(level.rewound.layout, int(weights_kept(level.masks)[row].sum()))
        layers = zip(start.masks.weights, start.parameters.weights, start.parameters.biases, strict=True)
        for (n, m), (mask, weight, bias) in zip((each.shape for each in small.weights), layers, strict=True):
            assert int(mask[row].sum()) == n * m
            assert mask[row, :n, :m].all()
            assert (weight[row][~mask[row]] == 0.0).all()
            assert (bias[row, m:] == 0.0).all()


def _small_sizes(sizes: tuple[int, ...], budget: int) -> tuple[int, ...]:
    return (sizes[0], *(piece.shape[1] for piece in small_layout(perceptron(sizes), budget).weights))


@given(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 2000))
def test_small_layouts_are_the_largest_that_the_budget_allows(inputs: int, hidden: list[int], budget: int) -> None:
    sizes = (inputs, *hidden, 10)
    small = _small_sizes(sizes, budget)

    def weights(of: tuple[int, ...]) -> int:
        return sum(n * m for n, m in pairwise(of))

    least = (inputs, *(1 for _ in hidden), 10)
    assert weights(small) <= budget or small == least
    assert all(one <= most for one, most in zip(small, sizes, strict=True))
    assert (small[0], small[-1]) == (inputs, 10)
    if budget >= weights(sizes):
        assert small == sizes


def test_small_layouts_of_lenet_by_hand() -> None:
    # 784 h + h (h / 3) + 10 (h / 3): 16 hidden units and 5 need 12,674 weights, 17 and 6 would need 13,490
    assert _small_sizes((784, 300, 100, 10), 13_489) == (784, 16, 5, 10)
    assert _small_sizes((784, 300, 100, 10), 13_490) == (784, 17, 6, 10)


def test_small_dense_is_drawn_at_its_own_size() -> None:
    level = _level(sizes=(784, 300, 100, 10), initialization="glorot-normal", density=0.5)
    start = ARMS["small-dense"].begin(level)
    mask = start.masks.weights[0]
    first, units = start.parameters.weights[0][mask], int(mask[0, 0].sum())
    assert float(first.std()) == pytest.approx((2 / (784 + units)) ** 0.5, rel=0.02)
    assert units < 200


@pytest.mark.parametrize("arm", ["finetune", "lr-rewind"])
def test_continued_arms_start_from_the_trained_weights_and_biases_under_the_tickets_mask(arm: str) -> None:
    level = _level()
    start = ARMS[arm].begin(level)
    assert torch.equal(start.parameters.flat, level.trained.masked(level.masks).flat)
    assert torch.equal(start.masks.flat, level.masks.flat)


def test_each_arm_trains_on_its_own_part_of_the_schedule() -> None:
    level = _level()  # rewound to iteration 20 of 100, with a drop at 50
    assert RECIPE.rates[20] == pytest.approx(0.1)
    for arm in ("ticket", "random", "random-inputs", "lr-rewind"):
        assert ARMS[arm].begin(level).recipe == RECIPE
    for arm in ("reinit", "small-dense"):
        assert ARMS[arm].begin(level).recipe == replace(RECIPE, start=0)
    tuned = ARMS["finetune"].begin(level).recipe
    assert (tuned.start, tuned.iterations, tuned.schedule) == (20, 100, Constant())
    assert tuned.rates == pytest.approx([0.01] * 100)


def test_a_twin_differs_in_its_batch_order_alone() -> None:
    start = ARMS["ticket"].begin(_level())
    twin = start.twin()
    assert torch.equal(twin.parameters.flat, start.parameters.flat)
    assert twin.masks is start.masks
    assert twin.recipe == replace(start.recipe, order="twin batches")
