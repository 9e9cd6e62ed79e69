"""The reports of a tiny pipeline, against numbers worked by hand."""

import json

import pandas as pd
import pytest

from lottery.evaluation.claims import CLAIMS, Finding
from lottery.evaluation.statistics import interval
from lottery.evaluation.tables import compared, judged_claims, warning

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


def test_the_reports_are_plain_json() -> None:
    assert json.loads(json.dumps(compared(LEVELS), allow_nan=False)) == compared(LEVELS)


def test_a_pipeline_without_levels_reports_the_dense_networks() -> None:
    assert compared(LEVELS[:1]) == {"dense": 90.0}


def test_where_more_than_half_of_an_arm_is_censored_the_remedy_is_named() -> None:
    counts = [("dense", "dense", 2), ("p80", "ticket", 3), ("p80", "random", 5)]
    levels = pd.DataFrame(counts, columns=["level", "arm", "censored"]).assign(n=5)
    assert warning(levels, 4580, 250) == (
        "most networks of p80 ticket (3 of 5), p80 random (5 of 5) are censored, "
        "their last evaluation being their best; train longer to see where they stop "
        "(train.epochs or train.iterations in params.yaml)"
    )
    assert warning(levels.assign(censored=2), 4580, 250) == ""


def test_one_line_warns_of_however_many_arms() -> None:
    levels = pd.DataFrame({"level": [f"p{k}" for k in range(16)], "arm": "ticket", "censored": [0] + [4] * 15, "n": 5})
    line = warning(levels, 4580, 250)
    assert line.startswith("most networks of p1 ticket (4 of 5), p2 ticket (4 of 5), ")
    assert "p4 ticket (4 of 5), 11 more are censored" in line
    assert "\n" not in line


def test_where_all_networks_are_censored_for_want_of_evaluations_the_warning_says_how_often_to_evaluate() -> None:
    counts = [("dense", "dense", 5), ("p80", "ticket", 5)]
    levels = pd.DataFrame(counts, columns=["level", "arm", "censored"]).assign(n=5)
    assert warning(levels, 105, 250) == (
        "all networks are censored, their last evaluation being their best: how fast they learn is not known; "
        "evaluated 1 time in 105 iterations: set train.evaluate_every to 5, or train longer "
        "(train.epochs or train.iterations in params.yaml)"
    )
    assert "set train.evaluate_every to 1, " in warning(levels, 2, 250)
    assert "train.evaluate_every" not in warning(levels, 2500, 250)


def test_a_level_has_the_density_of_its_tickets_in_whatever_order_its_arms_stand() -> None:
    small = LEVELS.iloc[[1]].assign(arm="small-dense", density=0.24, weights_kept=4.8)
    assert compared(pd.concat([LEVELS.iloc[[0]], small, LEVELS.iloc[1:]]))["p80"]["density"] == 25.0
    assert compared(pd.concat([LEVELS.iloc[[0]], small]))["p80"]["density"] == 24.0


def test_a_claims_limit_that_censoring_took_away_is_null() -> None:
    above = interval([-0.5, -0.4, -0.6], bounded_below=False).exp()
    below = interval([0.1, 0.2, 0.3], bounded_above=False)
    ratio, points, untested = judged_claims(
        [
            (CLAIMS[0], Finding("holds", above, "ratio", papers_number=0.62)),
            (CLAIMS[3], Finding("undecided", below, "points")),
            (CLAIMS[1], Finding("not tested", note="no level is round 7")),
        ]
    )
    assert ratio["low"] is None
    assert ratio["high"] == pytest.approx(above.high, abs=1e-6)
    assert ratio["papers_number_within"] is None
    assert (points["low"], points["high"]) == (pytest.approx(below.low, abs=1e-6), None)
    assert (untested["estimate"], untested["low"], untested["high"]) == (None, None, None)
    json.dumps([ratio, points, untested], allow_nan=False)
