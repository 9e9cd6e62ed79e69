"""The training loop: the same bits in every stack, pruned weights at zero, and the iterations that count."""

import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import random_masks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cross_entropy

from lottery.core import training
from lottery.core.families import family
from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import Own, perceptron
from lottery.core.schedules import Constant, Cosine, Step, WarmUp
from lottery.core.stack import Masks, Stack, everything, initialize, stack
from lottery.core.training import (
    SPARSE,
    DivergedError,
    Group,
    Optimizer,
    Recipe,
    State,
    Task,
    Trained,
    batch_order,
    group_size,
    train,
)
from lottery.evaluation.statistics import early_stopping

MakeSplit = Callable[..., Split]

seeds = st.integers(0, 2**31)
densities = st.sampled_from([None, 0.1, SPARSE, 0.5])  # None: nothing is pruned
paths = st.lists(st.sampled_from([0.2, 0.4, 0.5, 0.9]), max_size=3).map(tuple)


def _start(networks: int, sizes: tuple[int, ...], seed: int = 0) -> Stack:
    draws = [torch.Generator().manual_seed(seed + network) for network in range(networks)]
    return initialize(perceptron(sizes), "kaiming-uniform", draws)


def _bits(trained: Trained, rows: Any = slice(None)) -> list[Tensor]:
    """All that training gives of some networks, as integers: a NaN equals itself, and 0.0 is not -0.0."""
    parameters = [trained.final.flat[rows], trained.early_stopping.flat[rows]]
    picked = range(len(trained.histories))[rows] if isinstance(rows, slice) else rows
    histories = [trained.histories[row] for row in picked]
    values = [(h.train_loss, h.validation_loss, h.validation_accuracy) for h in histories]
    return [tensor.contiguous().view(torch.int32) for tensor in [*parameters, *chain.from_iterable(values)]]


def _same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _curve(trained: Trained, name: str) -> Tensor:
    """One value of the histories of networks that were evaluated at the same iterations, [R, E]."""
    return torch.stack([getattr(history, name) for history in trained.histories])


def _group(
    start: Stack, masks: Masks | None, seeds: Sequence[int], path: Sequence[float], split: Split, recipe: Recipe
) -> Group:
    """A group that trains in this process, where a test sees what it does."""
    task, lessons = Task(start.layout, tuple(seeds), tuple(path), recipe), family(start.layout).lessons(split)
    return Group(0, task, masks and lessons.arranged(masks), lessons, State.begin(task, lessons.arranged(start)))


def _advanced(group: Group) -> Group:
    """The same group, trained to its end."""
    while not group.finished:
        group.advance()
    return group


@st.composite
def recipes(draw: st.DrawFn, iterations: int = 9, decay: bool = True) -> Recipe:
    """Recipes of a few iterations, under Adam and under SGD."""
    adam = draw(st.booleans())
    last = draw(st.integers(1, iterations))
    return Recipe(
        iterations=last,
        batch_size=draw(st.integers(1, 20)),
        learning_rate=draw(st.sampled_from([0.001, 0.01, 0.03])),
        evaluate_every=draw(st.integers(1, 4)),
        optimizer="adam" if adam else "sgd",
        momentum=0.0 if adam else draw(st.sampled_from([0.0, 0.9])),
        weight_decay=draw(st.sampled_from([0.0, 0.01])) if decay else 0.0,
        schedule=draw(st.sampled_from([Constant(), Cosine(), WarmUp(3), Step((2, 5))])),
        start=draw(st.integers(0, last - 1)),
    )


sizes_of_networks = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=2), st.integers(2, 10)).map(
    lambda drawn: (drawn[0], *drawn[1], drawn[2])
)


# --- one network, the same bits -------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60)
@given(
    sizes=sizes_of_networks,
    its_seeds=st.lists(seeds, min_size=2, max_size=5),
    path=paths,
    density=densities,
    recipe=recipes(),
    group=st.one_of(st.none(), st.integers(1, 5)),
    threads=st.integers(1, 2),
    data=st.data(),
)
def test_a_networks_weights_are_the_same_bits_in_every_stack_and_group_and_on_any_number_of_threads(
    make_split: MakeSplit,
    sizes: tuple[int, ...],
    its_seeds: list[int],
    path: tuple[float, ...],
    density: float | None,
    recipe: Recipe,
    group: int | None,
    threads: int,
    data: st.DataObject,
) -> None:
    split = make_split(2 * recipe.batch_size + 3, 11, sizes[0], sizes[-1])
    start = _start(len(its_seeds), sizes)
    masks = random_masks(len(start), start.layout, density) if density else None
    start = start.masked(masks) if masks else start

    together = train(start, masks, its_seeds, path, split, recipe, group=len(start))
    grouped = train(start, masks, its_seeds, path, split, recipe, group=group, threads=threads)
    assert _same_bits(_bits(together), _bits(grouped))

    others = data.draw(st.permutations(range(len(start)))) * 2  # in another order, and each twice
    other_masks, other_seeds = masks and masks.rows(others), [its_seeds[row] for row in others]
    mixed = train(start.rows(others), other_masks, other_seeds, path, split, recipe, group=group, threads=2)
    assert _same_bits(_bits(together, others), _bits(mixed))

    for row, seed in enumerate(its_seeds):
        alone = train(start.rows([row]), masks and masks.rows([row]), [seed], path, split, recipe)
        assert _same_bits(_bits(together, slice(row, row + 1)), _bits(alone))


