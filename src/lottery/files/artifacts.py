"""The files a stage leaves.

A level's folder holds no name, time or machine, so the same networks are the same bytes:

- ``masks.safetensors``: one bit per weight, uint8 [networks, bytes] per layer, packed as numpy.packbits does; its
  metadata say what the folder holds (`Contents`);
- ``weights.safetensors``: float32, ``initial.*`` (what training started from), ``final.*`` and
  ``early_stopping.*``; of dense also ``rewind.*``, where tickets are rewound to a later iteration than 0;
- ``history.csv``: arm, seed, iteration, train_loss, validation_loss, validation_accuracy, one row per network
  and evaluation; arms that start at different iterations have different numbers of rows;
- ``twins.safetensors``, where twins are asked for: the ``final.*`` of the second copies, with metadata of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lottery import LotteryError
from lottery.core.arms import Rows
from lottery.core.layout import Layout, described, description
from lottery.core.stack import Masks, Stack, everything
from lottery.files.workplace import replacing

if TYPE_CHECKING:
    import pandas as pd

    from lottery.core.experiment import Level
    from lottery.core.training import Trained


@dataclass(frozen=True)
class Contents:
    """Which networks a level's folder holds."""

    layout: Layout
    path: tuple[float, ...]  # sparsities from dense to this level
    rows: Rows


def save_level(level: Level, folder: Path) -> None:
    """Write a trained level's folder; the old one stays until the new one is whole."""
    contents = Contents(level.start.layout, level.path, level.rows)
    trained = level.trained
    states = {"initial": level.start, "final": trained.final, "early_stopping": trained.early_stopping}
    weights = _tensors(states | ({"rewind": trained.rewound} if trained.rewound else {}))
    packed = {
        piece.layer: torch.from_numpy(np.packbits(mask.flatten(1).numpy(), axis=1))
        for piece, mask in zip(contents.layout.weights, level.masks.weights, strict=True)
    }
    with replacing(folder) as new:
        new.mkdir()
        (new / "masks.safetensors").write_bytes(save(packed, _metadata(contents)))
        (new / "weights.safetensors").write_bytes(save(weights))
        _history(contents, trained).to_csv(new / "history.csv", index=False, lineterminator="\n")
        if level.twins:
            rows, final = level.twins
            metadata = _metadata(replace(contents, rows=rows))
            (new / "twins.safetensors").write_bytes(save(_tensors({"final": final}), metadata))


def _metadata(contents: Contents) -> dict[str, str]:
    rows = {"arms": contents.rows.arms, "seeds": contents.rows.seeds}
    # one key: with several, safetensors writes them in another order each time
    return {"lottery": json.dumps(description(contents.layout) | {"path": contents.path} | rows)}


def _tensors(states: dict[str, Stack]) -> dict[str, Tensor]:
    return {
        f"{state}.{piece.name}": networks[piece.name].contiguous()
        for state, networks in states.items()
        for piece in networks.layout.pieces
    }


def _history(contents: Contents, trained: Trained) -> pd.DataFrame:
    import pandas as pd  # which the tracking thread has imported by now, while nobody waited for it

    networks = zip(contents.rows, trained.histories, strict=True)
    tables = [pd.DataFrame({"arm": arm, "seed": seed, **vars(history)}) for (arm, seed), history in networks]
    return pd.concat(tables).rename(columns={"iterations": "iteration"})


def load_contents(folder: Path) -> Contents:
    """Read which networks a level's folder holds."""
    with _opened(folder / "masks.safetensors") as file:
        return _contents(file)


def _contents(file: Any) -> Contents:
    stored: dict[str, Any] = json.loads(file.metadata()["lottery"])
    path, arms, seeds = (tuple(stored.pop(key)) for key in ("path", "arms", "seeds"))
    return Contents(described(**stored), path, Rows(arms, seeds))


def load_masks(folder: Path) -> Masks:
    """The masks of all networks of a level."""
    contents = load_contents(folder)
    masks = everything(len(contents.rows), contents.layout)
    with _opened(folder / "masks.safetensors") as file:
        for piece in contents.layout.weights:
            bits = np.unpackbits(file.get_tensor(piece.layer).numpy(), axis=1)[:, : piece.size]
            masks[piece.name].copy_(torch.from_numpy(bits.astype(bool)).view(len(masks), *piece.shape))
    return masks


State = Literal["initial", "final", "early_stopping"]  # what networks started from, ended with, had at their iteration


def load_parameters(folder: Path, state: State) -> Stack:
    """The parameters of all networks of a level in one state."""
    contents = load_contents(folder)
    with _opened(folder / "weights.safetensors") as file:
        return _parameters(file, state, contents)


def load_rewound(folder: Path) -> Stack:
    """The dense networks of that folder at the iteration of ``prune.rewind``, from which tickets start."""
    contents = load_contents(folder)
    with _opened(folder / "weights.safetensors") as file:
        rewound = any(name.startswith("rewind.") for name in file.keys())  # noqa: SIM118
        return _parameters(file, "rewind" if rewound else "initial", contents)


def load_twins(folder: Path) -> tuple[Rows, Stack] | None:
    """Which networks of a level have twins, and the twins' final parameters; None where the level has no twins."""
    path = folder / "twins.safetensors"
    if not path.exists():
        return None
    with _opened(path) as file:
        contents = _contents(file)
        return contents.rows, _parameters(file, "final", contents)


def _parameters(file: Any, state: str, contents: Contents) -> Stack:
    networks = Stack.zeros(len(contents.rows), contents.layout)
    for piece in contents.layout.pieces:
        networks[piece.name].copy_(file.get_tensor(f"{state}.{piece.name}"))
    return networks


def load_history(folder: Path) -> pd.DataFrame:
    """A level's history, one row per network and evaluated iteration."""
    import pandas as pd

    path, contents = folder / "history.csv", load_contents(folder)
    try:
        text = path.read_text(encoding="utf-8")
        history = pd.read_csv(StringIO(text))
        whole = text.endswith("\n") and _is_whole(history, contents)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    return history


def _is_whole(history: pd.DataFrame, contents: Contents) -> bool:
    """Whether all networks are there, an arm's all evaluated at the same iterations, and every arm to the end."""
    networks = history.groupby(["arm", "seed"], sort=False)["iteration"]
    axes = {network: tuple(iterations) for network, iterations in networks}
    ends = {axis[-1] for axis in axes.values()}
    first = {arm: axes.get((arm, contents.rows.seeds[0])) for arm in contents.rows.arms}
    alike = all(axis == first[arm] for (arm, _), axis in axes.items())
    return list(axes) == list(contents.rows) and alike and len(ends) == 1


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose every fault, met on opening or on reading, is a LotteryError that names it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> LotteryError:
    return LotteryError(f"{path}: missing, truncated or altered; `dvc repro` makes it, `dvc checkout` restores it")
