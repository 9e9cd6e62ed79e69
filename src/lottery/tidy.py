"""`lottery tidy`: what killed and finished runs leave behind."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from lottery import LotteryError
from lottery.files.checkpoints import TRAINED
from lottery.files.workplace import locked, root
from lottery.stages import hashed

COPIES = Path(".dvc/tmp/exps")  # where `dvc exp run --temp` and the queue put their copies of the repository


def stale() -> list[Path]:
    """Checkpoints that no stage goes on from, and the copies and scratch folders of runs that are over."""
    places = root() / ".lottery"
    found = [folder for folder in places.glob("checkpoints/*/") if _is_stale(folder)]
    found += [folder for pattern in ("standalone/*/", "temp/*/") for folder in (root() / COPIES).glob(pattern)]
    found += places.glob("tmp/*/")
    used = _used()
    return [folder for folder in found if not any(folder == each or folder in each.parents for each in used)]


def _is_stale(folder: Path) -> bool:
    """Whether checkpoints are of a stage that trained to its end, or of other sources or parameters than this folder's.

    Never where a process has them open.
    """
    with suppress(LotteryError), locked(folder / "lock", "", "", patience=0):
        try:
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            return (folder / TRAINED).exists() or hashed.inputs(about["stage"]) != about["inputs"]
        except (OSError, ValueError, KeyError):
            return True
    return False


def _used() -> set[Path]:
    """The folders in which processes run."""
    used = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            used.add(Path(process.cwd()))
    return used


def tidy() -> list[str]:
    """Remove what is stale: a line for each, with what it took."""
    lines = []
    for folder in stale():
        size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        shutil.rmtree(folder, ignore_errors=True)
        lines.append(f"removed {folder.relative_to(root())}: {size / 1e6:.1f} MB")
    return lines or ["nothing to remove"]
