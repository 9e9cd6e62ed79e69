"""The files of a ticket: what they hold, who can read them, and what is refused; and the compact network."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import lottery.ticket
from lottery import LotteryError
from lottery.core.layout import Layout, perceptron, published
from lottery.ticket import Facts, Ticket
from lottery.ticket.compact import compacted
from lottery.ticket.format import LONG, _mask, _places, content
from lottery.ticket.graph import graph, run
from lottery.ticket.modules import compact, masked
from lottery.ticket.sizes import multiply_adds, sizes

ROOT = Path(__file__).parent.parent
FACTS = {
    "level": "p90", "arm": "ticket", "seed": 3, "sparsity": 0.9, "accuracy": 0.5, "data": "digits",
    "shift": (100.0,), "scale": (70.0,), "level_digest": "0123.dir",
}  # fmt: skip

LENET = published("lenet-5", (28, 28), 10)


def make(layout: Layout, density: float, seed: int = 0, initial: bool = False) -> Ticket:
    """A ticket of random weights and masks."""
    draws = np.random.default_rng(seed)
    masks = {piece.name: draws.random(piece.shape) < density for piece in layout.weights}
    states = [
        {
            piece.name: (draws.normal(size=piece.shape) * masks.get(piece.name, 1)).astype(np.float32)
            for piece in layout.pieces
        }
        for _ in range(2)
    ]
    side = round(layout.inputs**0.5)
    return Ticket(Facts(layout=layout, image=(side, side), **FACTS), states[0], masks, states[1] if initial else None)


def images(ticket: Ticket, count: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(256, size=(count, *ticket.facts.image), dtype=np.uint8)


def logits_of(ticket: Ticket, module: Callable[[Ticket], torch.nn.Module] = masked) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = module(ticket)(torch.from_numpy(images(ticket))).numpy()
    return found


WHOLE = content(make(perceptron((64, 32, 10)), 0.1))


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [perceptron((64, 32, 16, 10)), perceptron((784, 300, 100, 10)), LENET])
@pytest.mark.parametrize("density", [1.0, 0.4, 0.05, 0.0])
@pytest.mark.parametrize("initial", [True, False])
def test_what_is_read_is_what_was_written(tmp_path: Path, layout: Layout, density: float, initial: bool) -> None:
    written = make(layout, density, initial=initial)
    file = tmp_path / "ticket.safetensors"
    file.write_bytes(content(written))
    read = lottery.ticket.load(file)
    assert read.facts == written.facts
    pairs = [(read.values, written.values), (read.masks, written.masks), (read.initial or {}, written.initial or {})]
    for arrays, expected in pairs:
        assert arrays.keys() == expected.keys()
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


@given(st.lists(st.booleans(), min_size=1, max_size=2000), st.integers(0, 1500))
def test_masks_survive_gaps_and_bits(mask: list[bool], pruned: int) -> None:
    whole = np.array([*([False] * pruned), *mask])
    places = {f"layer0.{name}": array for name, array in _places(whole).items()}
    assert np.array_equal(_mask("layer0", len(whole), places), whole)
    assert sum(array.nbytes for array in places.values()) <= -(-len(whole) // 8)  # bits at the most


@pytest.mark.parametrize("gap", [LONG - 1, LONG, LONG + 1, 2 * LONG - 1, 2 * LONG, 2 * LONG + 1, 5000])
def test_a_long_gap_takes_several_bytes(gap: int) -> None:
    mask = np.zeros(20_000, bool)
    mask[[gap, 2 * gap + 1]] = True
    assert len(_places(mask)["gaps"]) == 2 + 2 * (gap // LONG)
    assert np.array_equal(_mask("layer0", len(mask), {"layer0.gaps": _places(mask)["gaps"]}), mask)


def test_the_same_ticket_is_the_same_bytes() -> None:
    code = "import sys; from test_ticket import WHOLE; sys.stdout.buffer.write(WHOLE)"
    told = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1] == WHOLE


def test_half_takes_half_the_bytes_of_weights_and_rounds_them(tmp_path: Path) -> None:
    ticket = make(perceptron((784, 300, 100, 10)), 0.05)
    whole, half = content(ticket), content(ticket, "half")
    assert len(whole) - len(half) == pytest.approx(2 * ticket.kept, abs=64)
    (tmp_path / "half").write_bytes(half)
    read = lottery.ticket.load(tmp_path / "half")
    for piece in ticket.facts.layout.weights:
        rounded = ticket.values[piece.name].astype(np.float16).astype(np.float32)
        assert np.array_equal(read.values[piece.name], rounded)


def test_at_95_percent_it_is_14_times_smaller_than_the_dense_checkpoint_and_20_times_with_half() -> None:
    found = sizes(make(perceptron((784, 300, 100, 10)), 0.0509))
    assert found["checkpoint"] > 14 * found["ticket"]
    assert found["checkpoint"] > 20 * found["ticket_half"]


def test_numpy_and_safetensors_are_enough_to_predict(tmp_path: Path) -> None:
    """Also where torch, MLflow, pandas and scipy are not installed."""
    ticket = make(perceptron((64, 32, 16, 10)), 0.2)
    (tmp_path / "ticket.safetensors").write_bytes(content(ticket))
    np.save(tmp_path / "images.npy", images(ticket))
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "mlflow", "pandas", "scipy", "dvc", "pydantic", "yaml"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import numpy as np
import lottery.ticket
ticket = lottery.ticket.load("ticket.safetensors")
np.save("logits.npy", ticket.logits(np.load("images.npy")))
assert not {"torch", "mlflow"} & set(sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits_of(ticket), atol=1e-4)


# --- what is refused -------------------------------------------------------------------------------------------------


def altered(change: Callable[[dict[str, Any], dict[str, NDArray[Any]]], None], seal: bool = True) -> bytes:
    """A ticket's file whose metadata and tensors are changed, sealed anew as somebody who means harm would."""
    from safetensors.numpy import load, save

    from lottery.ticket.format import _sum

    length = struct.unpack("<Q", WHOLE[:8])[0]
    said, arrays = json.loads(json.loads(WHOLE[8 : 8 + length])["__metadata__"]["lottery"]), load(WHOLE)
    change(said, arrays)
    if seal:
        said.pop("sha256", None)
        said["sha256"] = _sum(said, arrays)
    return save(arrays, {"lottery": json.dumps(said)})


