"""Frankle & Carbin's (2019) claims for LeNet on MNIST (section 2, figures 3 to 5), judged on a pipeline's networks.

A claim *holds* where the 95 % paired t interval over seeds lies wholly on the claimed side, *does not hold* where it
lies wholly on the other, and is *undecided* otherwise; it is *not tested* where a pipeline lacks what it speaks of.
Direction and size are told apart. Each claim's test is stated in `CLAIMS`, before any run that it judges.

E = early-stopping iteration, A = test accuracy there, F and G = test and training accuracy at the last iteration, r =
round of 20 % pruning; round 0 is dense.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import pandas as pd

from lottery.evaluation.statistics import Interval, Side, by_level, contrast, interval, log_iterations, slope

HOLDS, FAILS, UNDECIDED, NOT_TESTED = "holds", "does not hold", "undecided", "not tested"
DESCRIPTIVE = "descriptive"
E, A, F, G = "early_stopping_iteration", "test_accuracy", "test_accuracy_last", "train_accuracy_last"

RATE = 0.2  # of the weights that a round prunes
SPEED = math.log(1.25)  # within which two early-stopping iterations are alike
POINTS = 0.2  # within which two accuracies are alike
PAPERS: dict[str, dict[str, Any]] = {  # Frankle & Carbin 2019, LeNet; the scaling it does not say
    "data": {"name": "mnist"},
    "network": {"name": "perceptron", "hidden": [300, 100], "initialization": "glorot-normal"},
    "train": {
        "optimizer": "adam",
        "learning_rate": 0.0012,
        "batch_size": 60,
        "schedule": "constant",
        "weight_decay": 0,
    },
    "prune": {"rewind": 0, "from": "ticket", "output_rate": 0.5},
}
PAPERS_ITERATIONS = 50_000
ONE_SHOT = (0.05, 0.325, 0.5, 0.7, 0.825, 0.95)  # sparsities of hidden layers
ONE_SHOT_FASTER = (0.325, 0.5, 0.7, 0.825)  # between 67.5 % and 17.6 % of the weights
SMALL = 0.10  # the density below which iterative pruning is claimed to beat one-shot


class MissingRoundError(LookupError):
    """The pipeline has no such level, arm or pair of seeds: what is missing, in words."""


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, and the interval that it rests on."""

    verdict: str
    interval: Interval | None = None
    unit: str = ""  # of the interval: points, ratio, log-ratio per round, or % accuracy
    note: str = ""
    papers_number: float | None = None  # in the interval's unit

    @property
    def papers_number_within(self) -> bool | None:
        """Whether the paper's number lies within the interval; None where there is none, or a limit is missing."""
        low, high = self.limits
        if self.papers_number is None or low is None or high is None:
            return None
        return low <= self.papers_number <= high

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The interval's limits; None where censoring took one away, or there is no interval."""
        if self.interval is None:
            return None, None
        lost = (0.0 if self.unit == "ratio" else -math.inf, math.inf)
        low, high = (None if limit in lost else limit for limit in (self.interval.low, self.interval.high))
        return low, high


