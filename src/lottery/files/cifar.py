"""CIFAR-10 in its binary version, and how that is made of the other forms in which sources have it.

The binary version is six files of 10,000 rows. A row is a byte for the label, then the red, the green and the blue
plane of an image of 32 x 32 pixels.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from warnings import catch_warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

BATCHES = tuple(f"{batch}.bin" for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"))
# what npm's package has instead: pictures with one image per row of pixels, and lists of labels, spelt so
PICTURES = (*(file.replace(".bin", ".png") for file in BATCHES), "train_lables.json", "test_lables.json")

ROWS, SIDE = 10_000, 32
Bytes = NDArray[np.uint8]


def read_batches(contents: Iterable[bytes]) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Training images [50000, 32, 32, 3], their labels, test images and theirs, of the contents of ``BATCHES``."""
    images = np.empty((len(BATCHES) * ROWS, SIDE, SIDE, 3), np.uint8)
    labels = np.empty(len(images), np.uint8)
    for number, content in enumerate(contents):
        rows = np.frombuffer(content, np.uint8).reshape(ROWS, -1)
        place = slice(number * ROWS, (number + 1) * ROWS)
        labels[place] = rows[:, 0]
        images[place] = rows[:, 1:].reshape(ROWS, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    train, test = slice(-ROWS), slice(-ROWS, None)
    return images[train], labels[train], images[test], labels[test]


def write_batches(folder: Path, files: Sequence[str], images: Bytes, labels: ArrayLike) -> None:
    """Write images [N, 32, 32, 3] and their labels as files of the binary version."""
    planes = images.reshape(len(files), ROWS, SIDE * SIDE, 3).swapaxes(2, 3)
    for file, some, theirs in zip(files, planes, np.asarray(labels, np.uint8).reshape(len(files), ROWS), strict=True):
        (folder / file).write_bytes(np.column_stack([theirs, some.reshape(ROWS, -1)]).tobytes())


def convert_pictures(folder: Path) -> None:
    """Make ``BATCHES`` of a folder's ``PICTURES``. Raises ValueError, which names the one that is broken."""
    train, test = (_labels(folder / file) for file in PICTURES[len(BATCHES) :])
    if (len(train), len(test)) != ((len(BATCHES) - 1) * ROWS, ROWS):
        raise ValueError(f"the lists of labels are not of {(len(BATCHES) - 1) * ROWS} and {ROWS}")
    labels = np.concatenate([train, test]).reshape(len(BATCHES), ROWS)
    for file, picture, theirs in zip(BATCHES, PICTURES, labels, strict=False):
        write_batches(folder, [file], _pixels(folder / picture), theirs)


def _pixels(picture: Path) -> Bytes:
    """The pixels of a picture, read only where it has as many as it should."""
    try:
        with catch_warnings(action="error", category=Image.DecompressionBombWarning), Image.open(picture) as opened:
            if (opened.mode, opened.size) != ("RGB", (SIDE * SIDE, ROWS)):
                raise ValueError(f"no RGB picture of {SIDE * SIDE} x {ROWS} pixels")
            return np.asarray(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{picture.name}: {str(error).partition(chr(10))[0]}") from error


def _labels(file: Path) -> Bytes:
    """The labels of a list such as ``[6,9,9]``: every second character. What is no label fails the files' checksums."""
    return np.frombuffer(file.read_bytes(), np.uint8)[1::2] - np.uint8(ord("0"))
