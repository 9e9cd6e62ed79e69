"""One module per stage of dvc.yaml, and what they share: how a stage ends, and training as params.yaml says."""

from lottery.stages import signals  # before what takes time to import

# isort: split
from lottery.stages import warm  # noqa: F401  # hands over to a process that has imported what follows

# isort: split
from lottery.stages import faults  # before what takes memory

# isort: split
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lottery import LotteryError
from lottery.params import Params
from lottery.stages import hashed, progress

# importing torch and MLflow makes a million objects that stay, and the collector would look through them every 700 more
gc.set_threshold(100_000)

STAGE = os.environ.get("DVC_STAGE", "")  # empty where a person starts a stage without DVC
# at once: importing a stage's own modules takes seconds
BEGAN_WITH = hashed.inputs(STAGE) if STAGE and Path("dvc.yaml").exists() else {}
STARTER = hashed.starter() if STAGE else None


def run(stage: Callable[[], None]) -> NoReturn:
    """Run a stage to its exit code: 0, or 2 after the one line that a LotteryError carries."""
    signals.interrupt()
    gc.freeze()  # what the imports left stays to the end, and no collection need look at it again
    code = _code(stage)
    gc.freeze()  # else Python spends over a second at exit on looking through all that torch and MLflow made
    sys.exit(code)


def _code(stage: Callable[[], None]) -> int:
    name = STAGE or Path(sys.argv[0]).stem
    try:
        hashed.check_code()
        if STARTER:
            hashed.end_with(STARTER)
        with hashed.sole(name), progress.shown(name):
            faults.check_outputs(name)
            stage()
        if BEGAN_WITH:
            hashed.check_unchanged(STAGE, BEGAN_WITH)
    except LotteryError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as interruption:
        return _complain(f"interrupted; {str(interruption) or '`dvc repro` starts this stage anew'}", 130)
    except Exception as error:
        line = faults.line(name, error)
        if line is None:
            raise
        return _complain(line, 2)
    return 0


def _complain(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def threads(params: Params) -> int:
    """The number of threads that `run.threads` asks for; auto is one per core, or what OMP_NUM_THREADS says."""
    import torch  # takes 2 s, which `download` need not spend

    return torch.get_num_threads() if params.run.threads == "auto" else params.run.threads


def device(params: Params) -> str:
    """The device that `run.device` asks for, cpu or cuda. Raises LotteryError where a GPU is not there."""
    if params.run.device == "cpu" or params.run.engine != "local":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if params.run.device == "cuda":
        raise LotteryError("params.yaml: run.device: cuda: torch sees no GPU here; make it auto or cpu")
    return "cpu"


def device_name(params: Params) -> str:
    """The name of the GPU that networks are trained and measured on; empty where that is the processor."""
    import torch

    return torch.cuda.get_device_name() if device(params) == "cuda" else ""


def level_name() -> str:
    """The level that DVC runs this stage for.

    From the environment, because `${key}` in a command of dvc.yaml would be pasted into a shell.
    """
    stage, _, level = os.environ.get("DVC_STAGE", "").partition("@")
    if not level:
        raise LotteryError(f"DVC_STAGE: {stage!r} names no level; run `dvc repro prune@LEVEL`")
    return level