@dataclass(frozen=True)
class Rounds:
    """A pipeline's networks, the rows of reports/tables/networks.csv, by rounds of 20 % and one-shot sparsities."""

    networks: pd.DataFrame
    iterations: int  # that each was trained for

    @cached_property
    def _paths(self) -> dict[tuple[float, ...], str]:
        levels = self.networks.groupby("level", sort=False)[["parent", "sparsity"]].first()
        paths: dict[str, tuple[float, ...]] = {"dense": ()}
        for level, row in levels.iterrows():  # parents come before their children
            if level != "dense":
                paths[str(level)] = (*paths[row["parent"]], row["sparsity"])
        return {path: level for level, path in reversed(paths.items())}  # of two levels of one path, the first

    def round(self, r: int) -> str:
        """The level after r rounds. Raises MissingRoundError."""
        return self._level([1 - (1 - RATE) ** (i + 1) for i in range(r)], f"no level is round {r}")

    def one_shot(self, sparsity: float) -> str:
        """The level pruned from dense at once to this sparsity of its hidden layers. Raises MissingRoundError."""
        return self._level([sparsity], f"no level is pruned from dense at once to {sparsity:g}")

    def _level(self, sparsities: Sequence[float], missing: str) -> str:
        for path, level in self._paths.items():
            if len(path) == len(sparsities) and all(map(partial(math.isclose, abs_tol=1e-4), path, sparsities)):
                return level
        raise MissingRoundError(missing)

    @cached_property
    def chain(self) -> list[str]:
        """The levels of rounds 0 (dense), 1, 2 and so on, up to the first round that is missing."""
        levels: list[str] = []
        with suppress(MissingRoundError):
            while True:
                levels.append(self.round(len(levels)))
        return levels

    def rows(self, level: str, arm: str) -> pd.DataFrame:
        """The networks of a level and arm by seed; dense's only arm stands for any. Raises MissingRoundError."""
        here = self.networks[self.networks["level"] == level]
        rows = here[here["arm"] == ("dense" if level == "dense" else arm)].set_index("seed")
        if len(rows) < 2:
            raise MissingRoundError(f"{level} has {len(rows) or 'no'} {arm} network{'s' * (len(rows) != 1)}")
        return rows

    def density(self, level: str) -> float:
        """A level's density."""
        return float(by_level(self.networks)["density"][level])

    def compare(self, measure: str, first: tuple[str, str], second: tuple[str, str] = ("dense", "dense")) -> Interval:
        """A measure of one (level, arm) against another's: ln(E / E), or the difference in percentage points."""
        ours, theirs = self.rows(*first), self.rows(*second)
        if measure == E:
            return contrast([log_iterations(1, ours), log_iterations(-1, theirs)])
        return interval([100 * value for value in (ours[measure] - theirs[measure]).dropna()])


Test = Callable[[Rounds], Finding]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's and its test."""

    name: str
    claim: str
    paper: str  # the paper's number
    tested: str  # how, in the letters above
    test: Test = field(repr=False)

    def judge(self, rounds: Rounds) -> Finding:
        """Judge the claim by a pipeline's networks."""
        try:
            return self.test(rounds)
        except MissingRoundError as missing:
            return Finding(NOT_TESTED, note=str(missing))


def directed(found: Interval, side: Side, bound: float = 0.0) -> str:
    """Holds where the interval lies wholly on that side of the bound, does not hold where wholly on the other."""
    above, below = found.low > bound, found.high < bound
    if side == "above":
        return HOLDS if above else FAILS if below else UNDECIDED
    return HOLDS if below else FAILS if above else UNDECIDED


def alike(found: Interval, margin: float) -> str:
    """Holds where the interval lies within ± margin, does not hold where wholly outside."""
    if -margin < found.low and found.high < margin:
        return HOLDS
    return FAILS if found.low > margin or found.high < -margin else UNDECIDED


ABOVE, BELOW = partial(directed, side="above"), partial(directed, side="below")


def all_of(verdicts: Sequence[str]) -> str:
    """Holds where all hold, does not hold where any does not."""
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    return FAILS if FAILS in verdicts else UNDECIDED


# --- tests -----------------------------------------------------------------------------------------------------------


def compare(
    measure: str,
    arm: str,
    r: int,
    judged: Callable[[Interval], str],
    other: str | None = None,
    papers_number: float | None = None,
) -> Test:
    """The test of an arm at round r against the dense networks, or against another arm of the same round."""

    def test(rounds: Rounds) -> Finding:
        level = rounds.round(r)
        found = rounds.compare(measure, (level, arm), (level, other) if other else ("dense", "dense"))
        return Finding(judged(found), *_as_shown(measure, found), papers_number=papers_number)

    return test


def _as_shown(measure: str, found: Interval) -> tuple[Interval, str]:
    return (found.exp(), "ratio") if measure == E else (found, "points")


def trend(arm: str, last: int, judged: Callable[[Interval], str]) -> Test:
    """The test of the least-squares slope of ln E on r = 0 (dense) to ``last``."""

    def test(rounds: Rounds) -> Finding:
        weights = enumerate(slope(range(last + 1)))
        found = contrast([log_iterations(float(weight), rounds.rows(rounds.round(r), arm)) for r, weight in weights])
        return Finding(judged(found), found, "log-ratio per round")

    return test


