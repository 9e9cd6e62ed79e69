"""The files a stage leaves: what goes in comes out, to the bit, and a fault is one line that names the file."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lottery import LotteryError
from lottery.core.arms import ARMS, Rows
from lottery.core.experiment import Level
from lottery.core.layout import perceptron
from lottery.core.pruning import CRITERIA
from lottery.core.stack import Stack, everything
from lottery.core.training import History, Trained
from lottery.files.artifacts import (
    Contents,
    load_contents,
    load_history,
    load_masks,
    load_parameters,
    load_rewound,
    load_twins,
    save_level,
)

# workspace serves all examples of a test
several_examples = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

FILES = ("history.csv", "masks.safetensors", "weights.safetensors")
Loader = Callable[[Path], Any]
LOADERS: dict[str, list[Loader]] = {
    "masks.safetensors": [load_contents, load_masks],
    "weights.safetensors": [lambda folder: load_parameters(folder, "final")],
    "history.csv": [load_history],
}
ALL_LOADERS = [loader for loaders in LOADERS.values() for loader in loaders]


def _level(
    sizes: Sequence[int] = (5, 4, 3),
    path: tuple[float, ...] = (0.4, 0.6),
    arms: tuple[str, ...] = ("ticket", "random"),
    seeds: tuple[int, ...] = (0, 3),
    evaluations: int = 3,
    draw: int = 0,
) -> Level:
    """A level of noise."""
    draws = torch.Generator().manual_seed(draw)
    rows, layout = Rows(arms, seeds), perceptron(tuple(sizes))

    def noise() -> Stack:
        parameters = Stack.zeros(len(rows), layout)
        for piece in parameters.weights + parameters.biases:
            piece.copy_(torch.randn(piece.shape, generator=draws))
            piece.masked_fill_(torch.rand(piece.shape, generator=draws) < 0.2, -0.0)
        return parameters

    start = noise()
    masks = everything(len(rows), layout)
    for mask in masks.weights:
        mask.copy_(torch.rand(mask.shape, generator=draws) < 0.5)
    histories = []
    for arm in arms:  # each a start of its own, and all the same end
        iterations = [250 * i for i in range(arms.index(arm) % evaluations, evaluations + 1)]
        for _ in seeds:
            curves = torch.rand(3, len(iterations), generator=draws, dtype=torch.float64)
            curves[0, 0] = torch.nan
            histories.append(History(iterations, *curves))
    return Level(path, rows, start, masks, Trained(noise(), noise(), tuple(histories)))


@st.composite
def levels(draw: st.DrawFn) -> Level:
    """Levels of all shapes."""
    return _level(
        sizes=draw(st.lists(st.integers(1, 12), min_size=2, max_size=4)),
        path=tuple(draw(st.lists(st.floats(0, 0.999), max_size=4))),
        arms=tuple(draw(st.lists(st.sampled_from(list(ARMS)), min_size=1, unique=True))),
        seeds=tuple(draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True))),
        evaluations=draw(st.integers(2, 5)),
        draw=draw(st.integers(0, 1000)),
    )


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _bits(parameters: Stack) -> list[Any]:
    return parameters.flat.view(torch.int32).tolist()


# --- what goes in comes out ------------------------------------------------------------------------------------------


@several_examples
@given(levels())
def test_masks_and_parameters_come_back_to_the_bit(workspace: Path, level: Level) -> None:
    folder = workspace / "models" / "p60"
    save_level(level, folder, {})
    masks = load_masks(folder)
    assert masks.flat.dtype == torch.bool
    assert masks.layout == level.masks.layout
    assert torch.equal(masks.flat, level.masks.flat)
    assert _bits(load_parameters(folder, "initial")) == _bits(level.start)
    assert _bits(load_parameters(folder, "final")) == _bits(level.trained.final)
    assert _bits(load_parameters(folder, "early_stopping")) == _bits(level.trained.early_stopping)


@several_examples
@given(levels())
def test_a_folder_says_which_networks_it_holds(workspace: Path, level: Level) -> None:
    save_level(level, workspace / "p60", {})
    contents = load_contents(workspace / "p60")
    assert contents == Contents(level.start.layout, level.path, level.rows)
    assert list(contents.rows) == [(arm, seed) for arm in level.rows.arms for seed in level.rows.seeds]
    for arm in level.rows.arms:
        assert list(contents.rows)[contents.rows.of(arm)] == [(arm, seed) for seed in level.rows.seeds]


@several_examples
@given(levels(), st.data())
def test_the_history_comes_back_to_the_bit(workspace: Path, level: Level, data: st.DataObject) -> None:
    any_loss = st.floats(allow_nan=False, allow_infinity=False)
    for network in level.trained.histories:
        network.validation_loss.copy_(torch.tensor([data.draw(any_loss) for _ in network.iterations]))
    save_level(level, workspace / "p60", {})
    history = load_history(workspace / "p60")
    names = ["arm", "seed", "iteration", "train_loss", "validation_loss", "validation_accuracy"]
    assert list(history.columns) == names
    networks = [(arm, seed) for arm in level.rows.arms for seed in level.rows.seeds]
    rows = [
        (arm, seed, iteration)
        for (arm, seed), network in zip(networks, level.trained.histories, strict=True)
        for iteration in network.iterations
    ]
    assert list(zip(history["arm"], history["seed"], history["iteration"], strict=True)) == rows
    for name in names[3:]:
        loaded = torch.tensor(history[name].to_numpy(dtype="float64").copy())
        saved = torch.cat([getattr(network, name) for network in level.trained.histories])
        assert torch.equal(loaded.isnan(), saved.isnan())
        assert torch.equal(loaded.nan_to_num().view(torch.int64), saved.nan_to_num().view(torch.int64))


def _with_more(level: Level) -> Level:
    """The level with twins of its first arm, and weights that tickets are rewound to."""
    first = Rows(level.rows.arms[:1], level.rows.seeds)
    rows = slice(len(first))
    twins, final = level.trained.early_stopping.rows(rows), level.trained.final.rows(rows)
    trained = replace(level.trained, rewound=Stack(2 * final.flat, final.layout))
    return replace(level, twins=(first, twins), trained=trained)


def test_twins_and_weights_to_rewind_to_come_back_to_the_bit_where_there_are_any(workspace: Path) -> None:
    level = _with_more(_level(arms=("dense",)))
    save_level(level, workspace / "dense", {})
    twins = load_twins(workspace / "dense")
    assert twins
    assert level.twins
    assert level.trained.rewound
    assert twins[0] == Rows(("dense",), level.rows.seeds)
    assert _bits(twins[1]) == _bits(level.twins[1])
    assert _bits(load_rewound(workspace / "dense")) == _bits(level.trained.rewound)


def test_tickets_are_rewound_to_the_start_where_no_later_iteration_is_asked_for(workspace: Path) -> None:
    level = _level(arms=("dense",))
    save_level(level, workspace / "dense", {})
    assert _bits(load_rewound(workspace / "dense")) == _bits(level.start)


def test_what_no_setting_asks_for_is_not_written(workspace: Path) -> None:
    save_level(_level(), workspace / "p60", {})
    assert load_twins(workspace / "p60") is None
    assert sorted(_bytes(workspace / "p60")) == sorted(FILES)
    names = {name.split(".")[0] for name in load_file(workspace / "p60" / "weights.safetensors")}
    assert names == {"initial", "final", "early_stopping"}
    _refusal(lambda folder: load_parameters(folder, "rewind"), workspace / "p60", "weights.safetensors")


def test_twins_that_are_damaged_are_named(workspace: Path) -> None:
    for content in (b"", b"<html>404</html>\n"):
        save_level(_with_more(_level()), workspace / "p60", {})
        (workspace / "p60" / "twins.safetensors").write_bytes(content)
        _refusal(load_twins, workspace / "p60", "twins.safetensors")


def test_a_mask_takes_a_bit_a_weight(workspace: Path) -> None:
    save_level(_level(sizes=(784, 300, 100, 10), arms=("ticket",)), workspace / "p60", {})
    stored = load_file(workspace / "p60" / "masks.safetensors")
    assert {name: list(layer.shape) for name, layer in stored.items()} == {
        "layer0": [2, 29_400], "layer1": [2, 3750], "layer2": [2, 125],
    }  # fmt: skip
    assert all(layer.dtype == torch.uint8 for layer in stored.values())


# --- the same networks, the same bytes -------------------------------------------------------------------------------

A_SMALL_LEVEL = """
import sys
import torch
from dataclasses import replace
from pathlib import Path
from lottery.core import experiment
from lottery.core.arms import ARMS
from lottery.files.artifacts import save_level
from lottery.core.images import Images, Scaling, Split
from lottery.core.ingredients import Ingredients
from lottery.core.layout import perceptron
from lottery.core.pruning import CRITERIA, Evidence
from lottery.core.schedules import Cosine
from lottery.core.training import Recipe, train

