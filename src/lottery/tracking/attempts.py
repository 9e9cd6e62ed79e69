"""The marks of attempts under .lottery/runs: whose runs are whose, and which process is still alive."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lottery.workplace import root


@dataclass(frozen=True)
class Mark:
    """An attempt's file and the lock that its process holds as long as it lives.

    ``name`` is the tag `lottery.attempt` of its runs.
    """

    name: str
    path: Path
    lock: FileLock

    @classmethod
    def make(cls, store: str) -> "Mark":
        """A mark of this process's, for runs in a store."""
        folder = root() / ".lottery" / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        mark = cls(name, folder / f"{name}.json", FileLock(folder / f"{name}.lock"))
        mark.lock.acquire(timeout=0)
        mark._write(store, "")
        return mark

    def _write(self, store: str, key: str) -> None:
        self.path.write_text(json.dumps({"store": store, "key": key}) + "\n")

    def leave(self, store: str, key: str) -> None:
        """Leave the mark for `lottery sync`; ``key`` is that of the outputs, if they are whole."""
        self._write(store, key)
        self.lock.release()

    def remove(self) -> None:
        """The attempt has ended well."""
        self.path.unlink(missing_ok=True)
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)


def left(store: str) -> Iterator[tuple[Mark, str]]:
    """The marks in this store whose processes are dead, with the keys of their outputs where these are whole."""
    for path in sorted((root() / ".lottery" / "runs").glob("*.json")):
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # at work
        try:
            content = json.loads(path.read_text())
            of, key = content["store"], content["key"]
        # another process was faster, the process died while it wrote, or something else wrote
        except (OSError, ValueError, TypeError, KeyError):
            of, key = store, ""
        if of == store:
            yield Mark(path.stem, path, lock), key
        lock.release()
