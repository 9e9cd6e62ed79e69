"""The words and numbers of the reports, from the tables of networks and of levels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lottery.evaluation.claims import Claim, Finding
from lottery.evaluation.statistics import by_level
from lottery.evaluation.verdicts import Judged

MOST_NAMED = 4  # arms in a warning
FEWEST_EVALUATIONS = 10  # of a network, with fewer of which early stopping sees little
DEVICE = "device"  # a file beside the tables, where they are measured on a GPU: its name
DECIMALS = 6  # of means and other measures in tables and in MLflow; an accuracy on 10,000 images has four


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is written: numbers with six decimals, p-values with six significant digits.

    Verdicts and intervals are computed from the numbers before.
    """
    small = {column: table[column].map(lambda p: float(f"{p:.6g}")) for column in ("p", "p_holm") if column in table}
    return table.round(DECIMALS).assign(**small)


def compared(levels: pd.DataFrame, judged: Sequence[Judged] = ()) -> dict[str, Any]:
    """The numbers that people compare between pipelines, in percent: reports/metrics.json.

    For each level its density, and for each arm the mean test accuracy at the early-stopping iteration (``ticket``)
    and its difference from dense in percentage points (``ticket-dense``); then the level's verdict. The names are short
    because `dvc metrics show` makes a column of each.
    """
    baseline = float(levels.loc[levels["level"] == "dense", "test_accuracy_mean"].iloc[0])
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
    """The paper's claims with the findings on them: the entries of reports/tables/claims.json.

    A limit that censoring took away is null.
    """
    entries = []
    for claim, finding in findings:
        words = {key: getattr(claim, key) for key in ("name", "claim", "paper", "tested")}
        numbers = (finding.interval.mean if finding.interval else None, *finding.limits)
        rounded = [None if number is None else round(number, DECIMALS) for number in numbers]
        papers = {key: getattr(finding, key) for key in ("papers_number", "papers_number_within", "note")}
        found = dict(zip(("estimate", "low", "high"), rounded, strict=True))
        entries.append(words | {"verdict": finding.verdict, "unit": finding.unit} | found | papers)
    return entries


def warning(levels: pd.DataFrame, iterations: int, evaluate_every: int) -> str:
    """One line on the arms of which more than half the networks are censored, with the remedy; empty without any.

    ``iterations``: how long each network was trained; it was evaluated every so many of them.
    """
    censored = levels[levels["censored"] > levels["n"] / 2].to_dict("records")
    if not censored:
        return ""
    if levels["censored"].equals(levels["n"]):
        which = "all networks are censored, their last evaluation being their best: how fast they learn is not known"
    else:
        named = [f"{row['level']} {row['arm']} ({row['censored']} of {row['n']})" for row in censored[:MOST_NAMED]]
        more = [f"{len(censored) - MOST_NAMED} more"] if len(censored) > MOST_NAMED else []
        which = f"most networks of {', '.join(named + more)} are censored, their last evaluation being their best"
    evaluations = math.ceil(iterations / evaluate_every)
    if evaluations < FEWEST_EVALUATIONS:
        times = f"{evaluations} time{'s' * (evaluations != 1)}"
        finer = max(1, iterations // (2 * FEWEST_EVALUATIONS))
        remedy = f"evaluated {times} in {iterations} iterations: set train.evaluate_every to {finer}, or train longer"
    else:
        remedy = "train longer to see where they stop"
    return f"{which}; {remedy} (train.epochs or train.iterations in params.yaml)"


def measured_on(tables: Path) -> str:
    """The name of the GPU that the networks of `evaluate`'s tables were measured on; empty where it was a processor."""
    path = tables / DEVICE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def load_table(path: Path) -> pd.DataFrame:
    """One of `evaluate`'s tables; a level may be called `90`, `1e5` or `nan`, which remain names."""
    names = dict.fromkeys(("level", "parent", "arm"), str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])
