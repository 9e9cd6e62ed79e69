"""What a level compares: the ticket, and the controls that differ from it in one thing each."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from conftest import random_masks
from hypothesis import given
from hypothesis import strategies as st

from lottery.core.arms import ARMS, Rows
from lottery.core.ingredients import Ingredients
from lottery.core.layout import Initialization, perceptron
from lottery.core.pruning import weights_kept
from lottery.core.randomness import generator
from lottery.core.schedules import Step
from lottery.core.stack import initialize
from lottery.core.training import Recipe

RECIPE = Recipe(iterations=100, batch_size=10, learning_rate=0.1, evaluate_every=10, schedule=Step((50,)), start=20)
initializations = st.sampled_from(get_args(Initialization))


def _level(
    sizes: tuple[int, ...] = (30, 20, 10),
    seeds: tuple[int, ...] = (0, 1),
    path: tuple[float, ...] = (0.5,),
    initialization: Initialization = "kaiming-uniform",
    density: float = 0.5,
) -> Ingredients:
    """A level of the networks that `experiment.dense` starts from, with masks at random."""
    layout = perceptron(sizes)
    dense, trained = (
        initialize(layout, initialization, [generator(purpose, seed) for seed in seeds])
        for purpose in ("initialization", "trained")
    )
    return Ingredients(random_masks(len(seeds), layout, density), dense, trained, seeds, path, initialization, RECIPE)


@st.composite
def levels(draw: st.DrawFn) -> Ingredients:
    """Levels of all kinds."""
    return _level(
        sizes=(draw(st.integers(1, 20)), *draw(st.lists(st.integers(1, 20), max_size=2)), draw(st.integers(2, 10))),
        seeds=tuple(draw(st.lists(st.integers(0, 1000), min_size=1, max_size=3, unique=True))),
        path=tuple(draw(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3))),
        initialization=draw(initializations),
        density=draw(st.floats(0, 1)),
    )


@given(levels())
def test_a_ticket_starts_from_the_dense_runs_own_initialization_where_kept(level: Ingredients) -> None:
    start = ARMS["ticket"].begin(level)
    dense = initialize(
        level.rewound.layout, level.initialization, [generator("initialization", seed) for seed in level.seeds]
    )
    for weight, mask, initial in zip(start.parameters.weights, level.masks.weights, dense.weights, strict=True):
        assert torch.equal(weight[mask], initial[mask])
        assert (weight[~mask] == 0.0).all()
    for bias, initial in zip(start.parameters.biases, dense.biases, strict=True):
        assert torch.equal(bias, initial)
    assert torch.equal(start.masks.flat, level.masks.flat)


@given(levels())
def test_reinit_has_the_tickets_mask_and_a_fresh_initialization(level: Ingredients) -> None:
    start = ARMS["reinit"].begin(level)
    assert torch.equal(start.masks.flat, level.masks.flat)
    for weight, mask, initial in zip(start.parameters.weights, start.masks.weights, level.rewound.weights, strict=True):
        assert (weight[~mask] == 0.0).all()
        assert (weight[mask] != initial[mask]).all()


def test_reinit_draws_by_the_networks_own_initialization() -> None:
    glorot, kaiming = (
        ARMS["reinit"].begin(_level(sizes=(784, 300, 100, 10), initialization=initialization)).parameters
        for initialization in ("glorot-normal", "kaiming-uniform")
    )
    mask = _level(sizes=(784, 300, 100, 10)).masks.weights[0]
    assert float(glorot.weights[0][mask].std()) == pytest.approx((2 / 1084) ** 0.5, rel=0.02)
    assert float(kaiming.weights[0][mask].abs().max()) == pytest.approx(1 / 28, rel=0.01)
    assert all((bias == 0).all() for bias in glorot.biases)
    assert all((bias != 0).all() for bias in kaiming.biases)


@given(levels())
def test_random_keeps_as_many_weights_in_each_layer_with_the_values_that_a_ticket_starts_from(
    level: Ingredients,
) -> None:
    start = ARMS["random"].begin(level)
    assert torch.equal(weights_kept(start.masks), weights_kept(level.masks))
    for weight, mask, initial in zip(start.parameters.weights, start.masks.weights, level.rewound.weights, strict=True):
        assert torch.equal(weight[mask], initial[mask])
        assert (weight[~mask] == 0.0).all()
    for bias, initial in zip(start.parameters.biases, level.rewound.biases, strict=True):
        assert torch.equal(bias, initial)


def test_random_keeps_weights_at_places_that_know_nothing_of_the_ticket() -> None:
    level = _level(sizes=(784, 300, 10), density=0.1)
    mask, ticket_mask = ARMS["random"].begin(level).masks.weights[0], level.masks.weights[0]
    overlap = (mask & ticket_mask).sum() / ticket_mask.sum()
    assert float(overlap) == pytest.approx(0.1, abs=0.01)
    # everywhere alike: each quarter of the inputs keeps a quarter
    for quarter in mask.double().unflatten(1, (4, 196)).unbind(1):
        assert float(quarter.mean()) == pytest.approx(float(ticket_mask.double().mean()), abs=0.01)


def test_random_leaves_the_tickets_mask_as_it_was() -> None:
    level = _level()
    before = level.masks.clone()
    ARMS["random"].begin(level)
    assert torch.equal(level.masks.flat, before.flat)


DRAWN = ["reinit", "random", "random-inputs", "small-dense"]


def _drawn(arm: str, level: Ingredients, row: int = 0) -> torch.Tensor:
    """What an arm drew for a network: its weights, or its mask."""
    start = ARMS[arm].begin(level)
    return (start.parameters if arm in ("reinit", "small-dense") else start.masks).flat[row]


@pytest.mark.parametrize("arm", DRAWN)
def test_a_control_draws_the_same_for_the_same_seed_and_path_whatever_the_other_seeds(arm: str) -> None:
    level = _level(seeds=(3, 4))
    swapped = replace(level, masks=level.masks.rows([1, 0]), rewound=level.rewound.rows([1, 0]), seeds=(4, 3))
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
    before = level.rewound.clone(), level.trained.clone(), level.masks.clone()
    ARMS[arm].begin(level).parameters.flat.fill_(7.0)
    assert torch.equal(level.rewound.flat, before[0].flat)
    assert torch.equal(level.trained.flat, before[1].flat)
    assert torch.equal(level.masks.flat, before[2].flat)


def test_other_purposes_seeds_levels_and_epochs_have_draws_of_their_own() -> None:
    purposes = ("initialization", "batches", "twin batches", "criterion", "snip", *DRAWN)
    paths: tuple[tuple[float, ...], ...] = ((), (0.5,), (0.2, 0.5))
    keys = [(p, seed, path, epoch) for p in purposes for seed in (0, 1) for path in paths for epoch in (0, 1)]
    draws = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


# --- what the records say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ARMS))
@given(levels())
def test_an_arm_trains_from_iteration_0_where_its_record_says_anew_and_from_iteration_k_elsewhere(
    name: str, level: Ingredients
) -> None:
    assert RECIPE.start == 20
    start = ARMS[name].begin(level)
    assert start.recipe.start == (0 if ARMS[name].anew else 20)
    assert start.recipe.iterations == RECIPE.iterations
    assert level.recipe == RECIPE


@pytest.mark.parametrize("name", list(ARMS))
def test_an_arm_has_another_mask_than_the_tickets_only_where_its_record_says_so(name: str) -> None:
    level, arm = _level(density=0.3), ARMS[name]
    start = arm.begin(level)
    assert torch.equal(start.masks.flat, level.masks.flat) == (not arm.own_mask)
    assert torch.equal(weights_kept(start.masks), weights_kept(level.masks)) == (not arm.own_density)
    assert all(bias.all() for bias in start.masks.biases)
    assert torch.equal(start.parameters.masked(start.masks).flat, start.parameters.flat)


def test_the_records_names_are_their_keys() -> None:
    assert [arm.name for arm in ARMS.values()] == list(ARMS)


@given(
    st.lists(st.sampled_from(list(ARMS)), min_size=1, unique=True).map(tuple),
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True).map(tuple),
)
def test_rows_are_all_seeds_of_the_first_arm_and_then_of_the_next(
    arms: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    rows = Rows(arms, seeds)
    assert [*rows] == [(arm, seed) for arm in arms for seed in seeds]
    assert len(rows) == len([*rows])
    for arm in arms:
        assert [*rows][rows.of(arm)] == [(arm, seed) for seed in seeds]
    assert [row for arm in arms for row in range(len(rows))[rows.of(arm)]] == [*range(len(rows))]


def test_an_arm_that_is_not_there_has_no_rows() -> None:
    with pytest.raises(ValueError, match="not in"):
        Rows(("ticket",), (0, 1)).of("reinit")
    assert len(Rows((), (0, 1))) == 0