# where the matrix library was seen to add in another order, by the alignment in memory or by the size of the stack
@pytest.mark.parametrize(
    ("sizes", "batch"),
    [((47, 1, 16, 4), 59), ((62, 1, 55, 9), 39), ((128, 1, 5), 64), ((74, 1, 69, 62, 9), 48), ((39, 69, 21, 7, 5), 33)],
)
def test_awkward_shapes_are_the_same_bits_alone_and_in_a_stack(
    make_split: MakeSplit, sizes: tuple[int, ...], batch: int
) -> None:
    split = make_split(2 * batch, 20, sizes[0], sizes[-1])
    recipe = Recipe(10, batch, 0.01, 3, "sgd", momentum=0.9)
    start = _start(5, sizes)
    together = train(start, None, range(5), (), split, recipe, group=5)
    for row in range(5):
        alone = train(start.rows([row]), None, [row], (), split, recipe)
        assert _same_bits(_bits(together, slice(row, row + 1)), _bits(alone))


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    """PyTorch asked for two threads by whoever calls."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_lenet_300_100_is_the_same_bits_alone_and_in_any_group(make_split: MakeSplit, optimizer: str) -> None:
    split = make_split(130, 1100, 784, 10)
    recipe = Recipe(3, 60, 0.01, 2, optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    start = _start(4, (784, 300, 100, 10))
    masks = random_masks(4, start.layout, 0.5)
    start = start.masked(masks)
    alone = [train(start.rows([row]), masks.rows([row]), [row], (0.5,), split, recipe) for row in range(4)]
    for group, threads in [(1, 2), (2, 2), (3, 1), (4, 1)]:
        together = train(start, masks, range(4), (0.5,), split, recipe, group=group, threads=threads)
        for row in range(4):
            assert _same_bits(_bits(together, slice(row, row + 1)), _bits(alone[row]))


def test_a_mask_that_keeps_everything_is_no_mask(make_split: MakeSplit) -> None:
    split, start = make_split(50, 10, 12, 4), _start(2, (12, 9, 4))
    recipe = Recipe(9, 10, 0.01, 3)
    masks = everything(2, start.layout)
    with_masks, without = (train(start, each, [0, 1], (), split, recipe) for each in (masks, None))
    assert _same_bits(_bits(with_masks), _bits(without))


def test_how_often_one_evaluates_changes_no_weight(make_split: MakeSplit) -> None:
    split, start = make_split(50, 10, 12, 4), _start(2, (12, 9, 4))
    often, seldom = (train(start, None, [0, 1], (), split, Recipe(12, 10, 0.01, every)) for every in (1, 4))
    assert torch.equal(often.final.flat, seldom.final.flat)
    assert torch.equal(_curve(often, "validation_loss")[:, [0, 4, 8, 12]], _curve(seldom, "validation_loss"))


def test_training_leaves_what_it_starts_from_as_it_was(make_split: MakeSplit) -> None:
    split, start = make_split(50, 10, 12, 4), _start(2, (12, 9, 4))
    before = start.clone()
    trained = train(start, None, [0, 1], (), split, Recipe(5, 10, 0.01, 2))
    assert torch.equal(start.flat, before.flat)
    assert not torch.equal(trained.final.flat, before.flat)


def test_the_validation_images_decide_when_to_stop_and_nothing_else(make_split: MakeSplit) -> None:
    split, start = make_split(40, 10, 12, 4), _start(3, (12, 20, 4))
    other = replace(split, validation=make_split(1, 10, 12, 4, seed=1).validation)
    recipe = Recipe(60, 10, 0.01, 1)
    one, another = (train(start, None, [0, 1, 2], (), which, recipe) for which in (split, other))
    assert torch.equal(one.final.flat, another.final.flat)
    assert torch.equal(_curve(one, "train_loss")[:, 1:], _curve(another, "train_loss")[:, 1:])
    assert not torch.equal(one.early_stopping.flat, another.early_stopping.flat)


# --- the optimizers --------------------------------------------------------------------------------------------------


def _torchs(recipe: Recipe, parameters: list[Tensor], fused: bool) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
    )


@given(recipes(), st.integers(1, 50), seeds)
def test_steps_of_the_optimizer_are_those_of_torch_optim(recipe: Recipe, size: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    ours = torch.randn(2, 16 * size, generator=draws)
    fused, plain = (ours.clone().requires_grad_() for _ in range(2))
    optimizer = Optimizer(recipe, [ours], [[torch.zeros_like(ours)] for _ in range(Optimizer.moments_of(recipe))], 0)
    theirs = [_torchs(recipe, [fused], fused=True), _torchs(recipe, [plain], fused=False)]
    for position in range(recipe.start, recipe.iterations):
        gradients = torch.randn(ours.shape, generator=draws)
        optimizer.step([gradients.clone()], recipe.rates[position])
        for parameters, reference in zip((fused, plain), theirs, strict=True):
            parameters.grad = gradients.clone()
            reference.param_groups[0]["lr"] = recipe.rates[position]
            reference.step()
        assert torch.equal(ours, fused)
        torch.testing.assert_close(ours, plain.detach(), rtol=1e-5, atol=1e-6)


@given(
    sizes=sizes_of_networks,
    its_seeds=st.lists(seeds, min_size=1, max_size=3),
    path=paths,
    density=densities,
    recipe=recipes(),
)
def test_training_is_a_plain_loop_over_batches_with_autograd_and_torch_optim(
    make_split: MakeSplit,
    sizes: tuple[int, ...],
    its_seeds: list[int],
    path: tuple[float, ...],
    density: float | None,
    recipe: Recipe,
) -> None:
    split = make_split(3 * recipe.batch_size - 1, 30, sizes[0], sizes[-1])  # two batches an epoch
    start = _start(len(its_seeds), sizes)
    masks = random_masks(len(start), start.layout, density or 1.0)
    start = start.masked(masks)
    trained = train(start, masks, its_seeds, path, split, replace(recipe, evaluate_every=1))

    for row, seed in enumerate(its_seeds):
        pieces = [piece[row].double().requires_grad_() for piece in start.weights + start.biases]
        weights, biases = pieces[: len(start.weights)], pieces[len(start.weights) :]

        def forward(pixels: Tensor, weights: list[Tensor] = weights, biases: list[Tensor] = biases) -> Tensor:
            values = (pixels.double() - split.scaling.shift[0]) / split.scaling.scale[0]
            for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                values = (values.relu() if layer else values) @ weight + bias
            return values

        optimizer = _torchs(recipe, pieces, fused=False)
        for column, iteration in enumerate(range(recipe.start, recipe.iterations), start=1):
            epoch, place = divmod(iteration, 2)
            images = batch_order(seed, path, epoch, len(split.train))[place * recipe.batch_size :][: recipe.batch_size]
            optimizer.zero_grad()
            loss = cross_entropy(forward(split.train.pixels[images]), split.train.labels[images])
            loss.backward()
            for weight, mask in zip(weights, masks.weights, strict=True):
                weight.grad *= mask[row]
            optimizer.param_groups[0]["lr"] = recipe.rates[iteration]
            optimizer.step()
            validation_loss = cross_entropy(forward(split.validation.pixels), split.validation.labels)
            history = trained.histories[row]
            assert history.iterations[column] == iteration + 1
            assert float(history.train_loss[column]) == pytest.approx(loss.item(), rel=1e-3, abs=1e-6)
            assert float(history.validation_loss[column]) == pytest.approx(validation_loss.item(), rel=1e-3, abs=1e-6)
        ours = torch.cat([piece[row].flatten() for piece in trained.final.weights + trained.final.biases]).double()
        theirs = torch.cat([piece.detach().flatten() for piece in pieces])
        began = torch.cat([piece[row].flatten() for piece in start.weights + start.biases]).double()
        assert (ours - theirs).norm() <= 1e-3 * (theirs - began).norm() + 1e-6 * began.norm()


# --- pruned weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "momentum", "weight_decay"),
    [("adam", 0.0, 0.0), ("adam", 0.0, 0.01), ("sgd", 0.0, 0.0), ("sgd", 0.9, 0.0), ("sgd", 0.9, 0.01)],
)
@settings(max_examples=20)
@given(sizes=sizes_of_networks, networks=st.integers(1, 3), density=st.sampled_from([0.1, 0.5]), seed=seeds)
def test_pruned_weights_stay_zero_through_training(
    make_split: MakeSplit,
    optimizer: str,
    momentum: float,
    weight_decay: float,
    sizes: tuple[int, ...],
    networks: int,
    density: float,
    seed: int,
) -> None:
    split = make_split(25, 5, sizes[0], sizes[-1])
    recipe = Recipe(12, 8, 0.01, 1, optimizer, momentum, weight_decay)
    start = _start(networks, sizes, seed)
    masks = random_masks(networks, start.layout, density, seed)
    start = start.masked(masks)
    group = _group(start, masks, range(networks), (0.5,), split, recipe)
    state, pruned = group.state, ~group.lessons.arranged(masks).flat
    while not group.finished:
        group.advance()
        assert (state.parameters.flat[pruned] == 0.0).all()
    assert group.iteration == 12
    assert (state.early_stopping.flat[pruned] == 0.0).all()
    for weight, mask in zip(group.lessons.restored(state.parameters).weights, masks.weights, strict=True):
        assert (weight[~mask] == 0.0).all()
    assert not torch.equal(group.lessons.restored(state.parameters).flat, start.flat)


@pytest.mark.parametrize("recipe", [Recipe(200, 8, 0.01, 100), Recipe(200, 8, 0.01, 100, "sgd", 0.9, 0.01)])
def test_gathering_the_kept_weights_for_the_optimizer_changes_no_bit(
    make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    # 16 classes, so that biases come last and not padding; 32 masks, of another size each: fused Adam rounds what
    # does not fill a vector in another way
    split, start = make_split(60, 10, 30, 16), _start(32, (30, 20, 16))
    masks = random_masks(32, start.layout, 0.5)
    results = []
    for sparse in (0.0, 1.0):
        monkeypatch.setattr(training, "SPARSE", sparse)
        results.append(_bits(train(start.masked(masks), masks, range(32), (0.5,), split, recipe, group=1)))
    assert _same_bits(*results)


# --- evaluations and early stopping ----------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 400))
def test_iteration_0_every_so_many_iterations_and_the_last_are_evaluated_once_each(iterations: int, every: int) -> None:
    evaluations = Recipe(iterations, 60, 0.1, every).evaluations
    assert evaluations[0] == 0
    assert evaluations[-1] == iterations
    assert all(before < after for before, after in pairwise(evaluations))
    assert set(evaluations) == {i for i in range(iterations + 1) if i % every == 0 or i == iterations}


@given(st.integers(0, 299), st.integers(1, 100), st.integers(1, 400))
def test_a_rewound_network_is_evaluated_at_its_start_and_then_where_the_dense_one_is(
    start: int, more: int, every: int
) -> None:
    recipe = Recipe(start + more, 60, 0.1, every, start=start)
    dense = replace(recipe, start=0).evaluations
    assert recipe.evaluations == [start, *(i for i in dense if i > start)]


def test_the_history_holds_the_mean_training_loss_since_the_evaluation_before(make_split: MakeSplit) -> None:
    split, start = make_split(50, 10, 12, 4), _start(2, (12, 9, 4))
    each, trained = (train(start, None, [0, 1], (), split, Recipe(11, 10, 0.01, every)) for every in (1, 4))
    losses = _curve(trained, "train_loss")
    assert [history.iterations for history in trained.histories] == [[0, 4, 8, 11]] * 2
    assert losses[:, 0].isnan().all()
    for column, (first, last) in enumerate([(1, 4), (5, 8), (9, 11)], start=1):
        expected = _curve(each, "train_loss")[:, first : last + 1].mean(dim=1)
        torch.testing.assert_close(losses[:, column], expected)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(losses=st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=3))
def test_early_stopping_keeps_the_weights_of_the_lowest_loss_after_iteration_0_the_earliest_on_a_tie(
    make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch, losses: list[list[int]]
) -> None:
    scripted, snapshots = torch.tensor(losses, dtype=torch.float64), []

    def score(parameters: Stack, *_: Tensor) -> tuple[Tensor, Tensor]:
        snapshots.append(parameters.flat.clone())
        return scripted[:, len(snapshots) - 1], torch.zeros(len(parameters), dtype=torch.float64)

    monkeypatch.setattr(training, "score", score)
    recipe = Recipe(14, 5, 0.01, 2, start=3)
    start = _start(len(losses), (3, 2))
    state = _advanced(_group(start, None, range(len(losses)), (), make_split(20, 5, 3, 2), recipe)).state
    history = pd.DataFrame(
        {"arm": "dense", "seed": seed, "iteration": iteration, "validation_loss": loss}
        for seed, network in enumerate(state.history[1].tolist())
        for iteration, loss in zip(recipe.evaluations, network, strict=True)
    )
    stops = early_stopping(history)
    for row, script in enumerate(losses):
        candidates = script[1:]
        lowest = 1 + candidates.index(min(candidates))
        assert torch.equal(state.early_stopping.flat[row], snapshots[lowest][row])
        assert stops["early_stopping_iteration"][row] == recipe.evaluations[lowest]
        assert stops["censored"][row] == (lowest == 6)
    assert torch.equal(state.parameters.flat, snapshots[-1])


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorder(Scaling):
    """A scaling that writes down which images it was asked for: pixels 0 and 1 of an image say its number."""

    batches: list[Tensor] = field(default_factory=list)  # [R, B] each

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        if out is not None:  # a batch, not the validation images
            self.batches.append((pixels[..., 0].long() - 1) * 255 + pixels[..., 1] - 1)
        return super().__call__(pixels, out)


def _numbered(images: int) -> Split:
    """Images that say their numbers by pixels that all of them use, which therefore stay the first."""
    numbers = torch.arange(images)
    pixels = torch.stack([numbers // 255 + 1, numbers % 255 + 1, numbers % 3], dim=1).to(torch.uint8)
    return Split(Images(pixels, numbers % 2), Images(pixels[:4], numbers[:4] % 2), Recorder((128.0,), (74.0,)))


def _visited(images: int, batch: int, iterations: int, its_seeds: Sequence[int], path: Sequence[float]) -> Tensor:
    """The images that training shows to each network, [iterations, R, B]."""
    split = _numbered(images)
    start = _start(len(its_seeds), (3, 2))
    _advanced(_group(start, None, its_seeds, path, split, Recipe(iterations, batch, 0.001, 3)))
    assert isinstance(split.scaling, Recorder)
    return torch.stack(split.scaling.batches)


@given(images=st.integers(1, 300), batches=st.integers(1, 6), epochs=st.integers(1, 3), seed=seeds, path=paths)
def test_an_epoch_visits_each_image_at_most_once_and_drops_an_incomplete_last_batch(
    images: int, batches: int, epochs: int, seed: int, path: tuple[float, ...]
) -> None:
    batch = -(-images // batches)
    whole = images // batch
    visited = _visited(images, batch, whole * epochs, [seed], path)[:, 0].view(epochs, whole * batch)
    for epoch, order in enumerate(visited):
        assert len(order.unique()) == len(order)
        assert torch.equal(order, batch_order(seed, path, epoch, images)[: whole * batch])


def test_what_an_epoch_drops_the_next_may_visit() -> None:
    visited = _visited(images=25, batch=10, iterations=40, its_seeds=[0], path=())
    assert visited.unique().tolist() == list(range(25))


@given(seeds, paths, st.integers(0, 50), st.integers(1, 200))
def test_a_batch_order_is_a_permutation_and_the_same_each_time(
    seed: int, path: tuple[float, ...], epoch: int, images: int
) -> None:
    order = batch_order(seed, path, epoch, images)
    assert order.sort().values.tolist() == list(range(images))
    assert torch.equal(order, batch_order(seed, list(path), epoch, images))


@given(st.lists(st.tuples(seeds, paths, st.integers(0, 50)), min_size=2, max_size=8, unique=True))
def test_other_seeds_other_paths_and_other_epochs_have_other_batch_orders(
    keys: list[tuple[int, tuple[float, ...], int]],
) -> None:
    orders = {tuple(batch_order(*key, 100).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_the_arms_of_a_level_share_the_batches_of_a_seed() -> None:
    visited = _visited(images=50, batch=7, iterations=20, its_seeds=[3, 4, 3, 4], path=(0.5,))
    assert torch.equal(visited[:, :2], visited[:, 2:])
    assert not torch.equal(visited[:, 0], visited[:, 1])


def test_no_network_is_trained_on_the_batches_that_chose_its_mask() -> None:
    levels = [(), (0.2,), (0.2, 0.36), (0.36,)]
    visited = [_visited(images=50, batch=7, iterations=20, its_seeds=[3], path=path) for path in levels]
    for i, one in enumerate(visited):
        assert not any(torch.equal(one, other) for other in visited[i + 1 :])


# --- recipes of their own --------------------------------------------------------------------------------------------


def test_what_is_left_of_iteration_k_is_what_training_for_k_iterations_gives(make_split: MakeSplit) -> None:
    split, start = make_split(50, 10, 12, 4), _start(2, (12, 9, 4))
    recipe = Recipe(20, 10, 0.01, 6, schedule=Step((15,)))
    trained = train(start, None, [0, 1], (), split, replace(recipe, rewind=7))
    assert trained.rewound
    for k in (6, 7):  # an evaluated iteration, and one that is not
        left = train(start, None, [0, 1], (), split, replace(recipe, rewind=k)).rewound
        shorter = train(start, None, [0, 1], (), split, replace(recipe, iterations=k))
        assert left
        assert torch.equal(left.flat, shorter.final.flat)
    assert train(start, None, [0, 1], (), split, recipe).rewound is None
    assert _same_bits(_bits(trained), _bits(train(start, None, [0, 1], (), split, recipe)))


def test_sgd_without_momentum_from_iteration_k_ends_where_the_dense_run_does(make_split: MakeSplit) -> None:
    # its optimizer remembers nothing, so that rates and batches are those of positions k to T to the bit
    split, start = make_split(50, 10, 12, 4), _start(2, (12, 9, 4))
    recipe = Recipe(23, 10, 0.05, 6, "sgd", schedule=Cosine(), rewind=7)
    dense = train(start, None, [0, 1], (), split, recipe)
    assert dense.rewound
    rewound = train(dense.rewound, everything(2, start.layout), [0, 1], (), split, replace(recipe, start=7, rewind=0))
    assert torch.equal(rewound.final.flat, dense.final.flat)
    assert [history.iterations for history in rewound.histories] == [[7, 12, 18, 23]] * 2
    assert torch.equal(_curve(rewound, "validation_loss")[:, 1:], _curve(dense, "validation_loss")[:, 2:])
    assert torch.equal(_curve(rewound, "train_loss")[:, 2:], _curve(dense, "train_loss")[:, 3:])
    assert _curve(rewound, "train_loss")[:, 0].isnan().all()


def test_adam_starts_afresh_at_iteration_k(make_split: MakeSplit) -> None:
    # the first step of a fresh Adam is the learning rate, whatever the gradient
    split, start = make_split(50, 10, 12, 4), _start(1, (12, 4))
    recipe = Recipe(8, 10, 0.01, 8, schedule=Step((7,)), start=7)
    moved = (train(start, None, [0], (), split, recipe).final.biases[0] - start.biases[0]).abs()
    assert moved.flatten().tolist() == pytest.approx([0.001] * 4, rel=1e-3)


@settings(max_examples=20)
@given(st.lists(recipes(), min_size=4, max_size=4), st.integers(1, 4), st.integers(1, 2), st.data())
def test_networks_with_recipes_of_their_own_train_as_they_do_alone(
    make_split: MakeSplit, several: list[Recipe], group: int, threads: int, data: st.DataObject
) -> None:
    several = [replace(recipe, batch_size=10, optimizer="adam", momentum=0.0) for recipe in several]
    own = [several[data.draw(st.integers(0, 3))] for _ in range(5)]
    split, start = make_split(50, 10, 12, 4), _start(5, (12, 9, 4))
    told: list[slice] = []

    def advanced(group: Group) -> None:
        told.append(group.rows)

    together = train(start, None, range(5), (), split, own, group=group, threads=threads, advanced=advanced)
    assert all(set(own[rows]) == {own[rows.start]} for rows in told)
    for row, recipe in enumerate(own):
        alone = train(start.rows([row]), None, [row], (), split, recipe)
        assert _same_bits(_bits(together, slice(row, row + 1)), _bits(alone))
        assert together.histories[row].iterations == recipe.evaluations


def test_another_batch_order_is_all_that_a_twin_has_of_its_own(make_split: MakeSplit) -> None:
    split, start = make_split(50, 50, 12, 4), _start(1, (12, 9, 4))
    recipe = Recipe(1, 50, 0.01, 1, "sgd")
    one, twin = (train(start, None, [0], (), split, [replace(recipe, order=order)]) for order in ("batches", "twins"))
    # an epoch in one batch: the same images, added up in another order
    torch.testing.assert_close(one.final.flat, twin.final.flat)
    orders = [batch_order(0, (), 0, 50, order) for order in ("batches", "twins")]
    assert not torch.equal(*orders)
    few = replace(recipe, batch_size=5)
    one, twin = (train(start, None, [0], (), split, [replace(few, order=order)]) for order in ("batches", "twins"))
    assert not torch.allclose(one.final.flat, twin.final.flat)


# --- groups ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 100), st.integers(1, 10**7), st.integers(1, 8))
def test_a_group_has_a_network_and_at_most_a_threads_share(networks: int, parameters: int, threads: int) -> None:
    assert 1 <= group_size(networks, parameters, threads) <= math.ceil(networks / threads)


def test_one_lenet_300_100_trains_at_a_time_on_a_thread_but_several_small_networks_do() -> None:
    assert group_size(15, _start(1, (784, 300, 100, 10)).flat.shape[1], 2) == 1
    assert group_size(15, _start(1, (64, 20, 10)).flat.shape[1], 2) == 8


@pytest.mark.parametrize("threads", [1, 2])
def test_whoever_watches_is_told_of_every_evaluation_of_every_group(make_split: MakeSplit, threads: int) -> None:
    told: list[tuple[int, threading.Thread]] = []
    split, start = make_split(50, 10, 12, 4), _start(5, (12, 9, 4))
    train(
        start, None, range(5), (), split, Recipe(7, 10, 0.01, 3), group=2, threads=threads,
        advanced=lambda group: told.append((group.first, threading.current_thread())),
    )  # fmt: skip
    assert sorted(first for first, _ in told) == sorted([0, 2, 4] * 4)
    assert {thread for _, thread in told} == {threading.current_thread()}


# --- tasks and states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("density", [None, SPARSE / 2, 0.6])
@pytest.mark.parametrize("rewind", [0, 5, 9, 17])  # none, before the interruption, at it, and after it
def test_a_group_goes_on_from_a_saved_state_to_the_same_bits(
    make_split: MakeSplit, optimizer: str, density: float | None, rewind: int
) -> None:
    split, start = make_split(50, 30, 30, 10), _start(2, (30, 20, 10))
    masks = random_masks(2, start.layout, density) if density else None
    start = start.masked(masks) if masks else start
    momentum = 0.9 if optimizer == "sgd" else 0.0
    recipe = Recipe(23, 10, 0.01, 3, optimizer, momentum, schedule=Cosine(), rewind=rewind)
    whole, interrupted = (_group(start, masks, (3, 4), (0.5,), split, recipe) for _ in range(2))
    for _ in range(4):
        interrupted.advance()
    assert (interrupted.iteration, interrupted.finished) == (9, False)
    saved = save(interrupted.state.tensors())
    _advanced(interrupted)  # which changes nothing in what was saved
    state = State.of(load(saved), start.layout)
    lessons = family(start.layout).lessons(split)
    kept = masks and lessons.arranged(masks)
    again = _advanced(Group(0, replace(whole.task), kept, lessons, state))
    expected = _advanced(whole).state.tensors()
    for group in (again, interrupted):
        assert group.finished
        tensors = group.state.tensors()
        assert tensors.keys() == expected.keys()
        assert all(_bytes(tensors[name]) == _bytes(tensor) for name, tensor in expected.items())
    rewound = expected["rewound"]
    assert len(rewound) == (2 if rewind else 0)
    assert not rewind or (rewound != lessons.arranged(start).flat).any(dim=1).all()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    "recipe", [Recipe(9, 10, 0.01, 3), Recipe(9, 10, 0.01, 3, "sgd"), Recipe(9, 10, 0.01, 3, "sgd", 0.9)]
)
@pytest.mark.parametrize("evaluations", [0, 1, 4])
def test_a_state_is_its_tensors_at_every_evaluation(make_split: MakeSplit, recipe: Recipe, evaluations: int) -> None:
    split, start = make_split(50, 30, 12, 4), _start(2, (12, 9, 4))
    group = _group(start, None, (0, 1), (), split, recipe)
    for _ in range(evaluations):
        group.advance()
    tensors = group.state.tensors()
    assert tensors["moments"].shape == (Optimizer.moments_of(recipe), *start.flat.shape)
    again = State.of(load(save(tensors)), start.layout)
    assert {name: _bytes(tensor) for name, tensor in again.tensors().items()} == {
        name: _bytes(tensor) for name, tensor in tensors.items()
    }


TASK = Task(perceptron((12, 9, 4)), (0, 1), (0.2, 0.36), Recipe(9, 10, 0.01, 3, schedule=Step((2, 5))))
OTHERS: dict[str, Any] = {  # another value of every field of a recipe
    "iterations": 10,
    "batch_size": 11,
    "learning_rate": 0.02,
    "evaluate_every": 4,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": Step((2, 6)),
    "start": 1,
    "rewind": 2,
    "order": "twin batches",
}


def test_equal_tasks_share_their_key_and_any_other_has_another() -> None:
    layout = TASK.layout
    same = Task(perceptron((12, 9, 4)), (0, 1), (0.2, 0.36), replace(TASK.recipe, schedule=Step((2, 5))))
    assert (same, same.key) == (TASK, TASK.key)
    assert same.recipe.rates  # what is computed on demand does not matter
    assert same.layout.starts
    assert replace(same).key == TASK.key
    assert OTHERS.keys() == {field.name for field in fields(Recipe)}
    schedules = (Constant(), Cosine(), WarmUp(2), WarmUp(3), Step((2, 5), 0.2))
    others = [
        *(
            replace(TASK, layout=perceptron(sizes))
            for sizes in ((13, 9, 4), (12, 8, 4), (12, 9, 5), (12, 4), (12, 9, 4, 4))
        ),
        *(
            replace(TASK, layout=replace(layout, **each))
            for each in ({"family": "other"}, {"example": (13,)}, {"own": Own("a.py", "Net", "{}", "0")})
        ),
        replace(TASK, layout=replace(layout, pieces=layout.pieces[::-1])),
        *(replace(TASK, seeds=each) for each in ((), (0,), (1, 0), (0, 2), (0, 1, 2))),
        *(replace(TASK, path=path) for path in ((), (0.2,), (0.36,), (0.36, 0.2), (0.2, math.nextafter(0.36, 1)))),
        *(replace(TASK, recipe=replace(TASK.recipe, **{name: value})) for name, value in OTHERS.items()),
        *(replace(TASK, recipe=replace(TASK.recipe, schedule=schedule)) for schedule in schedules),
    ]
    assert len({task.key for task in [TASK, *others]}) == 1 + len(others)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_task_survives_pickling_and_has_the_same_key_in_another_process(hash_seed: str) -> None:
    again = pickle.loads(pickle.dumps(TASK))
    assert (again, again.key) == (TASK, TASK.key)
    told = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; print(pickle.load(sys.stdin.buffer).key)"],
        input=pickle.dumps(replace(TASK)),  # which has not computed its key
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
    )
    assert told.stdout.decode().strip() == TASK.key


# --- how training ends early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_absurd_learning_rate_is_told_from_training(make_split: MakeSplit, optimizer: str) -> None:
    split, start = make_split(50, 10, 12, 4), _start(3, (12, 9, 4))
    with pytest.raises(DivergedError) as caught:
        train(start, None, range(3), (), split, Recipe(100, 10, 1e30, 5, optimizer))
    assert caught.value.row in range(3)
    assert caught.value.iteration in range(5, 101, 5)


@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_network_that_diverged_is_named_by_its_row_in_the_whole_stack(
    make_split: MakeSplit, group: int, threads: int
) -> None:
    split, start = make_split(50, 10, 12, 4), _start(5, (12, 9, 4))
    start.weights[1][3].fill_(math.nan)
    with pytest.raises(DivergedError) as caught:
        train(start, None, range(5), (), split, Recipe(100, 10, 0.01, 5), group=group, threads=threads)
    assert (caught.value.row, caught.value.iteration) == (3, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reason", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_ends_training_promptly(
    make_split: MakeSplit, threads: int, reason: type[BaseException]
) -> None:
    groups: list[Group] = []

    def interrupt(group: Group) -> None:
        groups.append(group)
        if group.iteration >= 2:
            raise reason("enough")

    split, start = make_split(50, 10, 12, 4), _start(6, (12, 9, 4))
    before = threading.active_count()
    with pytest.raises(reason, match="enough"):
        train(
            start, None, range(6), (), split, Recipe(10**5, 10, 0.01, 1),
            group=1, threads=threads, advanced=interrupt,
        )  # fmt: skip
    assert max(group.iteration for group in groups) < 100  # of 100,000
    assert threading.active_count() == before
    assert not multiprocessing.active_children()


ENDLESS = """
import multiprocessing
import torch
from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import Own, perceptron
from lottery.core.stack import Stack
from lottery.core.training import Recipe, train

