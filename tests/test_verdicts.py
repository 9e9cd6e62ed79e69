"""Verdicts of made-up networks, each made so that one verdict must come out."""

import math
from collections.abc import Mapping

import pandas as pd
import pytest

from lottery.evaluation.verdicts import conditions_table, explanation, judge, table

NOISE = (-0.0002, -0.0001, 0.0, 0.0001, 0.0002)  # fractions, a seed each: a deviation of 0.016 points
DENSE = 0.980


def networks(
    levels: Mapping[str, Mapping[str, tuple[float, float]]],
    seeds: int = 5,
    censored: tuple[str, ...] = (),
    noise: float = 1.0,
) -> pd.DataFrame:
    """A table of networks; each arm is its accuracy's distance from dense in points, and its early-stopping iteration.

    ``censored`` names arms whose first seed is.
    """
    rows = []
    for level, arms in {"dense": {"dense": (0.0, 1000.0)}, **levels}.items():
        for arm, (points, iteration) in arms.items():
            for seed in range(seeds):
                # dense and the others are noisy in opposite order, so that their differences are noisy too
                sign = 1 if arm == "dense" else -1 if arm == "ticket" else 0.5
                rows.append(
                    {
                        "level": level,
                        "arm": arm,
                        "seed": seed,
                        "test_accuracy": DENSE + points / 100 + sign * noise * NOISE[seed],
                        "early_stopping_iteration": iteration * (1 + 20 * sign * NOISE[seed]),
                        "censored": arm in censored and seed == 0,
                    }
                )
    return pd.DataFrame(rows)


def verdict(found: pd.DataFrame) -> str:
    (judged,) = judge(found, 0.2, 1.25)
    return judged.verdict


GOOD = {"ticket": (0.3, 700.0), "reinit": (-0.4, 1500.0), "random": (-0.9, 1800.0)}


def test_a_ticket_that_is_accurate_fast_and_special_wins() -> None:
    (judged,) = judge(networks({"p80": GOOD}), 0.2, 1.25)
    assert judged.verdict == "winning ticket"
    assert judged.survives
    assert explanation(judged) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ticket": (-0.5, 700.0)}, "worse than dense"),
        ({"ticket": (0.3, 1600.0)}, "accurate but slower"),
        ({"ticket": (0.01, 700.0), "reinit": (0.0, 1500.0)}, "sparse but not special"),
        ({"ticket": (0.01, 700.0), "random": (0.0, 1500.0)}, "sparse but not special"),
        ({"ticket": (-0.2, 700.0)}, "undecided"),
    ],
)
def test_each_verdict_has_its_networks(changes: dict[str, tuple[float, float]], expected: str) -> None:
    assert verdict(networks({"p80": GOOD | changes})) == expected


def test_worse_comes_before_everything_and_slower_before_not_special() -> None:
    assert verdict(networks({"p80": {"ticket": (-0.5, 1600.0), "reinit": (-0.5, 1.0), "random": (-0.5, 1.0)}})) == (
        "worse than dense"
    )
    slow_and_ordinary = {"ticket": (0.0, 1600.0), "reinit": (0.0, 1500.0), "random": (0.0, 1800.0)}
    assert verdict(networks({"p80": slow_and_ordinary})) == "accurate but slower"


@pytest.mark.parametrize("control", ["reinit", "random"])
def test_a_control_that_is_not_as_accurate_as_dense_makes_no_ticket_ordinary(control: str) -> None:
    near = GOOD | {"ticket": (-0.1, 1250.0)}  # neither fast nor slow
    assert verdict(networks({"p80": near | {control: (-0.15, 1500.0)}})) == "sparse but not special"
    assert verdict(networks({"p80": near | {control: (-0.25, 1500.0)}})) == "undecided"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds: int) -> None:
    (judged,) = judge(networks({"p80": GOOD}, seeds), 0.2, 1.25)
    assert (judged.verdict, judged.survives) == ("undecided", None)
    assert explanation(judged) == f"{seeds} seed{'s' * (seeds > 1)}; a verdict needs 3 train.seeds"


def test_without_a_control_nothing_is_special() -> None:
    (judged,) = judge(networks({"p80": {arm: GOOD[arm] for arm in ("ticket", "reinit")}}), 0.2, 1.25)
    assert (judged.verdict, explanation(judged)) == (
        "undecided",
        "the control random is missing; add it to the level's arms",
    )


def test_levels_without_a_ticket_are_not_judged() -> None:
    assert judge(networks({"p80": {"random": GOOD["random"]}}), 0.2, 1.25) == []
    assert table([]).empty
    assert conditions_table([]).empty


def test_a_censored_ticket_leaves_speed_undecided() -> None:
    (judged,) = judge(networks({"p80": GOOD}, censored=("ticket",)), 0.2, 1.25)
    assert judged.verdict == "undecided"
    assert judged.decisive == ("fast",)
    assert explanation(judged) == ("fast: a ticket is censored, so train longer (train.epochs or train.iterations)")
    slow = GOOD | {"ticket": (0.3, 1600.0)}
    (judged,) = judge(networks({"p80": slow}, censored=("ticket",)), 0.2, 1.25)
    assert judged.verdict == "undecided"


def test_a_censored_dense_network_makes_the_ratio_an_upper_bound() -> None:
    """True ratios are lower still: a ticket may be fast, but none is slow."""
    assert verdict(networks({"p80": GOOD}, censored=("dense",))) == "winning ticket"
    assert verdict(networks({"p80": GOOD | {"ticket": (0.3, 1600.0)}}, censored=("dense",))) == "undecided"


