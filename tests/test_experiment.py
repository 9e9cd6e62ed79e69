"""The experiment's four steps, end to end on real images."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lottery.core import experiment
from lottery.core.arms import ARMS as EVERY_ARM
from lottery.core.arms import Rows
from lottery.core.experiment import Level, Pruning, Train
from lottery.core.families import accuracy
from lottery.core.images import Images, Split
from lottery.core.ingredients import Ingredients
from lottery.core.layout import perceptron
from lottery.core.networks.perceptron import Examples
from lottery.core.pruning import Evidence, weights_kept
from lottery.core.randomness import generator
from lottery.core.schedules import Step
from lottery.core.stack import Masks, Stack, initialize
from lottery.core.training import Recipe, Trained, train
from lottery.evaluation.statistics import early_stopping
from lottery.files.artifacts import load_contents, load_history, load_masks, load_parameters, save_level
from lottery.files.digests import digest

LAYOUT = perceptron((64, 50, 20, 10))
SEEDS = (0, 1, 2)
ARMS = ("ticket", "reinit", "random")
RECIPE = Recipe(iterations=200, batch_size=50, learning_rate=0.003, evaluate_every=25)
PRUNING = Pruning("magnitude", "layer", {"output": 0.5})

Digits = tuple[Split, Images]


def _trainer(split: Split, threads: int = 2) -> Train:
    def trainer(
        start: Stack, masks: Masks, seeds: Sequence[int], path: Sequence[float], recipes: Sequence[Recipe]
    ) -> Trained:
        return train(start, masks, seeds, path, split, recipes, threads=threads)

    return trainer


class Pipeline(NamedTuple):
    """Dense networks, a level and its child."""

    dense: Level
    p50: Level
    p80: Level


def _child(parent: Level, dense: Level, sparsity: float, split: Split, pruning: Pruning = PRUNING) -> Ingredients:
    """The ticket of a level below ``parent``."""
    pruned = slice(0, len(SEEDS))  # dense, or the tickets
    path, final = (*parent.path, sparsity), parent.trained.final.rows(pruned)
    evidence = Evidence(parent.start.rows(pruned), final, SEEDS, path, split)
    masks = experiment.prune(evidence, parent.masks.rows(pruned), pruning)
    return Ingredients(masks, dense.start, final, SEEDS, path, "glorot-normal", RECIPE)


def _pipeline(split: Split, threads: int = 2) -> Pipeline:
    trainer = _trainer(split, threads)
    dense = experiment.dense(LAYOUT, "glorot-normal", SEEDS, RECIPE, trainer)
    p50 = experiment.level(_child(dense, dense, 0.5, split), ARMS, trainer)
    return Pipeline(dense, p50, experiment.level(_child(p50, dense, 0.8, split), ARMS, trainer))


@pytest.fixture(scope="module")
def pipeline(digits: Digits) -> Pipeline:
    """A pipeline on the digits; nobody changes it."""
    return _pipeline(digits[0])


def _test_accuracy(networks: Stack, digits: Digits) -> torch.Tensor:
    split, test = digits
    return accuracy(networks, Examples(test, split.scaling), threads=1)


# --- the four steps --------------------------------------------------------------------------------------------------


def test_the_dense_networks_learn(pipeline: Pipeline, digits: Digits) -> None:
    assert (_test_accuracy(pipeline.dense.start, digits) < 0.3).all()
    assert (_test_accuracy(pipeline.dense.trained.final, digits) > 0.9).all()
    assert (_test_accuracy(pipeline.dense.trained.early_stopping, digits) > 0.9).all()


def test_the_tickets_learn(pipeline: Pipeline, digits: Digits) -> None:
    assert (_test_accuracy(pipeline.p50.trained.final.rows(slice(0, 3)), digits) > 0.9).all()
    assert (_test_accuracy(pipeline.p80.trained.final.rows(slice(0, 3)), digits) > 0.85).all()


def test_the_dense_networks_start_from_their_seeds(pipeline: Pipeline) -> None:
    start = initialize(LAYOUT, "glorot-normal", [generator("initialization", seed) for seed in SEEDS])
    assert torch.equal(pipeline.dense.start.flat, start.flat)
    assert len({tuple(network.tolist()) for network in start.flat}) == len(SEEDS)
    assert pipeline.dense.masks.flat.all()


def test_tickets_of_every_level_are_rewound_to_the_dense_runs_own_initialization(pipeline: Pipeline) -> None:
    for level in (pipeline.p50, pipeline.p80):
        for row in range(len(SEEDS)):
            for weight, mask, initial in zip(
                level.start.weights, level.masks.weights, pipeline.dense.start.weights, strict=True
            ):
                assert torch.equal(weight[row], torch.where(mask[row], initial[row], 0.0))
            for bias, initial in zip(level.start.biases, pipeline.dense.start.biases, strict=True):
                assert torch.equal(bias[row], initial[row])


def test_a_level_prunes_the_weights_that_its_parents_tickets_have_at_the_last_iteration(pipeline: Pipeline) -> None:
    for parent, child in ((pipeline.dense, pipeline.p50), (pipeline.p50, pipeline.p80)):
        for row in range(len(SEEDS)):
            for weight, before, after in zip(
                parent.trained.final.weights, parent.masks.weights, child.masks.weights, strict=True
            ):
                kept, pruned = weight[row][after[row]].abs(), weight[row][before[row] & ~after[row]].abs()
                assert kept.min() >= pruned.max()
                assert not (after[row] & ~before[row]).any()


def test_every_arm_keeps_exactly_what_the_levels_sparsity_says(pipeline: Pipeline) -> None:
    assert weights_kept(pipeline.p50.masks).tolist() == [[1600, 500, 150]] * 9
    assert weights_kept(pipeline.p80.masks).tolist() == [[640, 200, 105]] * 9  # 150 at half of 1 - 0.2 / 0.5


def test_all_trained_networks_have_their_pruned_weights_at_zero(pipeline: Pipeline) -> None:
    for level in (pipeline.p50, pipeline.p80):
        for networks in (level.start, level.trained.final, level.trained.early_stopping):
            assert torch.equal(networks.masked(level.masks).flat, networks.flat)
            assert (networks.flat != 0).any(dim=1).all()


def test_a_networks_rows_are_its_arms_and_seeds(pipeline: Pipeline, digits: Digits) -> None:
    level = pipeline.p50
    assert level.rows == Rows(ARMS, SEEDS)
    for row, (_, seed) in enumerate(level.rows):
        alone = train(level.start.rows([row]), level.masks.rows([row]), [seed], (0.5,), digits[0], RECIPE)
        assert torch.equal(alone.final.flat[0], level.trained.final.flat[row])


def test_an_arm_trains_the_same_whatever_other_arms_and_seeds_a_level_has(pipeline: Pipeline, digits: Digits) -> None:
    masks = pipeline.p50.masks.rows(slice(1, 3))
    initial, final = (which.rows(slice(1, 3)) for which in (pipeline.dense.start, pipeline.dense.trained.final))
    ticket = Ingredients(masks, initial, final, SEEDS[1:], (0.5,), "glorot-normal", RECIPE)
    level = experiment.level(ticket, ("random", "ticket"), _trainer(digits[0]))
    rows = [7, 8, 1, 2]
    assert torch.equal(level.trained.final.flat, pipeline.p50.trained.final.flat[rows])
    assert torch.equal(level.trained.early_stopping.flat, pipeline.p50.trained.early_stopping.flat[rows])


def test_global_scope_prunes_all_layers_by_one_ranking(pipeline: Pipeline, digits: Digits) -> None:
    dense = pipeline.dense
    masks = _child(dense, dense, 0.5, digits[0], replace(PRUNING, scope="global")).masks
    assert weights_kept(masks).sum(dim=1).tolist() == [2200] * 3
    assert weights_kept(masks)[:, 0].tolist() != [1600] * 3


# --- what the experiment can vary ------------------------------------------------------------------------------------


def test_twins_start_where_their_networks_do_and_train_on_other_batches(digits: Digits) -> None:
    arms = ("random", "ticket", "reinit")
    trainer, split = _trainer(digits[0]), digits[0]
    recipe = replace(RECIPE, iterations=30)
    dense, plain = (
        experiment.dense(LAYOUT, "glorot-normal", SEEDS, replace(recipe, rewind=7), trainer, twins)
        for twins in (True, False)
    )
    ticket = replace(_child(dense, dense, 0.5, split), recipe=replace(recipe, start=7), rewound=dense.trained.rewound)
    level = experiment.level(ticket, arms, trainer, twins=True)
    assert [one.twins and one.twins[0].arms for one in (dense, level)] == [("dense",), ("ticket", "reinit")]
    for one in (dense, level):
        assert one.twins
        for arm in one.twins[0].arms:
            rows = one.rows.of(arm)
            own = replace(recipe, order="twin batches", start=7 if arm == "ticket" else 0)
            masks = one.masks.rows(rows)
            again = train(one.start.rows(rows), masks, SEEDS, one.path, split, own)
            twins = one.twins[1].rows(one.twins[0].of(arm))
            assert torch.equal(twins.flat, again.final.flat)
            assert (twins.flat != one.trained.final.rows(rows).flat).any(dim=1).all()
            assert torch.equal(twins.masked(masks).flat, twins.flat)
    # and the networks themselves are as they are without twins
    assert plain.twins is None
    assert torch.equal(plain.trained.final.flat, dense.trained.final.flat)
    assert plain.trained.rewound
    assert dense.trained.rewound
    assert torch.equal(plain.trained.rewound.flat, dense.trained.rewound.flat)
    assert len(level.trained.final) == len(level.trained.histories) == len(arms) * len(SEEDS)
    assert torch.equal(experiment.level(ticket, arms, trainer).trained.final.flat, level.trained.final.flat)


def test_pruned_weights_stay_zero_in_every_arm(pipeline: Pipeline, digits: Digits) -> None:
    ticket = _child(pipeline.p50, pipeline.dense, 0.9, digits[0])
    ticket = replace(ticket, recipe=replace(RECIPE, iterations=20, schedule=Step((15,)), start=10))
    level = experiment.level(ticket, tuple(EVERY_ARM), _trainer(digits[0]))
    for networks in (level.start, level.trained.final, level.trained.early_stopping):
        assert torch.equal(networks.masked(level.masks).flat, networks.flat)
    moved = (level.trained.final.flat - level.start.flat).abs().amax(dim=1).view(len(EVERY_ARM), -1)
    by_arm = dict(zip(EVERY_ARM, moved, strict=True))
    assert (by_arm["finetune"] < by_arm["lr-rewind"] / 2).all()  # a tenth of the rate, as after the drop


def test_small_dense_trains_as_a_network_of_its_own_size(pipeline: Pipeline, digits: Digits) -> None:
    ticket = _child(pipeline.dense, pipeline.dense, 0.8, digits[0])
    ticket = replace(ticket, recipe=replace(RECIPE, iterations=30))
    level = experiment.level(ticket, ("small-dense",), _trainer(digits[0]))
    units, more = (int(mask[0].any(dim=0).sum()) for mask in level.masks.weights[:2])
    sizes = (64, units, more, 10)
    small = initialize(perceptron(sizes), "glorot-normal", [generator("small-dense", seed, (0.8,)) for seed in SEEDS])
    alone = train(small, None, SEEDS, (0.8,), digits[0], ticket.recipe).final
    for layer, (n, m) in enumerate(pairwise(sizes)):
        torch.testing.assert_close(
            level.trained.final.weights[layer][:, :n, :m], alone.weights[layer], rtol=1e-3, atol=1e-4
        )
        assert (level.trained.final.biases[layer][:, m:] == 0).all()


# --- files and determinism -------------------------------------------------------------------------------------------


def test_the_whole_experiment_is_the_same_bytes_twice(pipeline: Pipeline, digits: Digits, workspace: Path) -> None:
    again = _pipeline(digits[0], threads=1)
    for name, level in pipeline._asdict().items():
        save_level(level, workspace / "one" / name, {})
        save_level(getattr(again, name), workspace / "other" / f"renamed-{name}", {})
        one, other = workspace / "one" / name, workspace / "other" / f"renamed-{name}"
        assert digest(one) == digest(other)
        assert {file.name: file.read_bytes() for file in one.iterdir()} == {
            file.name: file.read_bytes() for file in other.iterdir()
        }


def test_no_draw_comes_from_or_changes_a_global_state(pipeline: Pipeline, digits: Digits) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.get_rng_state()
        again = _pipeline(digits[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.p80.start.flat, pipeline.p80.start.flat)
    assert torch.equal(again.p80.trained.final.flat, pipeline.p80.trained.final.flat)


def test_a_level_is_the_same_from_its_parents_files_as_from_memory(
    pipeline: Pipeline, digits: Digits, workspace: Path
) -> None:
    for name in ("dense", "p50"):
        save_level(getattr(pipeline, name), workspace / name, {})
    held = load_contents(workspace / "p50")
    tickets = held.rows.of("ticket")
    path = (*held.path, 0.8)
    initial, final = (load_parameters(workspace / "p50", which).rows(tickets) for which in ("initial", "final"))
    evidence = Evidence(initial, final, held.rows.seeds, path, digits[0])
    masks = experiment.prune(evidence, load_masks(workspace / "p50").rows(tickets), PRUNING)
    rewound = load_parameters(workspace / "dense", "initial")
    ticket = Ingredients(masks, rewound, final, held.rows.seeds, path, "glorot-normal", RECIPE)
    level = experiment.level(ticket, ARMS, _trainer(digits[0]))
    assert torch.equal(level.start.flat, pipeline.p80.start.flat)
    assert torch.equal(level.trained.final.flat, pipeline.p80.trained.final.flat)


def test_training_to_exactly_the_early_stopping_iteration_gives_the_early_stopping_weights(
    digits: Digits, workspace: Path
) -> None:
    recipe = Recipe(iterations=130, batch_size=50, learning_rate=0.02, evaluate_every=20)  # overfits soon
    level = experiment.dense(LAYOUT, "glorot-normal", SEEDS, recipe, _trainer(digits[0]))
    save_level(level, workspace / "dense", {})
    stops = early_stopping(load_history(workspace / "dense"))
    stopped = load_parameters(workspace / "dense", "early_stopping")
    assert not stops["censored"].all()
    for row, iteration in enumerate(stops["early_stopping_iteration"]):
        budget = replace(recipe, iterations=int(iteration))
        shorter = train(level.start.rows([row]), None, [SEEDS[row]], (), digits[0], budget)
        assert torch.equal(shorter.final.flat[0], stopped.flat[row])
