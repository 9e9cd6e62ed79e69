"""A person's own data: what a file may hold, how a mistake in it is told, and how it becomes a data set."""

import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn
from safetensors.torch import load_file
from sklearn.datasets import load_digits, load_wine

from lottery import LotteryError
from lottery.files import own_data
from lottery.files.data import fetch, load_split, load_test
from lottery.files.own_data import Array, Facts, facts, read

ROOT = Path(__file__).parent.parent
SUFFIXES = (".npz", ".safetensors")
# a test's folder serves all its examples
several_examples = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

# how data/example.npz was made
EXAMPLE = """\
import numpy as np
from sklearn.datasets import load_wine

features, labels = load_wine(return_X_y=True)
features, labels = features.astype("float32"), labels.astype("uint8")
test = np.arange(len(labels)) % 5 == 4
np.savez(
    "data/example.npz",
    train_images=features[~test],
    train_labels=labels[~test],
    test_images=features[test],
    test_labels=labels[test],
)
"""


def wine() -> dict[str, Array]:
    """A table: the features of 178 wines of 3 makers."""
    features, labels = load_wine(return_X_y=True)
    return _parted(features.astype(np.float32), labels)


def digits() -> dict[str, Array]:
    """Grey images: scikit-learn's."""
    images, labels = load_digits(return_X_y=True)
    return _parted(images.astype(np.uint8).reshape(-1, 8, 8), labels)


