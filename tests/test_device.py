"""A level as one stack on a device: what a GPU runs, on the processor, against the networks one by one."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clones import Clone
from conftest import random_masks
from safetensors.torch import save
from stores import runs, store, sync

from lottery import LotteryError
from lottery.core import device
from lottery.core.families import accuracy, family
from lottery.core.images import Scaling, Split
from lottery.core.layout import Layout, perceptron, published
from lottery.core.networks.own import lay_out
from lottery.core.stack import Masks, Stack, initialize
from lottery.core.training import Group, Recipe, State, Task, Trained, train
from lottery.files.artifacts import load_contents
from lottery.files.checkpoints import Checkpoints
from lottery.stages.faults import line

MakeSplit = Callable[..., Split]
SGD = Recipe(20, 10, 0.01, 7, optimizer="sgd", momentum=0.9, weight_decay=0.01)
ADAM = Recipe(20, 10, 0.001, 7, rewind=3)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
GPU = pytest.param("cuda", marks=needs_gpu)


def _own(name: str, example: tuple[int, ...], **arguments: object) -> Layout:
    return lay_out("networks/example.py", name, arguments, example, 10)


LAYOUTS = {
    "perceptron": perceptron((64, 32, 20, 10)),
    "lenet-5": published("lenet-5", (16, 16), 10),
    "conv-2": published("conv-2", (8, 8, 3), 10),
    "batch normalization": _own("Net", (8, 8)),
    "dropout": _own("Net", (8, 8), dropout=0.2),
    "layer normalization": _own("Table", (64,), features=64, classes=10),
}
EACH = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def _start(layout: Layout, networks: int = 3) -> tuple[Stack, Masks]:
    masks = random_masks(networks, layout, 0.5)
    start = initialize(layout, "glorot-normal", [torch.Generator().manual_seed(seed) for seed in range(networks)])
    return start.masked(masks), masks


def _split(make_split: MakeSplit, layout: Layout) -> Split:
    split = make_split(100, 40, layout.inputs, 10)
    channels = 3 if len(layout.example) == 3 else 1
    return replace(split, scaling=Scaling((128.0, 100.0, 90.0)[:channels], (74.0, 60.0, 50.0)[:channels]))


def _train(
    layout: Layout,
    split: Split,
    recipe: Recipe,
    name: str = "cpu",
    start: tuple[Stack, Masks] | None = None,
    **more: object,
) -> Trained:
    """Train as one stack on a device."""
    networks, masks = start or _start(layout)
    return train(
        networks, masks, [*range(len(networks))], (0.5,), split, recipe, group=len(networks),
        engine=device.engine(name, print), lessons=lambda own, images: device.Lessons(own, images, torch.device(name)),
        **more,
    )  # fmt: skip


@EACH
def test_a_stack_on_a_device_learns_what_its_networks_learn_one_by_one(layout: Layout, make_split: MakeSplit) -> None:
    split, start = _split(make_split, layout), _start(layout)
    alone, together = train(*start, [0, 1, 2], (0.5,), split, SGD), _train(layout, split, SGD)
    for state in ("final", "early_stopping"):
        torch.testing.assert_close(getattr(together, state).flat, getattr(alone, state).flat, rtol=0, atol=1e-5)
    for mine, its in zip(together.histories, alone.histories, strict=True):
        assert mine.iterations == its.iterations
        for name in ("train_loss", "validation_loss", "validation_accuracy"):
            torch.testing.assert_close(getattr(mine, name), getattr(its, name), rtol=0, atol=1e-5, equal_nan=True)
    assert torch.equal(together.final.masked(start[1]).flat, together.final.flat)
    assert not torch.equal(together.final.flat, start[0].flat)


MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)

    def forward(self, x):
        values = self.norm(self.first(x.flatten(1)))
        {}
"""


@pytest.mark.parametrize(
    "norm",
    ["nn.GroupNorm(2, 4)", "nn.InstanceNorm2d(4, affine=True, track_running_stats=True)", "nn.InstanceNorm2d(4)"],
)
def test_normalization_after_a_convolution(norm: str, make_split: MakeSplit, tmp_path: Path) -> None:
    layers = f"nn.Conv2d(1, 4, 3), {norm}, nn.ReLU(), nn.Conv2d(4, 4, 3), {norm}, nn.Flatten(), nn.Linear(64, 10)"
    text = "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__({})\n"
    (tmp_path / "net.py").write_text(text.format(layers))
    layout = lay_out(str(tmp_path / "net.py"), "Net", {}, (8, 8), 10)
    split, start = _split(make_split, layout), _start(layout)
    alone, together = train(*start, [0, 1, 2], (0.5,), split, SGD), _train(layout, split, SGD)
    torch.testing.assert_close(together.final.flat, alone.final.flat, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "forward",
    [
        "return self.last(values.relu() * float(values.detach().max() < 1e9))",
        "logits = torch.zeros(len(x), 10)\n        logits += self.last(values.relu())\n        return logits",
        "values[values < 0] = 0\n        return self.last(values)",
        "return self.last(values.relu()) if x.sum() < 1e9 else 0 * x[:, :10]",
    ],
    ids=["a value", "memory of its own", "a choice of elements", "a branch"],
)
def test_what_vmap_does_not_take_learns_one_by_one(forward: str, make_split: MakeSplit, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODULE.format(forward))
    layout = lay_out(str(tmp_path / "net.py"), "Net", {}, (8, 8), 10)
    split, start = _split(make_split, layout), _start(layout)
    alone, together = train(*start, [0, 1, 2], (0.5,), split, SGD), _train(layout, split, SGD)
    torch.testing.assert_close(together.final.flat, alone.final.flat, rtol=0, atol=1e-5)
    for mine, its in zip(together.histories, alone.histories, strict=True):
        torch.testing.assert_close(mine.validation_loss, its.validation_loss, rtol=0, atol=1e-5)