draws = torch.Generator().manual_seed(0)
pixels = torch.randint(256, (60, 17), generator=draws, dtype=torch.uint8)
labels = torch.randint(5, (60,), generator=draws)
split = Split(Images(pixels[:50], labels[:50]), Images(pixels[50:], labels[50:]), Scaling((128.0,), (74.0,)))
seeds = (0, 1, 2)

def trained(start, masks, seeds, path, recipes):
    return train(start, masks, seeds, path, split, recipes, threads=int(sys.argv[2]))

recipe = Recipe(9, 7, 0.01, 4, schedule=Cosine())
layout = perceptron((17, 12, 5))
dense = experiment.dense(layout, "glorot-normal", seeds, replace(recipe, rewind=3), trained, twins=True)
final = dense.trained.final
save_level(dense, Path(sys.argv[1]) / "dense", {})
for number, criterion in enumerate(CRITERIA):
    path = (0.5 + number / 100,)
    evidence = Evidence(dense.start, final, seeds, path, split)
    masks = experiment.prune(evidence, dense.masks, experiment.Pruning(criterion, "global", {}))
    rewound, later = dense.trained.rewound, replace(recipe, start=3)
    ingredients = Ingredients(masks, rewound, final, seeds, path, "glorot-normal", later)
    level = experiment.level(ingredients, tuple(ARMS), trained, twins=True)
    save_level(level, Path(sys.argv[1]) / f"{sys.argv[3]}{number}", {})
