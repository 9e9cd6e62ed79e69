"""The paper's claims, judged on made-up networks whose answers are known."""

import math

import pandas as pd
import pytest

from lottery.evaluation.claims import CLAIMS, ONE_SHOT, Claim, Finding, alike, all_of, directed, judge, not_tested
from lottery.evaluation.statistics import Interval

NOISE = (-0.0001, 0.0, 0.0001)  # fractions, a seed each


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, (low, high))


def networks(rounds: int = 17, **changes: object) -> pd.DataFrame:
    """Networks of which every claim of the paper's holds, some of them changed.

    ``changes``: functions of (arm, r, row) that change a row, r None for one-shot levels.
    """
    rows = []

    def add(level: str, parent: str, arm: str, r: int | None, sparsity: float, density: float, e: float, a: float):
        for seed, noise in enumerate(NOISE):
            row = {"level": level, "parent": parent, "arm": arm, "seed": seed, "sparsity": sparsity, "density": density}
            row |= {"early_stopping_iteration": e * (1 + 10 * noise * (1 if arm == "dense" else -1)), "censored": False}
            row |= {"test_accuracy": a + noise, "test_accuracy_last": a + noise, "train_accuracy_last": 1.0}
            for change in changes.values():
                change(arm, r, row)
            rows.append(row)

    add("dense", "", "dense", 0, 0.0, 1.0, 5000, 0.980)
    for r in range(1, rounds + 1):
        speed = 0.93**r if r <= 7 else 0.93**7 * 1.0716 ** (r - 7)  # back to 1 at round 15
        gain = 0.005 * (r / 9 if r <= 9 else (15 - r) / 6)
        density = 0.8**r
        place = f"r{r}", f"r{r - 1}" if r > 1 else "dense"
        add(*place, "ticket", r, 1 - density, density, 5000 * speed, 0.980 + gain)
        add(*place, "reinit", r, 1 - density, density, 5000 * 1.1**r, 0.980 - 0.001 * r)
    for sparsity in ONE_SHOT:
        accuracy = 0.981 if sparsity != 0.95 else 0.9805
        add(f"o{sparsity}", "dense", "ticket", None, sparsity, 1 - sparsity, 4000, accuracy)
    return pd.DataFrame(rows)


def findings(found: pd.DataFrame, iterations: int = 50_000) -> dict[str, Finding]:
    return {claim.name: finding for claim, finding in judge(found, iterations)}


def test_a_direction_holds_where_the_interval_is_wholly_on_its_side() -> None:
    assert directed(interval(0.1, 0.5), "above") == "holds"
    assert directed(interval(0.1, 0.5), "below") == "does not hold"
    assert directed(interval(-0.1, 0.5), "above") == "undecided"
    assert directed(interval(0.1, 0.5), "above", 0.3) == "undecided"
    assert directed(interval(0.1, 0.2), "above", 0.3) == "does not hold"
    assert directed(interval(0.1, math.inf), "above") == "holds"


def test_alike_holds_within_the_margin_and_fails_wholly_outside() -> None:
    assert alike(interval(-0.1, 0.1), 0.2) == "holds"
    assert alike(interval(0.3, 0.5), 0.2) == "does not hold"
    assert alike(interval(-0.5, -0.3), 0.2) == "does not hold"
    assert alike(interval(0.1, 0.3), 0.2) == "undecided"
    assert alike(interval(-math.inf, math.inf), 0.2) == "undecided"


def test_all_of_several_hold_or_one_that_fails_decides() -> None:
    assert all_of(["holds", "holds"]) == "holds"
    assert all_of(["holds", "undecided"]) == "undecided"
    assert all_of(["undecided", "does not hold"]) == "does not hold"


def test_networks_as_the_paper_describes_them_uphold_every_claim() -> None:
    found = findings(networks())
    assert {name: finding.verdict for name, finding in found.items()} == {
        claim.name: "descriptive" if claim.name == "best-near-13.5" else "holds" for claim in CLAIMS
    }
    assert found["best-near-13.5"].note.startswith("best mean at round 9 (13.4% of the weights)")
    faster = found["faster-at-21"].interval
    assert faster
    assert faster.mean == pytest.approx(0.93**7, rel=0.01)
    assert found["faster-at-21"].papers_number_within is False  # direction and size are two things: 0.62 is beyond


def test_a_finding_says_whether_the_papers_number_is_within_its_interval() -> None:
    assert Finding("holds", interval(0.5, 0.7), "ratio", papers_number=0.62).papers_number_within is True
    assert Finding("holds", interval(0.5, 0.6), "ratio", papers_number=0.62).papers_number_within is False
    assert Finding("not tested", papers_number=0.62).papers_number_within is None


