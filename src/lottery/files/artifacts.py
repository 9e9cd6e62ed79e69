"""The files a stage leaves.

A level's folder holds no name, time or machine, so the same networks are the same bytes:

- ``masks.safetensors``: one bit per weight, uint8 [networks, bytes] per layer, packed as numpy.packbits does; its facts
  say what the folder holds and what it was made from (`Contents`), and seal the folder's other files;
- ``weights.safetensors``: float32, ``initial.*`` (what training started from), ``final.*`` and
  ``early_stopping.*``; of dense also ``rewind.*``, where tickets are rewound to a later iteration than 0;
- ``history.csv``: arm, seed, iteration, train_loss, validation_loss, validation_accuracy, one row per network
  and evaluation; arms that start at different iterations have different numbers of rows;
- ``twins.safetensors``, where twins are asked for: the ``final.*`` of the second copies; its facts say of which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lottery.core.arms import Rows
from lottery.core.layout import Layout, described, description
from lottery.core.stack import Masks, Stack, everything
from lottery.files import data
from lottery.files.sealed import MISSING, DamagedError, Sealed, opened, sealed
from lottery.files.workplace import replacing

if TYPE_CHECKING:
    import pandas as pd

    from lottery.core.experiment import Level
    from lottery.core.training import Trained


MASKS, WEIGHTS, HISTORY, TWINS = "masks.safetensors", "weights.safetensors", "history.csv", "twins.safetensors"


@dataclass(frozen=True)
class Contents:
    """What a level's folder holds."""

    layout: Layout
    path: tuple[float, ...]  # sparsities from dense to this level
    rows: Rows
    made_from: Mapping[str, str] = field(default_factory=dict, compare=False)  # the seals of data, dense and parent
    mixed: bool = False  # trained where torch, numpy or the processor may have been others than the stage's
    device: str = ""  # the GPU that they were trained on; empty: a processor
    seal: str = field(default="", compare=False)  # stands for all that is in the folder


def save_level(level: Level, folder: Path, made_from: Mapping[str, str], mixed: bool = False, device: str = "") -> None:
    """Write a trained level's folder; the old one stays until the new one is whole."""
    trained, layout = level.trained, level.start.layout
    states = {"initial": level.start, "final": trained.final, "early_stopping": trained.early_stopping}
    states |= {"rewind": trained.rewound} if trained.rewound else {}
    packed = {
        piece.layer: torch.from_numpy(np.packbits(mask.flatten(1).numpy(), axis=1))
        for piece, mask in zip(layout.weights, level.masks.weights, strict=True)
    }
    with replacing(folder) as new:
        new.mkdir()
        seals = {}
        weights, seals[WEIGHTS] = sealed(_tensors(states), {})
        (new / WEIGHTS).write_bytes(weights)
        del weights  # as many bytes as the networks
        if level.twins:
            rows, final = level.twins
            twins, seals[TWINS] = sealed(_tensors({"final": final}), _facts(layout, level.path, rows))
            (new / TWINS).write_bytes(twins)
        history = _history(level.rows, trained).to_csv(index=False, lineterminator="\n").encode()
        (new / HISTORY).write_bytes(history)
        seals[HISTORY] = hashlib.sha256(history).hexdigest()
        facts = _facts(layout, level.path, level.rows) | {"made_from": dict(made_from), "files": seals}
        facts |= ({"mixed": True} if mixed else {}) | ({"device": device} if device else {})
        masks, _ = sealed(packed, facts)
        (new / MASKS).write_bytes(masks)


def made_from(data_file: Path, levels: Mapping[str, Path]) -> dict[str, str]:
    """The seals of what a level's networks are made from: the data, and by what they are to it folders of levels."""
    return {"data": data.seal(data_file)} | {name: load_contents(folder).seal for name, folder in levels.items()}


def _facts(layout: Layout, path: tuple[float, ...], rows: Rows) -> dict[str, Any]:
    return description(layout) | {"path": path, "arms": rows.arms, "seeds": rows.seeds}


def _tensors(states: dict[str, Stack]) -> dict[str, Tensor]:
    return {
        f"{state}.{piece.name}": networks[piece.name].contiguous()
        for state, networks in states.items()
        for piece in networks.layout.pieces
    }


