"""The report: one self-contained HTML file that begins with the answer.

The page is `page.html.j2`; its contents come from here. The same results give the same bytes, whatever git or the
version of Python says.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from PIL import Image

from lottery.core.arms import ARMS, CONTROLS
from lottery.core.layout import Layout
from lottery.evaluation.statistics import by_level
from lottery.evaluation.verdicts import UNDECIDED, WINNING
from lottery.report.drawing import as_percent, number, percent
from lottery.report.figures import FIGURES
from lottery.templates import environment

COMPARISONS = {  # the columns of the table of verdicts: a condition of each comparison
    "ticket − dense, points": "equal",
    "ticket / dense, iterations": "fast",
    **{f"ticket − {control}, points": f"beats {control}" for control in CONTROLS},
}
TABLES = ("levels", "networks", "verdicts", "conditions", "structure")  # of reports/tables
TESTED = ("holds", "does not hold", "undecided", "descriptive")
REPEATED = ("combined_metrics", "results_table")  # figures that repeat others, or a table of the page


@dataclass(frozen=True)
class Findings:
    """The contents of the report: the tables of `evaluate`, and what they come from."""

    levels: pd.DataFrame  # `TABLES`, as `evaluate` left them
    networks: pd.DataFrame
    verdicts: pd.DataFrame
    conditions: pd.DataFrame
    structure: pd.DataFrame
    claims: Sequence[Mapping[str, Any]]  # reports/tables/claims.json
    compression: Sequence[Mapping[str, Any]]  # reports/compression.json
    warning: str  # on censored networks; empty where few are
    settings: Mapping[str, Any]  # params.yaml's sections that decide results
    iterations: int  # that each network is trained for
    layout: Layout
    data: str  # the MD5 sum of the data file, as dvc.lock has it
    tables: str  # the MD5 sum of reports/tables, as dvc.lock has it
    # levels trained where torch, numpy or the processor may have been others than the stage's
    mixed: Sequence[str] = ()
    devices: Mapping[str, str] = field(default_factory=dict)  # the GPUs of the levels that were trained on one
    measured_on: str = ""  # the GPU that accuracies were measured on

    @cached_property
    def judged(self) -> list[dict[str, Any]]:
        """One row per level: its verdict, and the intervals that it rests on."""
        rows = self.conditions.set_index(["level", "condition"])
        density = by_level(self.levels)["density"]
        return [
            {
                **each,
                "density": density[each["level"]],
                "comparisons": [
                    Comparison.of(rows.loc[(each["level"], condition)])
                    if (each["level"], condition) in rows.index
                    else None
                    for condition in COMPARISONS.values()
                ],
            }
            for each in self.verdicts.astype(object).fillna("").to_dict("records")
        ]

    @property
    def network(self) -> str:
        """The network in a few words."""
        shown = self.layout.shown
        return f"perceptron {shown.replace('-', '–')}" if self.layout.family == "perceptron" else shown

    @cached_property
    def seeds(self) -> int:
        """The number of seeds."""
        return int(self.networks["seed"].nunique())

    @cached_property
    def arms(self) -> dict[str, str]:
        """The arms beside dense, each with its description."""
        rewind = self.settings["prune"]["rewind"]
        start = f"weights of iteration {rewind}" if rewind else "initial weights"
        return {arm: ARMS[arm].what.format(start=start) for arm in self.levels["arm"].unique() if arm in ARMS}

    @cached_property
    def controls(self) -> list[str]:
        """The controls that some level has."""
        return [arm for arm in CONTROLS if arm in self.arms]

    @property
    def barriers(self) -> list[dict[str, Any]]:
        """The rows of `levels` whose networks have twins."""
        return list(self.levels[self.levels["stable"].notna()].to_dict("records"))

    @property
    def tested_claims(self) -> list[Mapping[str, Any]]:
        """The paper's claims that this pipeline could test."""
        return [claim for claim in self.claims if claim["verdict"] in TESTED]


class Comparison(NamedTuple):
    """The interval that a condition rests on, as one reads it."""

    mean: str
    interval: str  # empty with one seed, and where censoring took both limits away
    censored: int  # of the networks compared

    @classmethod
    def of(cls, condition: Mapping[str, Any]) -> "Comparison":
        """Convert a row of reports/tables/conditions.csv."""
        form, lowest = (".2f", 0.0) if condition["unit"] == "ratio" else ("+.2f", -math.inf)
        limits = (condition["low"], condition["high"])
        low, high = (None if limit in (lowest, math.inf) else number(limit, form) for limit in limits)
        return cls(number(condition["mean"], form), between(low, high), int(condition["censored"]))

    def __str__(self) -> str:
        return f"{self.mean} ({self.interval})" if self.interval else self.mean


def between(low: str | None, high: str | None) -> str:
    """An interval, of which censoring may have taken limits away: no sentence has an empty one."""
    if low is None or high is None:
        return f"below {high}" if high else f"above {low}" if low else ""
    return f"{low} to {high}"


