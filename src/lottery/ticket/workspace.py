"""Networks of the workspace as tickets, and which of them is exported."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lottery.core.images import Scaling
from lottery.core.layout import Piece
from lottery.core.stack import Stack
from lottery.evaluation.statistics import by_level, early_stopping
from lottery.evaluation.verdicts import WINNING
from lottery.files.artifacts import load_contents, load_history, load_masks, load_parameters
from lottery.files.digests import digest
from lottery.plan import Plan
from lottery.ticket.ticket import Facts, Ticket

ARM = "ticket"


def ticket_of(
    p: Plan,
    folder: Path,
    network: tuple[str, int],
    accuracy: float,
    scaling: Scaling,
    initialization: bool = False,
) -> Ticket:
    """A network of a level's folder, by its arm and seed, at its early-stopping iteration.

    ``accuracy``: the fraction of the data set's test images that it gets right.
    """
    contents = load_contents(folder)
    layout, row = contents.layout, [list(contents.rows).index(network)]
    masks, values = load_masks(folder).rows(row), load_parameters(folder, "early_stopping").rows(row)
    initial = load_parameters(folder, "initial").rows(row) if initialization else None
    facts = Facts(
        layout=layout,
        level=folder.name,
        arm=network[0],
        seed=network[1],
        sparsity=contents.path[-1] if contents.path else 0.0,
        accuracy=accuracy,
        data=p.data.name,
        image=p.examples.shape,
        shift=scaling.shift,
        scale=scaling.scale,
        level_digest=f"{digest(folder)}.dir",
    )
    return Ticket(
        facts,
        _arrays(values, layout.pieces),
        _arrays(masks, layout.weights),
        _arrays(initial, layout.pieces) if initial else None,
    )


def _arrays(network: Stack, pieces: Iterable[Piece]) -> dict[str, Any]:
    """The first network's pieces by name, contiguous, however they lie in the stack."""
    return {piece.name: network[piece.name][0].contiguous().numpy() for piece in pieces}


def losses(folder: Path, arm: str) -> "pd.Series[float]":
    """The validation loss at which each network of an arm of a level stopped, by seed."""
    history = load_history(folder).query("arm == @arm")
    stops = early_stopping(history).rename(columns={"early_stopping_iteration": "iteration"})
    return stops.merge(history, on=["arm", "seed", "iteration"]).set_index("seed")["validation_loss"]


def best_seed(folder: Path, arm: str) -> int:
    """The seed of an arm's network with the lowest validation loss; test accuracy chooses nothing."""
    return int(losses(folder, arm).idxmin())


def best_networks(p: Plan, models: Path) -> dict[str, tuple[str, int]]:
    """The arm and the seed of dense's best network and of each level's best ticket, by level; without one, none."""
    arms = {level: "dense" if level == "dense" else ARM for level in ("dense", *p.order)}
    return {level: (arm, best_seed(models / level, arm)) for level, arm in arms.items() if arm in p.arms(level)}


def chosen_level(level: str | Literal["auto"], models: Path, verdicts: pd.DataFrame, levels: pd.DataFrame) -> str:
    """The level that is exported: ``export.level``, or what auto means.

    Auto is the sparsest level whose verdict is a winning ticket, else the level whose tickets have the lowest mean
    validation loss, else dense. ``verdicts`` and ``levels`` are the tables of `evaluate`.
    """
    if level != "auto":
        return level
    winners = list(verdicts.loc[verdicts["verdict"] == WINNING, "level"])
    if winners:
        return str(by_level(levels)["density"][winners].idxmin())
    means = {name: losses(models / name, ARM).mean() for name in levels.loc[levels["arm"] == ARM, "level"]}
    return min(means, key=lambda name: means[name], default="dense")
