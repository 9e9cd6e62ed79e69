"""One verdict per level: whether the ticket is a winning one, and how sure that is over seeds.

At a level the ticket is, with m the margin in points and s the ratio within which speeds match:

- *equal* where it is not m points less accurate than dense, *worse* where it is;
- *fast* where its early-stopping iteration is less than s times dense's, *slow* where it is more;
- *special* where it beats both controls, `reinit` and `random`;
- *ordinary* where a control, too, is not m points less accurate than dense, and the ticket is less than m points
  better than it.

Each of these is one or two conditions on 95 % paired t intervals over seeds: an interval lies wholly on one side of a
bound. Unadjusted intervals decide, since all of a verdict's conditions must hold; beside them stand p-values adjusted
over levels by Holm's method, one family a comparison. A *censored* ticket leaves speed undecided.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lottery.core.arms import CONTROLS
from lottery.evaluation.statistics import (
    CONFIDENCE,
    MOST_SEEDS,
    Interval,
    Side,
    contrast,
    holm,
    interval,
    log_iterations,
    pooled_deviation,
    seeds_needed,
)

YES_NO = {True: "yes", False: "no"}  # words that stay words when pandas reads a table back
FEWEST_SEEDS = 3
CONTROL_GAIN = 0.3  # points by which tickets are taken to beat their controls when seeds are planned
SHOWN = {  # what a condition's planned seeds can show, and what they cannot; others are gains over a control
    "equal": ("a ticket as accurate as dense", "a slightly worse one"),
    "fast": ("a ticket as fast as dense", "a slightly slower one"),
}
WINNING, WORSE, SLOWER = "winning ticket", "worse than dense", "accurate but slower"
ORDINARY, UNDECIDED = "sparse but not special", "undecided"


@dataclass(frozen=True)
class Condition:
    """A statement: the mean of paired differences (of ratios, of their logarithms) lies on one side of a bound."""

    name: str
    comparison: str  # what is compared, as in `ticket - dense`
    side: Side
    bound: float  # points, or the logarithm of a ratio
    found: Interval
    truth: float  # what the mean is taken to be when seeds are planned, fixed in advance
    censored: int  # of the networks compared

    @property
    def holds(self) -> bool:
        """Whether the interval lies wholly on that side."""
        return self.found.low > self.bound if self.side == "above" else self.found.high < self.bound

    @property
    def p_value(self) -> float:
        """See `Interval.p_value`."""
        return self.found.p_value(self.bound, self.side)

    @property
    def is_ratio(self) -> bool:
        """Whether the comparison is one of early-stopping iterations."""
        return "/" in self.comparison


@dataclass(frozen=True)
class Judged:
    """The verdict on a level, and its reasons."""

    level: str
    verdict: str
    conditions: Mapping[str, Condition]
    adjusted: Mapping[str, float]  # Holm's p-values, by condition
    decisive: tuple[str, ...]  # the conditions that the verdict rests on; where undecided, those that fail
    seeds: Mapping[str, int | None]  # that a failing condition would need; None: over 100
    reason: str = ""  # why nothing can be said, where that is so

    @property
    def survives(self) -> bool | None:
        """Whether the verdict's conditions hold with adjusted p-values too; None where there is no verdict."""
        if self.verdict == UNDECIDED:
            return None
        return all(self.adjusted[name] < 1 - CONFIDENCE for name in self.decisive)


def judge(networks: pd.DataFrame, margin: float, speed_margin: float) -> list[Judged]:
    """Judge every level, in the order of the rows.

    ``networks``: the rows of reports/tables/networks.csv; ``margin`` is in points, ``speed_margin`` a ratio.
    """
    levels = [str(level) for level in networks.loc[networks["arm"] == "ticket", "level"].unique()]
    found = {level: _conditions(networks, level, margin, speed_margin) for level in levels}
    adjusted: dict[str, dict[str, float]] = {level: {} for level in found}
    for name in dict.fromkeys(name for conditions in found.values() for name in conditions):
        having = [level for level in levels if name in found[level]]
        p_values = holm([found[level][name].p_value for level in having])
        for level, p_value in zip(having, p_values, strict=True):
            adjusted[level][name] = p_value
    intervals: dict[str, dict[str, Interval]] = {}  # by comparison and level, whatever the number of its conditions
    for level, conditions in found.items():
        for condition in conditions.values():
            intervals.setdefault(condition.comparison, {})[level] = condition.found
    deviations = {comparison: pooled_deviation(list(same.values())) for comparison, same in intervals.items()}
    return [_judge(level, networks, found[level], adjusted[level], deviations) for level in found]


def _conditions(networks: pd.DataFrame, level: str, m: float, s: float) -> dict[str, Condition]:
    here = networks[networks["level"] == level]
    arms = {arm: rows.set_index("seed") for arm, rows in here.groupby("arm", sort=False)}
    arms["dense"] = networks[networks["level"] == "dense"].set_index("seed")

    def points(first: str, second: str) -> Interval:
        paired = (arms[first]["test_accuracy"] - arms[second]["test_accuracy"]).dropna()
        return interval([100 * value for value in paired])

    def condition(name: str, of: str, side: Side, bound: float, found: Interval, truth: float = 0.0) -> Condition:
        censored = sum(int(arms[arm]["censored"].sum()) for arm in re.split(" [-/] ", of))
        return Condition(name, of, side, bound, found, truth, censored)

    accuracy, speed = points("ticket", "dense"), log_ratio(arms["ticket"], arms["dense"])
    of = "ticket - dense"
    every = [condition("equal", of, "above", -m, accuracy), condition("worse", of, "below", -m, accuracy)]
    of = "ticket / dense"
    every += [condition("fast", of, "below", math.log(s), speed), condition("slow", of, "above", math.log(s), speed)]
    for arm in (arm for arm in arms if arm not in ("ticket", "dense")):
        gain, of = points("ticket", arm), f"ticket - {arm}"
        every.append(condition(f"beats {arm}", of, "above", 0.0, gain, CONTROL_GAIN))
        if arm in CONTROLS:
            every.append(condition(f"no better than {arm}", of, "below", m, gain))
            every.append(condition(f"{arm} equal", f"{arm} - dense", "above", -m, points(arm, "dense")))
    return {each.name: each for each in every}