def test_what_fails_on_the_device_is_one_line(make_split: MakeSplit, tmp_path: Path) -> None:
    """On a device of tensors without values, of which a module asks for one."""
    (tmp_path / "net.py").write_text(MODULE.format("return self.last(values) * float(values.detach().sum() < 9e9)"))
    layout, nowhere = lay_out(str(tmp_path / "net.py"), "Net", {}, (8, 8), 10), torch.device("meta")
    networks = Stack(_start(layout)[0].flat.to(nowhere), layout)
    with pytest.raises(LotteryError, match=r"net.py: Net: fails on meta: .*; mend it, or set run.device to cpu$"):
        device.Lessons(layout, _split(make_split, layout), nowhere).learner(networks, 10)


@EACH
def test_by_adam_too_and_rewinds(layout: Layout, make_split: MakeSplit) -> None:
    split = _split(make_split, layout)
    alone, together = train(*_start(layout), [0, 1, 2], (0.5,), split, ADAM), _train(layout, split, ADAM)
    # Adam moves a weight by its whole rate where its gradient is not quite 0 on one side
    assert alone.rewound is not None
    assert together.rewound is not None
    off = (together.rewound.flat - alone.rewound.flat).abs()
    assert off.max() < 2 * ADAM.rewind * ADAM.learning_rate
    assert off.mean() < 1e-6
    for mine, its in zip(together.histories, alone.histories, strict=True):
        torch.testing.assert_close(mine.validation_loss, its.validation_loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cpu", GPU])
@EACH
def test_the_same_bytes_each_time_and_after_an_interruption(
    layout: Layout, name: str, make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "SHARED", 0.0)
    split, states = _split(make_split, layout), dict[int, State]()

    def keep(group: Group) -> None:
        if group.iteration == 7:
            states[group.first] = group.state.copy()

    whole = _train(layout, split, ADAM, name, advanced=keep)
    saved = lambda row: states[0].rows(slice(row, row + 1)).copy()  # noqa: E731
    for again in (_train(layout, split, ADAM, name), _train(layout, split, ADAM, name, saved=saved)):
        assert save({"final": again.final.flat}) == save({"final": whole.final.flat})
        assert save({"early": again.early_stopping.flat}) == save({"early": whole.early_stopping.flat})


@EACH
def test_accuracies_on_a_device_are_those_on_the_processor(layout: Layout, make_split: MakeSplit) -> None:
    split, (networks, _) = _split(make_split, layout), _start(layout, 5)
    here = accuracy(networks, family(layout).examples(split.validation, split.scaling), 1)
    there = device.Examples(split.validation, split.scaling, torch.device("cpu"))
    assert device.accuracy(networks, there, together=2).tolist() == here.tolist()


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "dropout"])
def test_gradients_need_nothing_from_the_device_and_nothing_from_elsewhere(name: str, make_split: MakeSplit) -> None:
    """Tensors without values, as those of a GPU are to a CUDA graph: what asked for a value would raise."""
    layout, nowhere = LAYOUTS[name], torch.device("meta")
    lessons = device.Lessons(layout, _split(make_split, layout), nowhere)
    learner = lessons.learner(Stack(_start(layout)[0].flat.to(nowhere), layout), 10)
    likelihoods = torch.zeros(3, 10, 1, device=nowhere)
    with torch.no_grad():
        learner(torch.zeros(3, 10, dtype=torch.int64, device=nowhere), likelihoods)
    assert learner.gradients.flat.is_meta


