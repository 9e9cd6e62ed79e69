"""Linear mode connectivity, against networks whose errors on the line are worked by hand."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor

from lottery.core.families import accuracy
from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import perceptron
from lottery.core.networks.perceptron import Examples
from lottery.core.stack import Stack, stack
from lottery.evaluation.connectivity import POINTS, barrier, errors_between, summarize

# four images of one pixel: class 1 where it is lit
LIT = torch.tensor([[1], [1], [1], [0]], dtype=torch.uint8)
EXAMPLES = Examples(Images(LIT, LIT[:, 0].long()), Scaling((0.0,), (1.0,)))


def _by_one_unit(unit: int) -> Stack:
    """A network that is right on all images by one of its two hidden units: class 1 where relu(x) > 0.6."""
    network = Stack.zeros(1, perceptron((1, 2, 2)))
    network.weights[0][0, 0, unit] = 1
    network.weights[1][0, unit, 1] = 1
    network.biases[1][0, 1] = -0.6
    return network


def _constant(label: int) -> Stack:
    """A network that says the same of every image."""
    network = Stack.zeros(1, perceptron((1, 2, 2)))
    network.biases[1][0, label] = 1
    return network


def _barrier(first: Stack, second: Stack) -> list[float]:
    result: Tensor = barrier(first, second, partial(accuracy, examples=EXAMPLES, threads=1))
    assert result.dtype == torch.float64
    return result.tolist()


def test_two_networks_that_do_the_same_by_other_units_have_a_barrier_between_them() -> None:
    # at a fraction a of the way a lit pixel gives (1 - a)^2 + a^2, which is below 0.6 from a = 0.28 to 0.72
    errors = errors_between(_by_one_unit(0), _by_one_unit(1), partial(accuracy, examples=EXAMPLES, threads=1))
    assert errors.tolist() == [[0.0] * 9 + [0.75] * 13 + [0.0] * 9]
    assert _barrier(_by_one_unit(0), _by_one_unit(1)) == [0.75]


def test_the_barrier_is_counted_from_the_mean_of_the_two_ends() -> None:
    # errors of 0.25 on one half and 0.75 on the other
    assert _barrier(_constant(1), _constant(0)) == [0.25]


def test_there_is_no_barrier_between_a_network_and_itself() -> None:
    assert _barrier(_by_one_unit(0), _by_one_unit(0)) == [0.0]


def test_every_network_meets_its_own_twin() -> None:
    first = stack([_by_one_unit(0), _constant(1)])
    second = stack([_by_one_unit(1), _constant(0)])
    assert _barrier(first, second) == [0.75, 0.25]


def test_the_ends_of_the_line_are_the_two_networks(make_split: Callable[..., Split]) -> None:
    draws = torch.Generator().manual_seed(0)
    first, second = (Stack.zeros(3, perceptron((6, 5, 4))) for _ in range(2))
    for piece in (*first.weights, *second.weights):
        piece.normal_(generator=draws)
    split = make_split(200, 1, 6, 4)
    examples = Examples(split.train, split.scaling)
    errors = errors_between(first, second, partial(accuracy, examples=examples, threads=2))
    assert errors.shape == (3, POINTS) == (3, 31)
    assert torch.equal(errors[:, 0], 1 - accuracy(first, examples, 1))
    assert torch.equal(errors[:, -1], 1 - accuracy(second, examples, 1))


def test_each_arms_barriers_are_averaged_and_its_stable_networks_counted_where_there_are_twins() -> None:
    levels = pd.DataFrame({"level": ["dense", "p50", "p50"], "arm": ["dense", "ticket", "random"], "n": 2})
    barriers = pd.DataFrame(
        [
            ("dense", "dense", 0, 0.02, 0.04),
            ("dense", "dense", 1, 0.04, 0.04),
            ("p50", "ticket", 0, 0.01, 0.03),
            ("p50", "ticket", 1, 0.03, 0.05),
        ],
        columns=["level", "arm", "seed", "barrier_test", "barrier_train"],
    )
    table = summarize(levels, barriers)
    assert table["barrier_test_mean"].tolist() == pytest.approx([0.03, 0.02, float("nan")], nan_ok=True)
    assert table["barrier_train_mean"].tolist() == pytest.approx([0.04, 0.04, float("nan")], nan_ok=True)
    assert table["stable"].tolist() == [0, 1, pd.NA]
    assert table[["level", "arm", "n"]].equals(levels)


def test_without_twins_the_columns_are_there_and_empty() -> None:
    levels = pd.DataFrame({"level": ["dense"], "arm": ["dense"]})
    table = summarize(levels, pd.DataFrame(columns=["level", "arm", "seed", "barrier_test", "barrier_train"]))
    assert table.to_csv(index=False) == "level,arm,barrier_test_mean,barrier_train_mean,stable\ndense,dense,,,\n"
