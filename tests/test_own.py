"""A person's own network, from a file as people write it: what is refused, what is supported, and that it learns."""

import json
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import torch
import yaml
from clones import ROOT, SMALL
from conftest import random_masks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lottery import LotteryError
from lottery.core import engines, workers
from lottery.core.experiment import Pruning, dense, level, prune
from lottery.core.families import family, score
from lottery.core.images import Images, Split
from lottery.core.ingredients import Ingredients
from lottery.core.layout import Layout, described, description, perceptron, published
from lottery.core.networks.own import build, lay_out
from lottery.core.pruning import CRITERIA, Evidence, weights_kept
from lottery.core.stack import Stack, everything, initialize
from lottery.core.training import Group, Recipe, State, Task, Trained, batch_order, train
from lottery.files.own_data import facts
from lottery.params import Params
from lottery.ticket.graph import try_graph

FEATURES, CLASSES = (6,), 3
IMAGE = (8, 6, 2)  # height, width, channels
MakeSplit = Callable[..., Split]

HEAD = """\
import numpy
import torch
from torch import nn
from torch.nn import functional
"""


def written(folder: Path, layers: str, forward: str, arguments: str = "", of_class: str = "") -> str:
    """The path of a file with a module ``Net`` of these layers and this forward."""
    file = folder / "net.py"
    body = "\n".join([
        f"    def __init__(self{arguments and ', '}{arguments}):",
        "        super().__init__()",
        indent(dedent(layers), "        "),
        "    def forward(self, x):",
        indent(dedent(forward), "        "),
    ])  # fmt: skip
    file.write_text(f"{HEAD}\nclass Net(nn.Module):\n{indent(of_class, '    ')}\n{body}\n")
    return str(file)


def refusal(file: str, example: tuple[int, ...] = FEATURES, name: str = "Net", **arguments: Any) -> str:
    """The one line by which a file is refused, without its name."""
    with pytest.raises(LotteryError) as caught:
        lay_out(file, name, arguments, example, CLASSES)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value).removeprefix(f"{file}: ")


