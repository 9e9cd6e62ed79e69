"""`ticket.safetensors`: the kept weights of a network alone, with what is known of it.

Of each layer it has, in the order in which the weight lies in memory as C has it:

- ``LAYER.values``: the kept weights, float32 or float16
- ``LAYER.gaps``: uint8, where they are. A gap below 255 is the number of pruned weights before the next kept one; 255
  stands for as many pruned weights with no kept one after them. What comes after the last is pruned
- ``LAYER.bits``: in the place of gaps where they would take more: one bit per weight, 1 where it is kept, as
  numpy.packbits packs them. A layer of which nothing is pruned has neither
- what is never pruned under its own name, such as ``LAYER.bias``: float32
- with the initialization ``LAYER.initial_values``, ``LAYER.initial_bias`` and so on

The metadata have one key, ``lottery``: a JSON object with the format's ``version``, the ``facts``, and the SHA-256 sum
of these and of all tensors. No commit, name, time or machine is in it, so the same ticket is the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lottery import LotteryError
from lottery.core.layout import Layout, Piece, described, description
from lottery.ticket.ticket import Facts, Ticket

VERSION = 1
MOST_WEIGHTS = 2**27  # of a network that is read: half a gigabyte of float32
MOST_LAYERS = 1000
MOST_BYTES = 10 * MOST_WEIGHTS  # of a file: values, initial values and gaps, and as much again for its header
LONG = 255  # the gap that has no kept weight after it
TYPES = {"float32": np.float32, "half": np.float16}
ValueType = Literal["float32", "half"]
Array = NDArray[Any]


class _BrokenError(Exception):
    """A file is no ticket that can be read: why."""


def content(ticket: Ticket, values: ValueType = "float32") -> bytes:
    """The bytes of a ticket's file; with its initial values where it has them."""
    arrays: dict[str, Array] = {}
    layout = ticket.facts.layout
    for weight in layout.weights:
        mask = ticket.masks[weight.name]
        arrays |= {f"{weight.layer}.{name}": places for name, places in _places(mask.ravel()).items()}
        arrays[f"{weight.layer}.values"] = ticket.values[weight.name][mask].astype(TYPES[values])
        if ticket.initial:
            arrays[f"{weight.layer}.initial_values"] = ticket.initial[weight.name][mask]
    for piece in layout.others:
        arrays[piece.name] = ticket.values[piece.name]
        if ticket.initial:
            arrays[_initial(piece)] = ticket.initial[piece.name]
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    facts = asdict(ticket.facts) | {"layout": description(layout), "shapes": _shapes(layout)}
    for name in ("shift", "scale"):  # of one channel a number
        facts[name] = facts[name][0] if len(facts[name]) == 1 else facts[name]
    said: dict[str, Any] = {"version": VERSION, "facts": facts}
    # one key: with several, safetensors writes them in another order each time
    return save(arrays, {"lottery": json.dumps(said | {"sha256": _sum(said, arrays)})})


def load(path: str | Path) -> Ticket:
    """Read a ticket, with numpy and safetensors alone.

    Raises LotteryError where the file is missing, truncated or altered, of a newer version, or no ticket.
    """
    try:
        with Path(path).open("rb") as opened:
            if os.fstat(opened.fileno()).st_size > MOST_BYTES:
                raise _BrokenError(f"it has more than {MOST_BYTES} bytes, which no ticket has that can be read")
        with safe_open(path, framework="np") as file:
            said = json.loads((file.metadata() or {}).get("lottery", "{}"))
            if not isinstance(said, dict) or type(said.get("version")) is not int or said["version"] < 1:
                raise _BrokenError("it is no ticket; `lottery export` writes one")
            if said["version"] > VERSION:
                raise _BrokenError(f"its format is version {said['version']}, and this code reads {VERSION}; update it")
            _check_shapes(said["facts"]["shapes"], said["facts"]["layout"])  # before anything is made of them
            return _ticket(said, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except _BrokenError as error:
        raise LotteryError(f"{path}: {error}") from error
    except OSError as error:
        raise LotteryError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LotteryError(f"{path}: truncated or altered; `lottery export` writes it anew") from error


def _ticket(said: dict[str, Any], arrays: dict[str, Array]) -> Ticket:
    if said.pop("sha256") != _sum(said, arrays):
        raise _BrokenError("truncated or altered; `lottery export` writes it anew")
    facts = said["facts"]
    shapes = facts.pop("shapes")
    layout = described(**facts.pop("layout"))
    if _shapes(layout) != shapes:
        raise _BrokenError("its shapes are not those of its network")
    for name in ("shift", "scale"):
        facts[name] = tuple(facts[name]) if isinstance(facts[name], list) else (facts[name],)
    known = Facts(layout=layout, **facts | {"image": tuple(facts["image"])})
    numbers = (known.sparsity, known.accuracy, *known.shift, *known.scale)
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers) or min(known.scale) <= 0:
        raise _BrokenError(f"of sparsity, accuracy, shift and scale one is no number that may be: {numbers[:20]}")
    if math.prod(known.image) != layout.inputs:
        raise _BrokenError(f"its network reads {layout.inputs} pixels, and its images are {list(known.image)}")
    if not len(known.shift) == len(known.scale) or layout.inputs % len(known.shift):
        raise _BrokenError(f"it scales {len(known.shift)} channels, and its images are {list(known.image)}")
    own = {f"{piece.layer}.{name}" for piece in layout.weights for name in ("values", "bits", "gaps", "initial_values")}
    own |= {name for piece in layout.others for name in (piece.name, _initial(piece))}
    if strangers := arrays.keys() - own:
        raise _BrokenError(f"it has the tensor {min(strangers)}, which no ticket has")
    values: dict[str, Array] = {}
    initial: dict[str, Array] = {}
    masks: dict[str, Array] = {}
    has_initial = f"{layout.weights[0].layer}.initial_values" in arrays
    for weight in layout.weights:
        layer = weight.layer
        masks[weight.name] = mask = _mask(layer, weight.size, arrays).reshape(weight.shape)
        values[weight.name] = _values(mask, f"{layer}.values", arrays)
        if has_initial:
            initial[weight.name] = _values(mask, f"{layer}.initial_values", arrays)
    for piece in layout.others:
        values[piece.name] = _whole(piece, piece.name, arrays)
        if has_initial:
            initial[piece.name] = _whole(piece, _initial(piece), arrays)
    return Ticket(known, values, masks, initial or None)


