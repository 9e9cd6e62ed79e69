"""The answer of a pipeline, for a terminal."""

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lottery.params import Params
from lottery.report.drawing import as_percent, percent
from lottery.report.page import answer
from lottery.stages.plot import PAGE, load_findings

WIDTH = 100  # columns


def told(params: Params) -> str:
    """The answer in words, a line per level, and where to go on. Raises LotteryError where a report is missing."""
    findings = load_findings(params)
    words = [textwrap.fill(sentence, WIDTH) for sentence in answer(findings)]
    levels = findings.levels.set_index(["level", "arm"])
    rows = [("level", "weights", "test accuracy", "verdict")]
    dense = levels.loc[("dense", "dense")]
    rows.append(("dense", "100 %", f"{percent(dense['test_accuracy_mean'])} %", ""))
    reasons: list[str] = []
    for each in findings.judged:
        ticket = levels.loc[(each["level"], "ticket")]
        accuracy = f"{percent(ticket['test_accuracy_mean'])} %"
        rows.append((each["level"], as_percent(100 * each["density"]), accuracy, each["verdict"]))
        if each["why"]:
            reasons.append(textwrap.fill(f"{each['level']}: {each['why']}", WIDTH, subsequent_indent="  "))
    dvc = os.path.relpath(Path(sys.executable).with_name("dvc"))  # also where the environment is not active
    ways = [
        ("the report:", f"open {PAGE} in a browser"),
        ("every network:", "make ui"),
        ("the ticket:", "tickets/model_card.md" + "; make demo" * params.can_be_drawn),
        ("to undo:", f"git restore . && {dvc} checkout --allow-missing   (parameters and results of the last commit)"),
    ]
    return "\n\n".join(filter(None, ["\n".join(words), _columns(rows), "\n".join(reasons), _columns(ways)]))


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