def _fills_up(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Have learners of more networks fail after an evaluation, as a GPU's do whose memory is full."""
    teach, calls = device.Learner.__call__, list[int]()

    def full(self: device.Learner, *arguments: object) -> None:
        calls.append(len(self.gradients))
        if calls[-1] > most and calls.count(calls[-1]) > ADAM.evaluate_every:
            raise torch.OutOfMemoryError("CUDA out of memory")
        teach(self, *arguments)

    monkeypatch.setattr(device.Learner, "__call__", full)
    monkeypatch.setattr(device, "SHARED", 0.0)


def test_what_does_not_fit_trains_in_halves_and_says_so(
    make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A GPU's memory cannot be filled where there is none. The checkpoints are each network's own."""
    layout = LAYOUTS["perceptron"]
    split, start = _split(make_split, layout), _start(layout, 5)
    whole = _train(layout, split, ADAM, start=start)
    _fills_up(monkeypatch, 2)
    saved = Checkpoints(tmp_path, 1e9)
    parts = _train(layout, split, ADAM, start=start, advanced=saved.keep)
    torch.testing.assert_close(parts.final.flat, whole.final.flat, rtol=0, atol=1e-5)
    assert capsys.readouterr().out.splitlines() == [
        "5 networks do not fit the memory of cpu; they train 3 at a time",
        "3 networks do not fit the memory of cpu; they train 2 at a time",
    ]
    saved.save()
    for row in range(5):
        state = saved.load(row, Task(layout, (row,), (0.5,), ADAM))
        assert state
        assert torch.equal(state.parameters.flat[0], parts.final.flat[row])


def test_a_network_that_does_not_fit_alone_is_one_line(make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    _fills_up(monkeypatch, 0)
    with pytest.raises(LotteryError, match=r"^params.yaml: run.device: a network does not fit the memory of cpu; make"):
        _train(LAYOUTS["perceptron"], _split(make_split, LAYOUTS["perceptron"]), ADAM)


def test_fewer_are_measured_together_where_so_many_do_not_fit(
    make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, score = LAYOUTS["perceptron"], device.Examples.score
    split, (networks, _) = _split(make_split, layout), _start(layout, 5)

    def full(self: device.Examples, several: Stack) -> object:
        if len(several) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(self, several)

    there = device.Examples(split.validation, split.scaling, torch.device("cpu"))
    expected = device.accuracy(networks, there)
    monkeypatch.setattr(device.Examples, "score", full)
    assert torch.equal(device.accuracy(networks, there), expected)


def test_a_gpu_whose_memory_runs_out_elsewhere_is_one_line() -> None:
    told = line("evaluate", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"))
    remedy = "end what else uses it, or set it to cpu; then `dvc repro` goes on from here"
    assert told == f"run.device: the GPU's memory ran out: {remedy}"


def test_an_operator_that_is_not_steady_is_one_line() -> None:
    def work() -> None:
        with device.deterministic(torch.device("cuda")):
            assert torch.are_deterministic_algorithms_enabled()
            raise RuntimeError("pool_cuda does not have a deterministic implementation, but you set 'torch.use_...")

    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(LotteryError) as caught:
        work()
    assert str(caught.value).startswith("params.yaml: run.device: pool_cuda does not give the same bits each time on")
    assert torch.are_deterministic_algorithms_enabled() == before


ON_A_GPU = """
import lottery.stages as stages
stages.device, stages.device_name = (lambda params: "cpu:0"), (lambda params: "Some GPU")
from lottery.stages import {0}
stages.run({0}.main)
"""


@pytest.mark.slow
def test_what_was_trained_and_measured_on_a_gpu_says_so(clone: Clone) -> None:
    """The stages run on a device beside the processors that is no GPU, and take it for one."""

    def run(stage: str, name: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-c", ON_A_GPU.format(stage)],
            cwd=clone.folder, env=clone.environment | {"PYTHONPATH": "src", "DVC_STAGE": name or stage},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "warning: levels were trained on a processor, and are measured on Some GPU\n" in run("evaluate")
    run("train")
    assert load_contents(clone.folder / "models/dense").device == "Some GPU"
    for level in ("p50", "p75", "p80-at-once"):
        run("prune", f"prune@{level}")
    assert "warning: levels" not in run("evaluate")
    run("plot")
    page = (clone.folder / "reports/report.html").read_text()
    assert "Trained on a GPU, whose bits are its model’s alone: dense on Some GPU, p50 on Some GPU, " in page
    assert "Accuracies are measured on Some GPU." in page
    clone.run("dvc", "commit", "-f")
    sync(clone)
    found = runs(store(clone), "params.device = 'Some GPU'")
    names = {run.info.run_name.partition(" ·")[0] for run in found}
    assert {"dense", "dense dense 0", "p50", "p50 random 0", "evaluate"} <= names, names


@needs_gpu
@EACH
def test_a_gpu_learns_what_the_processor_learns(layout: Layout, make_split: MakeSplit) -> None:
    split = _split(make_split, layout)
    here, there = (_train(layout, split, SGD, name) for name in ("cpu", "cuda"))
    if layout is not LAYOUTS["dropout"]:  # which another device draws otherwise
        torch.testing.assert_close(there.final.flat, here.final.flat, rtol=0, atol=1e-3)
    assert torch.equal(there.final.masked(_start(layout)[1]).flat, there.final.flat)


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_on_a_processor_too() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--iterations", "5", "--largest", "4"]
    said = subprocess.run([*command, "--part", "stacks"], capture_output=True, text=True, check=True).stdout
    assert [line.split(" | ")[0] for line in said.splitlines()[-4:-1]] == ["|---|---|---|", "| 1", "| 4"]
    refused = subprocess.run([*command[:3], "--device", "cuda"], capture_output=True, text=True)
    if not torch.cuda.is_available():
        assert (refused.returncode, refused.stderr) == (2, "torch sees no GPU here; --device cpu tries the code\n")