def fresh(layout: Layout, count: int = 2) -> Stack:
    """Networks whose biases are not 0."""
    return initialize(layout, "kaiming-uniform", [torch.Generator().manual_seed(seed) for seed in range(count)])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("class Net(:\n", "is no Python that can be read ("),
        ("x = '\0'\n", "is no Python that can be read ("),
        ("1 / 0\n", "fails when it is read: ZeroDivisionError: division by zero; mend it"),
        ("import sys\nsys.exit('no GPU')\n", "fails when it is read: SystemExit: no GPU; mend it"),
        ("import flax_that_is_not_there\n", "fails when it is read: ModuleNotFoundError: No module named 'flax_"),
        ("from . import beside\n", "imports ., whose changes DVC would not see; write all that the network needs into"),
        ("from .beside import x\n", "imports ., whose changes"),
        ("import beside\n", "imports beside, whose changes"),
        ("import torch, beside as b\n", "imports beside, whose changes"),
        ("import package.layers\n", "imports package.layers, whose changes"),
        ("def f():\n    from package import layers\n", "imports package, whose changes"),
        ("from lottery.core import layout\n", "imports lottery.core, whose changes"),
        ("from src.lottery import core\n", "imports src.lottery, whose changes"),
        ("Net = 3\n", "has no module 'Net'; it has no torch.nn.Module: change network.class"),
        ("class Net:\n    pass\n", "has no module 'Net'; it has no torch.nn.Module"),
        (
            "from torch import nn\nfrom torch.nn import Linear\nclass A(nn.Module):\n    pass\nclass B(A):\n    pass\n",
            "has no module 'Net'; its modules are A, B: change network.class",
        ),
    ],
)
def test_a_file_that_has_no_module_is_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    for folder in ("networks/package", "src/lottery"):
        (workspace / folder).mkdir(parents=True)
    (workspace / "networks/beside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend("networks")
    (workspace / "networks/net.py").write_text(text)
    assert refusal("networks/net.py").startswith(line)


def test_a_file_that_is_missing_or_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_bytes(b"\xff")
    for name in ("no.py", "net.py", "."):
        line = refusal(str(tmp_path / name))
        assert line.startswith("cannot be read (")
        assert line.endswith("; write your module there, or name another file")


def test_a_file_that_changed_since_its_networks_were_made_is_one_line(tmp_path: Path) -> None:
    layout = lay_out(written(tmp_path, "self.layer = nn.Linear(6, 3)", "return self.layer(x)"), "Net", {}, FEATURES, 3)
    code = f"""
from pathlib import Path
from pickle import loads
from lottery import LotteryError
from lottery.core.families import family
layout = loads({pickle.dumps(layout)!r})
family(layout)
Path(layout.own.file).write_text("# another\\n")
from lottery.core.networks import own
own._texts.clear()
try:
    own.build(layout.own)
except LotteryError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    line = "is not the file that made these networks; `dvc repro` makes them anew"
    assert said == f"{tmp_path / 'net.py'}: {line}\n"


def test_a_comment_in_the_file_is_another_network(tmp_path: Path) -> None:
    file = written(tmp_path, "self.layer = nn.Linear(6, 3)", "return self.layer(x)")
    before = lay_out(file, "Net", {}, FEATURES, CLASSES)
    Path(file).write_text(Path(file).read_text() + "# one more\n")
    after = lay_out(file, "Net", {}, FEATURES, CLASSES)
    assert before.pieces == after.pieces
    assert before != after


# --- modules that are refused ----------------------------------------------------------------------------------------

LINEAR = "self.layer = nn.Linear(6, 3)"
PLAIN = "return self.layer(x)"
TWO = "self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)"
BOTH = "return self.last(self.first(x).relu())"
KNOWN = "only weights and biases of Linear, Conv1d, Conv2d, Conv3d and normalization layers are known; use these"
ON = "fails on inputs [4, 6]: "


@pytest.mark.parametrize(
    ("layers", "forward", "line"),
    [
        # what it is made of
        ("self.act = nn.ReLU()", "return x[:, :3]", "has no Linear and no Conv layer, and so nothing that is pruned"),
        (
            "self.layer = nn.Embedding(6, 3)\nself.last = nn.Linear(3, 3)",
            "return self.last(x[:, :3])",
            f"the parameter layer.weight is of a Embedding, and {KNOWN}",
        ),
        (
            f"{LINEAR}\nself.factor = nn.Parameter(torch.ones(3))",
            "return self.layer(x) * self.factor",
            f"the parameter factor is of a Net, and {KNOWN}",
        ),
        (
            f"{TWO}\nself.act = nn.PReLU()",
            "return self.last(self.act(self.first(x)))",
            f"the parameter act.weight is of a PReLU, and {KNOWN}",
        ),
        (
            "self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))",
            PLAIN,
            "the parameter layer.parametrizations.weight.original0 is of a ",
        ),
        (
            "self.layer = nn.Linear(6, 3, dtype=torch.complex64)",
            "return self.layer(x.cfloat()).real",
            "layer.weight is torch.complex64, and all parameters are torch.float32 here; make it that",
        ),
        (
            "self.a, self.b, self.last = (nn.Linear(6, n) for n in (6, 6, 3))\nself.b.weight = self.a.weight",
            "return self.last(self.b(self.a(x)))",
            "a.weight and b.weight are one tensor; give each layer its own, as shared ones are not supported",
        ),
        (
            "self.a = nn.Linear(6, 6)\nself.b = self.a\nself.last = nn.Linear(6, 3)",
            "return self.last(self.b(self.a(x)))",
            "a.weight and b.weight are one tensor",
        ),
        (
            f"{TWO}\nself.first.bias.requires_grad_(False)",
            BOTH,
            "first.bias is frozen, and all parameters are trained here; make it a buffer",
        ),
        (
            "self.first, self.last = nn.LazyLinear(5), nn.Linear(5, 3)",
            BOTH,
            "first.weight has no shape yet; give its layer all sizes, as lazy modules do not",
        ),
        ("self.layer = nn.LazyLinear(3)", PLAIN, "layer.weight has no shape yet"),
        (
            f"{TWO}\nself.norm = nn.BatchNorm1d(5, momentum=None)",
            "return self.last(self.norm(self.first(x)))",
            "norm has momentum=None, an average over all batches; give it a number",
        ),
        (f"{LINEAR}\nself.output_layer = 'head'", PLAIN, "names the output_layer 'head', which is none of these; set"),
        (f"{TWO}\nself.act = nn.ReLU()\nself.output_layer = 'act'", BOTH, "names the output_layer 'act', which"),
        # what it does
        (LINEAR, "raise RuntimeError('no')", f"{ON}RuntimeError: no; it has to take examples of data.name"),
        (LINEAR, "raise RuntimeError", f"{ON}RuntimeError: it says nothing; it has to take"),
        ("self.layer = nn.Linear(7, 3)", PLAIN, f"{ON}RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("self.layer = nn.Linear(6, 4)", PLAIN, "gives torch.float32 [4, 4] for inputs [4, 6]; make it logits, torch"),
        (LINEAR, "return self.layer(x).argmax(1)", "gives torch.int64 [4] for inputs [4, 6]"),
        (LINEAR, "return self.layer(x).double()", "gives torch.float64 [4, 3] for inputs"),
        (LINEAR, "return self.layer(x), x", "gives tuple for inputs [4, 6]"),
        (LINEAR, "return (self.layer(x), x) if self.training else self.layer(x)", "gives tuple for inputs [4, 6]"),
        (LINEAR, "return self.layer(x + torch.rand_like(x))", "draws from torch's global generator, which"),
        (LINEAR, "return self.layer(functional.dropout(x))", "draws from torch's global generator"),
        (LINEAR, "return self.layer(functional.dropout(x, training=self.training))", "draws from torch's global gen"),
        (
            f"{LINEAR}\nself.act = nn.RReLU()",
            "return self.act(self.layer(x))",
            "draws from torch's global generator, which no seed fixes; draw by nn.Dropout alone",
        ),
        (
            LINEAR,
            "return self.layer(x + float(numpy.random.rand()))",
            "gives the same images other logits when it is asked again; make it depend on its input alone",
        ),
        (
            f"{LINEAR}\nself.register_buffer('noise', torch.from_numpy(numpy.random.rand(6)))",
            "return self.layer(x + self.noise)",
            "gives the same images other logits when it is made again; make it depend on its arguments alone",
        ),
        (
            f"{LINEAR}\nself.register_buffer('seen', torch.zeros(()))",
            "if self.training:\n    self.seen += 1\nreturn self.layer(x)",
            "changes its buffer seen, which is not kept; keep no such state",
        ),
        (
            f"{TWO}\nself.norm = nn.BatchNorm1d(5, track_running_stats=False)",
            "return self.last(self.norm(self.first(x)))",
            "gives an image other logits beside others; make each image's depend on that image alone",
        ),
        (LINEAR, "return self.layer(x - x.mean(dim=0))", "gives an image other logits beside others"),
        (LINEAR, "return self.layer(x.view(4, 6))", "fails on inputs [2, 6]: RuntimeError: shape '[4, 6]' is invalid"),
        (
            f"{TWO}\nself.unused = nn.Linear(6, 5)",
            BOTH,
            "unused.weight has no part in its output; use it in forward, or remove it",
        ),
        (f"{TWO}\nself.unused = nn.LayerNorm(5)", BOTH, "unused.weight has no part in its output"),
        (TWO, "return self.last(self.first(x).detach())", "first.weight has no part in its output"),
        (LINEAR, "raise SystemExit", f"{ON}SystemExit: it says nothing; it has to take"),
        (LINEAR, "return self.layer(x.mul_(2))", "changes the images that it is given; work on a copy of them"),
        (LINEAR, "return self.layer(x).log()", "gives logits that are not finite for inputs [4, 6]; mend it"),
        ("self.layer = torch.compile(nn.Linear(6, 3))", PLAIN, "is compiled, to bits that depend on this machine's"),
        (TWO, "with torch.no_grad():\n    return self.last(self.first(x))", "gives logits without gradients; compute"),
        (
            TWO,
            "hidden = self.first(x).sigmoid()\nlogits = self.last(hidden)\nhidden += 1\nreturn logits",
            "fails when its gradients are computed: RuntimeError: one of the variables needed for gradient computation",
        ),
        (
            LINEAR,
            "noise = numpy.random.rand() if self.training else 0\nreturn self.layer(x + float(noise))",
            "gives the same images other logits when it learns again; draw by nn.Dropout alone",
        ),
        (
            f"{LINEAR}\nself.generator = torch.Generator()",
            "noise = torch.rand(6, generator=self.generator)\nreturn self.layer(x + noise if self.training else x)",
            "gives the same images other logits when it learns again",
        ),
        ("self.layers = [nn.Linear(6, 5)]\nself.last = nn.Linear(5, 3)", "return self.last(self.layers[0](x))",
         "uses a parameter [5, 6] that it does not have; keep layers in nn.ModuleList, not in lists"),
        (f"{LINEAR}\nself.seen = []", "self.seen.append(len(x))\nreturn self.layer(x)", "changes its attribute seen"),
        (f"{LINEAR}\nself.n = 0", "self.n += self.training\nreturn self.layer(x)", "changes its attribute n, which"),
        (f"{TWO}\nself.drop = nn.Dropout(0.0)", "self.drop.p = 0.5\nreturn self.last(self.drop(self.first(x)))",
         "changes its attribute drop.p, which is not kept; keep no such state"),
        (TWO, "return self.last(functional.linear(x, self.first.weight, self.first.bias))", "first is never called"),
        (f"{LINEAR}\nself.none = nn.Linear(0, 3)", "return self.layer(x) + self.none(x[:, :0])", "none.weight has no"),
        ("self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 6)",
         "return self.last(self.first(x)).view(-1, 3, 2).sum(2)",
         "its output layer last gives 6 values, and there are 3 classes; set output_layer in the class to the layer"),
        (f"{LINEAR}\nself.half = self.layer.weight / 2", "return functional.linear(x, self.half)", "cannot be copied"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_pruned_or_relied_on_is_one_line(
    tmp_path: Path, layers: str, forward: str, line: str
) -> None:
    with warnings.catch_warnings(action="ignore"):  # of lazy modules
        assert refusal(written(tmp_path, layers, forward)).startswith(f"Net: {line}")


def test_layers_are_in_the_order_in_which_they_are_called(tmp_path: Path) -> None:
    layers = "self.head, self.body = nn.Linear(5, 3), nn.Linear(6, 5)"
    layout = lay_out(written(tmp_path, layers, "return self.head(self.body(x).relu())"), "Net", {}, FEATURES, CLASSES)
    assert [(piece.name, piece.kind) for piece in layout.weights] == [
        ("body.weight", "hidden"),
        ("head.weight", "output"),
    ]
    assert layout.classes == CLASSES


def test_a_layer_may_be_called_output_layer(tmp_path: Path) -> None:
    layers, forward = "self.output_layer = nn.Linear(6, 3)", "return self.output_layer(x)"
    layout = lay_out(written(tmp_path, layers, forward), "Net", {}, FEATURES, CLASSES)
    assert [piece.kind for piece in layout.weights] == ["output"]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("import importlib", "imports importlib, whose changes DVC would not see"),
        ("other = __import__('other')", "calls __import__, which may load what DVC would not see; import by name"),
    ],
)
def test_what_loads_other_files_is_refused(tmp_path: Path, lines: str, line: str) -> None:
    file = Path(written(tmp_path, LINEAR, PLAIN))
    file.write_text(f"{lines}\n{file.read_text()}")
    assert refusal(str(file)).startswith(line)


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    file = Path(written(tmp_path, LINEAR, PLAIN))
    file.write_text(f"\ufeff{file.read_text()}", encoding="utf-8")
    lay_out(str(file), "Net", {}, FEATURES, CLASSES)


def test_a_fully_convolutional_module_has_to_name_its_output_layer(tmp_path: Path) -> None:
    layers = "self.first, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)"
    forward = "return self.last(self.first(x).relu()).mean((2, 3))"
    line = "Net: has no Linear layer; set output_layer in the class to one of first, last"
    assert refusal(written(tmp_path, layers, forward), IMAGE) == line
    layout = lay_out(written(tmp_path, layers, forward, "", "output_layer = 'last'"), "Net", {}, IMAGE, CLASSES)
    assert [piece.kind for piece in layout.weights] == ["convolution", "output"]
    assert layout.classes == CLASSES


@pytest.mark.parametrize(
    ("given_arguments", "line"),
    [
        ({}, "Net() fails: TypeError: "),
        ({"units": 3, "depth": 2}, "Net(depth=2, units=3) fails: TypeError: "),
        ({"units": -1}, "Net(units=-1) fails: "),
        ({"units": [1]}, "Net(units=[1]) fails: "),
    ],
)
def test_arguments_that_a_class_does_not_take_are_one_line(
    tmp_path: Path, given_arguments: dict[str, Any], line: str
) -> None:
    file = written(tmp_path, "self.first, self.last = nn.Linear(6, units), nn.Linear(units, 3)", BOTH, "units")
    told = refusal(file, **given_arguments)
    assert told.startswith(line)
    assert told.endswith("; mend it, or change network.arguments")


# --- what is supported -----------------------------------------------------------------------------------------------

STACKED = """
self.layers = nn.Sequential(
    nn.Conv2d(channels, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Dropout(dropout),
    nn.Linear(16 * pixels // 4, 3),
)
"""
THROUGH = "return self.layers(x)"
SUPPORTED: dict[str, tuple[tuple[int, ...], str, str, list[str]]] = {  # example, layers, forward, kinds of weights
    "sequential": (
        IMAGE,
        "self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))",
        THROUGH,
        ["convolution", "output"],
    ),
    "a skip connection": (
        FEATURES,
        "self.first, self.middle, self.last = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)",
        "hidden = self.first(x).relu()\nreturn self.last(hidden + self.middle(hidden).relu())",
        ["hidden", "hidden", "output"],
    ),
    "groups": (
        IMAGE,
        "self.first, self.second, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 3)",
        "return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))",
        ["convolution", "convolution", "output"],
    ),
    "one dimension": (
        (12,),
        "self.first, self.norm, self.last = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Linear(16, 3)",
        "return self.last(self.norm(self.first(x.view(-1, 2, 6))).relu().flatten(1))",
        ["convolution", "output"],
    ),
    "three dimensions": (
        IMAGE,
        "self.first, self.norm, self.last = nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.Linear(140, 3)",
        "return self.last(self.norm(self.first(x[:, None])).relu().flatten(1))",
        ["convolution", "output"],
    ),
    "layer normalization": (
        FEATURES,
        f"{TWO}\nself.norm = nn.LayerNorm(5)",
        "return self.last(self.norm(self.first(x)).relu())",
        ["hidden", "output"],
    ),
    "instance normalization with statistics": (
        IMAGE,
        "self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3)\n"
        "self.norm, self.last = nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.Linear(96, 3)",
        "return self.last(self.norm(self.second(self.first(x))).relu().flatten(1))",
        ["convolution", "convolution", "output"],
    ),
    "group normalization": (
        IMAGE,
        "self.first, self.norm, self.last = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(96, 3)",
        "return self.last(self.norm(self.first(x)).relu().flatten(1))",
        ["convolution", "output"],
    ),
    "constants": (
        FEATURES,
        f"{TWO}\nself.register_buffer('basis', torch.randn(6, 6))\nself.factor = torch.linspace(1, 2, 5)",
        "return self.last(self.first(x @ self.basis).relu() * self.factor)",
        ["hidden", "output"],
    ),
    "view after pooling": (
        IMAGE,
        "self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(48, 3)",
        "pooled = functional.max_pool2d(self.first(x).relu(), 2)\nreturn self.last(pooled.view(pooled.size(0), -1))",
        ["convolution", "output"],
    ),
    "a view of the images": (
        IMAGE,
        "self.first, self.last = nn.Linear(96, 5), nn.Linear(5, 3)",
        "return self.last(self.first(x.view(-1, 96)).relu())",
        ["hidden", "output"],
    ),
    "a layer of its own class": (
        FEATURES,
        "class Layer(nn.Linear):\n    pass\n\nself.first, self.last = Layer(6, 5), Layer(5, 3)",
        BOTH,
        ["hidden", "output"],
    ),
    "a layer that is used twice": (
        FEATURES,
        "self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)",
        "return self.last(self.again(self.again(self.first(x)).relu()).relu())",
        ["hidden", "hidden", "output"],
    ),
}  # fmt: skip


@pytest.fixture(params=SUPPORTED)
def supported(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    """The layout of a module that is supported."""
    example, layers, forward, kinds = SUPPORTED[request.param]
    layout = lay_out(written(tmp_path, layers, forward), "Net", {}, example, CLASSES)
    assert [piece.kind for piece in layout.weights] == kinds
    return layout


def test_a_supported_module_learns_and_its_pruned_weights_stay_zero(supported: Layout, make_split: MakeSplit) -> None:
    split, masks = make_split(40, 10, supported.inputs, CLASSES), random_masks(2, supported, 0.5)
    start = fresh(supported).masked(masks)
    trained = train(start, masks, [0, 1], (0.5,), split, Recipe(8, 10, 0.01, 4))
    assert torch.equal(trained.final.masked(masks).flat, trained.final.flat)
    for piece in supported.pieces:
        assert not torch.equal(trained.final[piece.name], start[piece.name]), piece.name


def test_a_layout_says_all_that_a_description_keeps(supported: Layout) -> None:
    assert described(**json.loads(json.dumps(description(supported)))) == supported
    assert supported.shown == "Net"
    assert supported.classes == CLASSES


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_weights_of_a_supported_module_are_ranked_before_training(
    supported: Layout, make_split: MakeSplit, criterion: str
) -> None:
    networks, split = fresh(supported), make_split(40, 10, supported.inputs, CLASSES)
    before = networks.flat.clone()
    scores = CRITERIA[criterion](Evidence(networks, networks, (0, 1), (0.5,), split), everything(2, supported))
    assert torch.equal(networks.flat, before)
    assert all((score.flatten(1).abs().sum(dim=1) > 0).all() for score in scores.weights)


def test_arguments_may_be_lists_texts_and_mappings(tmp_path: Path) -> None:
    layers = """
    sizes = [6, *units, 3]
    layers = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after, bias=options["bias"]), getattr(nn, activation)()]
    self.layers = nn.Sequential(*layers[:-1])
    """
    file = written(tmp_path, layers, THROUGH, "units, activation='ReLU', options=None")
    arguments: Mapping[str, Any] = {"units": [5, 4], "activation": "Tanh", "options": {"bias": False}}
    layout = lay_out(file, "Net", arguments, FEATURES, CLASSES)
    assert [piece.shape for piece in layout.pieces] == [(5, 6), (4, 5), (3, 4)]
    assert layout.own is not None
    assert isinstance(build(layout.own).get_submodule("layers.1"), nn.Tanh)
    assert layout == lay_out(file, "Net", dict(reversed(arguments.items())), FEATURES, CLASSES)


def test_a_file_may_hold_dataclasses_and_helpers(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("""
from __future__ import annotations
from dataclasses import dataclass
from torch import Tensor, nn

@dataclass
class Form:
    units: int
    activation: type[nn.Module] = nn.ReLU

def block(inputs: int, form: Form) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, form.units), form.activation())