def _sizes(*sizes: int) -> Callable[[dict[str, Any], dict[str, NDArray[Any]]], None]:
    def change(said: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        said["facts"]["layout"]["sizes"] = list(sizes)
        said["facts"]["shapes"] = {f"layer{i}": list(sizes[i : i + 2]) for i in range(len(sizes) - 1)}

    return change


def _pop(name: str) -> Callable[[dict[str, Any], dict[str, NDArray[Any]]], None]:
    return lambda said, arrays: said["facts"].pop(name)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (WHOLE[:-1], "truncated or altered"),
        (WHOLE[: len(WHOLE) // 2], "truncated or altered"),
        (WHOLE[:4], "truncated or altered"),
        (b"", "truncated or altered"),
        (b"\xff" * 100, "truncated or altered"),
        (WHOLE.replace(b"p90", b"p95"), "truncated or altered"),
        (WHOLE[:-3] + bytes([WHOLE[-3] ^ 1]) + WHOLE[-2:], "truncated or altered"),
        (b"not a safetensors file, but a text", "truncated or altered"),
        (altered(lambda said, _: said.update(version=2)), "its format is version 2, and this code reads 1"),
        (altered(lambda said, _: said.clear(), seal=False), "it is no ticket"),
        (altered(lambda said, _: said.update(version="new")), "it is no ticket"),
        (altered(lambda said, _: said["facts"].update(level="p1"), seal=False), "truncated or altered"),
        (altered(_sizes(64, 10)), "it has the tensor layer1.bias, which no ticket has"),
        (altered(_sizes(64, 16, 10)), "layer0"),
        (altered(_sizes(100_000, 100_000, 10)), "it names 10001000000 weights; at most "),
        (altered(_sizes(10**9, 10**9)), "it names a size that is not from 1 to "),
        (altered(_sizes(-(2**20), -(2**20), 2**20, 1, 10)), "it names a size that is not from 1 to "),
        (altered(_sizes(*([10**4000] * 1200))), "it names 1199 layers and 3599 sizes; at most 1000 layers are r"),
        (altered(lambda said, _: said["facts"]["layout"].update(sizes=[64] * 10**5)), "it names 2 layers and 100005 "),
        (altered(lambda said, _: said["facts"]["shapes"].update(layer0=[64.0, 32])), "it names 2 layers and 8 sizes"),
        (altered(lambda said, _: said["facts"].update(scale=0.0)), "of sparsity, accuracy, shift and scale one is no"),
        (altered(lambda said, _: said["facts"].update(accuracy="high")), "of sparsity, accuracy, shift and scale one"),
        (altered(lambda said, _: said["facts"].update(shift=float("nan"))), "of sparsity, accuracy, shift and scale"),
        (altered(lambda said, _: said.update(version=-3)), "it is no ticket"),
        (altered(lambda _, arrays: arrays.update(more=np.zeros(3))), "it has the tensor more, which no ticket has"),
        (altered(lambda _, arrays: arrays.update({"layer0.bias": np.zeros(31, np.float32)})), "layer0.bias has "),
        (altered(lambda _, arrays: arrays["layer1.bias"].fill(np.nan)), "layer1.bias has values that are no numbers"),
        (altered(lambda _, arrays: arrays.update({"layer0.gaps": np.array([-(10**6)])})), "layer0.gaps are int64"),
        (altered(lambda said, _: said["facts"]["shapes"].update(layer0=[32, 64])), "its shapes are not those"),
        (altered(lambda said, _: said["facts"].update(image=[28, 28])), "its network reads 64 pixels"),
        (altered(lambda _, arrays: arrays.update({"layer0.values": arrays["layer0.values"][1:]})), "layer0.values has"),
        (altered(lambda _, arrays: arrays.pop("layer0.values")), "truncated or altered"),
        (altered(lambda _, arrays: arrays.update({"layer0.gaps": np.full(9000, 9, np.uint8)})), "layer0"),
        (altered(_pop("scale")), "truncated or altered"),
        (altered(lambda said, _: said["facts"].update(extra=1)), "truncated or altered"),
        (altered(lambda said, _: said["facts"]["layout"].update(network="vgg")), "truncated or altered"),
    ],
)
def test_a_file_that_is_no_whole_ticket_is_one_line(tmp_path: Path, file: bytes, why: str) -> None:
    path = tmp_path / "ticket.safetensors"
    path.write_bytes(file)
    with pytest.raises(LotteryError) as error:
        lottery.ticket.load(path)
    assert str(error.value).startswith(f"{path}: {why}")
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_there_or_is_a_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(LotteryError, match=rf"^{path}: cannot be read: "):
            lottery.ticket.load(path)


def test_a_ticket_made_to_exhaust_memory_takes_none(tmp_path: Path) -> None:
    """A kilobyte that names ten billion weights, in a process that may have 600 MB."""
    path = tmp_path / "ticket.safetensors"
    path.write_bytes(altered(_sizes(100_000, 100_000, 10)))
    code = f"import lottery.ticket\nlottery.ticket.load({str(path)!r})"
    limit = 600 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert "LotteryError" in done.stderr
    assert "it names 10001000000 weights; at most" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 28, 28), np.uint8), np.zeros((2, 8, 8)), np.zeros(64, np.uint8), np.zeros((2, 8, 7), np.uint8)],
)
def test_images_of_another_kind_are_one_line(wrong: NDArray[Any]) -> None:
    with pytest.raises(LotteryError, match=r"^images: .*; give uint8 \[N, 8, 8\]$"):
        make(perceptron((64, 32, 10)), 0.1).logits(wrong)


