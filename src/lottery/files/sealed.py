"""Files of tensors that say what they hold, and in which no altered bit goes unnoticed.

A sealed file is a safetensors file. Its metadata are facts about the tensors, in JSON's types, with the SHA-256 sum of
each tensor; the seal is the sum of all these. Who has the seal of a file knows all that is in it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lottery import LotteryError
from lottery.files.workplace import REFUSED, lacks_memory

SUMS = "SHA256SUMS"  # of a folder's other files, as `sha256sum -c` reads them
# remedies; of the first: DVC takes what it linked from its cache for whole, and then the cache's copy is damaged too
MEND = "`lottery doctor --mend` removes what is damaged, in DVC's cache too, and `dvc repro` makes it anew"
MISSING = "`dvc repro` makes it, `dvc checkout` restores a version that was here before"
OLDER = "the code of its commit reads it, and `dvc repro` makes it anew"
REMAKE = "`dvc repro --force --single-item evaluate` makes it anew"


class DamagedError(Exception):
    """A file is not what was written: missing, truncated, altered, or of an older version of this project."""

    def __init__(self, why: str, remedy: str = MEND) -> None:
        super().__init__(why)
        self.remedy = remedy

    def of(self, path: Path) -> LotteryError:
        """The error's one line, for the file of this path."""
        return LotteryError(f"{path}: {self}; {self.remedy}")


@dataclass(frozen=True)
class Sealed:
    """A sealed file that is open: its facts, its seal, and its tensors, each verified as it is read."""

    facts: Mapping[str, Any]
    seal: str
    _sums: Mapping[str, str]
    _file: Any

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return list(self._sums)

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def __getitem__(self, name: str) -> Tensor:
        """A tensor. Raises DamagedError."""
        tensor: Tensor = self._file.get_tensor(name)
        if digest_of_tensor(tensor) != self._sums.get(name):
            raise DamagedError(f"{name} is altered")
        return tensor


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[bytes, str]:
    """The content of a sealed file, and its seal."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = {"facts": dict(facts), "sums": {name: digest_of_tensor(tensor) for name, tensor in tensors.items()}}
    seal = _seal(content)
    try:
        # one key: with several, safetensors writes them in another order each time
        return save(tensors, {"lottery": json.dumps(content | {"seal": seal})}), seal
    except BaseException as error:  # a panic of Rust is no Exception, and has no name to import
        if type(error).__name__ == "PanicException":
            raise MemoryError("safetensors was given no memory") from error
        raise


@contextmanager
def opened(path: Path) -> Iterator[Sealed]:
    """Open a sealed file. Whatever is wrong with it, met on opening or in the block, is a DamagedError.

    Raises LotteryError where the system does not let it be read, and MemoryError.
    """
    try:
        path.open("rb").close()
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get("lottery", "{}"))
            if "seal" not in content:
                raise DamagedError("it has no checksum, as an older version of this project left it", OLDER)
            seal = content.pop("seal")
            if seal != _seal(content):
                raise DamagedError("its metadata are altered")
            yield Sealed(content["facts"], seal, content["sums"], file)
    except FileNotFoundError as error:
        raise DamagedError("missing", MISSING) from error
    except (SafetensorError, OSError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        if isinstance(error, OSError) and error.errno in REFUSED:
            raise LotteryError(f"{path}: cannot be read: {error.strerror}; see to it that it can") from error
        raise DamagedError("truncated or altered") from error


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of_tensor(tensor: Tensor) -> str:
    """The SHA-256 sum of a tensor: its type, its shape, and its values in their order."""
    total = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()


def seal_folder(folder: Path) -> None:
    """Write the sums of a folder's files into it."""
    lines = [f"{_digest(file)}  {file.name}\n" for file in sorted(folder.iterdir()) if file.name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def verify_folder(folder: Path) -> None:
    """Raise LotteryError, which names the file, where one of a folder's files is not what was written."""
    try:
        sums = dict(line.split("  ")[::-1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise DamagedError("missing or altered", REMAKE).of(folder / SUMS) from error
    for name in sorted(sums.keys() | {file.name for file in folder.iterdir()} - {SUMS}):
        if not (folder / name).is_file():
            raise DamagedError(f"missing, yet {SUMS} names it", REMAKE).of(folder / name)
        if _digest(folder / name) != sums.get(name):
            raise DamagedError(f"not what {SUMS} beside it says", REMAKE).of(folder / name)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