class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

class Net(Base):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = block(6, Form(5)), nn.Linear(5, 3)

if __name__ == "__main__":
    raise SystemExit("a script of its own")
""")
    layout = lay_out(str(tmp_path / "net.py"), "Net", {}, FEATURES, CLASSES)
    assert [piece.name for piece in layout.weights] == ["body.0.weight", "head.weight"]


# --- batch normalization ---------------------------------------------------------------------------------------------

ADAM = Recipe(12, 10, 0.01, 4)
SGD = Recipe(12, 10, 0.01, 4, optimizer="sgd", momentum=0.9, weight_decay=0.01)


@pytest.fixture
def make_normalized(tmp_path: Path) -> Callable[..., Layout]:
    """A function that lays out a convolution with batch normalization and, of some probability, dropout."""

    def make(dropout: float = 0.0) -> Layout:
        file = written(tmp_path, STACKED, THROUGH, "channels, pixels, dropout")
        return lay_out(file, "Net", {"channels": 2, "pixels": 48, "dropout": dropout}, IMAGE, CLASSES)

    return make


def statistics(networks: Stack) -> dict[str, Tensor]:
    """The statistics of batch normalization of all networks."""
    return {piece.name: networks[piece.name] for piece in networks.layout.pieces if piece.kind == "statistics"}


def loop(start: Stack, masks: Stack, split: Split, recipe: Recipe) -> nn.Module:
    """The first network, trained from its start as people do it: seed 0, a level of half the weights."""
    assert start.layout.own is not None
    module = build(start.layout.own)
    module.load_state_dict({piece.name: start[piece.name][0] for piece in start.layout.pieces}, strict=False)
    if recipe.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), recipe.learning_rate)
    else:
        optimizer = torch.optim.SGD(
            module.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
        )
    module.train()
    for iteration in range(recipe.iterations):
        epoch, place = divmod(iteration, len(split.train) // recipe.batch_size)
        order = batch_order(0, (0.5,), epoch, len(split.train))
        batch = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        optimizer.zero_grad()
        cross_entropy(module(as_images(split, split.train.pixels[batch])), split.train.labels[batch]).backward()
        for name, parameter in module.named_parameters():
            parameter.grad *= masks[name][0]
        optimizer.step()
    return module.eval()


def as_images(split: Split, pixels: Tensor) -> Tensor:
    """Scaled images [N, C, H, W]."""
    return split.scaling(pixels).view(-1, *IMAGE).permute(0, 3, 1, 2).contiguous()


# not Adam on few weights: where a channel keeps one, batch normalization leaves it a gradient of rounding alone
@pytest.mark.parametrize(("recipe", "density"), [(ADAM, 1.0), (ADAM, 0.5), (SGD, 0.5), (SGD, 0.05)])
def test_a_module_learns_as_in_an_ordinary_loop(
    make_normalized: Callable[..., Layout], make_split: MakeSplit, recipe: Recipe, density: float
) -> None:
    """Weights, and the statistics of batch normalization, which no optimizer touches; and it is measured by these."""
    layout, split = make_normalized(), make_split(40, 300, 96, CLASSES)
    masks = random_masks(1, layout, density)
    start = fresh(layout, 1).masked(masks)
    trained = train(start, masks, [0], (0.5,), split, recipe)
    module = loop(start, masks, split, recipe)
    known = module.state_dict()
    for piece in layout.pieces:
        torch.testing.assert_close(trained.final[piece.name][0], known[piece.name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(trained.final[piece.name], start[piece.name]), piece.name
    logits = module(as_images(split, split.validation.pixels))
    loss = cross_entropy(logits, split.validation.labels).item()
    assert trained.histories[0].validation_loss[-1].item() == pytest.approx(loss, abs=1e-4)


def test_statistics_begin_as_pytorchs_are_never_pruned_and_are_rewound_with_the_weights(
    make_normalized: Callable[..., Layout], make_split: MakeSplit
) -> None:
    layout, split = make_normalized(), make_split(40, 10, 96, CLASSES)
    recipe = Recipe(8, 10, 0.01, 4, rewind=3)

    def learn(start: Stack, masks: Stack, seeds: Any, path: Any, recipes: Any) -> Trained:
        return train(start, masks, seeds, path, split, recipes)

    first = dense(layout, "glorot-normal", (0, 1), recipe, learn)
    values = {name: set(each.flatten().tolist()) for name, each in statistics(first.start).items()}
    assert values == {"layers.1.running_mean": {0.0}, "layers.1.running_var": {1.0}}
    rewound = first.trained.rewound
    assert rewound is not None
    earlier = train(first.start, None, (0, 1), (), split, replace(recipe, iterations=3, rewind=0)).final
    assert torch.equal(rewound.flat, earlier.flat)

    evidence = Evidence(first.start, first.trained.final, (0, 1), (0.9,), split)
    masks = prune(evidence, first.masks, Pruning("magnitude", "global", {}))
    assert all(masks[piece.name].all() for piece in layout.others)
    ingredients = Ingredients(
        masks, rewound, first.trained.final, (0, 1), (0.9,), "glorot-normal", replace(recipe, start=3, rewind=0)
    )
    starts = level(ingredients, ("ticket", "reinit", "random", "finetune"), learn)
    for name, each in statistics(starts.start).items():
        for arm, expected in (("ticket", rewound), ("random", rewound), ("finetune", first.trained.final)):
            assert torch.equal(each[starts.rows.of(arm)], expected[name]), arm
        assert torch.equal(each[starts.rows.of("reinit")], statistics(first.start)[name])


def test_an_images_logits_depend_on_no_other_image_once_the_network_is_measured(
    make_normalized: Callable[..., Layout], make_split: MakeSplit
) -> None:
    layout, split = make_normalized(), make_split(40, 20, 96, CLASSES)
    networks = train(fresh(layout), None, [0, 1], (), split, ADAM).final
    own = family(layout)
    whole = own.log_probabilities(networks, own.examples(split.validation, split.scaling))
    for image in range(3):
        alone = Images(split.validation.pixels[[image]], split.validation.labels[[image]])
        found = own.log_probabilities(networks, own.examples(alone, split.scaling))
        torch.testing.assert_close(found[:, 0], whole[:, image])
    learning = own.module(networks).train()(split.scaling(split.validation.pixels)).log_softmax(dim=1)
    assert not torch.allclose(learning, whole[0], atol=1e-2)


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_it_is_the_same_bits_alone_and_in_a_stack_and_on_any_number_of_threads(
    make_normalized: Callable[..., Layout], make_split: MakeSplit, dropout: float
) -> None:
    layout, split = make_normalized(dropout), make_split(40, 10, 96, CLASSES)
    masks = random_masks(3, layout, 0.5)
    start = fresh(layout, 3).masked(masks)
    together = train(start, masks, [0, 1, 2], (0.5,), split, ADAM)
    for threads, group in ((1, 1), (2, 1), (2, 2)):
        other = train(start, masks, [0, 1, 2], (0.5,), split, ADAM, threads=threads, group=group)
        assert torch.equal(other.final.flat, together.final.flat)
        assert torch.equal(other.early_stopping.flat, together.early_stopping.flat)
    alone = train(start.rows([1]), masks.rows([1]), [1], (0.5,), split, ADAM)
    assert torch.equal(alone.final.flat[0], together.final.flat[1])


def test_noise_is_the_same_bits_where_threads_take_the_place_of_processes(
    make_normalized: Callable[..., Layout], make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: threads share the generator that dropout draws from."""
    layout, split = make_normalized(0.4), make_split(40, 10, 96, CLASSES)
    start, recipe = fresh(layout, 3), replace(ADAM, iterations=120)
    forked = train(start, None, [0, 1, 2], (0.5,), split, recipe, threads=3, group=1)
    for module in (engines, workers):
        monkeypatch.setattr(module, "FORKS", False)
    threaded = train(start, None, [0, 1, 2], (0.5,), split, recipe, threads=3, group=1)
    assert torch.equal(threaded.final.flat, forked.final.flat)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_saved_state_goes_on_to_the_same_bits(
    make_normalized: Callable[..., Layout], make_split: MakeSplit, dropout: float
) -> None:
    """Statistics and early stopping too, and whatever torch's generator was left at."""
    layout, split = make_normalized(dropout), make_split(40, 10, 96, CLASSES)
    task, lessons = Task(layout, (0,), (), ADAM), family(layout).lessons(split)
    states = []
    for interrupted in (False, True):
        group = Group(0, task, None, lessons, State.begin(task, fresh(layout, 1)))
        while not group.finished:
            torch.manual_seed(int(interrupted))
            before = torch.get_rng_state()
            group.advance()
            assert torch.equal(torch.get_rng_state(), before)
            if interrupted:
                group = Group(0, task, None, lessons, State.of(load(save(group.state.tensors())), layout))
        states.append(group.state.tensors())
    assert save(states[0]) == save(states[1])


