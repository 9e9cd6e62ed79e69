"""Checkpoints: what their name stands for, and that training goes on from them to the same bits."""

import json
import multiprocessing
import re
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_masks
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import perceptron
from lottery.core.schedules import Constant, Cosine
from lottery.core.stack import Masks, Stack, initialize
from lottery.core.training import Group, Recipe, State, Task, Trained, train
from lottery.files import checkpoints, workplace
from lottery.files.checkpoints import Checkpoints, key, opened, remove_trained

MakeSplit = Callable[..., Split]
LAYOUT = perceptron((12, 9, 4))
RECIPE = Recipe(40, 10, 0.01, 4, schedule=Cosine(), rewind=10)
SEEDS = (5, 6, 7, 8, 9)
PATH = (0.5,)


def _start() -> tuple[Stack, Masks]:
    draws = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    masks = random_masks(len(SEEDS), LAYOUT, 0.5)
    return initialize(LAYOUT, "kaiming-uniform", draws).masked(masks), masks


def _recipes(recipe: Recipe = RECIPE) -> list[Recipe]:
    return [recipe] * 3 + [replace(recipe, start=7, rewind=0)] * 2


def _train(split: Split, saved: Checkpoints | None = None, **how: Any) -> Trained:
    start, masks = _start()
    tasks = [Task(LAYOUT, (seed,), PATH, recipe) for seed, recipe in zip(SEEDS, _recipes(), strict=True)]
    if saved:
        how["saved"] = lambda row: saved.load(row, tasks[row])
    return train(start, masks, SEEDS, PATH, split, _recipes(), **how)


def _bytes(trained: Trained) -> list[bytes]:
    assert trained.rewound
    stacks = [trained.final, trained.early_stopping, trained.rewound]
    curves = [vars(history) for history in trained.histories]
    lines = [values for each in curves for name, values in each.items() if name != "iterations"]
    return [tensor.contiguous().numpy().tobytes() for tensor in [*(stack.flat for stack in stacks), *lines]]


def _interrupted(split: Split, name: str, evaluations: int, every: float = 0.0, **how: Any) -> None:
    """Train until so many evaluations are done in all, and end there as Ctrl-C does."""
    done: list[Group] = []

    def advanced(group: Group) -> None:
        assert saved
        saved.keep(group)
        done.append(group)
        if len(done) == evaluations:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), opened(name, every, "train", {}) as saved:
        assert saved
        _train(split, saved, advanced=advanced, **how)
        pytest.fail("it was not interrupted")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.data())
def test_training_goes_on_to_the_same_bits_however_often_and_on_however_many_threads(
    workspace: Path, make_split: MakeSplit, interruptions: list[int], data: st.DataObject
) -> None:
    split = make_split(50, 30, 12, 4)
    name = f"k{time.monotonic_ns()}"
    for evaluations in interruptions:
        how = {"threads": data.draw(st.integers(1, 2)), "group": data.draw(st.integers(1, 5))}
        _interrupted(split, name, evaluations, every=data.draw(st.sampled_from([0.0, 1000.0])), **how)
    advanced = []
    with opened(name, 20, "train", {}) as saved:
        again = _train(split, saved, group=2, advanced=lambda group: advanced.append(group.first))
    assert _bytes(again) == _bytes(_train(split))
    assert not multiprocessing.active_children()


def test_only_what_is_missing_is_trained(workspace: Path, make_split: MakeSplit) -> None:
    split = make_split(50, 30, 12, 4)
    evaluations = sum(len(recipe.evaluations) for recipe in _recipes())
    _interrupted(split, "k", 30, group=1)
    done: list[int] = []
    with opened("k", 20, "train", {}) as saved:
        _train(split, saved, group=1, advanced=lambda group: done.append(group.first))
    assert len(done) == evaluations - 30


def test_the_states_of_trained_networks_stay_until_another_stage_begins(workspace: Path, make_split: MakeSplit) -> None:
    """Until DVC has recorded the outputs, a kill makes the stage run again."""
    split = make_split(50, 30, 12, 4)

    def advanced(group: Group) -> None:
        assert saved
        saved.keep(group)
        saved.finish()

    with opened("k", 0, "train", {}) as saved:
        first = _train(split, saved, advanced=advanced)
    assert saved
    assert (saved.folder / checkpoints.TRAINED).exists()
    with opened("k", 1000, "train", {}) as saved:
        again = _train(split, saved, advanced=lambda group: pytest.fail("it trained"))
    assert _bytes(again) == _bytes(first)


