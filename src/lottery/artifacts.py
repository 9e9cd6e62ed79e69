"""The files a stage leaves.

A level's folder holds no name, time or machine, so the same networks are the same bytes:

- ``masks.safetensors``: a bit a weight, uint8 [networks, bytes] a layer, packed as numpy.packbits does; its metadata
  say what the folder holds (`Contents`);
- ``weights.safetensors``: float32, ``initial.*`` (what training started from), ``final.*`` and
  ``early_stopping.*``; of dense also ``rewind.*``, where tickets are rewound to a later iteration than 0;
- ``history.csv``: arm, seed, iteration, train_loss, validation_loss, validation_accuracy, a row a network and
  evaluation; arms that start at different iterations have different numbers of rows;
- ``twins.safetensors``, where twins are asked for: the ``final.*`` of the second copies, with metadata of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lottery import LotteryError
from lottery.network import Masks, Parameters
from lottery.workplace import replacing

if TYPE_CHECKING:
    import pandas as pd

    from lottery.experiment import Level
    from lottery.training import Trained


@dataclass(frozen=True)
class Contents:
    """Which networks a level's folder holds: all seeds of the first arm, then of the next."""

    sizes: tuple[int, ...]
    path: tuple[float, ...]  # sparsities from dense to this level
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def networks(self) -> list[tuple[str, int]]:
        """(arm, seed) of each row."""
        return [(arm, seed) for arm in self.arms for seed in self.seeds]

    def rows(self, arm: str) -> slice:
        """An arm's rows."""
        first = self.arms.index(arm) * len(self.seeds)
        return slice(first, first + len(self.seeds))


def save_level(level: Level, folder: Path) -> None:
    """Write a trained level's folder; the old one stays until the new one is whole."""
    contents = Contents(level.start.sizes, level.path, level.arms, level.seeds)
    trained = level.trained
    weights = (
        _tensors("initial", level.start)
        | _tensors("final", trained.final)
        | _tensors("early_stopping", trained.early_stopping)
        | (_tensors("rewind", trained.rewind) if trained.rewind else {})
    )
    bits = [np.packbits(mask.flatten(1).numpy(), axis=1) for mask in level.masks]
    packed = {f"layer{i}": torch.from_numpy(layer) for i, layer in enumerate(bits)}
    with replacing(folder) as new:
        new.mkdir()
        (new / "masks.safetensors").write_bytes(save(packed, _metadata(contents)))
        (new / "weights.safetensors").write_bytes(save(weights))
        _history(contents, trained).to_csv(new / "history.csv", index=False, lineterminator="\n")
        if level.twins:
            arms, final = level.twins
            metadata = _metadata(replace(contents, arms=arms))
            (new / "twins.safetensors").write_bytes(save(_tensors("final", final), metadata))


def _metadata(contents: Contents) -> dict[str, str]:
    # one key: with several, safetensors writes them in another order each time
    return {"lottery": json.dumps(asdict(contents))}


def _tensors(name: str, parameters: Parameters) -> dict[str, Tensor]:
    tensors = {}
    for i, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
        tensors[f"{name}.layer{i}.weight"] = weight.contiguous()
        tensors[f"{name}.layer{i}.bias"] = bias.squeeze(1).contiguous()
    return tensors


def _history(contents: Contents, trained: Trained) -> pd.DataFrame:
    import pandas as pd  # which the tracking thread has imported by now, while nobody waited for it

    networks = zip(contents.networks, trained.histories, strict=True)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "arm": arm,
                    "seed": seed,
                    "iteration": history.iterations,
                    "train_loss": history.train_loss,
                    "validation_loss": history.validation_loss,
                    "validation_accuracy": history.validation_accuracy,
                }
            )
            for (arm, seed), history in networks
        ]
    )


def load_contents(folder: Path) -> Contents:
    """What a level's folder holds."""
    with _opened(folder / "masks.safetensors") as file:
        return _contents(file)


def _contents(file: Any) -> Contents:
    stored = json.loads(file.metadata()["lottery"])
    return Contents(**{key: tuple(value) for key, value in stored.items()})


def load_masks(folder: Path) -> Masks:
    """The masks of all networks of a level."""
    contents = load_contents(folder)
    with _opened(folder / "masks.safetensors") as file:
        layers = [np.unpackbits(file.get_tensor(f"layer{i}").numpy(), axis=1) for i in range(len(contents.sizes) - 1)]
        return tuple(
            torch.from_numpy(bits[:, : n * m].astype(bool)).view(len(contents.networks), n, m)
            for bits, (n, m) in zip(layers, pairwise(contents.sizes), strict=True)
        )


def load_parameters(folder: Path, name: Literal["initial", "final", "early_stopping", "rewind"]) -> Parameters:
    """The parameters of all networks of a level: what they started from, ended with, or had at another iteration."""
    contents = load_contents(folder)
    with _opened(folder / "weights.safetensors") as file:
        return _parameters(file, name, contents)


def load_twins(folder: Path) -> tuple[tuple[str, ...], Parameters] | None:
    """The arms of a level that have twins and the twins' final parameters, all seeds of the first arm first.

    None where the level has no twins.
    """
    path = folder / "twins.safetensors"
    if not path.exists():
        return None
    with _opened(path) as file:
        contents = _contents(file)
        return contents.arms, _parameters(file, "final", contents)


def _parameters(file: Any, name: str, contents: Contents) -> Parameters:
    parameters = Parameters.zeros(len(contents.networks), contents.sizes)
    for i, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
        weight.copy_(file.get_tensor(f"{name}.layer{i}.weight"))
        bias.squeeze(1).copy_(file.get_tensor(f"{name}.layer{i}.bias"))
    return parameters


def load_history(folder: Path) -> pd.DataFrame:
    """A level's history, a row for each network and evaluated iteration."""
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
    first = {arm: axes.get((arm, contents.seeds[0])) for arm in contents.arms}
    alike = all(axis == first[arm] for (arm, _), axis in axes.items())
    return list(axes) == contents.networks and alike and len(ends) == 1


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
