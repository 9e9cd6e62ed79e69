"""Saved states of the networks that a stage trains, from which its next run goes on.

They lie in ``.lottery/checkpoints/KEY/``, a file per network, outside DVC's outputs, which DVC deletes before it runs a
stage; `key` says what KEY is. The folder of a stage that trained to its end goes when another stage begins, and not
before: until DVC has recorded the stage's outputs, a kill makes it run again.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from threading import Lock

import numpy as np
import torch

from lottery.core.images import Split
from lottery.core.stack import Masks, Stack
from lottery.core.training import Group, State, Task
from lottery.files.sealed import DamagedError, digest_of_tensor, sealed
from lottery.files.sealed import opened as opened_file
from lottery.files.workplace import HeldError, durable, lacks_memory, locked, root

OPERATORS = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_")  # begin the names of variables
TRAINED = "trained"  # an empty file in the folder of a stage that trained to its end


def key(inputs: Mapping[str, object], split: Split, start: Stack, masks: Masks, tasks: Sequence[Task]) -> str:
    """The name of all that decides how a stage trains its networks, another where any of it differs.

    - ``inputs``, the content of the sources that dvc.yaml lists for the stage and the stage's parameters: they say how
      to train and how a state is written;
    - ``split``, the images, their order and their scaling, by which the pixels of a state are arranged;
    - ``start`` and ``masks``, which hold all that the dense and the parent's networks decide;
    - ``tasks``, one per network: its seed, path and recipe fix its batches and learning rates;
    - `operators`, because other operators round in another way.

    The number of threads is not in it, because no network's bits depend on what it is stacked with.
    """
    images = [tensor for part in (split.train, split.validation) for tensor in (part.pixels, part.labels)]
    parts = {
        "inputs": dict(inputs),
        "tensors": [digest_of_tensor(tensor) for tensor in (*images, start.flat, masks.flat)],
        "scaling": repr(split.scaling),
        "tasks": [task.key for task in tasks],
        "operators": operators(),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def operators() -> dict[str, str]:
    """What torch's and numpy's operators are chosen by: their versions, the processor, and variables."""
    variables = sorted(each for each in os.environ.items() if each[0].startswith(OPERATORS))
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": ", ".join([torch.backends.cpu.get_cpu_capability(), *_processor()]),
        "variables": ", ".join(f"{name}={value}" for name, value in variables),
    }


def _processor() -> list[str]:
    """The vendor, family and model of the processor, by which MKL chooses its operators; empty but on Linux."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        named = (line.partition(":") for line in lines if line.startswith(("vendor_id", "cpu family", "model")))
        return [f"{name.strip()} {value.strip()}" for name, _, value in named]
    return []