def log_ratio(ticket: pd.DataFrame, dense: pd.DataFrame) -> Interval:
    """ln(E(ticket) / E(dense)) over the seeds of both, tables indexed by seed.

    A censored dense network makes it an upper bound; a censored ticket leaves it without any bound.
    """
    found = contrast([log_iterations(1, ticket), log_iterations(-1, dense)])
    return found if math.isfinite(found.high) else Interval(found.mean, -math.inf, math.inf, found.values)


def _judge(
    level: str,
    networks: pd.DataFrame,
    conditions: Mapping[str, Condition],
    adjusted: Mapping[str, float],
    deviations: Mapping[str, float],
) -> Judged:
    def judged(verdict: str, decisive: Sequence[str], reason: str = "") -> Judged:
        failing = [conditions[name] for name in decisive if not conditions[name].holds]
        seeds = {c.name: seeds_needed(abs(c.truth - c.bound), deviations[c.comparison]) for c in failing}
        return Judged(level, verdict, conditions, adjusted, tuple(decisive), seeds, reason)

    def holds(*names: str) -> bool:
        return all(conditions[name].holds for name in names)

    missing = [arm for arm in CONTROLS if f"beats {arm}" not in conditions]
    seeds = min(len(condition.found.values) for condition in conditions.values())
    if missing:
        return judged(UNDECIDED, (), f"the control {missing[0]} is missing; add it to the level's arms")
    if seeds < FEWEST_SEEDS:
        return judged(UNDECIDED, (), f"{seeds} seed{'s' * (seeds != 1)}; a verdict needs {FEWEST_SEEDS} train.seeds")
    if holds("worse"):
        return judged(WORSE, ("worse",))
    winning = ("equal", "fast", *(f"beats {arm}" for arm in CONTROLS))
    if holds(*winning):
        return judged(WINNING, winning)
    if holds("equal", "slow"):
        return judged(SLOWER, ("equal", "slow"))
    for arm in CONTROLS:
        ordinary = ("equal", f"{arm} equal", f"no better than {arm}")
        if holds(*ordinary):
            return judged(ORDINARY, ordinary)
    return judged(UNDECIDED, [name for name in winning if not conditions[name].holds])


def explanation(judged: Judged) -> str:
    """The reasons for a verdict, in words for a table."""
    if judged.reason:
        return judged.reason
    if judged.verdict != UNDECIDED:
        return "" if judged.survives else "not after Holm's adjustment over levels"
    whys: dict[str, list[str]] = {}
    for name in judged.decisive:
        whys.setdefault(_why_not_shown(name, judged), []).append(name)
    return "; ".join(f"{' and '.join(names)}: {why}" for why, names in whys.items())


def _why_not_shown(name: str, judged: Judged) -> str:
    """The reason why a condition is not shown, with what a reader can do about it."""
    seeds, found = judged.seeds[name], judged.conditions[name].found
    if name == "fast" and math.isinf(found.high):
        return "a ticket is censored, so train longer (train.epochs or train.iterations)"
    here = len(found.values)
    if seeds is not None and seeds <= here:
        shown, less = SHOWN.get(name, (f"a gain of {CONTROL_GAIN} points", "a smaller one"))
        return f"not shown, though {here} seeds are enough for {shown}; {less} needs more train.seeds"
    needed = f"over {MOST_SEEDS}" if seeds is None else f"about {seeds}"
    return f"not shown with {here} seeds, needs {needed} train.seeds"


def table(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per level: its verdict, whether it survives Holm's adjustment, and why."""
    return pd.DataFrame(
        {
            "level": [each.level for each in judged],
            "verdict": [each.verdict for each in judged],
            "survives_holm": ["" if each.survives is None else YES_NO[each.survives] for each in judged],
            "why": [explanation(each) for each in judged],
        }
    )


COLUMNS = (  # of `conditions_table`, whose intervals and bounds of ratios are ratios
    *("level", "condition", "comparison", "unit", "mean", "low", "high"),
    *("side", "bound", "holds", "p", "p_holm", "seeds", "censored"),
)


def conditions_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per level and condition: the interval, the bound, the p-values, and how many networks are censored."""
    rows = []
    for each in judged:
        for name, condition in each.conditions.items():
            found = condition.found.exp() if condition.is_ratio else condition.found
            bound = math.exp(condition.bound) if condition.is_ratio else condition.bound
            what = (each.level, name, condition.comparison, "ratio" if condition.is_ratio else "points")
            limits = (found.mean, found.low, found.high, condition.side, bound, YES_NO[condition.holds])
            counts = (len(found.values), condition.censored)
            rows.append((*what, *limits, condition.p_value, each.adjusted[name], *counts))
    return pd.DataFrame(rows, columns=COLUMNS)
