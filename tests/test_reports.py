"""The reports of a tiny pipeline, against numbers worked by hand."""

import json

import pandas as pd
import pytest

from lottery.reports import compared, experiment_results

# of a network with 12 + 8 weights; rows in the order of a tree that goes p80 first
LEVELS = pd.DataFrame(
    [
        {"level": "dense", "arm": "dense", "sparsity": 0.0, "density": 1.0, "weights_kept": 20.0, "accuracy": 0.9},
        {"level": "p80", "arm": "ticket", "sparsity": 0.8, "density": 0.25, "weights_kept": 5.0, "accuracy": 0.875},
        {"level": "p80", "arm": "reinit", "sparsity": 0.8, "density": 0.25, "weights_kept": 5.0, "accuracy": 0.8},
        {"level": "p50", "arm": "random", "sparsity": 0.5, "density": 0.5, "weights_kept": 10.0, "accuracy": 0.8123456},
        {"level": "p50", "arm": "ticket", "sparsity": 0.5, "density": 0.5, "weights_kept": 10.0, "accuracy": 0.91},
    ]
).rename(columns={"accuracy": "test_accuracy_mean"})


def test_what_people_compare_is_in_percent_and_percentage_points_from_dense() -> None:
    assert compared(LEVELS) == {
        "dense": 90.0,
        "p80": {"density": 25.0, "ticket": 87.5, "ticket-dense": -2.5, "reinit": 80.0, "reinit-dense": -10.0},
        "p50": {"density": 50.0, "random": 81.235, "random-dense": -8.765, "ticket": 91.0, "ticket-dense": 1.0},
    }
    assert list(compared(LEVELS)) == ["dense", "p80", "p50"]


def test_experiment_results_are_the_tickets_by_rising_sparsity_with_a_first_entry_at_0_percent() -> None:
    results = experiment_results(LEVELS)
    assert list(results) == ["baseline_accuracy", "pruning_results"]
    assert results["baseline_accuracy"] == pytest.approx(90.0)
    expected = [(0.0, 0.0, 90.0, 0.0, 20), (50.0, 50.0, 91.0, 1.0, 10), (80.0, 75.0, 87.5, -2.5, 5)]
    assert [tuple(entry.values()) for entry in results["pruning_results"]] == [
        pytest.approx((*numbers, 20)) for numbers in expected
    ]
    assert [list(entry) for entry in results["pruning_results"]] == [
        [
            "pruning_percentage",
            "actual_pruning_percentage",
            "accuracy",
            "accuracy_difference",
            "remaining_parameters",
            "total_parameters",
        ]
    ] * 3


def test_0_percent_is_exactly_0_percent_because_biases_are_not_counted() -> None:
    first = experiment_results(LEVELS)["pruning_results"][0]
    assert first["pruning_percentage"] == 0
    assert first["actual_pruning_percentage"] == 0
    assert first["accuracy_difference"] == 0
    assert first["remaining_parameters"] == first["total_parameters"] == 20


def test_a_percentage_is_written_as_it_was_set() -> None:
    levels = LEVELS.assign(sparsity=[0.0, 0.57, 0.57, 0.29, 0.29])  # 100 * 0.57 is 56.99999999999999
    assert [entry["pruning_percentage"] for entry in experiment_results(levels)["pruning_results"]] == [0.0, 29.0, 57.0]


def test_the_reports_are_plain_json() -> None:
    for report in (compared(LEVELS), experiment_results(LEVELS)):
        assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_pipeline_without_levels_reports_the_dense_networks() -> None:
    assert compared(LEVELS[:1]) == {"dense": 90.0}
    assert len(experiment_results(LEVELS[:1])["pruning_results"]) == 1
