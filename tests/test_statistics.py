"""Early stopping, and means and deviations over seeds, against numbers worked by hand."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery.statistics import ACCURACIES, early_stopping, summarize


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
    }
    row |= {"weights_kept": 18, "weights_kept_layer0": 12, "weights_kept_layer1": 6}
    row |= {"early_stopping_iteration": 100, "censored": False}
    return row | dict.fromkeys(ACCURACIES, 0.5) | measured


def test_means_deviations_and_counts_over_seeds() -> None:
    pruned = {"sparsity": 0.5, "density": 9 / 18, "weights_kept": 9}
    networks = pd.DataFrame(
        [
            _network("dense", "", "dense", 0, test_accuracy=0.9, early_stopping_iteration=100),
            _network("dense", "", "dense", 1, test_accuracy=0.8, early_stopping_iteration=300, censored=True),
            _network("dense", "", "dense", 2, test_accuracy=0.7, early_stopping_iteration=500, censored=True),
            _network("p50", "dense", "ticket", 0, test_accuracy=0.75, weights_kept_layer0=5, **pruned),
            _network("p50", "dense", "ticket", 1, test_accuracy=0.85, weights_kept_layer0=6, **pruned),
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
    assert summary["weights_kept"].tolist() == [18, 9, 9]
    assert summary["weights_kept_layer0"].tolist() == [12, 5.5, 12]
    assert summary["test_accuracy_mean"].tolist() == pytest.approx([0.8, 0.8, 0.6])
    # sample deviations: sqrt((0.1² + 0 + 0.1²) / 2) and sqrt(2 · 0.05² / 1)
    assert summary["test_accuracy_std"].tolist() == pytest.approx([0.1, math.sqrt(0.005), 0.0])
    assert summary["early_stopping_iteration_mean"].tolist() == [300, 100, 100]
    assert summary["early_stopping_iteration_std"].tolist() == [200, 0, 0]
    assert summary["censored"].tolist() == [2, 0, 0]


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