def one_shot(measure: str, sparsities: Sequence[float], side: Side) -> Test:
    """The test of one-shot tickets against the dense networks at several sparsities of hidden layers."""

    def test(rounds: Rounds) -> Finding:
        found = {each: rounds.compare(measure, (rounds.one_shot(each), "ticket")) for each in sparsities}
        return _weakest(measure, found, side)

    return test


def _weakest(measure: str, found: Mapping[float, Interval], side: Side) -> Finding:
    """All of several intervals, shown by the one that supports the claim least."""
    verdicts = {sparsity: directed(each, side) for sparsity, each in found.items()}
    least = min(found, key=lambda s: found[s].low) if side == "above" else max(found, key=lambda s: found[s].high)
    said = ", ".join(f"{sparsity:g} {verdict}" for sparsity, verdict in verdicts.items())
    note = f"hidden sparsity {said}; shown: {least:g}"
    return Finding(all_of(list(verdicts.values())), *_as_shown(measure, found[least]), note)


def _best_round(rounds: Rounds) -> Finding:
    rounds.round(9)  # the claim is about the curve around it
    accuracy = pd.DataFrame({r: rounds.rows(level, "ticket")[A] for r, level in enumerate(rounds.chain)})
    best = int(accuracy.mean().idxmax())
    each = ", ".join(str(r) for r in accuracy.idxmax(axis=1))
    density = rounds.density(rounds.chain[best])
    note = f"best mean at round {best} ({density:.1%} of the weights); seed by seed at rounds {each}"
    return Finding(DESCRIPTIVE, interval([100 * a for a in accuracy[best]]), "% accuracy", note)


def _training_accuracy(rounds: Rounds) -> Finding:
    if rounds.iterations != PAPERS_ITERATIONS:
        return Finding(NOT_TESTED, note=f"only at {PAPERS_ITERATIONS:,} iterations, not at {rounds.iterations:,}")
    accuracies = [rounds.rows(rounds.round(r), "ticket")[G] for r in range(18)]
    lowest = min(range(18), key=lambda r: accuracies[r].mean())
    found = interval([100 * g for g in accuracies[lowest]])
    return Finding(HOLDS if found.mean >= 99.9 else FAILS, found, "% accuracy", f"the lowest mean, at round {lowest}")


def _final_accuracy(rounds: Rounds) -> Finding:
    finding = compare(F, "ticket", 9, ABOVE)(rounds)
    gains = [rounds.compare(F, (level, "ticket")).mean for level in rounds.chain[1:]]
    note = f"the most over rounds, not tested: {max(gains):+.2f} points at round {gains.index(max(gains)) + 1}"
    return replace(finding, note=note)


def _iterative_beats_one_shot(rounds: Rounds) -> Finding:
    """A of the iterative ticket, interpolated in the logarithm of density between two rounds, minus one-shot's."""
    densities = [rounds.density(level) for level in rounds.chain]
    found: dict[float, Interval] = {}
    for sparsity in ONE_SHOT:
        level = rounds.one_shot(sparsity)
        density = rounds.density(level)
        r = next((r for r, (high, low) in enumerate(pairwise(densities)) if high >= density >= low), None)
        if density > SMALL or r is None:
            continue
        share = math.log(densities[r] / density) / math.log(densities[r] / densities[r + 1])
        before, after, at_once = (rounds.rows(each, "ticket")[A] for each in (*rounds.chain[r : r + 2], level))
        gains = ((1 - share) * before + share * after - at_once).dropna()
        found[sparsity] = interval([100 * gain for gain in gains])
    if not found:
        raise MissingRoundError(f"no one-shot level below {SMALL:.0%} lies between two rounds")
    return _weakest(A, found, "above")


