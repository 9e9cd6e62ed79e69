"""One module per stage of dvc.yaml, and what they share: how a stage ends, and training as params.yaml says."""

from lottery.stages import signals  # before what takes time to import

# isort: split
import gc
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lottery import LotteryError
from lottery.files.workplace import FULL, root
from lottery.params import Params, load
from lottery.stages import hashed, progress

# importing torch and MLflow makes a million objects that stay, and the collector would look through them every 700 more
gc.set_threshold(100_000)

STAGE = os.environ.get("DVC_STAGE", "")  # empty where a person starts a stage without DVC
# at once: importing a stage's own modules takes seconds
BEGAN_WITH = hashed.inputs(STAGE) if STAGE and Path("dvc.yaml").exists() else {}
OTHER_ROOM = 70_000_000  # bytes that `download` writes for MNIST, its sources too; `evaluate` and `plot` need less
ENDED = (
    "run.threads: a worker was ended from outside, as happens where memory runs out: `dvc repro` goes on from what was "
    "saved of this stage; with fewer run.threads it takes less memory"
)
STARTER = hashed.starter() if STAGE else None


def run(stage: Callable[[], None]) -> NoReturn:
    """Run a stage to its exit code: 0, or 2 after the one line that a LotteryError carries."""
    signals.interrupt()
    gc.freeze()  # what the imports left stays to the end, and no collection need look at it again
    code = _code(stage)
    gc.freeze()  # else Python spends over a second at exit on looking through all that torch and MLflow made
    sys.exit(code)


def _code(stage: Callable[[], None]) -> int:
    try:
        hashed.check_code()
        if STARTER:
            hashed.end_with(STARTER)
        name = STAGE or Path(sys.argv[0]).stem
        with hashed.sole(name), progress.shown(name):
            stage()
        if BEGAN_WITH:
            hashed.check_unchanged(STAGE, BEGAN_WITH)
    except LotteryError as error:
        return _complain(str(error), 2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return _complain(_no_room(error), 2)
    except BrokenExecutor:
        return _complain(ENDED, 2)
    except KeyboardInterrupt as interruption:
        return _complain(f"interrupted; {interruption or '`dvc repro` starts this stage anew'}", 130)
    return 0


def _complain(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _no_room(error: OSError) -> str:
    name, _, level = STAGE.rpartition(":")[2].partition("@")
    leaves = {"download": "data", "train": "models/dense", "prune": f"models/{level}"}.get(name, "reports")
    needed = OTHER_ROOM
    if leaves.startswith("models/"):
        with suppress(LotteryError):  # of a params.yaml that is broken meanwhile
            needed = room(load(), level or "dense")
    return (
        f"{error.filename or leaves}: {error.strerror}: the stage needs about {_megabytes(needed)}, and "
        f"{_megabytes(shutil.disk_usage(root()).free)} are free; make room, then `dvc repro` goes on from here"
    )


def room(params: Params, level: str) -> int:
    """Count the bytes of weights in a level's folder; masks and histories take a hundredth of that."""
    parameters = sum(piece.size for piece in params.layout.pieces)
    states = 3 + params.train.twins + bool(level == "dense" and params.prune.rewind)  # initial, final, early stopping
    return 4 * parameters * states * len(params.rows(level))


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB"


def threads(params: Params) -> int:
    """The number of threads that `run.threads` asks for; auto is one per core, or what OMP_NUM_THREADS says."""
    import torch  # takes 2 s, which `download` need not spend

    return torch.get_num_threads() if params.run.threads == "auto" else params.run.threads


def level_name() -> str:
    """The level that DVC runs this stage for.

    From the environment, because `${key}` in a command of dvc.yaml would be pasted into a shell.
    """
    stage, _, level = os.environ.get("DVC_STAGE", "").partition("@")
    if not level:
        raise LotteryError(f"DVC_STAGE: {stage!r} names no level; run `dvc repro prune@LEVEL`")
    return level
