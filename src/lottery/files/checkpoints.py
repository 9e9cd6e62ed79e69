"""Saved states of the networks that a stage trains, from which its next run goes on.

They lie in ``.lottery/checkpoints/KEY/``, a file per network, outside DVC's outputs, which DVC deletes before it runs a
stage; `key` says what KEY is. The folder of a stage that trained to its end goes when another stage begins, and not
before: until DVC has recorded the stage's outputs, a kill makes it run again.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch

from lottery import LotteryError
from lottery.core.images import Split
from lottery.core.stack import Masks, Stack
from lottery.core.training import Group, State, Task
from lottery.files.sealed import DamagedError, digest_of_tensor, sealed
from lottery.files.sealed import opened as opened_file
from lottery.files.workplace import durable, locked, root

TRAINED = "trained"  # an empty file in the folder of a stage that trained to its end


def key(inputs: Mapping[str, object], split: Split, start: Stack, masks: Masks, tasks: Sequence[Task]) -> str:
    """The name of all that decides how a stage trains its networks, another where any of it differs.

    - ``inputs``, the content of the sources that dvc.yaml lists for the stage and the stage's parameters: they say how
      to train and how a state is written;
    - ``split``, the images, their order and their scaling, by which the pixels of a state are arranged;
    - ``start`` and ``masks``, which hold all that the dense and the parent's networks decide;
    - ``tasks``, one per network: its seed, path and recipe fix its batches and learning rates;
    - the versions of torch and numpy and the processor's capability, by which torch chooses its operators, because
      other operators round in another way.

    The number of threads is not in it, because no network's bits depend on what it is stacked with.
    """
    images = [tensor for part in (split.train, split.validation) for tensor in (part.pixels, part.labels)]
    parts = {
        "inputs": dict(inputs),
        "tensors": [digest_of_tensor(tensor) for tensor in (*images, start.flat, masks.flat)],
        "scaling": repr(split.scaling),
        "tasks": [task.key for task in tasks],
        "versions": [torch.__version__, np.__version__],
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass
class Checkpoints:
    """The saved states of the networks of one stage."""

    folder: Path
    every: float  # seconds between two times that all are saved
    _kept: dict[int, State] = field(default_factory=dict)  # not saved yet, by the row of their first network
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoints"))
    _writing: Future[None] | None = None
    _begun: float = field(default_factory=time.monotonic)  # when that was, or the stage

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
        self._kept[group.first] = group.state.rows(slice(None))
        if time.monotonic() - self._begun >= self.every and (self._writing is None or self._writing.done()):
            self._begun = time.monotonic()
            self._writing = self._writer.submit(self._write, dict(self._kept))
            self._kept.clear()

    def save(self) -> None:
        """Save all that is kept."""
        if self._writing:
            self._writing.result()
        self._write(self._kept)
        self._kept.clear()

    def _write(self, kept: Mapping[int, State]) -> None:
        if math.isinf(self.every):
            return
        try:
            for first, states in kept.items():
                for place in range(len(states.parameters)):
                    content, _ = sealed(states.rows(slice(place, place + 1)).tensors(), {})
                    with durable(self.folder / f"{first + place}.safetensors") as path:
                        path.write_bytes(content)
        except OSError as error:  # it costs no result
            self.every = math.inf
            what = f"{error.filename or self.folder}: {error.strerror}"
            print(f"{what}: training goes on without checkpoints", file=sys.stderr)


@contextmanager
def opened(name: str, every: float, stage: str, inputs: Mapping[str, object]) -> Iterator[Checkpoints]:
    """The checkpoints of this `key`, for this process alone; however the block ends, all that is kept is saved.

    Raises LotteryError where another process has them.
    """
    folder = _folder() / name
    with locked(folder / "lock", stage, "trains the same networks in another folder"):
        remove_trained()
        (folder / "about.json").write_text(json.dumps({"stage": stage, "inputs": dict(inputs)}, indent=2))
        checkpoints = Checkpoints(folder, every)
        try:
            yield checkpoints
            checkpoints.save()
            (folder / TRAINED).touch()
        except BaseException:
            checkpoints.save()
            raise


def remove_trained() -> None:
    """Remove the folders of stages that trained to their ends, and that no process has open."""
    for folder in _folder().glob("*/"):
        with suppress(LotteryError), locked(folder / "lock", "", "", patience=0):
            if (folder / TRAINED).exists():
                rmtree(folder)


def _folder() -> Path:
    return root() / ".lottery" / "checkpoints"
