"""One line for what a machine does to a stage: no room, no memory, files that the system does not give."""

import errno
import os
import shutil
import sys
import tempfile
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lottery import LotteryError
from lottery.files.workplace import FULL, REFUSED, lacks_memory, root

if TYPE_CHECKING:
    from lottery.params import Params

LESS = "`dvc repro` goes on from what was saved of this stage; with fewer run.threads it takes less memory"
GOES_ON = "`dvc repro` goes on from here"
# of a network's size, while it trains: its state of four, two copies of that to save, its start, gradients and mask
TENSORS = 15
BASE = 900_000_000  # bytes that a stage takes with torch, the images and MLflow
OTHER_ROOM = 70_000_000  # bytes that `download` writes for MNIST, its sources too; `evaluate` and `plot` need less


def line(stage: str, error: BaseException) -> str | None:
    """The line for an error that a stage met, None where it is none of the machine's."""
    if isinstance(error, BrokenExecutor):
        return f"run.threads: a worker was ended from outside, as happens where memory runs out: {LESS}"
    if "CUDA out of memory" in str(error):
        return f"run.device: the GPU's memory ran out: end what else uses it, or set it to cpu; then {GOES_ON}"
    if lacks_memory(error):
        return f"run.threads: memory ran out: {LESS}"
    if isinstance(error, OSError) and error.errno in FULL:
        numbers = f"the stage needs about {_megabytes(_room(stage))}, and {_megabytes(_free(stage))} are free"
        return f"{error.filename or _leaves(stage)}: {error.strerror}: {numbers}; make room, then {GOES_ON}"
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
        return _refused(error.filename, error)
    return None


def check_outputs(stage: str) -> None:
    """Raise an error where what a stage leaves could not be written or kept, before it works rather than after.

    OSError where there is no room, else LotteryError.
    """
    parent = _parent(stage)
    if parent.is_symlink():
        raise LotteryError(
            f"{parent}: leads to {parent.resolve()}, and DVC keeps no outputs behind a link; mount that folder here "
            "(`mount --bind`), or move DVC's cache to the other disk (`dvc cache dir`)"
        )
    try:
        parent.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        if error.errno in FULL:
            raise
        raise LotteryError(_refused(str(parent), error)) from error
    if parent.name == "models" and _free(stage) < _room(stage):  # what others leave is small
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refused(file: str, error: OSError) -> str:
    return f"{file}: {error.strerror}; see to it that it can be read and written, then {GOES_ON}"


def _leaves(stage: str) -> str:
    name, _, level = stage.rpartition(":")[2].partition("@")
    return {"download": "data", "train": "models/dense", "prune": f"models/{level}", "export": "./tickets"}.get(
        name, "reports"
    )  # which lies in the folder itself


def _parent(stage: str) -> Path:
    """The folder that DVC's output of a stage lies in."""
    return Path(_leaves(stage).partition("/")[0])


def room(params: "Params", level: str) -> int:
    """Count the bytes of weights in a level's folder; masks and histories take a hundredth of that."""
    parameters = sum(piece.size for piece in params.layout.pieces)
    states = 3 + params.train.twins + bool(level == "dense" and params.prune.rewind)  # initial, final, early stopping
    return 4 * parameters * states * len(params.rows(level))


def memory(params: "Params", level: str) -> int:
    """Count the bytes that a stage takes while it trains a level, workers included."""
    parameters = sum(piece.size for piece in params.layout.pieces)
    return BASE + 4 * TENSORS * parameters * params.networks(level)


def _room(stage: str) -> int:
    """The bytes of what a stage leaves, about."""
    from lottery.params import load  # takes half a second, in which memory may run out

    if _leaves(stage).startswith("models/"):
        with suppress(LotteryError):  # of a params.yaml that is broken meanwhile
            return room(load(), stage.partition("@")[2] or "dense")
    return OTHER_ROOM


def _free(stage: str) -> int:
    """The bytes that are free where a stage's output lies."""
    parent = _parent(stage)
    return shutil.disk_usage(parent if parent.exists() else root()).free


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB"


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    words = line(os.environ.get("DVC_STAGE", ""), error)
    if words is None:
        return sys.__excepthook__(kind, error, trace)
    print(words, file=sys.stderr, flush=True)
    os._exit(2)


if os.environ.get("DVC_STAGE"):
    sys.excepthook = _end  # what is imported takes memory too