def _parted(images: Array, labels: Array) -> dict[str, Array]:
    test = np.arange(len(labels)) % 5 == 4
    return {
        "train_images": images[~test],
        "train_labels": labels[~test],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def _written(path: Path, arrays: dict[str, Array]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        safetensors.numpy.save_file(whole, path)
    return path


def _refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(LotteryError) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


# --- what a file holds ----------------------------------------------------------------------------------------------


def test_the_example_is_what_its_lines_make(workspace: Path) -> None:
    (workspace / "data").mkdir()
    subprocess.run([sys.executable, "-c", EXAMPLE], check=True)
    assert Path("data/example.npz").read_bytes() == (ROOT / "data/example.npz").read_bytes()
    assert facts(Path("data/example.npz")) == Facts(143, 35, (13,), is_table=True, classes=3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_holds_a_table_or_grey_or_colour_images(suffix: str, tmp_path: Path) -> None:
    grey = digits()
    colour = {name: np.stack([a, a // 2, 255 - a], -1) if "images" in name else a for name, a in grey.items()}
    shapes = {"wine": (wine(), 143, 35, (13,), 3), "grey": (grey, 1438, 359, (8, 8), 10)}
    shapes["colour"] = (colour, 1438, 359, (8, 8, 3), 10)
    for name, (arrays, train, test, shape, classes) in shapes.items():
        path = _written(tmp_path / f"{name}{suffix}", arrays)
        assert facts(path) == Facts(train, test, shape, len(shape) == 1, classes)
        found = read(path)
        assert {array.dtype for array in found.values()} == {arrays["train_images"].dtype, np.dtype(np.uint8)}
        for array in found:
            np.testing.assert_array_equal(found[array], arrays[array])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64])
def test_labels_are_of_any_integer_type(kind: type[np.integer], suffix: str, tmp_path: Path) -> None:
    arrays = {name: array.astype(kind) if "labels" in name else array for name, array in wine().items()}
    assert read(_written(tmp_path / f"wine{suffix}", arrays))["train_labels"].dtype == np.uint8
    assert facts(tmp_path / f"wine{suffix}").classes == 3


@pytest.mark.parametrize(("classes", "kind"), [(256, np.uint8), (257, np.int32), (10_000, np.int32)])
def test_labels_of_many_classes_keep_their_values(classes: int, kind: type[np.integer], tmp_path: Path) -> None:
    labels = np.arange(classes)
    features = np.stack([labels, labels % 7], 1).astype(np.float32)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    path = _written(tmp_path / "many.npz", dict(zip(names, (features, labels, features + 0.5, labels), strict=True)))
    assert facts(path).classes == classes
    assert read(path)["train_labels"].dtype == kind
    np.testing.assert_array_equal(read(path)["test_labels"], labels)


def test_arrays_in_another_order_of_bytes_or_of_axes_have_the_same_values(tmp_path: Path) -> None:
    arrays = wine()
    other = {name: np.asfortranarray(array.astype(array.dtype.newbyteorder(">"))) for name, array in arrays.items()}
    found = read(_written(tmp_path / "wine.npz", other))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.c_contiguous
        assert found[name].dtype.isnative


def test_compressed_files_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "digits.npz", **digits())
    np.testing.assert_array_equal(read(tmp_path / "digits.npz")["train_images"], digits()["train_images"])


def test_facts_read_no_image_and_reading_finds_an_altered_one(tmp_path: Path) -> None:
    path = _written(tmp_path / "digits.npz", digits())
    content = bytearray(path.read_bytes())
    content[5000] ^= 1  # an image's
    path.write_bytes(content)
    assert facts(path).classes == 10
    assert _refusal(read, path).startswith("broken, or no .npz file; write it again, with `numpy.savez`")


def test_facts_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written(tmp_path / "own.npz", wine())
    asked = []
    monkeypatch.setattr(
        own_data, "_checked", lambda headers, check=own_data._checked: asked.append(1) or check(headers)
    )
    assert facts(path) == facts(path)
    assert len(asked) == 1
    before = path.stat().st_mtime_ns
    _written(path, {name: array[::-1] for name, array in wine().items()})  # of the same size
    os.utime(path, ns=(before + 1, before + 1))
    facts(path)
    assert len(asked) == 2
    _written(path, digits())
    assert facts(path).shape == (8, 8)


def test_a_file_is_read_without_torch() -> None:
    code = f"""
import sys
from pathlib import Path
from lottery.files.own_data import read
read(Path({str(ROOT / "data/example.npz")!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- mistakes -------------------------------------------------------------------------------------------------------


def _with(**changed: Callable[[Array], Array]) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda arrays: arrays | {name: change(arrays[name]) for name, change in changed.items()}


def _set(value: float, *place: int) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array[place] = value
        return array

    return change


KNOWN = "images are uint8 [N, H, W] or [N, H, W, C], features float32 [N, D]"
MISTAKES = {
    "train_images: float64 [143, 13]; " + KNOWN + '; `.astype("float32")` makes': _with(
        train_images=lambda a: a.astype(np.float64)
    ),
    "test_images: float32 [35, 13, 1]; " + KNOWN + '; `.astype("uint8")` makes': _with(
        test_images=lambda a: a[..., None]
    ),
    "test_images: float32 [455]; " + KNOWN + "; reshape it": _with(test_images=np.ravel),
    "train_images: float32 [0, 13], which is empty; give one example at least": _with(
        train_images=lambda a: a[:0], train_labels=lambda a: a[:0]
    ),
    "test_images: float32 [35, 0], which is empty": _with(
        train_images=lambda a: a[:, :1], test_images=lambda a: a[:, :0]
    ),
    "train_images: uint8 [143, 3, 8, 8] has the channels first; `.transpose(0, 2, 3, 1)` puts": _with(
        train_images=lambda a: np.zeros((len(a), 3, 8, 8), np.uint8)
    ),
    "test_images: each is [12], and each of train_images [13]; give both one shape": _with(
        test_images=lambda a: a[:, 1:]
    ),
    "train_labels: 142, for 143 train_images; give one label per image": _with(train_labels=lambda a: a[1:]),
    "test_labels: float64 [35]; labels are integers [N]; `.ravel().astype(": _with(
        test_labels=lambda a: a.astype(np.float64)
    ),
    "train_labels: bool [143]; labels are integers [N]": _with(train_labels=lambda a: a > 1),
    "train_labels: int64 [143, 1]; labels are integers [N]; `.ravel()": _with(train_labels=lambda a: a[:, None]),
    "test_labels: float64 [35, 3]; labels are integers [N]; `.argmax(1)`": _with(test_labels=lambda a: np.eye(3)[a]),
    "train_labels: -1; number the classes from 0": _with(train_labels=lambda a: a - 1),
    "train_labels: 10002; number the classes from 0 to 9999 at most": _with(train_labels=lambda a: a + 10_000),
    "train_labels: no image is of class 0, and some are of class 3; number": _with(train_labels=lambda a: a + 1),
    "train_labels: no image is of class 1, and some are of class 4": _with(train_labels=lambda a: 2 * a),
    "train_labels: all are 0; give images of two classes at least": _with(train_labels=lambda a: 0 * a),
    "test_labels: 3, and train_labels are 0 to 2; leave such": _with(test_labels=lambda a: a + 1),
    "test_labels: -9; number the classes from 0": _with(test_labels=_set(-9, 4)),
    "holds 'images', 'test_images', 'test_labels', 'train_images', 'train_labels'; name its arrays train": lambda a: (
        a | {"images": a["test_images"]}
    ),
    "holds 'train_images', 'train_labels'; name its arrays train_images, test_images, train_labels and test_": (
        lambda a: {name: a[name] for name in ("train_images", "train_labels")}
    ),
}
MISTAKES_IN_VALUES = {
    "train_images: nan in row 3, column 7; leave the row out, or put a number there": _with(
        train_images=_set(np.nan, 3, 7)
    ),
    "test_images: inf in row 34, column 0; leave": _with(test_images=_set(np.inf, 34, 0)),
    "test_images: -2e+18 in row 0, column 12; leave the row out, or put a number there of magnitude "
    "1e+18 at most": _with(test_images=_set(-2e18, 0, 12)),
    "train_images: all are the same; give images that differ": _with(train_images=lambda a: np.ones_like(a)),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_one_line(line: str, suffix: str, tmp_path: Path) -> None:
    path = _written(tmp_path / f"own{suffix}", MISTAKES[line](wine()))
    assert _refusal(facts, path).startswith(line)
    assert _refusal(read, path).startswith(line)


def test_labels_that_are_texts_are_told_how_to_be_numbers(tmp_path: Path) -> None:
    path = _written(tmp_path / "own.npz", _with(test_labels=lambda labels: labels.astype("<U1"))(wine()))
    told = _refusal(facts, path)
    assert told.startswith("test_labels: str32 [")
    assert told.endswith("labels are integers [N]; `numpy.unique(labels, return_inverse=True)[1]` makes them that")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("line", MISTAKES_IN_VALUES)
def test_a_mistake_among_the_values_is_told_when_they_are_read(line: str, suffix: str, tmp_path: Path) -> None:
    path = _written(tmp_path / f"own{suffix}", MISTAKES_IN_VALUES[line](wine()))
    facts(path)
    assert _refusal(read, path).startswith(line)


def test_a_file_that_is_missing_or_of_another_kind_is_named_with_the_remedy(tmp_path: Path) -> None:
    for get in (facts, read):
        assert _refusal(get, tmp_path / "own.npz").startswith("missing; `dvc pull` brings it where DVC tracks it, or ")
        (tmp_path / "own.csv").write_text("1,2,3")
        assert _refusal(get, tmp_path / "own.csv").startswith("neither .npz nor .safetensors; write it with ")
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        assert _refusal(get, tmp_path / "folder.npz").startswith("broken, or no .npz file; ")
    with zipfile.ZipFile(tmp_path / "objects.npz", "w") as archive:
        for name, array in wine().items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array.astype(object), allow_pickle=True)
    assert _refusal(read, tmp_path / "objects.npz").startswith("train_images: object [143, 13]; images are uint8")


@several_examples
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES), compressed=st.booleans())
def test_whatever_becomes_of_a_files_bytes_is_one_line_or_whole_arrays(
    data: st.DataObject, suffix: str, compressed: bool, tmp_path: Path
) -> None:
    arrays = {name: array[:9] if "images" in name else np.arange(9) % 3 for name, array in wine().items()}
    path = tmp_path / f"own{suffix}"
    if compressed and suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        _written(path, arrays)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        found = read(path)
    except LotteryError:
        _refusal(read, path)
        return
    assert found["train_images"].shape == (9, 13)
    if suffix == ".npz":  # which has checksums
        np.testing.assert_array_equal(found["train_images"], arrays["train_images"])


def _peak(path: Path) -> int:
    """Bytes of memory taken until a file is refused."""
    tracemalloc.start()
    try:
        for get in (facts, read):
            _refusal(get, path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_file_that_unpacks_to_gigabytes_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = {name: np.zeros((100_000, 30, 30), np.uint8) if "images" in name else a for name, a in wine().items()}
    np.savez_compressed(tmp_path / "bomb.npz", **blank)  # 180 MB of 0.2 MB
    monkeypatch.setattr(own_data, "MOST_BYTES", 100_000_000)
    assert _refusal(facts, tmp_path / "bomb.npz").startswith("its arrays are 0.2 GB, of ")
    assert _peak(tmp_path / "bomb.npz") < 2_000_000


def test_a_header_that_promises_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    tall = io.BytesIO()
    np.lib.format.write_array_header_1_0(tall, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 13)})
    wide = np.lib.format.magic(2, 0) + (3_000_000_000).to_bytes(4, "little") + bytes(50_000_000)
    for content in (tall.getvalue(), wide):
        with zipfile.ZipFile(tmp_path / "own.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in wine():
                archive.writestr(f"{name}.npy", content)
        assert _peak(tmp_path / "own.npz") < 2_000_000
    with (tmp_path / "wide.safetensors").open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little") + b'{"a":"')
        file.truncate(100_000_000)
    assert _peak(tmp_path / "wide.safetensors") < 2_000_000


@pytest.mark.parametrize(
    "header",
    [
        b"-" * 9000 + b"1",
        b"(" * 900,
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9, 13), }(",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9L, 13L), }",  # as Python 2 wrote it: numpy warns
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-9, -13), }",
    ],
)
def test_a_header_that_numpy_does_not_write_is_refused(header: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        for name in wine():
            content = (
                np.lib.format.magic(1, 0) + len(header + b"\n").to_bytes(2, "little") + header + b"\n" + bytes(468)
            )
            archive.writestr(f"{name}.npy", content)
    for get in (facts, read):
        assert _refusal(get, tmp_path / "own.npz").startswith(
            ("broken, or no .npz file; ", "train_images: float32 [-9, ")
        )


def test_images_that_are_in_both_parts_are_counted_in_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = digits()
    path = _written(tmp_path / "own.npz", arrays)
    read(path)
    assert capsys.readouterr().err == ""
    for count, told in ((1, "images is a training image"), (3, "images are training images")):
        arrays["test_images"][:count] = arrays["train_images"][7]
        read(_written(path, arrays))
        assert capsys.readouterr().err == f"warning: {path}: {count} of 359 test {told} too\n"


# --- as a data set --------------------------------------------------------------------------------------------------


def test_the_file_becomes_a_data_set_of_the_same_bytes_whatever_its_kind(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = set()
    for suffix in SUFFIXES:
        _written(Path(f"wine{suffix}"), wine())
        fetch("own", Path("data/own.safetensors"), Path(f"wine{suffix}"))
        assert capsys.readouterr().out == f"own: from wine{suffix}\n"
        contents.add(Path("data/own.safetensors").read_bytes())
    assert len(contents) == 1
    tensors = load_file("data/own.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "train_images": torch.float32,
        "train_labels": torch.uint8,
        "test_images": torch.float32,
        "test_labels": torch.uint8,
    }
    test = load_test(Path("data/own.safetensors"))
    np.testing.assert_array_equal(test.pixels, wine()["test_images"])
    np.testing.assert_array_equal(test.labels, wine()["test_labels"])
    assert test.labels.dtype == torch.int64


def test_what_is_wrong_with_the_file_leaves_the_data_set_as_it_was(workspace: Path) -> None:
    target = workspace / "data/own.safetensors"
    _written(workspace / "wine.npz", wine() | {"test_labels": np.zeros(2, int)})
    target.parent.mkdir()
    target.write_bytes(b"the one before")
    assert _refusal(lambda path: fetch("own", target, path), workspace / "wine.npz").startswith(
        "test_labels: 2, for 35"
    )
    with pytest.raises(LotteryError, match=r"^params.yaml: data.file: data/\.\./data/own.safetensors is what `dvc"):
        fetch("own", target, Path("data/../data/own.safetensors"))
    assert target.read_bytes() == b"the one before"


def _fetched(folder: Path, arrays: dict[str, Array]) -> Path:
    fetch("own", folder / "own.safetensors", _written(folder / "mine.npz", arrays))
    return folder / "own.safetensors"


def test_features_are_standardized_column_by_column(workspace: Path) -> None:
    split = load_split(_fetched(workspace, wine()), 20, "standard")
    assert (split.train.pixels.shape, split.validation.pixels.shape) == ((123, 13), (20, 13))
    assert split.train.pixels.dtype == torch.float32
    columns = split.train.pixels.numpy().astype(np.float64)
    assert split.scaling.shift == pytest.approx(columns.mean(0), rel=1e-14)
    assert split.scaling.scale == pytest.approx(columns.std(0), rel=1e-14)
    inputs = split.scaling(split.train.pixels)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(13), atol=1e-5, rtol=0)


@several_examples
@given(
    constant=st.floats(-(2.0**59), 2.0**59, width=32),
    others=drawn(np.float32, (12, 3), elements=st.floats(-(2.0**59), 2.0**59, width=32)),
)
def test_a_constant_feature_is_0_and_every_input_is_finite(constant: float, others: Array, workspace: Path) -> None:
    features = np.column_stack([np.full(12, constant, np.float32), others, np.arange(12)]).astype(np.float32)
    labels = np.arange(12) % 2
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = dict(zip(names, (features, labels, -features[:, ::-1], labels), strict=True))
    path = _fetched(workspace, arrays)
    split = load_split(path, 2, "standard")
    assert not split.scaling(split.train.pixels)[:, 0].any()
    for images in (split.train, split.validation, load_test(path)):
        assert split.scaling(images.pixels).isfinite().all()


def test_unit_scaling_of_features_is_refused(workspace: Path) -> None:
    path = _fetched(workspace, wine())
    with pytest.raises(LotteryError, match=r"^params.yaml: data.scale: unit is for images; make it standard$"):
        load_split(path, 20, "unit")
    assert load_split(_fetched(workspace, digits()), 20, "unit").scaling.scale == (255.0,)