def _initial(piece: Piece) -> str:
    """The name of the initial values of what is never pruned."""
    return f"{piece.layer}.initial_{piece.name.rpartition('.')[2]}"


def _check_shapes(shapes: dict[str, list[int]], layout: dict[str, Any]) -> None:
    """Refuse what would take memory or time without an end: a file of a kilobyte can name a terabyte."""
    others = [shape for _, _, shape, _ in layout.get("pieces", [])]
    named = [*shapes.values(), *others, layout.get("sizes", []), layout.get("example", []), [layout.get("classes", 1)]]
    sizes = [size for shape in named for size in shape]
    few = len(shapes) <= MOST_LAYERS and len(others) <= 6 * MOST_LAYERS and len(sizes) <= 20 * MOST_LAYERS
    if not few or not all(type(size) is int for size in sizes):
        said = f"{len(shapes)} layers and {len(sizes)} sizes"
        raise _BrokenError(f"it names {said}; at most {MOST_LAYERS} layers are read, and sizes are whole numbers")
    if not all(0 < size <= MOST_WEIGHTS for size in sizes):
        raise _BrokenError(f"it names a size that is not from 1 to {MOST_WEIGHTS}")
    for each in (shapes.values(), others):
        if (weights := sum(map(math.prod, each))) > MOST_WEIGHTS:
            raise _BrokenError(f"it names {weights} weights; at most {MOST_WEIGHTS} are read")


def _values(mask: Array, name: str, arrays: Mapping[str, Array]) -> Array:
    """A layer's weight, from its kept weights."""
    kept = arrays[name]
    if kept.shape != (int(mask.sum()),):
        raise _BrokenError(f"{name} has {list(kept.shape)} values, and {mask.sum()} weights are kept")
    if not np.isfinite(kept).all():
        raise _BrokenError(f"{name} has values that are no numbers")
    whole = np.zeros(mask.shape, np.float32)
    whole[mask] = kept
    return whole


def _whole(piece: Piece, name: str, arrays: Mapping[str, Array]) -> Array:
    """A tensor that is never pruned."""
    found = arrays[name]
    if found.shape != piece.shape:
        raise _BrokenError(f"{name} has the shape {list(found.shape)}, not {list(piece.shape)}")
    if not np.isfinite(found).all():
        raise _BrokenError(f"{name} has values that are no numbers")
    return found.astype(np.float32)


def _places(mask: Array) -> dict[str, Array]:
    """The places of the kept weights of a layer, bool [weights], in the form that takes less."""
    if mask.all():
        return {}
    between = np.diff(np.flatnonzero(mask), prepend=-1) - 1  # pruned weights before each kept one
    longs, rest = np.divmod(between, LONG)
    gaps = np.full(len(between) + int(longs.sum()), LONG, np.uint8)
    gaps[np.cumsum(longs) + np.arange(len(between))] = rest
    bits = np.packbits(mask)
    return {"gaps": gaps} if len(gaps) < len(bits) else {"bits": bits}


def _mask(layer: str, size: int, arrays: Mapping[str, Array]) -> NDArray[np.bool_]:
    """A layer's mask, bool [size]."""
    if (bits := arrays.get(f"{layer}.bits")) is not None:
        return np.unpackbits(bits, count=size).astype(bool)
    gaps = arrays.get(f"{layer}.gaps")
    if gaps is None:
        return np.ones(size, bool)
    if gaps.dtype != np.uint8:
        raise _BrokenError(f"{layer}.gaps are {gaps.dtype}, not uint8")
    mask = np.zeros(size, bool)
    passed = np.cumsum(gaps.astype(np.int64) + (gaps < LONG))
    places = passed[gaps < LONG] - 1
    if len(places) and places[-1] >= size:
        raise _BrokenError(f"{layer} has weights beyond its {size}")
    mask[places] = True
    return mask


def _shapes(layout: Layout) -> dict[str, list[int]]:
    return {piece.layer: list(piece.shape) for piece in layout.weights}


def _sum(said: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    total = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {list(array.shape)} ".encode())
        total.update(array.tobytes())
    return total.hexdigest()