def test_what_a_signal_interrupts_is_not_kept(
    workspace: Path, make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a state in whose middle Ctrl-C comes: the state before is what is saved."""
    split, copy_from = make_split(50, 30, 12, 4), State.copy_from

    def interrupted(state: State, other: State) -> None:
        if int(other.evaluated) < 6:
            return copy_from(state, other)
        state.parameters.flat.copy_(other.parameters.flat)
        raise KeyboardInterrupt

    monkeypatch.setattr(State, "copy_from", interrupted)
    with suppress(KeyboardInterrupt), opened("k", 1000, "train", {}) as saved:
        assert saved
        _train(split, saved, advanced=saved.keep)
        pytest.fail("it was not interrupted")
    with opened("k", 20, "train", {}) as saved:
        assert _bytes(_train(split, saved)) == _bytes(_train(split))


# --- what a name stands for ------------------------------------------------------------------------------------------


def _inputs(**more: object) -> dict[str, object]:
    return {"src/lottery/core": "1a", "params.yaml: train": {"seeds": [5]}} | more


def _key(split: Split, **changed: Any) -> str:
    start, masks = changed.pop("start", _start()[0]), changed.pop("masks", _start()[1])
    recipes = changed.pop("recipes", _recipes())
    seeds, path = changed.pop("seeds", SEEDS), changed.pop("path", PATH)
    tasks = [Task(LAYOUT, (seed,), path, recipe) for seed, recipe in zip(seeds, recipes, strict=True)]
    return key(changed.pop("inputs", _inputs()), split, start, masks, tasks)


def _with(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose first value is another."""
    other = tensor.clone()
    other.view(-1)[0] = ~other.view(-1)[0] if other.dtype == torch.bool else other.view(-1)[0] + 1
    return other


def _other_images(split: Split, part: str, tensor: str) -> dict[str, Any]:
    images = getattr(split, part)
    return {"split": replace(split, **{part: replace(images, **{tensor: _with(getattr(images, tensor))})})}


def _other_recipe(**value: Any) -> Callable[[Split], dict[str, Any]]:
    return lambda split: {"recipes": _recipes(replace(RECIPE, **value))}


CHANGES: Mapping[str, Callable[[Split], dict[str, Any]]] = {
    "a source": lambda split: {"inputs": _inputs(**{"src/lottery/core": "1b"})},
    "a source more": lambda split: {"inputs": _inputs(**{"src/lottery/files": "1a"})},
    "a parameter": lambda split: {"inputs": _inputs(**{"params.yaml: train": {"seeds": [6]}})},
    "a pixel": lambda split: _other_images(split, "train", "pixels"),
    "a label": lambda split: _other_images(split, "train", "labels"),
    "a validation image's pixel": lambda split: _other_images(split, "validation", "pixels"),
    "a validation image's label": lambda split: _other_images(split, "validation", "labels"),
    "the images' order": lambda split: {
        "split": replace(split, train=Images(split.train.pixels.flip(0), split.train.labels.flip(0)))
    },
    "the scaling": lambda split: {"split": replace(split, scaling=Scaling((128.0,), (74.5,)))},
    "an initial value": lambda split: {"start": Stack(_with(_start()[0].flat), LAYOUT)},
    "a mask": lambda split: {"masks": Stack(_with(_start()[1].flat), LAYOUT)},
    "a seed": lambda split: {"seeds": (*SEEDS[:-1], 1)},
    "the seeds' order": lambda split: {"seeds": SEEDS[::-1]},
    "the path": lambda split: {"path": (0.5, 0.6)},
    "the iterations": _other_recipe(iterations=41),
    "the batch size": _other_recipe(batch_size=5),
    "the learning rate": _other_recipe(learning_rate=0.02),
    "the evaluations": _other_recipe(evaluate_every=5),
    "the optimizer": _other_recipe(optimizer="sgd"),
    "the momentum": _other_recipe(momentum=0.5),
    "the weight decay": _other_recipe(weight_decay=0.1),
    "the schedule": _other_recipe(schedule=Constant()),
    "the start": _other_recipe(start=3),
    "the iteration of rewinding": _other_recipe(rewind=11),
    "the batch order": _other_recipe(order="twin batches"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_networks_is_in_the_key(make_split: MakeSplit, change: str) -> None:
    split = make_split(50, 30, 12, 4)
    changed = CHANGES[change](split)
    assert _key(split) == _key(split)
    assert _key(changed.pop("split", split), **changed) != _key(split)


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        (torch, "__version__", "2.14.0"),
        (np, "__version__", "1.0"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        (checkpoints, "_processor", lambda: ["model name: another"]),
    ],
)
def test_what_computes_is_in_the_key(
    make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch, of: Any, name: str, value: Any
) -> None:
    before = _key(make_split(50, 30, 12, 4))
    monkeypatch.setattr(of, name, value)
    assert _key(make_split(50, 30, 12, 4)) != before


def test_variables_that_choose_operators_are_in_the_key(make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _key(make_split(50, 30, 12, 4))
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert _key(make_split(50, 30, 12, 4)) != before


# --- faults ----------------------------------------------------------------------------------------------------------


DAMAGE: Mapping[str, Callable[[bytes, int], bytes]] = {
    "a flipped bit": lambda content, place: _altered(content, place, bytes([content[place] ^ 1 << place % 8])),
    "zeros": lambda content, place: _altered(content, place, bytes(len(content[place : place + 64]))),
    "a truncated file": lambda content, place: content[:place],
    "appended bytes": lambda content, place: content + content[: place + 1],
    "another format": lambda content, place: content.replace(b"seal", b"sea1"),
}


def _altered(content: bytes, place: int, by: bytes) -> bytes:
    return content[:place] + by + content[place + len(by) :]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(DAMAGE)), st.integers(0, 2**31))
def test_a_damaged_checkpoint_is_a_line_and_never_a_state(
    workspace: Path, make_split: MakeSplit, capsys: pytest.CaptureFixture[str], how: str, place: int
) -> None:
    saved = Checkpoints(workspace / ".lottery/checkpoints/k", 20)
    if not saved.folder.exists():
        _interrupted(make_split(50, 30, 12, 4), "k", 12, group=1)
    path, task = saved.folder / "1.safetensors", Task(LAYOUT, SEEDS[1:2], PATH, RECIPE)
    content = path.read_bytes()
    assert saved.load(1, task)
    path.write_bytes(DAMAGE[how](content, place % len(content)))
    assume(path.read_bytes() != content)  # zeros in the place of zeros
    assert saved.load(1, task) is None
    path.write_bytes(content)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"{path}: [^;]*(altered|no checksum)[^;]*; its network trains from its start", line)