def test_of_a_convolutional_network_numpy_has_the_arrays_alone() -> None:
    ticket = make(LENET, 0.1)
    with pytest.raises(LotteryError, match=r"^lenet-5: numpy reads its arrays alone; ticket.onnx predicts$"):
        ticket.logits(images(ticket))


# --- predictions and the compact network -----------------------------------------------------------------------------

LAYOUTS = st.lists(st.integers(1, 12), min_size=0, max_size=3).map(lambda hidden: perceptron((16, *hidden, 10)))


@given(LAYOUTS, st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.9]), st.integers(0, 10_000))
def test_the_compact_network_gives_the_masked_ones_logits(layout: Layout, density: float, seed: int) -> None:
    ticket = make(layout, density, seed)
    expected = logits_of(ticket)
    tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
    assert np.allclose(ticket.logits(images(ticket)), expected, rtol=0, atol=tolerance)
    assert np.allclose(logits_of(ticket, compact), expected, rtol=0, atol=tolerance)
    assert np.allclose(logits_of(ticket, lambda each: compact(each, sparse=2.0)), expected, rtol=0, atol=tolerance)


@given(LAYOUTS, st.sampled_from([0.02, 0.1, 0.3]), st.integers(0, 10_000))
def test_every_unit_of_the_compact_network_lies_on_a_path(layout: Layout, density: float, seed: int) -> None:
    ticket = make(layout, density, seed)
    weights = [weight != 0 for weight in ticket.compact.weights]
    if any(len(weight) == 1 and not weight.any() for weight in weights):
        return  # of a layer nothing was left, and it has one unit without weights
    assert weights[0].any(axis=1).all()
    for before, after in pairwise(weights):
        assert before.any(axis=0).all()
        assert after.any(axis=1).all()