def test_noise_is_each_seeds_own_and_the_arms_of_a_level_share_it(
    make_normalized: Callable[..., Layout], make_split: MakeSplit
) -> None:
    """All images are one, so that the order of the batches changes nothing."""
    split, recipe = make_split(11, 10, 96, CLASSES), Recipe(3, 10, 0.01, 3)
    split = replace(split, train=Images(split.train.pixels[[10] * 20], split.train.labels[[10] * 20]))
    for dropout in (0.0, 0.4):
        start = fresh(make_normalized(dropout), 1)
        final = train(start.rows([0, 0, 0]), None, [0, 1, 0], (0.5,), split, recipe).final.flat
        other_level = train(start, None, [0], (0.6,), split, recipe).final.flat
        twin = train(start, None, [0], (0.5,), split, replace(recipe, order="twin batches")).final.flat
        assert torch.equal(final[0], final[2])
        for another in (final[1], other_level[0], twin[0]):
            assert torch.equal(final[0], another) == (dropout == 0)


def test_noise_of_each_iteration_is_another(make_normalized: Callable[..., Layout], make_split: MakeSplit) -> None:
    """With one image and a learning rate that changes nothing, all losses but those of other noise are the same."""
    split, recipe = make_split(11, 10, 96, CLASSES), Recipe(3, 10, 1e-30, 1)
    split = replace(split, train=Images(split.train.pixels[[10] * 10], split.train.labels[[10] * 10]))
    for dropout, expected in ((0.0, 1), (0.4, 3)):
        history = train(fresh(make_normalized(dropout), 1), None, [0], (), split, recipe).histories[0]
        assert len(set(history.train_loss[1:].tolist())) == expected


