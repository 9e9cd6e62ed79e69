"""What a level compares: the ticket, and the controls that differ from it in one thing each."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery.arms import ARMS, Ticket
from lottery.network import Initialization, Parameters, initialize
from lottery.pruning import weights_kept
from lottery.randomness import generator
from lottery.schedules import Step
from lottery.training import Recipe

RECIPE = Recipe(iterations=100, batch_size=10, learning_rate=0.1, evaluate_every=10, schedule=Step((50,)), start=20)
initializations = st.sampled_from(get_args(Initialization))


def _level(
    sizes: tuple[int, ...] = (30, 20, 10),
    seeds: tuple[int, ...] = (0, 1),
    path: tuple[float, ...] = (0.5,),
    initialization: Initialization = "kaiming-uniform",
    density: float = 0.5,
) -> Ticket:
    """A level of the networks that `experiment.dense` starts from, with masks at random."""
    dense = initialize(sizes, initialization, [generator("initialization", seed) for seed in seeds])
    draws = torch.Generator().manual_seed(0)
    masks = tuple(torch.rand(weight.shape, generator=draws) < density for weight in dense.weights)
    trained = initialize(sizes, initialization, [generator("trained", seed) for seed in seeds])
    return Ticket(masks, dense, trained, seeds, path, initialization, RECIPE)


@st.composite
def levels(draw: st.DrawFn) -> Ticket:
    """Levels of all kinds."""
    return _level(
        sizes=(draw(st.integers(1, 20)), *draw(st.lists(st.integers(1, 20), max_size=2)), draw(st.integers(2, 10))),
        seeds=tuple(draw(st.lists(st.integers(0, 1000), min_size=1, max_size=3, unique=True))),
        path=tuple(draw(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3))),
        initialization=draw(initializations),
        density=draw(st.floats(0, 1)),
    )


@given(levels())
def test_a_ticket_starts_from_the_dense_runs_own_initialization_where_kept(level: Ticket) -> None:
    start = ARMS["ticket"](level)
    dense = initialize(
        level.rewind.sizes, level.initialization, [generator("initialization", seed) for seed in level.seeds]
    )
    for weight, mask, initial in zip(start.parameters.weights, level.masks, dense.weights, strict=True):
        assert torch.equal(weight[mask], initial[mask])
        assert (weight[~mask] == 0.0).all()
    for bias, initial in zip(start.parameters.biases, dense.biases, strict=True):
        assert torch.equal(bias, initial)
    assert all(torch.equal(a, b) for a, b in zip(start.masks, level.masks, strict=True))


@given(levels())
def test_reinit_has_the_tickets_mask_and_a_fresh_initialization(level: Ticket) -> None:
    start = ARMS["reinit"](level)
    for weight, mask, ticket_mask, initial in zip(
        start.parameters.weights, start.masks, level.masks, level.rewind.weights, strict=True
    ):
        assert torch.equal(mask, ticket_mask)
        assert (weight[~mask] == 0.0).all()
        assert (weight[mask] != initial[mask]).all()


def test_reinit_draws_by_the_networks_own_initialization() -> None:
    glorot, kaiming = (
        ARMS["reinit"](_level(sizes=(784, 300, 100, 10), initialization=initialization)).parameters
        for initialization in ("glorot-normal", "kaiming-uniform")
    )
    mask = _level(sizes=(784, 300, 100, 10)).masks[0]
    assert float(glorot.weights[0][mask].std()) == pytest.approx((2 / 1084) ** 0.5, rel=0.02)
    assert float(kaiming.weights[0][mask].abs().max()) == pytest.approx(1 / 28, rel=0.01)
    assert all((bias == 0).all() for bias in glorot.biases)
    assert all((bias != 0).all() for bias in kaiming.biases)


@given(levels())
def test_random_keeps_as_many_weights_in_each_layer_with_the_values_that_a_ticket_starts_from(level: Ticket) -> None:
    start = ARMS["random"](level)
    assert torch.equal(weights_kept(start.masks), weights_kept(level.masks))
    for weight, mask, initial in zip(start.parameters.weights, start.masks, level.rewind.weights, strict=True):
        assert torch.equal(weight[mask], initial[mask])
        assert (weight[~mask] == 0.0).all()
    for bias, initial in zip(start.parameters.biases, level.rewind.biases, strict=True):
        assert torch.equal(bias, initial)


def test_random_keeps_weights_at_places_that_know_nothing_of_the_ticket() -> None:
    level = _level(sizes=(784, 300, 10), density=0.1)
    mask, ticket_mask = ARMS["random"](level).masks[0], level.masks[0]
    overlap = (mask & ticket_mask).sum() / ticket_mask.sum()
    assert float(overlap) == pytest.approx(0.1, abs=0.01)
    # everywhere alike: each quarter of the inputs keeps a quarter
    for quarter in mask.double().unflatten(1, (4, 196)).unbind(1):
        assert float(quarter.mean()) == pytest.approx(float(ticket_mask.double().mean()), abs=0.01)


def test_random_leaves_the_tickets_mask_as_it_was() -> None:
    level = _level()
    before = [mask.clone() for mask in level.masks]
    ARMS["random"](level)
    assert all(torch.equal(a, b) for a, b in zip(level.masks, before, strict=True))


DRAWN = ["reinit", "random", "random-inputs", "small-dense"]


def _drawn(arm: str, level: Ticket, row: int = 0) -> torch.Tensor:
    """What an arm drew for a network: its weights, or its mask."""
    start = ARMS[arm](level)
    of_weights = arm in ("reinit", "small-dense")
    return start.parameters.flat[row] if of_weights else torch.cat([mask[row].flatten() for mask in start.masks])


@pytest.mark.parametrize("arm", DRAWN)
def test_a_control_draws_the_same_for_the_same_seed_and_path_whatever_the_other_seeds(arm: str) -> None:
    level = _level(seeds=(3, 4))
    swapped = replace(
        level, masks=tuple(mask[[1, 0]] for mask in level.masks), rewind=level.rewind.rows([1, 0]), seeds=(4, 3)
    )
    assert torch.equal(_drawn(arm, level, 0), _drawn(arm, level, 0))
    assert torch.equal(_drawn(arm, level, 0), _drawn(arm, swapped, 1))
    assert torch.equal(_drawn(arm, level, 1), _drawn(arm, swapped, 0))


@pytest.mark.parametrize("arm", DRAWN)
def test_a_control_draws_otherwise_for_another_seed_and_for_another_level(arm: str) -> None:
    level = _level(seeds=(3,))
    others = [replace(level, seeds=(4,)), replace(level, path=(0.6,)), replace(level, path=(0.2, 0.5))]
    for other in others:
        assert not torch.equal(_drawn(arm, level), _drawn(arm, other))


@pytest.mark.parametrize("arm", list(ARMS))
def test_no_arm_changes_what_it_starts_from(arm: str) -> None:
    level = _level()
    before: list[Parameters] = [level.rewind.clone(), level.trained.clone()]
    ARMS[arm](level).parameters.flat.fill_(7.0)
    assert torch.equal(level.rewind.flat, before[0].flat)
    assert torch.equal(level.trained.flat, before[1].flat)


def test_other_purposes_seeds_levels_and_epochs_have_draws_of_their_own() -> None:
    purposes = ("initialization", "batches", "twin batches", "criterion", "snip", *DRAWN)
    paths: tuple[tuple[float, ...], ...] = ((), (0.5,), (0.2, 0.5))
    keys = [(p, seed, path, epoch) for p in purposes for seed in (0, 1) for path in paths for epoch in (0, 1)]
    draws = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
