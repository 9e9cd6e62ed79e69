"""What the reports say, from the table of networks and the table of levels."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from lottery.claims import Claim, Finding
from lottery.statistics import by_level
from lottery.verdicts import Judged


def compared(levels: pd.DataFrame, judged: Sequence[Judged] = ()) -> dict[str, Any]:
    """What people compare between pipelines, in percent: the numbers of reports/metrics.json.

    For each level its density, and for each arm the mean test accuracy at the early-stopping iteration (``ticket``)
    and its difference from dense in percentage points (``ticket-dense``); then the level's verdict. The names are short
    because `dvc metrics show` makes a column of each.
    """
    baseline = _dense(levels)
    result: dict[str, Any] = {"dense": round(100 * baseline, 3)}
    density = by_level(levels)["density"]
    for level, rows in levels[levels["level"] != "dense"].groupby("level", sort=False):
        numbers = {"density": density[level]}
        for _, row in rows.iterrows():
            numbers[row["arm"]] = row["test_accuracy_mean"]
            numbers[f"{row['arm']}-dense"] = row["test_accuracy_mean"] - baseline
        result[str(level)] = {name: round(100 * number, 3) for name, number in numbers.items()}
    for each in judged:
        result[each.level]["verdict"] = each.verdict
    return result


def judged_claims(findings: Sequence[tuple[Claim, Finding]]) -> list[dict[str, Any]]:
    """The paper's claims and what the networks say of them: the entries of reports/claims.json.

    A limit that censoring took away is null.
    """
    return [_judged_claim(claim, finding) for claim, finding in findings]


def _judged_claim(claim: Claim, finding: Finding) -> dict[str, Any]:
    low, high = finding.limits
    return {
        "name": claim.name,
        "claim": claim.claim,
        "paper": claim.paper,
        "tested": claim.tested,
        "verdict": finding.verdict,
        "unit": finding.unit,
        "estimate": finding.interval.mean if finding.interval else None,
        "low": low,
        "high": high,
        "papers_number": finding.papers_number,
        "papers_number_within": finding.papers_number_within,
        "note": finding.note,
    }


def warnings(levels: pd.DataFrame) -> Iterator[str]:
    """A line for every level and arm of which more than half the networks are censored."""
    for row in levels[levels["censored"] > levels["n"] / 2].to_dict("records"):
        yield (
            f"{row['level']} {row['arm']}: {row['censored']} of {row['n']} networks are censored, their last "
            "evaluation being their best; raise train.iterations (or epochs) in params.yaml to see where they stop"
        )


def experiment_results(levels: pd.DataFrame) -> dict[str, Any]:
    """The ticket arm's means in the format of an earlier public implementation, by rising sparsity.

    Percentages and counts of weights; biases, which are never pruned, are not counted.
    """
    baseline = _dense(levels)
    total = int(levels.loc[levels["level"] == "dense", "weights_kept"].iloc[0])
    rows = levels[levels["arm"].isin(["dense", "ticket"])].sort_values("sparsity", kind="stable")
    return {
        "baseline_accuracy": 100 * baseline,
        "pruning_results": [
            {
                "pruning_percentage": round(100 * row["sparsity"], 6),
                "actual_pruning_percentage": 100 * (1 - row["density"]),
                "accuracy": 100 * row["test_accuracy_mean"],
                "accuracy_difference": 100 * (row["test_accuracy_mean"] - baseline),
                "remaining_parameters": round(row["weights_kept"]),
                "total_parameters": total,
            }
            for _, row in rows.iterrows()
        ],
    }


def _dense(levels: pd.DataFrame) -> float:
    """The dense networks' mean test accuracy at the early-stopping iteration, a fraction."""
    return float(levels.loc[levels["level"] == "dense", "test_accuracy_mean"].iloc[0])
