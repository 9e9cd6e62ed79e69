"""The files of an exported network: `ticket.safetensors`, `ticket.onnx` and `model_card.md`, checked before written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lottery import LotteryError
from lottery.evaluation.tables import DECIMALS, load_table
from lottery.files.data import load_split, load_test
from lottery.files.sealed import verify_folder
from lottery.plan import Plan
from lottery.ticket import graph, modules
from lottery.ticket.card import Evaluated, card
from lottery.ticket.format import TYPES, ValueType, content
from lottery.ticket.ticket import Ticket
from lottery.ticket.workspace import ticket_of

FILE, GRAPH, CARD = "ticket.safetensors", "ticket.onnx", "model_card.md"
TOLERANCE = 1e-4  # between logits


def export(
    target: Path,
    p: Plan,
    root: Path,
    level: str,
    network: tuple[str, int],
    values: ValueType,
    initialization: bool = False,
) -> Ticket:
    """Write the files of a network, its arm and seed, of the pipeline at ``root`` into the folder ``target``.

    Raises LotteryError where `evaluate` does not know it, or where the graph does not give what the network gives.
    """
    tables = root / "reports/tables"
    verify_folder(tables)
    networks = load_table(tables / "networks.csv").query("level == @level and arm == @network[0]")
    if network[1] not in set(networks["seed"]):
        raise LotteryError(
            f"reports/tables/networks.csv: has no {level} {network[0]} {network[1]}; `dvc repro` makes it"
        )
    verdicts = load_table(tables / "verdicts.csv").set_index("level").astype(object).fillna("")
    data = root / p.data_file
    scaling, test = load_split(data, p.validation_images, p.data.scale).scaling, load_test(data)
    ticket = ticket_of(p, root / "models" / level, network, float("nan"), scaling, initialization)
    if values == "half":
        ticket = replace(ticket, values={**ticket.values, **_rounded(ticket, values)})
    images = test.pixels.reshape(-1, *ticket.facts.image)
    compact = graph.graph(ticket)
    logits, expected = graph.run(compact, images.numpy()), _logits(ticket, images)
    if not (off := np.abs(logits - expected).max()) <= TOLERANCE:  # NaN is not
        raise LotteryError(f"{level} {network[0]} {network[1]}: {GRAPH} is off by {off:.2g}; please report this")
    classes = logits.argmax(1)
    right = int((classes == test.labels.numpy()).sum())
    ticket = replace(ticket, facts=replace(ticket.facts, accuracy=round(right / len(test), DECIMALS)))
    evaluated_at = float(networks.set_index("seed")["test_accuracy"][network[1]])
    if values == "float32" and abs(ticket.facts.accuracy - evaluated_at) > 1.5 / len(test):
        raise LotteryError(
            f"reports/tables/networks.csv: has {level} {network[0]} {network[1]} at {evaluated_at}, and it is at "
            f"{ticket.facts.accuracy}; `dvc repro evaluate` makes it anew"
        )
    differing = int((classes != expected.argmax(1)).sum())
    verdict = dict(verdicts.loc[level]) if level in verdicts.index else {}
    evaluated = Evaluated(networks, verdict, len(test), right, differing)
    file = content(ticket, values)
    (target / FILE).write_bytes(file)
    (target / GRAPH).write_bytes(compact)
    (target / CARD).write_text(card(ticket, p, evaluated, compact, file, values), encoding="utf-8")
    return ticket


def _rounded(ticket: Ticket, values: ValueType) -> dict[str, np.ndarray]:
    """The weights as the file has them."""
    return {name: ticket.values[name].astype(TYPES[values]).astype(np.float32) for name in ticket.masks}


def _logits(ticket: Ticket, images: torch.Tensor) -> np.ndarray:
    masked = modules.masked(ticket)
    with torch.no_grad():
        return np.concatenate([masked(part).numpy() for part in torch.split(images, 1000)])