def test_a_constant_unit_moves_into_biases_and_a_dead_end_goes() -> None:
    """Of three hidden units the first is reached, the second is constant at 2, the third leads nowhere."""
    first = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    second = np.array([[1], [10], [0]], np.float32)
    found = compacted(
        [first, second], [first != 0, second != 0], [np.array([0, 2, 5], np.float32), np.zeros(1, np.float32)]
    )
    assert found.inputs.tolist() == [0]
    assert [weight.tolist() for weight in found.weights] == [[[1.0]], [[1.0]]]
    assert [bias.tolist() for bias in found.biases] == [[0.0], [20.0]]


def test_a_pixel_that_is_always_0_stays() -> None:
    ticket = make(perceptron((16, 8, 10)), 1.0)
    assert ticket.compact.inputs.tolist() == list(range(16))


@pytest.mark.parametrize(
    ("layout", "density"),
    [
        (perceptron((64, 32, 16, 10)), 0.2),
        (perceptron((64, 32, 10)), 0.01),
        (perceptron((64, 10)), 0.0),
        (LENET, 0.1),
    ],
)
def test_the_graph_gives_the_networks_logits_for_any_number_of_images(layout: Layout, density: float) -> None:
    ticket = make(layout, density)
    expected = logits_of(ticket)
    tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
    model = graph(ticket)
    for count in (1, 2, 50):
        assert np.allclose(run(model, images(ticket)[:count]), expected[:count], rtol=0, atol=tolerance)


def test_the_graph_is_the_same_bytes_and_names_no_machine() -> None:
    for ticket in (make(perceptron((64, 32, 10)), 0.2), make(LENET, 0.5)):
        first = graph(ticket)
        assert first == graph(ticket)
        for circumstance in (str(ROOT), ".py", "pytorch", torch.__version__, "lottery."):
            assert circumstance.encode() not in first


def test_multiply_adds_are_counted_per_place_of_a_convolution() -> None:
    counts = multiply_adds(LENET)
    assert counts == {
        "convolution1.weight": 24 * 24,
        "convolution2.weight": 8 * 8,
        "hidden1.weight": 1,
        "output.weight": 1,
    }
    found = sizes(make(LENET, 1.0))
    assert found["multiply_adds"] == found["multiply_adds_kept"] == 500 * 576 + 25_000 * 64 + 400_000 + 5_000


def test_a_ticket_says_what_it_is() -> None:
    ticket = make(perceptron((64, 32, 10)), 1.0)
    assert (
        repr(ticket) == "<Ticket p90 ticket 3: 64-32-10 on digits, 2,368 of 2,368 weights, 50.00 % of the test images>"
    )