def _history(rows: Rows, trained: Trained) -> pd.DataFrame:
    import pandas as pd  # which the tracking thread has imported by now, while nobody waited for it

    networks = zip(rows, trained.histories, strict=True)
    tables = [pd.DataFrame({"arm": arm, "seed": seed, **vars(history)}) for (arm, seed), history in networks]
    return pd.concat(tables).rename(columns={"iterations": "iteration"})


def load_contents(folder: Path) -> Contents:
    """Read what a level's folder holds."""
    with _opened(folder / MASKS) as file:
        return _contents(file)


def _contents(file: Sealed) -> Contents:
    facts = dict(file.facts)
    facts.pop("files", None)
    made_from, mixed, device = facts.pop("made_from", {}), facts.pop("mixed", False), facts.pop("device", "")
    path, arms, seeds = (tuple(facts.pop(key)) for key in ("path", "arms", "seeds"))
    return Contents(described(**facts), path, Rows(arms, seeds), made_from, mixed, device, file.seal)


def load_masks(folder: Path) -> Masks:
    """The masks of all networks of a level."""
    with _opened(folder / MASKS) as file:
        contents = _contents(file)
        masks = everything(len(contents.rows), contents.layout)
        for piece in contents.layout.weights:
            bits = np.unpackbits(file[piece.layer].numpy(), axis=1)[:, : piece.size]
            masks[piece.name].copy_(torch.from_numpy(bits.astype(bool)).view(len(masks), *piece.shape))
    return masks


State = Literal["initial", "final", "early_stopping"]  # what networks started from, ended with, had at their iteration


def load_parameters(folder: Path, state: State) -> Stack:
    """The parameters of all networks of a level in one state."""
    with _part(folder, WEIGHTS) as (file, contents):
        return _parameters(file, state, contents)


def load_rewound(folder: Path) -> Stack:
    """The dense networks of that folder at the iteration of ``prune.rewind``, from which tickets start."""
    with _part(folder, WEIGHTS) as (file, contents):
        rewound = f"rewind.{contents.layout.pieces[0].name}" in file
        return _parameters(file, "rewind" if rewound else "initial", contents)


def load_twins(folder: Path) -> tuple[Rows, Stack] | None:
    """Which networks of a level have twins, and the twins' final parameters; None where the level has no twins."""
    if TWINS not in _seals(folder):
        return None
    with _part(folder, TWINS) as (file, _):
        contents = _contents(file)
        return contents.rows, _parameters(file, "final", contents)


def _parameters(file: Sealed, state: str, contents: Contents) -> Stack:
    networks = Stack.zeros(len(contents.rows), contents.layout)
    for piece in contents.layout.pieces:
        networks[piece.name].copy_(file[f"{state}.{piece.name}"])
    return networks


def load_history(folder: Path) -> pd.DataFrame:
    """A level's history, one row per network and evaluated iteration."""
    import pandas as pd

    path, seals = folder / HISTORY, _seals(folder)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError("missing", MISSING).of(path) from error
    if hashlib.sha256(content).hexdigest() != seals[HISTORY]:
        raise DamagedError("truncated or altered").of(path)
    return pd.read_csv(BytesIO(content))


def _seals(folder: Path) -> dict[str, str]:
    """The seals of the other files of a folder."""
    with _opened(folder / MASKS) as file:
        seals: dict[str, str] = file.facts["files"]
        return seals


def verify_level(folder: Path) -> None:
    """Raise LotteryError where a file of a level's folder is missing or damaged."""
    load_masks(folder)
    load_history(folder)
    load_twins(folder)
    with _part(folder, WEIGHTS) as (file, _):
        for name in file.names:
            file[name]


@contextmanager
def _part(folder: Path, name: str) -> Iterator[tuple[Sealed, Contents]]:
    """A file of a folder that its masks seal, and what the folder holds."""
    seals, contents = _seals(folder), load_contents(folder)
    with _opened(folder / name) as file:
        if file.seal != seals[name]:
            raise DamagedError(f"it is of other networks than {MASKS} beside it")
        yield file, contents


@contextmanager
def _opened(path: Path) -> Iterator[Sealed]:
    """A sealed file whose every fault, met on opening or in the block, is a LotteryError that names it."""
    try:
        with opened(path) as file:
            yield file
    except DamagedError as error:
        raise error.of(path) from error
