"""A person's own data: a file of four arrays, all of which are checked before they are used.

The file is .npz or .safetensors. It holds ``train_images`` and ``test_images``, uint8 [N, H, W] or [N, H, W, C] or, of
a table, features as float32 [N, D], and ``train_labels`` and ``test_labels``, integers [N] that number the classes
from 0. No torch here, because params.yaml is checked before torch is imported.
"""

import hashlib
import lzma
import math
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any
from warnings import catch_warnings

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lottery import LotteryError
from lottery.files.workplace import REFUSED, lacks_memory

IMAGES = ("train_images", "test_images")
LABELS = ("train_labels", "test_labels")
NAMES = f"{', '.join(IMAGES + LABELS[:1])} and {LABELS[1]}"

MOST_BYTES = 8_000_000_000  # of a file's arrays, unpacked
MOST_HEADER = 1_000_000  # bytes of a .safetensors file's header
MOST_NPY_HEADER = 1000  # bytes of an .npz file's array; numpy writes 118
MOST_CLASSES = 10_000
# within these two, a feature that is scaled is a finite float32
LARGEST = 1e18  # magnitude of a feature
SMALLEST = 1e-18  # deviation of a feature that is not constant

# what numpy, zipfile and safetensors raise where a file is broken
BROKEN = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError, struct.error)
BROKEN_NPZ = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, SyntaxError, TokenError, UserWarning)

Array = NDArray[Any]


@dataclass(frozen=True)
class Facts:
    """What a file holds."""

    train: int  # examples
    test: int
    shape: tuple[int, ...]  # of an example: (H, W), (H, W, C) or, of a table, (D,)
    is_table: bool
    classes: int


