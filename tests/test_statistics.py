"""Early stopping, means and deviations over seeds, intervals and power, against numbers worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lottery.evaluation.statistics import (
    ACCURACIES,
    contrast,
    early_stopping,
    holm,
    interval,
    pooled_deviation,
    reached,
    seeds_needed,
    slope,
    summarize,
)


def _history(losses: dict[tuple[str, int], list[float]], every: int = 10) -> pd.DataFrame:
    """A history in which evaluation e of a network was at iteration e * every."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "iteration": every * evaluation, "validation_loss": loss}
            for (arm, seed), row in losses.items()
            for evaluation, loss in enumerate(row)
        ]
    )


def test_the_early_stopping_iteration_has_the_lowest_validation_loss() -> None:
    stops = early_stopping(_history({("dense", 0): [2.3, 0.5, 0.2, 0.3], ("dense", 1): [2.3, 0.4, 0.5, 0.6]}))
    assert stops["early_stopping_iteration"].tolist() == [20, 10]
    assert stops["censored"].tolist() == [False, False]


def test_iteration_0_is_no_candidate() -> None:
    assert early_stopping(_history({("dense", 0): [0.0, 2.0, 1.0, 3.0]}))["early_stopping_iteration"].tolist() == [20]


def test_the_earliest_of_equals_counts() -> None:
    stops = early_stopping(_history({("dense", 0): [0.1, 0.3, 0.1, 0.2, 0.1]}))
    assert stops["early_stopping_iteration"].tolist() == [20]
    assert stops["censored"].tolist() == [False]


def test_a_lowest_loss_at_the_last_evaluation_is_censored() -> None:
    stops = early_stopping(_history({("ticket", 0): [2.3, 0.5, 0.4], ("ticket", 1): [2.3, 0.4, 0.4]}))
    assert stops["early_stopping_iteration"].tolist() == [20, 10]
    assert stops["censored"].tolist() == [True, False]


def test_networks_keep_their_order_and_arms_and_seeds_are_told_apart() -> None:
    stops = early_stopping(
        _history(
            {("ticket", 7): [9, 1, 2], ("ticket", 3): [9, 2, 1], ("random", 7): [9, 2, 1], ("random", 3): [9, 1, 2]}
        )
    )
    assert stops.to_dict("list") == {
        "arm": ["ticket", "ticket", "random", "random"],
        "seed": [7, 3, 7, 3],
        "early_stopping_iteration": [10, 20, 20, 10],
        "censored": [False, True, True, False],
    }
    assert stops.index.tolist() == [0, 1, 2, 3]


def test_a_network_that_is_rewound_begins_later_and_may_end_later() -> None:
    late = _history({("ticket", 0): [0.1, 0.4, 0.3, 0.5]}).assign(iteration=[30, 40, 50, 60])
    stops = early_stopping(pd.concat([_history({("reinit", 0): [9, 3, 2]}), late], ignore_index=True))
    assert stops["early_stopping_iteration"].tolist() == [20, 50]
    assert stops["censored"].tolist() == [True, False]


def test_the_first_iteration_at_denses_lowest_loss_is_a_second_measure_of_speed() -> None:
    history = _history({("ticket", 0): [0.1, 0.5, 0.3, 0.2], ("ticket", 1): [9.0, 0.4, 0.39, 0.38]})
    assert reached(history, {0: 0.3, 1: 0.38}) == [20, 30]  # a first evaluation, before training, is no candidate
    never = reached(history, {0: 0.1, 1: 0.3})
    assert all(math.isnan(iteration) for iteration in never)


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=5))
def test_early_stopping_is_the_first_minimum_after_iteration_0(losses: list[list[int]]) -> None:
    stops = early_stopping(_history({("dense", seed): [float(x) for x in row] for seed, row in enumerate(losses)}))
    expected = [10 * (1 + row[1:].index(min(row[1:]))) for row in losses]
    assert stops["early_stopping_iteration"].tolist() == expected
    assert stops["censored"].tolist() == [iteration == 50 for iteration in expected]