def test_snip_ranks_without_noise(make_normalized: Callable[..., Layout], make_split: MakeSplit) -> None:
    split, scores = make_split(40, 10, 96, CLASSES), []
    for dropout in (0.0, 0.4):
        networks = fresh(make_normalized(dropout))
        evidence = Evidence(networks, networks, (0, 1), (0.5,), split)
        scores.append(CRITERIA["snip"](evidence, everything(2, networks.layout)).flat)
    assert torch.equal(*scores)


def test_a_measured_network_drops_nothing_out(make_normalized: Callable[..., Layout], make_split: MakeSplit) -> None:
    split, networks = make_split(10, 20, 96, CLASSES), fresh(make_normalized(0.4))
    examples = family(networks.layout).examples(split.validation, split.scaling)
    without = Stack(networks.flat, make_normalized(0.0))
    assert torch.equal(score(networks, examples)[0], score(without, examples)[0])


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        ("return self.layer(x.clone() if len(x) == 1 else x)", "Invalid"),
        pytest.param("return self.layer(x if x.max().item() < 9e9 else x.clone())", "Guard", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_trained(tmp_path: Path, forward: str, line: str) -> None:
    file = written(tmp_path, LINEAR, forward)
    layout = lay_out(file, "Net", {}, FEATURES, CLASSES)
    with pytest.raises(LotteryError) as caught:
        try_graph(layout)
    told = str(caught.value)
    head = f"params.yaml: network.file: {file}: Net: cannot be exported as ticket.onnx, for any number of images: "
    assert told.startswith(f"{head}{line}")
    assert told.endswith("; use other operators")
    assert "\n" not in told


# --- elsewhere -------------------------------------------------------------------------------------------------------


def test_lessons_go_to_a_process_that_has_no_file(workspace: Path, make_split: MakeSplit) -> None:
    """Ray carries them in this way."""
    (workspace / "networks").mkdir()
    (workspace / "elsewhere").mkdir()
    file = written(Path("networks"), STACKED, THROUGH, "channels, pixels, dropout")
    layout = lay_out(file, "Net", {"channels": 2, "pixels": 48, "dropout": 0.2}, IMAGE, CLASSES)
    split, networks = make_split(40, 10, 96, CLASSES), fresh(layout)
    lessons, batch = family(layout).lessons(split), torch.arange(20).view(2, 10)
    (workspace / "elsewhere/lessons").write_bytes(pickle.dumps((lessons, networks, batch)))
    code = """
import pickle, sys, torch
torch.set_num_threads(1)
lessons, networks, batch = pickle.load(open("lessons", "rb"))
learner = lessons.learner(networks, 10)
learner(batch, torch.empty(2, 10, 1), (5, 6))
torch.save(learner.gradients.flat, "gradients")
"""
    subprocess.run([sys.executable, "-c", code], cwd=workspace / "elsewhere", check=True)
    learner = lessons.learner(networks, 10)
    learner(batch, torch.empty(2, 10, 1), (5, 6))
    assert torch.equal(torch.load(workspace / "elsewhere/gradients"), learner.gradients.flat)


# --- any layout ------------------------------------------------------------------------------------------------------

ANY = """
import math
from torch import nn

NORMS = {"batch": nn.BatchNorm2d, "group": lambda units: nn.GroupNorm(1, units), "none": lambda units: nn.Identity()}

class Net(nn.Module):
    def __init__(self, image, channels, filters, norm, units, dropout, classes):
        super().__init__()
        layers = []
        for before, after in zip([channels, *filters], filters):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=norm == "none"), NORMS[norm](after), nn.ReLU()]
        sizes = [([channels, *filters][-1]) * math.prod(image), *units, classes]
        layers += [nn.Flatten(), nn.Dropout(dropout)]
        for before, after in zip(sizes, sizes[1:]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x):
        return self.layers(x)
"""


@pytest.fixture(scope="module")
def any_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file whose module has as many layers of any kind as its arguments ask for."""
    file = tmp_path_factory.mktemp("any") / "net.py"
    file.write_text(ANY)
    return str(file)


small = st.integers(1, 6)
shapes = st.tuples(st.integers(2, 6), st.integers(2, 6))


@st.composite
def layouts(draw: st.DrawFn, file: str) -> Layout:
    """A small layout of any family."""
    classes, kind = draw(st.integers(2, 5)), draw(st.sampled_from(["perceptron", "published", "own"]))
    if kind == "perceptron":
        return perceptron((*draw(st.lists(st.integers(1, 12), min_size=2, max_size=4)), classes))
    if kind == "published":
        name = draw(st.sampled_from(["conv-2", "lenet-5"]))
        sides = draw(st.tuples(*[st.integers(16, 17) if name == "lenet-5" else st.integers(2, 4)] * 2))
        return published(name, (*sides, *draw(st.sampled_from([(), (3,)]))), classes)
    image, channels = draw(shapes), draw(st.sampled_from([(), (2,)]))
    arguments = {
        "image": image,
        "channels": (*channels, 1)[0],
        "filters": draw(st.lists(small, max_size=2)),
        "norm": draw(st.sampled_from(["batch", "group", "none"])),
        "units": draw(st.lists(small, max_size=2)),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "classes": classes,
    }
    return lay_out(file, "Net", arguments, (*image, *channels), classes)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    data=st.data(),
    steps=st.lists(st.floats(0.1, 0.8), min_size=1, max_size=2),
    scope=st.sampled_from(["layer", "global"]),
    recipe=st.sampled_from([Recipe(4, 5, 0.01, 2), Recipe(4, 5, 0.01, 4, optimizer="sgd", weight_decay=0.1)]),
)
def test_any_network_is_pruned_exactly_rewound_exactly_and_the_same_bits_in_any_stack(
    any_file: str, make_split: MakeSplit, data: st.DataObject, steps: list[float], scope: str, recipe: Recipe
) -> None:
    layout = data.draw(layouts(any_file))
    path = [1 - prod(1 - step for step in steps[: place + 1]) for place in range(len(steps))]
    split, initial = make_split(20, 10, layout.inputs, layout.classes), fresh(layout)
    trained = train(initial, None, [0, 1], (), split, replace(recipe, rewind=2))
    rewound = trained.rewound
    assert rewound is not None
    assert torch.equal(rewound.flat, train(initial, None, [0, 1], (), split, replace(recipe, iterations=2)).final.flat)
    masks = everything(2, layout)
    for place in range(len(path)):
        pruning = Pruning("magnitude", scope, {})
        masks = prune(Evidence(initial, trained.final, (0, 1), path[: place + 1], split), masks, pruning)
    kept = [round((1 - path[-1]) * size) for size in [piece.size for piece in layout.weights]]
    assert (
        weights_kept(masks).sum(dim=1).tolist()
        == [sum(kept) if scope == "layer" else round((1 - path[-1]) * layout.prunable)] * 2
    )
    if scope == "layer":
        assert weights_kept(masks).tolist() == [kept, kept]
    assert all(masks[piece.name].all() for piece in layout.others)

    start = rewound.masked(masks)
    for piece in layout.weights:
        assert torch.equal(start[piece.name], rewound[piece.name] * masks[piece.name])
    together = train(start, masks, [0, 1], path, split, replace(recipe, start=2))
    assert torch.equal(together.final.masked(masks).flat, together.final.flat)
    for row in range(2):
        alone = train(start.rows([row]), masks.rows([row]), [row], path, split, replace(recipe, start=2))
        assert torch.equal(alone.final.flat[0], together.final.flat[row])
        assert torch.equal(alone.early_stopping.flat[0], together.early_stopping.flat[row])


# --- docs/adapt.md ---------------------------------------------------------------------------------------------------


def test_the_lines_of_the_page_make_data_and_settings_that_are_valid(workspace: Path) -> None:
    page = (ROOT / "docs/adapt.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.S)
    settings_of = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    subprocess.run([sys.executable, "-c", lines], cwd=workspace, check=True)
    found = facts(Path("own/cancer.npz"))
    assert (found.train, found.test, found.shape, found.classes) == (455, 114, (30,), 2)
    (workspace / "networks").mkdir()
    (workspace / "networks/example.py").write_text((ROOT / "networks/example.py").read_text())
    layouts = [Params.model_validate(SMALL | own).layout for own in settings_of]
    assert [layout.shown for layout in layouts] == ["Net", "Table"]
    assert [layout.example for layout in layouts] == [(8, 8), (30,)]


@pytest.mark.parametrize("name", ["Net", "Table"])
def test_the_examples_are_as_their_words_say(name: str) -> None:
    file = str(ROOT / "networks/example.py")
    example, classes = ((8, 8), 10) if name == "Net" else (facts(ROOT / "data/example.npz").shape, 3)
    layout = lay_out(file, name, {}, example, classes)
    kinds = [piece.kind for piece in layout.weights]
    assert kinds == (["convolution"] * 2 + ["hidden", "output"] if name == "Net" else ["hidden", "output"])
    assert any(piece.kind == "statistics" for piece in layout.pieces) == (name == "Net")