images = Images(torch.zeros(20, 4, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))

def told(group):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    start, split = Stack.zeros(4, perceptron((4, 2))), Split(images, images, Scaling((0,), (1,)))
    train(start, None, range(4), (), split, Recipe(10**7, 10, 0.01, 1000), threads=2, advanced=told)
"""
forking = pytest.mark.skipif(sys.platform != "linux", reason="workers are threads where forking is not safe")


@pytest.fixture
def endless(tmp_path: Path) -> "Iterator[tuple[subprocess.Popen[str], list[int]]]":
    """A process whose two workers train for hours, and the workers' ids."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process, [int(word) for word in process.stdout.readline().split()]
        process.kill()


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@forking
def test_workers_end_when_their_parent_is_killed(endless: "tuple[subprocess.Popen[str], list[int]]") -> None:
    parent, workers = endless
    assert len(workers) == 2
    assert all(_runs(worker) for worker in workers)
    parent.kill()
    deadline = time.monotonic() + 20
    while any(_runs(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(worker) for worker in workers)


@forking
def test_training_ends_when_a_worker_is_killed(endless: "tuple[subprocess.Popen[str], list[int]]") -> None:
    parent, workers = endless
    os.kill(workers[0], signal.SIGKILL)
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode == 1
    assert "BrokenProcessPool" in errors
    assert not any(_runs(worker) for worker in workers)


def test_a_stack_of_stacks_trains_as_the_stacks_do(make_split: MakeSplit) -> None:
    split, recipe = make_split(50, 10, 12, 4), Recipe(6, 10, 0.01, 3)
    one, other = _start(2, (12, 9, 4), seed=0), _start(3, (12, 9, 4), seed=10)
    together = train(stack([one, other]), None, [0, 1, 0, 1, 2], (), split, recipe)
    assert _same_bits(_bits(together, slice(0, 2)), _bits(train(one, None, [0, 1], (), split, recipe)))
    assert _same_bits(_bits(together, slice(2, 5)), _bits(train(other, None, [0, 1, 2], (), split, recipe)))
