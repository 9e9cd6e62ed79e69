"""`lottery tidy`: what killed and finished runs leave behind."""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil

from lottery import LotteryError, params
from lottery.files import checkpoints
from lottery.files.workplace import HeldError, locked, root
from lottery.stages import hashed

COPIES = Path(".dvc/tmp/exps")  # where `dvc exp run --temp` and the queue put their copies of the repository
WEEK, DAY = 7 * 86_400, 86_400  # seconds


def stale() -> list[Path]:
    """Checkpoints that no stage goes on from, and the copies and scratch folders of runs that are over."""
    return [folder for folder in (root() / ".lottery/checkpoints").glob("*/") if _is_free_and_old(folder)] + left_over()


def _is_free_and_old(folder: Path) -> bool:
    with suppress(HeldError, OSError), locked(folder / "lock", patience=0):
        return is_old(folder)
    return False


def is_old(folder: Path) -> bool:
    """Whether checkpoints are of a stage that trained to its end, or were not gone on with for a week.

    After a week those stay that a stage of this folder, as it is, would go on from.
    """
    if (folder / checkpoints.TRAINED).exists():
        return True
    saved = (file.stat().st_mtime for pattern in ("*.safetensors", "about.json") for file in folder.glob(pattern))
    if time.time() - max(saved, default=0) < WEEK:
        return False
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return bool(hashed.inputs(about["stage"]) != about["inputs"])
    except (OSError, ValueError, KeyError):
        return True


def left_over() -> list[Path]:
    """Copies of the repository for DVC experiments, and scratch folders, that no process has used for a day."""
    found = [*(root() / COPIES).glob("standalone/tmp*/"), *(root() / COPIES).glob("tmp*/")]
    found += (root() / ".lottery/tmp").glob("*/")
    used = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            used.add(Path(process.cwd()))
    day = time.time() - DAY
    old = [folder for folder in found if folder.stat().st_mtime < day]
    return [folder for folder in old if not any(folder == each or folder in each.parents for each in used)]


def tidy() -> list[str]:
    """Remove what is stale: a line for each, with what it took. Raises LotteryError where that cannot be told."""
    if not Path("dvc.yaml").exists():
        raise LotteryError("dvc.yaml: not here; run this in the folder that holds it")
    params.load()  # with mistakes in it, nobody knows what a stage would go on from
    removed = checkpoints.remove(is_old)
    for folder in left_over():
        removed.append((folder, sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())))
        shutil.rmtree(folder, ignore_errors=True)
    lines = [f"removed {folder.relative_to(root())}: {size / 1e6:.1f} MB" for folder, size in removed]
    return lines or ["nothing to remove"]
