"""The files a stage leaves.

A level's folder holds no name, time or machine, so the same networks are the same bytes:

- ``masks.safetensors``: a bit a weight, uint8 [networks, bytes] a layer, packed as numpy.packbits does; its metadata
  say what the folder holds (`Contents`);
- ``weights.safetensors``: float32, ``initial.*`` (what training started from), ``final.*`` and
  ``early_stopping.*``;
- ``history.csv``: arm, seed, iteration, train_loss, validation_loss, validation_accuracy.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lottery import LotteryError
from lottery.experiment import Level
from lottery.network import Masks, Parameters
from lottery.workplace import replacing


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
    weights = (
        _tensors("initial", level.start)
        | _tensors("final", level.trained.final)
        | _tensors("early_stopping", level.trained.early_stopping)
    )
    bits = [np.packbits(mask.flatten(1).numpy(), axis=1) for mask in level.masks]
    packed = {f"layer{i}": torch.from_numpy(layer) for i, layer in enumerate(bits)}
    with replacing(folder) as new:
        new.mkdir()
        # one key: with several, safetensors writes them in another order each time
        (new / "masks.safetensors").write_bytes(save(packed, {"lottery": json.dumps(asdict(contents))}))
        (new / "weights.safetensors").write_bytes(save(weights))
        _history(level).to_csv(new / "history.csv", index=False, lineterminator="\n")


def _tensors(name: str, parameters: Parameters) -> dict[str, Tensor]:
    tensors = {}
    for i, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
        tensors[f"{name}.layer{i}.weight"] = weight.contiguous()
        tensors[f"{name}.layer{i}.bias"] = bias.squeeze(1).contiguous()
    return tensors


def _history(level: Level) -> pd.DataFrame:
    history = level.trained.history
    evaluations = len(history.iterations)
    networks = [(arm, seed) for arm in level.arms for seed in level.seeds]
    return pd.DataFrame(
        {
            "arm": [arm for arm, _ in networks for _ in range(evaluations)],
            "seed": [seed for _, seed in networks for _ in range(evaluations)],
            "iteration": history.iterations * len(networks),
            "train_loss": history.train_loss.flatten(),
            "validation_loss": history.validation_loss.flatten(),
            "validation_accuracy": history.validation_accuracy.flatten(),
        }
    )


def load_contents(folder: Path) -> Contents:
    """What a level's folder holds."""
    with _opened(folder / "masks.safetensors") as file:
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


def load_parameters(folder: Path, name: Literal["initial", "final", "early_stopping"]) -> Parameters:
    """The ``initial``, ``final`` or ``early_stopping`` parameters of all networks of a level."""
    contents = load_contents(folder)
    parameters = Parameters.zeros(len(contents.networks), contents.sizes)
    with _opened(folder / "weights.safetensors") as file:
        for i, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
            weight.copy_(file.get_tensor(f"{name}.layer{i}.weight"))
            bias.squeeze(1).copy_(file.get_tensor(f"{name}.layer{i}.bias"))
    return parameters


def load_twins(folder: Path) -> tuple[tuple[str, ...], Parameters] | None:
    """The final parameters of the twins of a level's networks, and of which arms; None where it has no twins.

    Rows are all seeds of the first of these arms, then of the next.
    """
    path = folder / "twins.safetensors"
    if not path.exists():
        return None
    contents = load_contents(folder)
    with _opened(path) as file:
        arms = tuple(json.loads(file.metadata()["arms"]))
        parameters = Parameters.zeros(len(arms) * len(contents.seeds), contents.sizes)
        for i, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
            weight.copy_(file.get_tensor(f"final.layer{i}.weight"))
            bias.squeeze(1).copy_(file.get_tensor(f"final.layer{i}.bias"))
    return arms, parameters


def load_history(folder: Path) -> pd.DataFrame:
    """A level's history, a row for each network and evaluated iteration."""
    path, networks = folder / "history.csv", load_contents(folder).networks
    try:
        text = path.read_text()
        history = pd.read_csv(StringIO(text))
        whole = text.endswith("\n") and len(history) == len(networks) * history["iteration"].nunique()
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    return history


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
