"""Learning rates by position, against torch.optim.lr_scheduler and by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lottery.core.schedules import Constant, Cosine, Schedule, Step, WarmUp
from lottery.core.training import Recipe

iterations = st.integers(1, 60)


def _rates(schedule: Schedule, iterations: int) -> list[float]:
    return Recipe(iterations, 10, 0.3, 10, schedule=schedule).rates


def _torchs(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], iterations: int) -> Iterator[float]:
    """The learning rates by which torch makes so many iterations."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler = make(optimizer)
    for _ in range(iterations):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@given(iterations)
def test_a_constant_rate_is_the_learning_rate_to_the_bit(iterations: int) -> None:
    assert _rates(Constant(), iterations) == [0.3] * iterations


@given(st.integers(2, 70), iterations)
def test_warming_up_is_torchs_linear_schedule(rise: int, iterations: int) -> None:
    theirs = _torchs(lambda o: lr_scheduler.LinearLR(o, 1 / rise, total_iters=rise - 1), iterations)
    assert _rates(WarmUp(rise), iterations) == pytest.approx(list(theirs))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True).map(sorted), iterations)
def test_steps_are_torchs_multi_step_schedule(drops: list[int], iterations: int) -> None:
    theirs = _torchs(lambda o: lr_scheduler.MultiStepLR(o, drops, 0.1), iterations)
    assert _rates(Step(tuple(drops)), iterations) == pytest.approx(list(theirs))


@given(iterations)
def test_the_cosine_is_torchs_cosine_annealing(iterations: int) -> None:
    theirs = _torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, iterations), iterations)
    assert _rates(Cosine(), iterations) == pytest.approx(list(theirs), abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "tenths"),
    [
        (Constant(), [3, 3, 3, 3, 3, 3]),
        (WarmUp(1), [3, 3, 3, 3, 3, 3]),
        (WarmUp(3), [1, 2, 3, 3, 3, 3]),
        (Step((2, 5), 0.5), [3, 3, 1.5, 1.5, 1.5, 0.75]),
        (Cosine(), [3, 2.7990381, 2.25, 1.5, 0.75, 0.2009619]),
    ],
)
def test_the_first_rate_is_that_of_position_0_and_the_last_that_of_position_t_minus_1(
    schedule: Schedule, tenths: list[float]
) -> None:
    assert _rates(schedule, 6) == pytest.approx([tenth / 10 for tenth in tenths])