@dataclass
class Checkpoints:
    """The saved states of the networks of one stage."""

    folder: Path
    every: float  # seconds between two times that all are saved
    _kept: dict[int, State] = field(default_factory=dict)  # each group's last one, by the row of its first network
    _spare: dict[int, State] = field(default_factory=dict)  # the memory for each group's next one
    _sealing: State | None = None  # being written: nobody may copy into it
    _unsaved: set[int] = field(default_factory=set)  # the first rows of those that are not saved yet
    _lock: Lock = field(default_factory=Lock)  # of the four above
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoints"))
    _writing: Future[None] | None = None
    _begun: float = field(default_factory=time.monotonic)  # when the last writing began, or the stage
    _failed: bool = False

    def load(self, row: int, task: Task) -> State | None:
        """The saved state of a row's network; None where there is none, or, after a line, where it is damaged."""
        path = self.folder / f"{row}.safetensors"
        if not path.exists():
            return None
        try:
            with opened_file(path) as file:
                return State.of({name: file[name] for name in State.names()}, task.layout)
        except DamagedError as error:
            print(f"{path}: {error}; its network trains from its start", file=sys.stderr)
        return None

    def saved_at(self) -> datetime:
        """The time at which the last of them was saved."""
        return datetime.fromtimestamp(max(file.stat().st_mtime for file in self.folder.glob("*.safetensors")))

    def keep(self, group: Group) -> None:
        """Keep a copy of a group's state, which nobody may be changing, and save all kept ones when it is time."""
        try:
            self._copy(group)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            self._tell(error)
        if time.monotonic() - self._begun >= self.every and (self._writing is None or self._writing.done()):
            self._begun = time.monotonic()
            self._writing = self._writer.submit(self._write)

    def _copy(self, group: Group) -> None:
        with self._lock:
            copy, before = self._spare.pop(group.first, None), self._kept.get(group.first)
            if copy and len(copy.parameters) == len(group.state.parameters):  # not before an engine parted its group
                copy.copy_from(group.state)
            else:
                copy = group.state.copy()
            self._kept[group.first] = copy  # whole: what a signal interrupts is not kept
            self._unsaved.add(group.first)
            if before and before is not self._sealing:
                self._spare[group.first] = before

    def save(self) -> None:
        """Save all that is kept."""
        self._writer.submit(self._write).result()

    def finish(self) -> None:
        """Wait for what is being saved."""
        self._writer.submit(lambda: None).result()

    def _write(self) -> None:
        """Write what is not saved yet, in the writer's thread; what cannot be written is left for the next time."""
        for first in sorted(self._unsaved):
            with self._lock:
                state = self._sealing = self._kept[first]
                self._unsaved.discard(first)
            try:
                for row in range(len(state.parameters)):
                    content, _ = sealed(state.rows(slice(row, row + 1)).tensors(), {})
                    with durable(self.folder / f"{first + row}.safetensors") as path:
                        path.write_bytes(content)
            except Exception as error:  # whatever it is, it costs no result
                self._unsaved.add(first)
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Say, once, why what was trained cannot be saved."""
        if not self._failed:
            where, why = str(self.folder), "no memory" if lacks_memory(error) else str(error)
            if isinstance(error, OSError) and error.strerror:
                where, why = error.filename or where, error.strerror
            print(f"{where}: {why}: training goes on without checkpoints until they can be written", file=sys.stderr)
        self._failed = True


@contextmanager
def opened(
    name: str, every: float, stage: str, inputs: Mapping[str, object], ahead: bool = False
) -> Iterator[Checkpoints | None]:
    """The checkpoints of this `key`, for this process alone; where the block is interrupted, all that is kept is saved.

    None, after a line, where another process has them, as two DVC experiments may that differ in later levels alone.
    ``ahead``: they are for a stage that comes later, and stay until that has trained.
    """
    folder = _folder() / name
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock"))
        except HeldError as holder:
            line = f"{stage}: process {holder} trains the same networks; this one trains them too, without checkpoints"
            print(line, file=sys.stderr)
            yield None
            return
        if not ahead:
            remove_trained()
        with suppress(OSError):
            (folder / TRAINED).unlink(missing_ok=True)
            with durable(folder / "about.json") as path:
                path.write_text(json.dumps({"stage": stage, "inputs": dict(inputs)}, indent=2))
        checkpoints = Checkpoints(folder, every)
        try:
            yield checkpoints
        except BaseException:
            checkpoints.save()
            raise
        if ahead:
            checkpoints.save()
            return
        checkpoints.finish()
        with suppress(OSError):
            (folder / TRAINED).touch()


def remove_trained() -> None:
    """Remove the folders of stages that trained to their ends, and that no process has open."""
    remove(lambda folder: (folder / TRAINED).exists())


def remove(is_old: Callable[[Path], bool]) -> list[tuple[Path, int]]:
    """Remove the folders of checkpoints that are old, and that no process has open: them, and their bytes."""
    removed = []
    for folder in _folder().glob("*/"):
        with suppress(HeldError, OSError), locked(folder / "lock", patience=0):
            if is_old(folder):
                removed.append((folder, sum(file.stat().st_size for file in folder.iterdir())))
                rmtree(folder, ignore_errors=True)
    return removed


def _folder() -> Path:
    return root() / ".lottery" / "checkpoints"
