"""Where a stage's passing files live: the repository that DVC was started in, also within a DVC experiment's copy."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lottery import LotteryError

PATIENCE = 20  # seconds that a process whose DVC was killed has to end


def root() -> Path:
    """The repository's root: DVC_ROOT in a stage, else the nearest folder upwards that DVC or git manages."""
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, in a quota, under a limit for a file


@contextmanager
def scratch() -> Iterator[Path]:
    """A fresh folder under .lottery/tmp, outside everything that DVC hashes; gone at the end."""
    parent = root() / ".lottery" / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write a file or a folder at, which takes the target's place only if the block ends well.

    An OSError that tells of a full disk names the target, and not the path.
    """
    with scratch() as folder:
        path = folder / target.name
        try:
            yield path
        except OSError as error:
            if error.errno in FULL:
                error.filename = str(target)
            raise
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            target.rename(folder / "before")  # a folder cannot be replaced; it goes with the scratch folder
        path.rename(target)


@contextmanager
def durable(target: Path) -> Iterator[Path]:
    """A path to write a file at, which is on the disk before it takes the target's place."""
    path = target.with_name(f".{target.name}.new")
    yield path
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)


@contextmanager
def locked(lock: Path, name: str, does: str, patience: float | None = None) -> Iterator[None]:
    """Hold a lock. Raises LotteryError where another process has it, by the ``name`` of what that ``does``."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held, holder = FileLock(lock), lock.with_suffix(".pid")
    try:
        held.acquire(timeout=PATIENCE if patience is None else patience)
    except Timeout:
        pid = holder.read_text() if holder.exists() else "?"
        raise LotteryError(
            f"{name}: process {pid} {does} already; wait for its end or end it, then `dvc repro`"
        ) from None
    holder.write_text(str(os.getpid()))
    try:
        yield
    finally:
        held.release()
