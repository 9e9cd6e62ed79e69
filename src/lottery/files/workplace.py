"""Where a stage's passing files live: the repository that DVC was started in, also within a DVC experiment's copy."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE = 20  # seconds that a process whose DVC was killed has to end


def root() -> Path:
    """The repository's root: DVC_ROOT in a stage, else the nearest folder upwards that DVC or git manages."""
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, in a quota, under a limit for a file
REFUSED = (  # what the system does not give
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ESTALE,
)  # fmt: skip
# how torch, Python and the loader of libraries say that there is no memory, where they raise no MemoryError
NO_MEMORY = ("allocate memory", "not enough memory", "failed to map segment", "can't start new thread")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory."""
    lacks = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return lacks or any(words in str(error) for words in NO_MEMORY)


def is_inside(path: str) -> bool:
    """Whether a path from a dvc.lock stays in the repository."""
    return not path.startswith("/") and ".." not in path.split("/")


@contextmanager
def scratch() -> Iterator[Path]:
    """A fresh folder under .lottery/tmp, outside everything that DVC hashes; gone at the end.

    What killed processes left there goes first.
    """
    parent = root() / ".lottery" / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    alone = parent.with_name("tmp.lock")  # held while folders come and go, which have no lock then
    with ExitStack() as held:
        with locked(alone, patience=-1):
            for left in parent.glob("*/"):
                with suppress(HeldError, OSError), locked(left / "lock", patience=0):
                    shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=parent))
            held.enter_context(locked(folder / "lock"))
        try:
            fresh = folder / "files"
            fresh.mkdir()
            yield fresh
        finally:
            with locked(alone, patience=-1):
                held.close()
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write a file or a folder at, which takes the target's place only if the block ends well.

    It lies beside the target, which may be on another disk than the repository; what a killed process leaves of it is
    in .dvcignore. An OSError that tells of a full disk names the target, and not the path.
    """
    path, before = (target.with_name(f".{target.name}.{which}") for which in ("new", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(path)
    _remove(before)
    try:
        yield path
        for file in [path, *path.rglob("*")]:
            _to_disk(file)
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(target)
        raise
    else:
        if target.is_dir():  # a folder cannot be replaced
            target.rename(before)
        path.rename(target)
        _to_disk(target.parent)
        _remove(before)
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Have a file or a folder's list of files on the disk, so that a power cut leaves it whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks know it of files alone
            raise
    finally:
        os.close(descriptor)


@contextmanager
def durable(target: Path) -> Iterator[Path]:
    """A path to write a file at, which is on the disk before it takes the target's place."""
    path = target.with_name(f".{target.name}.new")
    try:
        yield path
        _to_disk(path)
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)


class HeldError(Exception):
    """Another process holds a lock: its id."""


@contextmanager
def locked(lock: Path, patience: float | None = None) -> Iterator[None]:
    """Hold a lock. Raises HeldError where another process has it for longer than ``patience`` seconds."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held, holder = FileLock(lock), lock.with_suffix(".pid")
    try:
        held.acquire(timeout=PATIENCE if patience is None else patience)
    except Timeout:
        raise HeldError(holder.read_text() if holder.exists() else "?") from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        held.release()