def test_the_opposite_upholds_none_of_them() -> None:
    """Slow, inaccurate tickets, and quick, accurate controls."""

    def opposite(arm: str, r: int | None, row: dict[str, float]) -> None:
        if arm == "ticket":
            row["early_stopping_iteration"] = 5000 * 1.1 ** (r or 1)
            row["test_accuracy"] = row["test_accuracy_last"] = 0.96 + row["test_accuracy"] % 0.0001 - 0.001 * (r or 0)
            row["train_accuracy_last"] = 0.95
        if arm == "reinit":
            row["early_stopping_iteration"] = 5000 * 0.9 ** (r or 1)
            row["test_accuracy"] = 0.99 + row["test_accuracy"] % 0.0001

    found = findings(networks(opposite=opposite))
    unlike = {name for name, finding in found.items() if finding.verdict != "does not hold"}
    # that tickets are below dense at round 16 is what the paper says, too
    assert unlike == {"best-near-13.5", "ticket-below-from-2.9"}


def test_what_a_pipeline_lacks_is_not_tested_and_named() -> None:
    found = findings(networks(rounds=8), 20_000)
    assert found["speed-back-at-3.6"] == Finding("not tested", note="no level is round 15")
    assert found["training-accuracy"].note == "only at 50,000 iterations, not at 20,000"
    assert found["faster-at-21"].verdict == "holds"
    iterative = networks()
    iterative = iterative[~iterative["level"].str.startswith("o")]
    assert findings(iterative)["one-shot-faster"].note == "no level is pruned from dense at once to 0.325"
    one_seed = networks()
    assert findings(one_seed[one_seed["seed"] == 0])["faster-at-21"].note == "r7 has 1 ticket network"
    assert {finding.verdict for _, finding in not_tested("why")} == {"not tested"}


def test_what_all_networks_of_a_seed_share_changes_no_comparison() -> None:
    """Differences and ratios are taken seed by seed, not from another arm's mean."""

    def by_seed(arm: str, r: int | None, row: dict[str, float]) -> None:
        row["early_stopping_iteration"] *= (1.0, 1.5, 0.6)[int(row["seed"])]
        for measure in ("test_accuracy", "test_accuracy_last"):
            row[measure] += (0.0, -0.02, 0.01)[int(row["seed"])]

    expected, found = findings(networks()), findings(networks(by_seed=by_seed))
    for name, finding in expected.items():
        assert found[name].verdict == finding.verdict
        if finding.unit != "% accuracy":  # which no other arm is compared with
            assert found[name].limits == pytest.approx(finding.limits), name


def test_rounds_are_known_by_their_sparsities_whatever_their_names() -> None:
    renamed = networks().replace({"r7": "seven", "r8": "again"})
    assert findings(renamed)["faster-at-21"].verdict == "holds"


def test_a_censored_iteration_is_a_bound() -> None:
    """A censored control is slower still, so the claim that it is slower stands; a censored ticket says nothing."""

    def censor(arm_to_censor: str, round_to_censor: int) -> object:
        def change(arm: str, r: int | None, row: dict[str, object]) -> None:
            if (arm, r, row["seed"]) == (arm_to_censor, round_to_censor, 0):
                row["censored"] = True

        return change

    found = findings(networks(censor=censor("reinit", 7)))
    assert found["reinit-slower-at-21"].verdict == "holds"
    assert found["reinit-slower-at-21"].interval.high == math.inf  # type: ignore[union-attr]
    assert found["reinit-ever-slower"].verdict == "holds"  # round 7 pulls the slope up
    assert findings(networks(censor=censor("reinit", 2)))["reinit-ever-slower"].verdict == "undecided"  # and 2 down
    found = findings(networks(censor=censor("ticket", 7)))
    assert found["faster-at-21"].verdict == "undecided"
    assert found["reinit-slower-at-21"].verdict == "undecided"
    assert findings(networks(censor=censor("dense", 0)))["faster-at-21"].verdict == "holds"


def test_iterative_and_one_shot_are_compared_at_the_same_density() -> None:
    finding = findings(networks())["iterative-beats-one-shot"]
    # one-shot at 5 % lies between rounds 13 (5.5 %) and 14 (4.4 %), whose tickets gain 1/6 and 1/12 of a point times 1
    share = math.log(0.8**13 / 0.05) / math.log(1 / 0.8)
    iterative = 0.980 + (1 - share) * 0.005 * 2 / 6 + share * 0.005 / 6
    assert finding.interval
    assert finding.interval.mean == pytest.approx(100 * (iterative - 0.9805))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_says_what_is_claimed_and_how_it_is_tested(claim: Claim) -> None:
    assert claim.claim
    assert claim.paper
    assert claim.tested
    assert [other.name for other in CLAIMS].count(claim.name) == 1