def test_an_undecided_level_names_what_fails_and_the_seeds_it_needs() -> None:
    found = networks({"p80": GOOD | {"ticket": (-0.02, 700.0), "random": (-0.12, 900.0)}}, noise=4)
    (judged,) = judge(found, 0.2, 1.25)
    assert judged.verdict == "undecided"
    assert judged.decisive == ("beats random",)
    # differences of 1.5 x 4 x NOISE: a deviation of 0.0949 points against a gain of 0.3, whatever was observed
    assert judged.seeds == {"beats random": 4}
    assert explanation(judged) == (
        "beats random: not shown, though 5 seeds are enough for a gain of 0.3 points; "
        "a smaller one needs more train.seeds"
    )
    noisy = networks({"p80": GOOD | {"ticket": (-0.02, 700.0), "random": (-0.12, 900.0)}}, noise=8)
    (judged,) = judge(noisy, 0.2, 1.25)
    assert explanation(judged) == (
        "equal: not shown with 5 seeds, needs about 15 train.seeds; "
        "beats random: not shown with 5 seeds, needs about 6 train.seeds"
    )


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        (
            {"ticket": (-0.2, 700.0)},
            1,
            "equal: not shown, though 5 seeds are enough for a ticket as accurate as dense; ",
        ),
        ({"ticket": (0.3, 1250.0)}, 1, "fast: not shown, though 5 seeds are enough for a ticket as fast as dense; "),
        (
            {"ticket": (0.1, 700.0), "reinit": (0.05, 1500.0), "random": (0.05, 1500.0)},
            6,
            "beats reinit and beats random: not shown, though 5 seeds are enough for a gain of 0.3 points; ",
        ),
    ],
)
def test_where_the_seeds_are_enough_the_reader_is_told_for_what_and_what_to_do(
    changes: dict[str, tuple[float, float]], noise: float, expected: str
) -> None:
    (judged,) = judge(networks({"p80": GOOD | changes}, noise=noise), 0.2, 1.25)
    assert judged.verdict == "undecided"
    assert explanation(judged).startswith(expected)
    assert explanation(judged).endswith(" needs more train.seeds")


def test_the_deviation_is_pooled_over_levels_and_over_100_seeds_are_not_counted() -> None:
    noisy = pd.concat([networks({"p80": GOOD | {"random": (0.2, 900.0)}}, noise=4), networks({"p90": GOOD}, noise=200)])
    noisy = noisy.drop_duplicates(["level", "arm", "seed"])
    judged = {each.level: each for each in judge(noisy, 0.2, 1.25)}
    assert judged["p80"].seeds["beats random"] is None
    assert "beats random: not shown with 5 seeds, needs over 100 train.seeds" in explanation(judged["p80"])


def test_holms_adjustment_is_over_levels_within_a_comparison() -> None:
    one = judge(networks({"p80": GOOD}, noise=8), 0.2, 1.25)[0]
    many = judge(networks({f"p{level}": GOOD for level in range(10, 60)}, noise=8), 0.2, 1.25)[0]
    p_value = one.conditions["beats reinit"].p_value
    assert 0.001 < p_value < 0.05
    assert one.adjusted["beats reinit"] == p_value
    assert many.adjusted["beats reinit"] == pytest.approx(50 * p_value)
    assert one.verdict == many.verdict == "winning ticket"
    assert one.survives
    assert not many.survives
    assert explanation(many) == "not after Holm's adjustment over levels"


def test_other_arms_are_compared_but_decide_nothing() -> None:
    better = GOOD | {"finetune": (0.9, 500.0)}
    (judged,) = judge(networks({"p80": better}), 0.2, 1.25)
    assert judged.verdict == "winning ticket"
    assert not judged.conditions["beats finetune"].holds


def test_the_tables_say_it_in_numbers() -> None:
    judged = judge(networks({"p80": GOOD, "p90": GOOD | {"ticket": (-0.5, 700.0)}}), 0.2, 1.25)
    assert table(judged).to_dict("records") == [
        {"level": "p80", "verdict": "winning ticket", "survives_holm": "yes", "why": ""},
        {"level": "p90", "verdict": "worse than dense", "survives_holm": "yes", "why": ""},
    ]
    rows = conditions_table(judged).set_index(["level", "condition"])
    assert rows.loc[("p80", "equal"), "mean"] == pytest.approx(0.3)
    assert rows.loc[("p80", "equal"), "bound"] == -0.2
    fast = rows.loc[("p80", "fast")]
    assert (fast["unit"], fast["bound"]) == ("ratio", pytest.approx(1.25))
    assert fast["mean"] == pytest.approx(0.7, rel=1e-3)
    assert fast["low"] < fast["mean"] < fast["high"]
    assert rows["seeds"].eq(5).all()
    assert rows["censored"].eq(0).all()
    assert math.isclose(rows.loc[("p90", "worse"), "p"], 0, abs_tol=1e-4)


def test_a_condition_counts_the_censored_networks_that_it_compares() -> None:
    rows = conditions_table(judge(networks({"p80": GOOD}, censored=("dense", "random")), 0.2, 1.25))
    assert dict(zip(rows["condition"], rows["censored"], strict=True)) == {
        **{"equal": 1, "worse": 1, "fast": 1, "slow": 1, "beats reinit": 0, "no better than reinit": 0},
        **{"reinit equal": 1, "beats random": 1, "no better than random": 1, "random equal": 2},
    }