def answer(findings: Findings) -> list[str]:
    """The answer in two sentences, the first with its uncertainty."""
    won = [each for each in findings.judged if each["verdict"] == WINNING]
    sure = [each for each in won if each["survives_holm"] == "yes"]
    basis = f"{findings.seeds} seed{'s' * (findings.seeds != 1)}, one split of the images and one test set"
    if not findings.judged:
        return ["This pipeline trained no tickets, so there is no verdict.", f"It has {basis}."]
    intervals = "In brackets are 95 % intervals" if findings.seeds > 1 else "Without intervals, these are"
    if not won:
        accuracies = findings.conditions[findings.conditions["condition"] == "equal"].set_index("level")["mean"]
        best = next(each for each in findings.judged if each["level"] == accuracies.idxmax())
        accuracy, speed = best["comparisons"][:2]
        counts = _counted([each["verdict"] for each in findings.judged])
        known = speed.interval or not speed.censored
        speed_too = f" and stop at {speed} times its iteration" if known else ""
        first = (
            f"No level is shown to have a winning ticket ({counts}); the most accurate tickets, with "
            f"{as_percent(100 * best['density'])} of the weights ({best['level']}), differ from dense by {accuracy} "
            f"points of test accuracy{speed_too}."
        )
        if not known:
            first = f"{first[:-1]}; how fast they learn is not known, because networks are censored."
        return [first, f"{intervals} over {basis}{_censored(best)}."]
    best = min(sure or won, key=lambda each: float(each["density"]))
    accuracy, speed, *gains = best["comparisons"]
    first = (
        f"With {as_percent(100 * best['density'])} of the weights ({best['level']}) the tickets are winning ones: "
        f"their test accuracy differs from dense’s by {accuracy} points, they stop at {speed} times its iteration, "
        f"and they beat the same masks with fresh weights by {gains[0]} points and random masks by {gains[1]} points."
    )
    others = [each["verdict"] for each in findings.judged if each is not best]
    holm = "" if sure else "; this verdict does not stand after Holm's adjustment over the levels"
    rest = f"; the other levels: {_counted(others)}" if others else ""
    return [first, f"{intervals} over {basis}{holm}{_censored(best)}{rest}."]


def _censored(judged: Mapping[str, Any]) -> str:
    """Name those comparisons of a level in which networks were still improving when training ended."""
    words = {
        title.partition(",")[0]: comparison.censored
        for title, comparison in zip(COMPARISONS, judged["comparisons"], strict=True)
        if comparison and comparison.censored
    }
    told = ", ".join(f"{count} in {comparison}" for comparison, count in words.items())
    return f"; some networks are censored, their last evaluation being their best ({told})" if told else ""


def _counted(verdicts: Sequence[str]) -> str:
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    plural = {WINNING: "winning tickets"}
    return ", ".join(
        f"{count} {plural.get(verdict, verdict) if count > 1 else verdict}" for verdict, count in counts.items()
    )


def render(findings: Findings, figures: Path, threads: int = 1) -> str:
    """The page, with the figures of that folder inside it, which so many threads compress."""
    templates = environment(Path(__file__).parent)
    templates.filters |= {"claimed": claimed, "percent": percent}
    names = [name for name in FIGURES if name not in REPEATED and (figures / f"{name}.png").exists()]
    with ThreadPoolExecutor(threads) as pool:
        pictures = list(pool.map(lambda name: _picture(figures / f"{name}.png"), names))
    return templates.get_template("page.html.j2").render(
        findings=findings,
        answer=answer(findings),
        comparisons=list(COMPARISONS),
        figures=pictures,
        settings=yaml.safe_dump(dict(findings.settings), sort_keys=False, width=100, default_flow_style=None),
        undecided=UNDECIDED,
    )


UNITS = {  # of findings on claims: the format of their numbers, and the unit in words
    "points": ("+.2f", "points"),
    "ratio": (".2f", "times"),
    "log-ratio per round": ("+.3f", "per round, in ln E"),
    "% accuracy": (".2f", "%"),
}


def claimed(claim: Mapping[str, Any]) -> str:
    """The estimate that a pipeline gives on a claim, with its interval."""
    if claim["estimate"] is None:
        return ""
    form, unit = UNITS[claim["unit"]]
    low, high = (None if claim[limit] is None else number(claim[limit], form) for limit in ("low", "high"))
    interval = between(low, high)
    return f"{number(claim['estimate'], form)} {f'({interval}) ' if interval else ''}{unit}"


def _picture(file: Path) -> dict[str, str]:
    """A figure, as the page shows it."""
    title, caption = file.stem.replace("_", " ").capitalize(), (FIGURES[file.stem].__doc__ or "").partition("\n")[0]
    shown = {"source": embedded(file), "caption": caption, "alternative": described(file)}
    return {"name": file.stem, "title": title, **shown}


def embedded(picture: Path) -> str:
    """A PNG file as a data URI of lossless WebP in 64 colours, which takes a fifth of the space."""
    content = BytesIO()
    with Image.open(picture) as image:
        colours = image.convert("RGB").quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        colours.convert("RGB").save(content, "WEBP", lossless=True, quality=30, method=2)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()


def described(picture: Path) -> str:
    """The words that describe a figure, as `drawing.describe` left them in the file."""
    with Image.open(picture) as image:
        return str(image.info["Description"])