"""


def _process(folder: Path, threads: int, hash_seed: str, level: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": str(threads)}
    arguments = [sys.executable, "-c", A_SMALL_LEVEL, str(folder), str(threads), level]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_processes_leave_the_same_bytes_whatever_the_level_is_called(workspace: Path) -> None:
    processes = [_process(workspace / "a", 1, "1", "p"), _process(workspace / "b", 2, "2", "another-name")]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert _bytes(workspace / "a" / "dense") == _bytes(workspace / "b" / "dense")
    for number in range(len(CRITERIA)):
        one, other = _bytes(workspace / "a" / f"p{number}"), _bytes(workspace / "b" / f"another-name{number}")
        assert sorted(one) == sorted([*FILES, "twins.safetensors"])
        assert one == other


def test_a_level_saved_twice_is_the_same_bytes(workspace: Path) -> None:
    for name in ("one", "other"):
        save_level(_level(), workspace / name, {})
    assert _bytes(workspace / "one") == _bytes(workspace / "other")
    assert sorted(_bytes(workspace / "one")) == sorted(FILES)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_new_level_takes_the_place_of_the_old_one(workspace: Path) -> None:
    folder = workspace / "models" / "p60"
    save_level(_level(draw=0), folder, {})
    (folder / "left-behind").write_text("by an older version")
    save_level(_level(draw=1), folder, {})
    assert sorted(_bytes(folder)) == sorted(FILES)
    assert _bits(load_parameters(folder, "final")) == _bits(_level(draw=1).trained.final)
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_leaves_the_old_folder_untouched(workspace: Path, there: bool) -> None:
    folder = workspace / "models" / "p60"
    if there:
        save_level(_level(draw=0), folder, {})
    before = _bytes(folder) if there else None

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as a full disk does; Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_level(_level(draw=1), folder, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(folder)
    assert (_bytes(folder) if folder.exists() else None) == before
    assert not list(folder.parent.glob(".*"))


def _refusal(loader: Loader, folder: Path, name: str) -> None:
    """The loader fails with one line that begins with the file's name."""
    with pytest.raises(LotteryError) as caught:
        loader(folder)
    assert str(caught.value).startswith(f"{folder / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(workspace: Path, name: str) -> None:
    folder = workspace / "p60"
    save_level(_level(), folder, {})
    (folder / name).unlink()
    for loader in LOADERS[name]:
        _refusal(loader, folder, name)


def test_a_missing_level_is_one_line_for_whoever_reads_it(workspace: Path) -> None:
    for loader in ALL_LOADERS:
        with pytest.raises(LotteryError, match=r"^.*/p60/[a-z]+\.(csv|safetensors): missing"):
            loader(workspace / "p60")


@several_examples
@given(st.sampled_from(["masks.safetensors", "weights.safetensors"]), st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_of_tensors_is_named(workspace: Path, name: str, fraction: float) -> None:
    folder = workspace / "p60"
    save_level(_level(), folder, {})
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(fraction * len(content))])
    for loader in LOADERS[name]:
        _refusal(loader, folder, name)