@dataclass(frozen=True)
class _Header:
    """What is known of an array before it is read."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class _WrongError(Exception):
    """What is wrong with a file, and the remedy."""


def facts(path: Path) -> Facts:
    """What a file holds, by its headers and labels; no image is read. Raises LotteryError where they are wrong."""
    with _named(path):
        now = path.stat()
        return _facts(path.absolute(), now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=8)
def _facts(path: Path, size: int, changed: int) -> Facts:
    """What a file of this size, changed at this time, holds."""
    with _opened(path) as headers:
        return _checked(headers)


def read(path: Path) -> dict[str, Array]:
    """The four arrays of a file, labels as uint8 or, of more than 256 classes, int32.

    Prints a warning where test images are training images too. Raises LotteryError where something is wrong.
    """
    with _named(path), _opened(path) as headers:
        classes = _checked(headers).classes
        arrays = {name: np.ascontiguousarray(headers[name].read()) for name in IMAGES}
        for name, images in arrays.items():
            _check_values(name, images)
        arrays |= {name: headers[name].read().astype(np.uint8 if classes <= 256 else np.int32) for name in LABELS}
        known = {_digest(image) for image in arrays["train_images"]}
        if len(known) == 1:
            raise _WrongError("train_images: all are the same; give images that differ")
    if both := sum(_digest(image) in known for image in arrays["test_images"]):
        what = "is a training image" if both == 1 else "are training images"
        print(f"warning: {path}: {both} of {len(arrays['test_images'])} test images {what} too", file=sys.stderr)
    return arrays


def _digest(image: Array) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


# --- opening --------------------------------------------------------------------------------------------------------


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise what is wrong with a file as LotteryError, which names it."""
    try:
        yield
    except _WrongError as error:
        raise LotteryError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        remedy = "`dvc pull` brings it where DVC tracks it, or name another file in data.file of params.yaml"
        raise LotteryError(f"{path}: missing; {remedy}") from error
    except (*BROKEN, *BROKEN_NPZ) as error:
        if lacks_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        if isinstance(error, OSError) and error.errno in REFUSED:
            raise LotteryError(f"{path}: cannot be read: {error.strerror}; see to it that it can") from error
        remedy = "write it again, with `numpy.savez` or safetensors' `save_file`"
        raise LotteryError(f"{path}: broken, or no {path.suffix} file; {remedy}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, _Header]]:
    """The headers of a file's four arrays, which can be read in the block."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            _check_names(members)
            _check_size(sum(member.file_size for member in members.values()))
            yield {name: _npy(name, archive, member) for name, member in members.items()}
    elif path.suffix == ".safetensors":
        _check_size(path.stat().st_size)
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > MOST_HEADER:
                raise ValueError("its header is larger than that of four arrays")
        with safe_open(path, framework="numpy") as tensors:
            _check_names(tensors.keys())
            yield {name: _tensor(name, tensors) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
    else:
        raise _WrongError("neither .npz nor .safetensors; write it with `numpy.savez` or safetensors' `save_file`")


def _check_names(names: Iterable[str]) -> None:
    if set(names) != {*IMAGES, *LABELS}:
        some = ", ".join(sorted(map(repr, names))[:6]) or "nothing"
        raise _WrongError(f"holds {some}; name its arrays {NAMES}")


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise _WrongError(f"its arrays are {size / 1e9:.1f} GB, of {MOST_BYTES / 1e9:.0f} at most; leave examples out")


def _npy(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    """The header of an .npz file's array. Its size is checked, so that reading takes no more memory than it has."""
    with archive.open(member) as file, catch_warnings(action="error", category=UserWarning):  # of guessed headers
        if npy.read_magic(file) != (1, 0):  # others may have headers of gigabytes
            raise ValueError("not what numpy writes")
        shape, _, dtype = npy.read_array_header_1_0(file, max_header_size=MOST_NPY_HEADER)
        if not dtype.hasobject and file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError("its size is not what its header says")

    def read() -> Array:
        with archive.open(member) as file:
            array: Array = npy.read_array(file, allow_pickle=False)
        return array.astype(dtype.newbyteorder("="), copy=False)

    return _Header(dtype.name, shape, read)


def _tensor(name: str, tensors: Any) -> _Header:
    """The header of a .safetensors file's array, its type by numpy's name."""
    part = tensors.get_slice(name)
    kinds = {"U": "uint", "I": "int", "F": "float"}
    dtype = re.sub(r"^([UIF])(\d+)$", lambda found: kinds[found[1]] + found[2], part.get_dtype()).lower()
    return _Header(dtype, tuple(part.get_shape()), lambda: tensors.get_tensor(name))


# --- checking -------------------------------------------------------------------------------------------------------


def _checked(headers: Mapping[str, _Header]) -> Facts:
    """What the arrays of these headers are. Raises _WrongError."""
    for name in IMAGES:
        _check_images(name, headers[name])
    for images, labels in zip(IMAGES, LABELS, strict=True):
        _check_labels(labels, headers[labels])
        (count, *_), (given,) = headers[images].shape, headers[labels].shape
        if count != given:
            raise _WrongError(f"{labels}: {given}, for {count} {images}; give one label per image")
    (train, *shape), (test, *tested) = (headers[name].shape for name in IMAGES)
    if shape != tested:
        raise _WrongError(f"test_images: each is {tested}, and each of train_images {shape}; give both one shape")
    return Facts(train, test, tuple(shape), len(shape) == 1, _classes(*(headers[name].read() for name in LABELS)))


def _check_images(name: str, header: _Header) -> None:
    dimensions = len(header.shape)
    if (header.dtype, dimensions) not in (("uint8", 3), ("uint8", 4), ("float32", 2)):
        images = '`.astype("uint8")` makes images of values from 0 to 255'
        remedies = {2: '`.astype("float32")` makes features of them', 3: images, 4: images}
        known = "images are uint8 [N, H, W] or [N, H, W, C], features float32 [N, D]"
        raise _WrongError(f"{name}: {header}; {known}; {remedies.get(dimensions, 'reshape it')}")
    if min(header.shape) < 1:
        raise _WrongError(f"{name}: {header}, which is empty; give one example at least")
    if dimensions == 4 and header.shape[1] in (1, 3) and header.shape[3] > 4:
        raise _WrongError(f"{name}: {header} has the channels first; `.transpose(0, 2, 3, 1)` puts them last")


def _check_labels(name: str, header: _Header) -> None:
    if not re.fullmatch(r"u?int\d+", header.dtype) or len(header.shape) != 1:
        one_each = len(header.shape) < 2 or math.prod(header.shape[1:]) == 1
        remedy = '`.ravel().astype("int64")`' if one_each else "`.argmax(1)`, where a row has a value per class,"
        if not re.match("float|bool|u?int", header.dtype):
            remedy = "`numpy.unique(labels, return_inverse=True)[1]`"
        raise _WrongError(f"{name}: {header}; labels are integers [N]; {remedy} makes them that")


def _classes(train: Array, test: Array) -> int:
    """The number of classes. Raises _WrongError where the labels do not number them from 0."""
    for name, labels in zip(LABELS, (train, test), strict=True):
        if labels.min() < 0 or labels.max() >= MOST_CLASSES:
            wrong = min(labels.min(), 0) or labels.max()
            raise _WrongError(f"{name}: {wrong}; number the classes from 0 to {MOST_CLASSES - 1} at most")
    classes = int(train.max()) + 1
    absent = np.flatnonzero(np.bincount(train.astype(np.int64)) == 0)
    if len(absent):
        known = f"no image is of class {absent[0]}, and some are of class {classes - 1}"
        raise _WrongError(f"train_labels: {known}; number the classes from 0 without gaps")
    if classes == 1:
        raise _WrongError("train_labels: all are 0; give images of two classes at least")
    if test.max() >= classes:
        remedy = "leave such images out, or give some to train on"
        raise _WrongError(f"test_labels: {test.max()}, and train_labels are 0 to {classes - 1}; {remedy}")
    return classes


def _check_values(name: str, images: Array) -> None:
    """Raise _WrongError where a feature is NaN, infinite, or so large that a float32 has no room for its scaling."""
    if not (images.min() >= -LARGEST and images.max() <= LARGEST):
        row, column = np.argwhere(~(np.abs(images) <= LARGEST))[0]
        what = f"{images[row, column]:g} in row {row}, column {column}"
        raise _WrongError(f"{name}: {what}; leave the row out, or put a number there of magnitude {LARGEST:g} at most")
