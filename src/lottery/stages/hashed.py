"""Guards that DVC hashes for a stage what the stage runs with.

An editable install imports the code of one checkout, wherever a stage runs. DVC hashes sources and parameters when a
stage has ended, so that a change while it runs would be recorded for results that are without it. And a stage whose DVC
was killed would go on beside the next one. Each of these ends a stage with one line instead.
"""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

import lottery
from lottery import LotteryError, params
from lottery.files.digests import digest, digest_of_files
from lottery.files.workplace import HeldError, locked
from lottery.stages import warm
from lottery.stages.signals import AGAIN

PARAMS = "params.yaml: "  # before a key, in the name of an input
# one may stand between DVC and a stage
SHELLS = ["sh", "ash", "bash", "dash", "zsh", "ksh", "mksh", "fish", "csh", "tcsh", "elvish", "nu", "xonsh"]
LOCKS = Path(".lottery/locks")  # of the working folder: a DVC experiment in a copy has its own


def check_code() -> None:
    """Raise LotteryError where the code that runs is not the working folder's, which DVC hashes."""
    runs, hashed = Path(lottery.__file__).resolve().parent, Path("src/lottery").resolve()
    if runs != hashed:
        raise LotteryError(
            f"{runs}: this code would run, yet DVC hashes that in {hashed}; run stages by `dvc repro`, or set "
            "PYTHONPATH=src"
        )


def inputs(stage: str) -> dict[str, object]:
    """The digest of each source and each value of params.yaml that dvc.yaml lists for a stage, by its name."""
    name, _, level = _short(stage).partition("@")
    entry: dict[str, Any] = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].get(name, {})
    entry = entry.get("do", entry)
    keys = [PARAMS + key.replace("${key}", level) for key in entry.get("params", ())]
    return _values([*(dep for dep in entry.get("deps", ()) if dep.startswith("src/")), *keys])


def _short(stage: str) -> str:
    """A stage's name without the path to dvc.yaml, which depends on the folder that DVC was called from."""
    return stage.rpartition(":")[2]


def _values(names: Iterable[str]) -> dict[str, object]:
    """The present values of files and keys of params.yaml; None for a file or a key that is missing."""
    try:
        content = params.parse(Path("params.yaml").read_text(encoding="utf-8"))
    except (LotteryError, OSError, ValueError):  # who loads it says what is wrong with it
        content = None
    return {
        name: _value(content, name.removeprefix(PARAMS)) if name.startswith(PARAMS) else _digest(Path(name))
        for name in names
    }


def _digest(path: Path) -> str | None:
    with suppress(OSError):  # of a file that goes meanwhile
        if path.is_file():
            return digest(path)
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
            return digest_of_files({file.relative_to(path).as_posix(): digest(file) for file in files})
    return None


def _value(content: Any, key: str) -> object:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def check_unchanged(stage: str, before: dict[str, object]) -> None:
    """Raise LotteryError where an input of a stage is not what it was ``before``, when the stage began."""
    after = _values(before)
    changed = [name for name, value in before.items() if after[name] != value]
    if changed:
        raise LotteryError(
            f"{changed[0]}: changed while {_short(stage)} ran, and DVC would record the change for results that were "
            "made without it; dvc.lock is as it was: `dvc repro` runs the stage again"
        )


@contextmanager
def sole(stage: str) -> Iterator[None]:
    """Hold the lock of a stage's outputs in this working folder. Raises LotteryError where another process has it."""
    name = _short(stage)
    with ExitStack() as held:
        try:
            held.enter_context(locked(LOCKS / f"{name}.lock"))
        except HeldError as holder:
            remedy = "wait for its end or end it, then `dvc repro`"
            raise LotteryError(f"{name}: process {holder} runs it in this folder already; {remedy}") from None
        yield


def starter() -> psutil.Process | None:
    """The process that started this one, shells left out: DVC, in a stage; None where the system does not tell."""
    with suppress(psutil.Error):
        process = psutil.Process(int(os.environ.get(warm.WAITS, os.getpid())))
        return next((each for each in process.parents() if each.name() not in SHELLS), None)
    return None


def end_with(process: psutil.Process) -> None:
    """End this process, as ctrl-C does, when its `starter` has ended.

    Where DVC ended before it was looked for, init or its like stands in its place, which is of another session.
    """

    def watch() -> None:
        with suppress(psutil.Error, ProcessLookupError):
            while (
                os.getsid(process.pid) == os.getsid(0)
                and process.is_running()
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                time.sleep(0.5)
        while True:  # the exception may be raised where Python swallows it
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2 * AGAIN)

    threading.Thread(target=watch, name="starter", daemon=True).start()
