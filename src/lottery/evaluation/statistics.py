"""Early stopping, means over seeds and intervals: what the networks of a pipeline show together.

Everything is paired by seed. The two primary outcomes are test accuracy at the early-stopping iteration, in percentage
points, and the logarithm of the ratio of early-stopping iterations; what is said of them rests on 95 % paired t
intervals over seeds, for one split of the images and one test set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from lottery.core.arms import ARMS

# fractions: at the early-stopping iteration, at the last iteration, before training
ACCURACIES = ("test_accuracy", "test_accuracy_last", "test_accuracy_start", "train_accuracy", "train_accuracy_last")
OWN_DENSITY = [name for name, arm in ARMS.items() if arm.own_density]
CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 100  # beyond these, the seeds that would be needed are "over 100"
Side = Literal["above", "below"]


def early_stopping(history: pd.DataFrame) -> pd.DataFrame:
    """The early-stopping iteration of each network of a level's history.

    The evaluated iteration with the lowest validation loss, the earliest on a tie; a network's first evaluation, before
    any training, is no candidate. ``censored``: it is the last evaluation, so the true minimum may lie beyond. Columns
    arm, seed, early_stopping_iteration, censored; networks in the history's order.
    """
    networks = history.groupby(["arm", "seed"], sort=False)
    first, last = (networks["iteration"].transform(which) for which in ("min", "max"))
    candidates = history[history["iteration"] > first]
    lowest = candidates.loc[candidates.groupby(["arm", "seed"], sort=False)["validation_loss"].idxmin()]
    stops = lowest[["arm", "seed"]].assign(early_stopping_iteration=lowest["iteration"])
    return stops.assign(censored=lowest["iteration"] == last[lowest.index]).reset_index(drop=True)


def reached(history: pd.DataFrame, losses: Mapping[int, float]) -> list[float]:
    """The first evaluated iteration at which each network's validation loss is its seed's ``losses`` or lower.

    A second measure of speed, beside early stopping, when the losses are dense's lowest. A network's first evaluation
    is no candidate; NaN where there is none. Networks in the history's order.
    """
    iterations = []
    for (_, seed), curve in history.groupby(["arm", "seed"], sort=False):
        there = curve.iloc[1:][curve["validation_loss"].iloc[1:] <= losses[seed]]
        iterations.append(float(there["iteration"].iloc[0]) if len(there) else math.nan)
    return iterations


def summarize(networks: pd.DataFrame) -> pd.DataFrame:
    """Means and sample standard deviations over n seeds, per level and arm, in the order of appearance.

    ``networks``: the rows of reports/tables/networks.csv. One seed has no deviation: it is left empty.
    ``compression`` is weights / weights kept, which in a multilayer perceptron is the theoretical speed-up too,
    multiply-adds / multiply-adds kept (Blalock et al. 2020, section 6). ``dense_loss_iteration_mean`` is over the
    ``dense_loss_reached`` networks that reach dense's lowest validation loss.
    """
    groups = networks.groupby(["level", "arm"], sort=False)
    kept = [column for column in networks if str(column).startswith("weights_kept")]
    summary = groups[["parent", "sparsity", "density"]].first()
    summary.insert(3, "compression", 1 / summary["density"])
    summary.insert(3, "effective_density", groups["effective_density"].mean())
    summary["n"] = groups.size()
    summary[kept] = groups[kept].mean()
    for measure in (*ACCURACIES, "early_stopping_iteration"):
        summary[f"{measure}_mean"] = groups[measure].mean()
        summary[f"{measure}_std"] = groups[measure].std(ddof=1)
    summary["censored"] = groups["censored"].sum()
    summary["dense_loss_iteration_mean"] = groups["dense_loss_iteration"].mean()
    summary["dense_loss_reached"] = groups["dense_loss_iteration"].count()
    return summary.reset_index()


def by_level(table: pd.DataFrame) -> pd.DataFrame:
    """One row per level, indexed by its name: what its arms share, from a table with one row per arm or network.

    An arm that has a density of its own speaks for a level only where it is alone.
    """
    rows = table.sort_values("arm", key=lambda arms: arms.isin(OWN_DENSITY), kind="stable")
    return rows.groupby("level", sort=False).first().loc[table["level"].unique()]


# --- intervals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences with its 95 % t interval; a limit that censoring takes away is infinite."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...] = field(repr=False)  # one per seed

    def p_value(self, bound: float, side: Side) -> float:
        """The doubled p-value of the hypothesis that the mean does not lie on that side of ``bound``.

        It is below 0.05 exactly where the interval lies wholly on that side.
        """
        if not math.isfinite(self.low if side == "above" else self.high):
            return 1.0
        n, error = len(self.values), _standard_error(self.values)
        distance = self.mean - bound if side == "above" else bound - self.mean
        if error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(min(1.0, 2 * special.stdtr(n - 1, -distance / error)))

    def exp(self) -> "Interval":
        """Convert an interval of logarithms to one of ratios."""
        low, mean, high = (math.exp(value) if value < math.inf else value for value in (self.low, self.mean, self.high))
        return Interval(mean, low, high, tuple(math.exp(value) for value in self.values))


def interval(values: Sequence[float], *, bounded_below: bool = True, bounded_above: bool = True) -> Interval:
    """The mean of one value per seed and its 95 % t interval; infinite on both sides with fewer than two seeds.

    Where censoring leaves the values without a bound on one side, that limit is infinite.
    """
    mean = math.fsum(values) / len(values)
    reach = math.inf
    if len(values) > 1:
        reach = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * _standard_error(values)
    low = mean - reach if bounded_below else -math.inf
    high = mean + reach if bounded_above else math.inf
    return Interval(mean, low, high, tuple(values))


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


Term = tuple[float, Mapping[int, float], Mapping[int, bool]]  # of `contrast`


def log_iterations(weight: float, networks: pd.DataFrame) -> Term:
    """The logarithms of early-stopping iterations, from a table indexed by seed, as a term of `contrast`."""
    logs = {int(seed): math.log(e) for seed, e in networks["early_stopping_iteration"].items()}
    return weight, logs, {int(seed): bool(flag) for seed, flag in networks["censored"].items()}


def contrast(terms: Sequence[Term]) -> Interval:
    """The interval of a weighted sum of logarithms of early-stopping iterations, by seed.

    Each term is a weight, and by seed a logarithm and whether it is censored. A censored one is a lower bound: with a
    positive weight it leaves the sum without an upper limit, with a negative weight without a lower one.
    """
    seeds = [seed for seed in terms[0][1] if all(seed in logs for _, logs, _ in terms)]
    values = [math.fsum(weight * logs[seed] for weight, logs, _ in terms) for seed in seeds]
    censored = [weight for weight, _, flags in terms for seed in seeds if flags[seed]]
    return interval(
        values,
        bounded_below=not any(weight < 0 for weight in censored),
        bounded_above=not any(weight > 0 for weight in censored),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's (1979) step-down method, in the same order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(distance: float, deviation: float) -> int | None:
    """The fewest seeds whose 95 % t interval excludes a bound with 80 % power; None beyond 100.

    ``distance`` is that of the true mean, fixed in advance, from the bound, and ``deviation`` the standard deviation of
    the paired differences, in the same unit. The power is a noncentral t distribution's (Cohen 1988, section 2).
    """
    from scipy.stats import nct  # takes a second, which a stage that tracks its networks need not spend

    for n in range(2, MOST_SEEDS + 1):
        if deviation == 0:
            return n
        critical = special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)
        if nct.sf(critical, n - 1, distance / deviation * math.sqrt(n)) >= POWER:
            return n
    return None


def pooled_deviation(intervals: Sequence[Interval]) -> float:
    """The standard deviation of paired differences, pooled over levels; NaN where no level has two seeds."""
    squares = [(float(np.var(i.values, ddof=1)), len(i.values) - 1) for i in intervals if len(i.values) > 1]
    total = sum(freedom for _, freedom in squares)
    return math.sqrt(sum(square * freedom for square, freedom in squares) / total) if total else math.nan


def slope(xs: Sequence[float]) -> NDArray[np.float64]:
    """The weights that make a least-squares slope of values at ``xs``."""
    centered = np.asarray(xs, dtype=float) - np.mean(xs)
    return np.asarray(centered / np.square(centered).sum())