def test_a_damaged_checkpoint_costs_no_bit(
    workspace: Path, make_split: MakeSplit, capsys: pytest.CaptureFixture[str]
) -> None:
    split = make_split(50, 30, 12, 4)
    _interrupted(split, "k", 12, group=1)
    (workspace / ".lottery/checkpoints/k/1.safetensors").write_bytes(b"")
    with opened("k", 20, "train", {}) as saved:
        again = _train(split, saved, group=2)
    assert _bytes(again) == _bytes(_train(split))
    assert capsys.readouterr().err.count("\n") == 1


def test_a_disk_without_room_costs_a_line_and_nothing_once_there_is_room(
    workspace: Path, make_split: MakeSplit, capsys: pytest.CaptureFixture[str]
) -> None:
    split = make_split(50, 30, 12, 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    done: list[Group] = []

    def advanced(group: Group) -> None:
        assert saved
        saved.keep(group)
        done.append(group)
        if len(done) == 30:
            saved.finish()
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            raise KeyboardInterrupt

    try:
        with suppress(KeyboardInterrupt), opened("k", 0, "train", {}) as saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # as a full disk does; Python ignores SIGXFSZ
            _train(split, saved, group=1, advanced=advanced)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = r"\S+/k(/\S+)?: File too large: training goes on without checkpoints until they can be written\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    with opened("k", 1000, "train", {}) as saved:
        again = _train(split, saved, group=1, advanced=done.append)
    assert len(done) == sum(len(recipe.evaluations) for recipe in _recipes())
    assert _bytes(again) == _bytes(_train(split))


@pytest.mark.parametrize("where", ["copying", "sealing"])
def test_no_memory_for_checkpoints_costs_a_line_and_no_result(
    workspace: Path,
    make_split: MakeSplit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    def lacking(*arguments: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    split = make_split(50, 30, 12, 4)
    monkeypatch.setattr(*((State, "copy") if where == "copying" else (checkpoints, "sealed")), lacking)
    with opened("k", 0, "train", {}) as saved:
        assert saved
        trained = _train(split, saved, advanced=saved.keep)
    line = f"{saved.folder}: no memory: training goes on without checkpoints until they can be written\n"
    assert capsys.readouterr().err == line
    monkeypatch.undo()
    assert _bytes(trained) == _bytes(_train(split))


def test_too_little_memory_to_read_a_checkpoint_is_no_damage(
    workspace: Path, make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(make_split(50, 30, 12, 4), "k", 12, group=1)
    saved, task = Checkpoints(workspace / ".lottery/checkpoints/k", 20), Task(LAYOUT, SEEDS[1:2], PATH, RECIPE)

    def lacking(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("unable to mmap 4279384 bytes from file <1.safetensors>: Cannot allocate memory (12)")

    monkeypatch.setattr("lottery.files.sealed.safe_open", lacking)
    with pytest.raises(MemoryError):
        saved.load(1, task)


def test_checkpoints_that_somebody_removes_cost_no_result(workspace: Path, make_split: MakeSplit) -> None:
    split = make_split(50, 30, 12, 4)

    def advanced(group: Group) -> None:
        assert saved
        saved.keep(group)
        if group.iteration == 20:
            saved.finish()
            shutil.rmtree(workspace / ".lottery", ignore_errors=True)

    with opened("k", 0, "train", {}) as saved:
        assert _bytes(_train(split, saved, advanced=advanced)) == _bytes(_train(split))


def _hold(name: str, ready: Any, over: Any) -> None:
    with opened(name, 20, "train", {}):
        ready.set()
        over.wait(60)


def test_two_processes_never_have_the_same_checkpoints(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workplace, "PATIENCE", 0.1)
    fork = multiprocessing.get_context("fork")
    ready, over = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=("k", ready, over))
    other.start()
    assert ready.wait(60)
    with opened("k", 20, "prune@p80", {}) as saved:
        assert saved is None
    assert capsys.readouterr().err == (
        f"prune@p80: process {other.pid} trains the same networks; this one trains them too, without checkpoints\n"
    )
    with opened("another", 20, "prune@p80", {}):
        remove_trained()  # which leaves what a process has open
    over.set()
    other.join()
    assert (workspace / ".lottery/checkpoints/k").exists()
    remove_trained()
    assert not list((workspace / ".lottery/checkpoints").iterdir())


def test_what_is_not_trained_to_its_end_stays(workspace: Path, make_split: MakeSplit) -> None:
    _interrupted(make_split(50, 30, 12, 4), "k", 12)
    with opened("another", 20, "train", {}):
        pass
    remove_trained()
    left = {path.name for path in (workspace / ".lottery/checkpoints").iterdir()}
    assert left == {"k"}
    about = json.loads((workspace / ".lottery/checkpoints/k/about.json").read_text())
    assert about == {"stage": "train", "inputs": {}}


def test_no_checkpoint_is_half_written(workspace: Path, make_split: MakeSplit) -> None:
    """Files are written beside their places and moved there: what is left of a killed write is no checkpoint."""
    split = make_split(50, 30, 12, 4)
    _interrupted(split, "k", 12, group=1)
    folder = workspace / ".lottery/checkpoints/k"
    (folder / ".0.safetensors.new").write_bytes(b"half")
    with opened("k", 0, "train", {}) as saved:
        assert saved
        assert _bytes(_train(split, saved, advanced=saved.keep)) == _bytes(_train(split))
    assert not list(folder.glob(".*.new"))
