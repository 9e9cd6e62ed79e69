"""`model_card.md`: what a ticket is, how it was made, what it can do and cannot."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from lottery.core.arms import ARMS
from lottery.evaluation.statistics import interval
from lottery.plan import BEFORE_TRAINING, Plan
from lottery.templates import environment
from lottery.ticket.sizes import adds, checkpoint
from lottery.ticket.ticket import Ticket

LICENCES = {
    "mnist": "MNIST: Yann LeCun and Corinna Cortes, CC BY-SA 3.0.",
    "fashion-mnist": "Fashion-MNIST: Zalando SE, MIT.",
    "kmnist": "KMNIST: ROIS-DS Center for Open Data in the Humanities, CC BY-SA 4.0.",
    "cifar-10": "CIFAR-10: Alex Krizhevsky, Vinod Nair and Geoffrey Hinton, who name no licence.",
    "own": "The data are your own; say here on what terms.",
    "digits": "Digits: scikit-learn's copy of the UCI repository's test set (Alpaydin & Kaynak), CC BY 4.0.",
}


@dataclass(frozen=True)
class Evaluated:
    """The results of a network beside its files."""

    networks: pd.DataFrame  # rows of reports/tables/networks.csv of its level and arm, one per seed
    verdict: Mapping[str, str]  # the level's row of reports/tables/verdicts.csv; empty where there is none
    images: int  # test images
    right: int  # of which it gets right
    differing: int  # whose class differs between ticket.onnx and the masked network


def card(ticket: Ticket, p: Plan, evaluated: Evaluated, graph: bytes, file: bytes, values: str) -> str:
    """The text of the card; ``graph`` and ``file`` are what lies beside it."""
    facts, multiply = ticket.facts, adds(ticket)
    own: Mapping[str, Any] = evaluated.networks.set_index("seed").loc[facts.seed]
    start = f"at iteration {p.prune.rewind}" if p.prune.rewind else "before training"
    wilson = binomtest(evaluated.right, evaluated.images).proportion_ci(method="wilson")
    return (
        environment(Path(__file__).parent, escape=False)
        .get_template("card.md.j2")
        .render(
            facts=facts,
            dtype=ticket.dtype,
            density=f"{100 * ticket.density:.3g} %",
            kept=ticket.kept,
            what=ARMS[facts.arm].what.format(start=f"weights {start}") if facts.arm in ARMS else "nothing is pruned",
            start=start,
            path=p.path(facts.level),
            criterion=p.criterion(facts.level) if facts.level != "dense" else "",
            untrained=facts.level != "dense" and p.criterion(facts.level) in BEFORE_TRAINING,
            classes=facts.layout.classes,
            accuracy=f"{100 * facts.accuracy:.2f} %",
            images=evaluated.images,
            wilson=f"{100 * wilson.low:.2f} to {100 * wilson.high:.2f} %",
            of_seeds=_of_seeds(100 * evaluated.networks["test_accuracy"]),
            verdict=_verdict(evaluated.verdict),
            stopped=int(own["early_stopping_iteration"]),
            censored=bool(own["censored"]),
            iterations=p.iterations,
            bytes={"dense": len(checkpoint(ticket)), "ticket": len(file), "onnx": len(graph)},
            adds={"dense": multiply["multiply_adds"], "kept": multiply["multiply_adds_kept"]},
            compact=ticket.compact if facts.layout.family == "perceptron" else None,
            differing=evaluated.differing,
            initialization=ticket.initial is not None,
            values=values,
            licence=LICENCES[facts.data],
        )
    )


def _verdict(row: Mapping[str, str]) -> str:
    if not row:
        return "none"
    return row["verdict"] + ", but not after Holm's adjustment over the levels" * (row["survives_holm"] == "no")


def _of_seeds(accuracies: pd.Series) -> str:
    seeds = len(accuracies)
    if seeds == 1:
        return f"{accuracies.iloc[0]:.2f} %, the one seed"
    over = interval(accuracies.tolist())
    return f"{over.mean:.2f} % (95 % t interval over {seeds} seeds: {over.low:.2f} to {over.high:.2f} %)"
