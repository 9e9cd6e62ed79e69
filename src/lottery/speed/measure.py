"""The forms of each level's ticket, timed side by side: .lottery/speed.csv and .lottery/speed.html."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from lottery import LotteryError
from lottery.core.images import Images
from lottery.evaluation.tables import rounded
from lottery.files.checkpoints import operators
from lottery.files.data import load_split, load_test
from lottery.files.workplace import replacing
from lottery.params import Params
from lottery.speed import page
from lottery.stages.levels import MODELS, check_level
from lottery.ticket import Ticket, graph, modules
from lottery.ticket.export import TOLERANCE
from lottery.ticket.workspace import ARM, best_networks, ticket_of

TABLE, PAGE = Path(".lottery/speed.csv"), Path(".lottery/speed.html")
BATCHES = (1, 32, 256)  # images at once
BLOCK = 0.01  # seconds of a timing: its form is called again and again meanwhile
FEWEST = 3  # rounds

Form = Callable[[Tensor], Tensor]  # logits [N, C] of uint8 images [N, *image]
Key = tuple[str, str, int]  # level, form, batch


def measure(p: Params, chosen: Sequence[str], seconds: float) -> Iterator[str]:
    """Measure the dense network and the tickets of the chosen levels, none for all; lines to print.

    Raises LotteryError where an output is missing or is not what params.yaml asks for.
    """
    if not 0 < seconds < float("inf"):
        raise LotteryError(f"--seconds {seconds:g}: give a number of seconds above 0")
    tickets = load(p, chosen)
    images = load_test(p.data_file)
    here = machine()
    yield f"measuring {', '.join(tickets)} with {', '.join(map(str, BATCHES))} images at once for {seconds:g} s"
    began = time.time_ns() // 1_000_000
    table = timed(tickets, images, seconds)
    with replacing(TABLE) as path:
        table.assign(**here).to_csv(path, index=False, lineterminator="\n")
    with replacing(PAGE) as path:
        path.write_text(page.render(table, here, p), encoding="utf-8")
    yield from page.answer(table)
    yield f"{PAGE} and {TABLE} have all numbers"
    from lottery.tracking import speed  # MLflow, which would take memory and time while forms are measured

    try:
        speed.log(p, table, here, page.answer(table), [PAGE, TABLE], began)
    except LotteryError as error:  # tracking never costs a result
        print(f"{error}; the files are whole, and MLflow does not have this run", file=sys.stderr)


def load(p: Params, chosen: Sequence[str] = ()) -> dict[str, Ticket]:
    """The dense network and the chosen levels' tickets, each of the seed with the lowest validation loss."""
    levels = [level for level in ("dense", *p.order) if level == "dense" or ARM in p.arms(level)]
    for level in chosen:
        if level not in levels:
            raise LotteryError(f"--level {level}: has no tickets; the levels that do are {', '.join(levels[1:])}")
    scaling = load_split(p.data_file, p.validation_images, p.data.scale).scaling
    for level in levels:
        check_level(p, level)
    return {
        level: ticket_of(p, MODELS / level, network, float("nan"), scaling)
        for level, network in best_networks(p, MODELS).items()
        if level == "dense" or not chosen or level in chosen
    }


def forms(ticket: Ticket) -> dict[str, Form]:
    """The forms of a network by name. Only perceptrons have sparse and compact ones, and dense needs none."""
    session = graph.session(graph.graph(ticket))
    own: dict[str, Form] = {}
    if ticket.facts.level == "dense":
        own["dense"] = modules.masked(ticket)
    else:
        own["masked"] = modules.masked(ticket)
        if ticket.facts.layout.family == "perceptron":
            own |= {"csr": modules.compact(ticket, sparse=1.0), "compact": modules.compact(ticket, sparse=0.0)}
    return own | {"onnx": lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])}


@torch.inference_mode()
def timed(tickets: Mapping[str, Ticket], images: Images, seconds: float) -> pd.DataFrame:
    """Time every form of the tickets; a row per level, form and batch.

    A round calls each form for a moment, one after the other and every second time in reverse, the dense network anew
    beside each level: what slows a shared machine for a while slows both sides of a ratio, which is of one round. Times
    are the processor's for this process, so that others who interrupt it do not count.
    """
    pixels = images.pixels[torch.arange(max(BATCHES)) % len(images)].reshape(-1, *tickets["dense"].facts.image)
    calls = {level: forms(ticket) for level, ticket in tickets.items()}
    for level, own in calls.items():
        _check(level, own, pixels)
    dense, timers = calls["dense"]["dense"], {}
    for batch in BATCHES:
        for level, own in calls.items():
            for form, call in {"dense": dense, **own}.items():
                timer = Timer("call(images)", timer=time.process_time, globals={"call": call, "images": pixels[:batch]})
                timers[level, form, batch] = timer, max(1, round(BLOCK / timer.timeit(3).median))
    rounds: list[dict[Key, float]] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(rounds) < FEWEST:
        order = list(timers.items())[:: -1 if len(rounds) % 2 else 1]
        rounds.append({key: timer.timeit(number).median for key, (timer, number) in order})
    rows = []
    for level, form, batch in timers:
        if form in calls[level]:
            took = np.array([each[level, form, batch] for each in rounds])
            ratios = np.array([each[level, "dense", batch] for each in rounds]) / took
            rows.append(
                {
                    "level": level,
                    "seed": tickets[level].facts.seed,
                    "density": tickets[level].density,
                    "form": form,
                    "batch": batch,
                    "latency_ms": 1000 * np.median(took),
                    "images_per_second": batch / np.median(took),
                    "ratio": np.median(ratios),
                    "ratio_low": np.quantile(ratios, 0.25),
                    "ratio_high": np.quantile(ratios, 0.75),
                    "rounds": len(rounds),
                }
            )
    return rounded(pd.DataFrame(rows))


def _check(level: str, own: Mapping[str, Form], pixels: Tensor) -> None:
    """Raise LotteryError unless all forms of a network give the same logits: the speed of a wrong one says nothing."""
    first, *others = own.items()
    expected = first[1](pixels)
    for form, call in others:
        if not (off := float((call(pixels) - expected).abs().max())) <= TOLERANCE:  # NaN is not
            raise LotteryError(f"{level}: its form {form} is off by {off:.2g} from {first[0]}; please report this")


def machine() -> dict[str, str]:
    """What the times depend on beside the network."""
    how = operators()
    return {
        "processor": how["processor"].rpartition("model name ")[2],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "torch": how["torch"],
        "onnxruntime": version("onnxruntime"),
        "numpy": how["numpy"],
        "python": platform.python_version(),
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