@several_examples
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_history_is_named(workspace: Path, fraction: float) -> None:
    folder = workspace / "p60"
    save_level(_level(), folder, {})
    content = (folder / "history.csv").read_bytes()
    (folder / "history.csv").write_bytes(content[: int(fraction * len(content))])
    _refusal(load_history, folder, "history.csv")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>404</html>\n", "ärger;überall\n1;2\n".encode("latin-1")])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_is_named(workspace: Path, name: str, content: bytes) -> None:
    folder = workspace / "p60"
    save_level(_level(), folder, {})
    (folder / name).write_bytes(content)
    for loader in LOADERS[name]:
        _refusal(loader, folder, name)


@pytest.mark.parametrize("name", ["masks.safetensors", "weights.safetensors"])
def test_a_file_of_other_tensors_is_named(workspace: Path, name: str) -> None:
    folder = workspace / "p60"
    save_level(_level(), folder, {})
    save_file({"a": torch.zeros(3)}, folder / name)
    for loader in LOADERS[name]:
        _refusal(loader, folder, name)


def test_weights_of_another_shape_than_the_masks_are_named(workspace: Path) -> None:
    save_level(_level(sizes=(5, 4, 3)), workspace / "p60", {})
    save_level(_level(sizes=(5, 6, 3)), workspace / "other", {})
    (workspace / "other" / "weights.safetensors").replace(workspace / "p60" / "weights.safetensors")
    _refusal(LOADERS["weights.safetensors"][0], workspace / "p60", "weights.safetensors")


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"sizes": [5, 4, 3]},
        {"sizes": 5, "path": [], "arms": ["ticket"], "seeds": [0]},
        {"sizes": [5, 4, 3], "path": [], "arms": ["ticket"], "seeds": [0], "name": "p60"},
        [],
    ],
)
def test_masks_with_altered_contents_are_named(workspace: Path, stored: object) -> None:
    folder = workspace / "p60"
    save_level(_level(), folder, {})
    tensors = load_file(folder / "masks.safetensors")
    save_file(tensors, folder / "masks.safetensors", {"lottery": json.dumps(stored)})
    for loader in LOADERS["masks.safetensors"]:
        _refusal(loader, folder, "masks.safetensors")


@pytest.mark.parametrize("layer", [torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4), torch.zeros(4, 3)])
def test_masks_that_do_not_fill_their_layer_are_named(workspace: Path, layer: torch.Tensor) -> None:
    folder = workspace / "p60"
    save_level(_level(sizes=(5, 4, 3)), folder, {})  # 20 weights, 3 bytes
    tensors = load_file(folder / "masks.safetensors") | {"layer0": layer}
    with safe_open(folder / "masks.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, folder / "masks.safetensors", metadata)
    _refusal(load_masks, folder, "masks.safetensors")


def test_no_name_no_time_and_no_folder_is_written(workspace: Path) -> None:
    save_level(_level(), workspace / "quite-a-name", {})
    for content in _bytes(workspace / "quite-a-name").values():
        assert b"quite-a-name" not in content
        assert str(workspace).encode() not in content
    with safe_open(workspace / "quite-a-name" / "masks.safetensors", framework="pt") as file:
        stored = json.loads(file.metadata()["lottery"])
    assert stored.keys() == {"facts", "sums", "seal"}
    held = {"sizes": [5, 4, 3], "path": [0.4, 0.6], "arms": ["ticket", "random"], "seeds": [0, 3]}
    assert stored["facts"].items() >= held.items()
    assert stored["facts"].keys() - held.keys() == {"files", "made_from"}