# fmt: off
CLAIMS = (
    Claim("faster-at-21", "Tickets learn faster than dense at 21.1 % of the weights", "38 % earlier",
          "ln E(ticket, 7)/E(dense) < 0", compare(E, "ticket", 7, BELOW, papers_number=1 - 0.38)),
    Claim("ever-faster-to-21", "Tickets learn ever faster down to 21 %", "ever faster",
          "per-seed slope of ln E(ticket, r) on r = 0..7 < 0", trend("ticket", 7, BELOW)),
    Claim("speed-back-at-3.6", "At 3.6 % tickets learn as fast as dense again", "as fast as dense",
          "ln E(ticket, 15)/E(dense) within ± ln 1.25", compare(E, "ticket", 15, partial(alike, margin=SPEED))),
    Claim("better-at-13.5", "Tickets are more accurate than dense at 13.5 %", "more than 0.3 points",
          "A(ticket, 9) - A(dense) > 0", compare(A, "ticket", 9, ABOVE)),
    Claim("better-at-13.5-by-0.3", "... by more than 0.3 points", "more than 0.3 points",
          "A(ticket, 9) - A(dense) > 0.3", compare(A, "ticket", 9, partial(ABOVE, bound=0.3))),
    Claim("best-near-13.5", "Tickets are best near 13.5 %", "13.5 %", "the round of the best mean A", _best_round),
    Claim("accuracy-back-at-3.6", "At 3.6 % tickets are as accurate as dense again", "as accurate as dense",
          "A(ticket, 15) - A(dense) within ± 0.2 points", compare(A, "ticket", 15, partial(alike, margin=POINTS))),
    Claim("ticket-below-from-2.9", "Tickets are less accurate than dense from 2.9 %", "below dense",
          "A(ticket, 16) - A(dense) < 0", compare(A, "ticket", 16, BELOW)),
    Claim("reinit-below-from-21", "Reinitialized tickets are less accurate than dense from 21.1 %", "below dense",
          "A(reinit, 7) - A(dense) < 0", compare(A, "reinit", 7, BELOW)),
    Claim("reinit-ever-slower", "Reinitialized tickets learn ever slower", "ever slower",
          "per-seed slope of ln E(reinit, r) on r = 0..10 > 0", trend("reinit", 10, ABOVE)),
    Claim("reinit-slower-at-21", "Reinitialized tickets learn slower than tickets at 21.1 %", "2.51 times",
          "ln E(reinit, 7)/E(ticket, 7) > 0", compare(E, "reinit", 7, ABOVE, "ticket", papers_number=2.51)),
    Claim("ticket-beats-reinit-at-21", "Tickets are more accurate than reinitialized ones at 21.1 %", "0.5 points",
          "A(ticket, 7) - A(reinit, 7) > 0", compare(A, "ticket", 7, ABOVE, "reinit", papers_number=0.5)),
    Claim("training-accuracy", "Training accuracy is about 100 % down to 2 % of the weights", "about 100 %",
          "seed-mean G(ticket, r) >= 99.9 % for every r <= 17, at 50,000 iterations", _training_accuracy),
    Claim("final-accuracy", "Tickets are more accurate than dense at the last iteration", "up to 0.35 points",
          "F(ticket, 9) - F(dense) > 0", _final_accuracy),
    Claim("one-shot-faster", "One-shot tickets learn faster than dense between 67.5 % and 17.6 %", "faster",
          "ln E(ticket)/E(dense) < 0 at each hidden sparsity of 0.325, 0.5, 0.7, 0.825",
          one_shot(E, ONE_SHOT_FASTER, "below")),
    Claim("one-shot-accurate", "One-shot tickets are more accurate than dense between 95 % and 5.17 %", "more accurate",
          "A(ticket) - A(dense) > 0 at each hidden sparsity of 0.05, 0.325, 0.5, 0.7, 0.825, 0.95",
          one_shot(A, ONE_SHOT, "above")),
    Claim("iterative-beats-one-shot",
          "Iterative pruning finds better tickets than one-shot pruning when they are small", "better",
          "A(iterative) - A(one-shot) > 0 at matched density, 10 % and below", _iterative_beats_one_shot),
)
# fmt: on


def judge(networks: pd.DataFrame, iterations: int) -> list[tuple[Claim, Finding]]:
    """Judge every claim by the networks, each trained for so many iterations."""
    rounds = Rounds(networks, iterations)
    return [(claim, claim.judge(rounds)) for claim in CLAIMS]


def not_tested(note: str) -> list[tuple[Claim, Finding]]:
    """Every claim, not tested for this reason."""
    return [(claim, Finding(NOT_TESTED, note=note)) for claim in CLAIMS]