def _network(level: str, parent: str, arm: str, seed: int, **measured: float) -> dict[str, object]:
    row: dict[str, object] = {
        "level": level,
        "parent": parent,
        "arm": arm,
        "seed": seed,
        "sparsity": 0.0,
        "density": 1.0,
        "effective_density": 1.0,
    }
    row |= {"weights_kept": 18, "weights_kept_layer0": 12, "weights_kept_layer1": 6}
    row |= {"early_stopping_iteration": 100, "censored": False, "dense_loss_iteration": 50.0}
    return row | dict.fromkeys(ACCURACIES, 0.5) | measured


def test_means_deviations_and_counts_over_seeds() -> None:
    pruned = {"sparsity": 0.5, "density": 9 / 18, "effective_density": 0.5, "weights_kept": 9}
    networks = pd.DataFrame(
        [
            _network("dense", "", "dense", 0, test_accuracy=0.9, early_stopping_iteration=100),
            _network("dense", "", "dense", 1, test_accuracy=0.8, early_stopping_iteration=300, censored=True),
            _network("dense", "", "dense", 2, test_accuracy=0.7, early_stopping_iteration=500, censored=True),
            _network(
                "p50",
                "dense",
                "ticket",
                0,
                test_accuracy=0.75,
                weights_kept_layer0=5,
                **pruned | {"effective_density": 0.25},
            ),
            _network("p50", "dense", "ticket", 1, test_accuracy=0.85, weights_kept_layer0=6, **pruned)
            | {"dense_loss_iteration": math.nan},
            _network("p50", "dense", "random", 0, test_accuracy=0.6, **pruned),
            _network("p50", "dense", "random", 1, test_accuracy=0.6, **pruned),
        ]
    )
    summary = summarize(networks)
    assert summary[["level", "parent", "arm", "n"]].to_numpy().tolist() == [
        ["dense", "", "dense", 3],
        ["p50", "dense", "ticket", 2],
        ["p50", "dense", "random", 2],
    ]
    assert summary["sparsity"].tolist() == [0.0, 0.5, 0.5]
    assert summary["density"].tolist() == [1.0, 0.5, 0.5]
    assert summary["effective_density"].tolist() == [1.0, 0.375, 0.5]
    assert summary["weights_kept"].tolist() == [18, 9, 9]
    assert summary["weights_kept_layer0"].tolist() == [12, 5.5, 12]
    assert summary["test_accuracy_mean"].tolist() == pytest.approx([0.8, 0.8, 0.6])
    # sample deviations: sqrt((0.1² + 0 + 0.1²) / 2) and sqrt(2 · 0.05² / 1)
    assert summary["test_accuracy_std"].tolist() == pytest.approx([0.1, math.sqrt(0.005), 0.0])
    assert summary["early_stopping_iteration_mean"].tolist() == [300, 100, 100]
    assert summary["early_stopping_iteration_std"].tolist() == [200, 0, 0]
    assert summary["censored"].tolist() == [2, 0, 0]
    assert summary["compression"].tolist() == [1, 2, 2]
    assert summary["dense_loss_iteration_mean"].tolist() == [50, 50, 50]
    assert summary["dense_loss_reached"].tolist() == [3, 1, 2]


def test_each_accuracy_is_summarized_from_its_own_column() -> None:
    values = {measure: 0.1 * place for place, measure in enumerate(ACCURACIES, start=1)}
    summary = summarize(pd.DataFrame([_network("dense", "", "dense", 0, **values)]))
    for measure, value in values.items():
        assert summary[f"{measure}_mean"].tolist() == [value]


def test_one_seed_has_no_deviation() -> None:
    summary = summarize(pd.DataFrame([_network("dense", "", "dense", 0)]))
    assert summary["n"].tolist() == [1]
    assert summary[[f"{measure}_std" for measure in ACCURACIES]].isna().all(axis=None)


def test_levels_and_arms_stay_in_the_order_in_which_they_come() -> None:
    names = [
        ("dense", "dense"),
        ("p9", "ticket"),
        ("p9", "reinit"),
        ("p10", "ticket"),
        ("a", "random"),
        ("a", "ticket"),
    ]
    networks = pd.DataFrame([_network(level, "dense", arm, seed) for level, arm in names for seed in (1, 0)])
    summary = summarize(networks)
    assert list(zip(summary["level"], summary["arm"], strict=True)) == names


# --- intervals -----------------------------------------------------------------------------------------------------


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    # mean 2, deviation 1, t(0.975, 2) = 4.302653
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3))
    )


def test_one_seed_says_nothing() -> None:
    found = interval([0.7])
    assert (found.mean, found.low, found.high) == (0.7, -math.inf, math.inf)
    assert found.p_value(0, "above") == 1


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-2, 2), st.sampled_from(["above", "below"]))
def test_a_p_value_is_below_005_just_where_the_interval_is_beyond_the_bound(
    values: list[float], bound: float, side: str
) -> None:
    found = interval(values)
    limit = found.low if side == "above" else found.high
    if abs(limit - bound) > 1e-6:
        beyond = limit > bound if side == "above" else limit < bound
        assert (found.p_value(bound, side) < 0.05) == beyond


def test_a_p_value_is_scipys() -> None:
    values = [0.3, 0.5, -0.1, 0.4, 0.2]
    assert interval(values).p_value(0, "above") == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert interval(values).p_value(0.1, "below") == 1


def test_differences_that_are_all_alike_are_sure_on_their_side_of_a_bound_and_nothing_elsewhere() -> None:
    found = interval([0.5, 0.5, 0.5])
    assert [found.p_value(bound, "above") for bound in (0.0, 0.5, 1.0)] == [0, 1, 1]
    assert [found.p_value(bound, "below") for bound in (0.0, 0.5, 1.0)] == [1, 1, 0]


def test_a_ratio_has_the_limits_of_its_logarithm() -> None:
    ratio = interval([math.log(0.5), math.log(0.8)]).exp()
    assert ratio.mean == pytest.approx(math.sqrt(0.4))
    assert ratio.low < 0.5
    assert interval([0.0]).exp().high == math.inf
    assert interval([0.0]).exp().low == 0


def test_a_contrast_is_a_weighted_sum_by_seed() -> None:
    first, second = {1: math.log(8.0), 2: math.log(4.0)}, {2: math.log(2.0), 1: math.log(2.0), 3: 0.0}
    found = contrast([(1, first, dict.fromkeys(first, False)), (-1, second, dict.fromkeys(second, False))])
    assert found.values == pytest.approx((math.log(4), math.log(2)))  # seed 3 has no partner


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [(True, False, True, False), (False, True, False, True), (True, True, False, False)],
)
def test_a_censored_term_leaves_no_limit_where_it_may_yet_go(first: bool, second: bool, low: bool, high: bool) -> None:
    """A censored iteration is a lower bound, and so is a difference from which nothing censored is taken."""
    found = contrast([(1, {0: 2.0, 1: 2.5}, {0: first, 1: False}), (-1, {0: 1.0, 1: 1.2}, {0: second, 1: False})])
    assert math.isfinite(found.low) == low
    assert math.isfinite(found.high) == high


def test_holms_adjustment_steps_down_from_the_smallest() -> None:
    # 4 x 0.01, 3 x 0.02, then 2 x 0.025, but never lower than the one before
    assert holm([0.02, 0.01, 0.5, 0.025]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_seeds_needed_have_the_power_that_simulation_finds() -> None:
    seeds = seeds_needed(0.3, 0.25)
    assert seeds == 8
    draws = np.random.default_rng(0).normal(0.3, 0.25, (20_000, seeds))
    reach = stats.t.ppf(0.975, seeds - 1) * draws.std(axis=1, ddof=1) / math.sqrt(seeds)
    assert 0.8 < (draws.mean(axis=1) - reach > 0).mean() < 0.86
    fewer = draws[:, : seeds - 1]
    reach = stats.t.ppf(0.975, seeds - 2) * fewer.std(axis=1, ddof=1) / math.sqrt(seeds - 1)
    assert (fewer.mean(axis=1) - reach > 0).mean() < 0.8


def test_over_100_seeds_are_not_counted() -> None:
    assert seeds_needed(0.01, 1.0) is None
    assert seeds_needed(0.2, 0.0) == 2


def test_deviations_are_pooled_by_their_degrees_of_freedom() -> None:
    # variances 1 (2 degrees) and 4.5 (1 degree): (2 + 4.5) / 3
    assert pooled_deviation([interval([1.0, 2.0, 3.0]), interval([0.0, 3.0])]) == pytest.approx(math.sqrt(6.5 / 3))
    assert math.isnan(pooled_deviation([interval([1.0])]))


def test_slope_weights_give_numpys_line() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    assert float(slope(range(5)) @ values) == pytest.approx(np.polyfit(range(5), values, 1)[0])
