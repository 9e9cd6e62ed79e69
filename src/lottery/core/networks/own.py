"""A torch module that a person wrote, in a file of the repository: which networks it makes, and whether it can be used.

Weights of Linear and Conv layers are pruned; their biases and what normalizes are not. The last Linear is the output
layer, unless the class names another in ``output_layer``. The module takes scaled images [N, C, H, W], or features
[N, D], and gives logits [N, classes].
"""

import ast
import hashlib
import inspect
import json
import linecache
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter

from lottery import LotteryError
from lottery.core.layout import Kind, Layout, Own, Piece, fans

PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALIZING = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
KNOWN = "Linear, Conv1d, Conv2d, Conv3d and normalization"
STATISTICS = ("running_mean", "running_var")
INTERNAL = {*vars(nn.Module()), "training"}
COUNT = "num_batches_tracked"  # which only an average over all batches needs
LOADING = ("lottery", "importlib", "runpy")  # by which a file may load others of the repository
BATCH = 4  # examples that a module is tried on

_texts: dict[str, str] = {}  # of files, by their SHA-256 sums


def learn(text: str) -> str:
    """Keep the text of a file in this process, and give its SHA-256 sum."""
    code = hashlib.sha256(text.encode()).hexdigest()
    _texts[code] = text
    return code


def text_of(own: Own) -> str:
    """The text of a module's file. Raises LotteryError where the file is another one by now."""
    if own.code not in _texts and learn(_read(own.file)) != own.code:
        raise LotteryError(f"{own.file}: is not the file that made these networks; `dvc repro` makes them anew")
    return _texts[own.code]


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise LotteryError(f"{file}: cannot be read ({error}); write your module there, or name another file") from None


def lay_out(
    file: str, name: str, arguments: Mapping[str, Any], example: tuple[int, ...], classes: int, folder: Path = Path()
) -> Layout:
    """Lay out the networks that a class of a file makes, and try one on examples of this shape.

    ``file`` is named from ``folder``.

    Raises LotteryError where it cannot be used.
    """
    own = Own(file, name, json.dumps(arguments, sort_keys=True), learn(_read(str(folder / file))))
    return _lay_out(own, example, classes)


@lru_cache(maxsize=8)
def _lay_out(own: Own, example: tuple[int, ...], classes: int) -> Layout:
    module = build(own)
    layout = Layout("own", example, _pieces(module, own), own)
    calls = _try(Fitted(module, example), own, layout, classes)
    layout = Layout("own", example, _pieces(module, own, calls), own)
    if layout.classes != classes:
        output = next(piece.layer for piece in layout.weights if piece.kind == "output")
        raise LotteryError(
            f"{own.file}: {own.name}: its output layer {output} gives {layout.classes} values, and there are {classes} "
            "classes; set output_layer in the class to the layer that gives one value per class"
        )
    return layout


class Fitted(nn.Module):
    """A person's module for examples that come as rows."""

    def __init__(self, own: nn.Module, example: tuple[int, ...]) -> None:
        super().__init__()
        self.own = own
        self._example = example

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, C] of scaled pixels or features [N, D]."""
        if len(self._example) > 1:
            # contiguous: what people write with `view` fails on channels that come last
            inputs = inputs.reshape(-1, *(*self._example, 1)[:3]).movedim(3, 1).contiguous()
        logits: Tensor = self.own(inputs)
        return logits


def build(own: Own) -> nn.Module:
    """Make a module; its own parameters have no meaning. Raises LotteryError."""
    found = _class(own.file, own.name, text_of(own))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the constants that a module may draw for itself
        try:
            return found(**json.loads(own.arguments)).float()
        except (Exception, SystemExit) as error:
            raise LotteryError(
                f"{own.file}: {own.name}({_shown(own.arguments)}) fails: {in_short(error)}; mend it, or change "
                "network.arguments"
            ) from error


def _shown(arguments: str) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in json.loads(arguments).items())


def in_short(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    words = (str(error).strip() or "it says nothing").splitlines()[0]
    return f"{type(error).__name__}: {words[:120]}"


@lru_cache(maxsize=8)
def _class(file: str, name: str, text: str) -> type[nn.Module]:
    """A class of a file of Python. Raises LotteryError."""
    try:
        tree = ast.parse(text, file)
    except (SyntaxError, ValueError) as error:
        raise LotteryError(f"{file}: is no Python that can be read ({error}); mend it") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "__import__":
            raise LotteryError(f"{file}: calls __import__, which may load what DVC would not see; import by name")
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        strangers = [each for each in names if _is_of_repository(each.partition(".")[0], Path(file).parent)]
        if relative or strangers:
            raise LotteryError(
                f"{file}: imports {'.' if relative else strangers[0]}, whose changes DVC would not see; write all that "
                "the network needs into one file"
            )
    module = ModuleType(f"{Path(file).stem} {learn(text)}")  # which no other module is called
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses look for the names in their annotations
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file  # for tracebacks, where there is none
    try:
        exec(compile(tree, file, "exec"), module.__dict__)  # noqa: S102  # a person's own code is what runs here
    except (Exception, SystemExit) as error:
        raise LotteryError(f"{file}: fails when it is read: {in_short(error)}; mend it") from error
    found = module.__dict__.get(name)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        classes = [
            each.__name__
            for each in module.__dict__.values()
            if inspect.isclass(each) and issubclass(each, nn.Module) and each.__module__ == module.__name__
        ]
        known = f"its modules are {', '.join(classes)}" if classes else "it has no torch.nn.Module"
        raise LotteryError(f"{file}: has no module {name!r}; {known}: change network.class")
    return found


def _is_of_repository(name: str, beside: Path) -> bool:
    """Whether a module that a file imports by this name is one of the repository's."""
    folders = {Path(), beside}
    return name in LOADING or any((each / name).is_dir() or (each / f"{name}.py").is_file() for each in folders)


def _pieces(module: nn.Module, own: Own, calls: Sequence[str] | None = None) -> tuple[Piece, ...]:
    """The pieces of a module. Raises LotteryError where it has others than are known.

    ``calls`` are the pruned layers as they are called, the last one again if it is; where that is not known yet, in
    their order in the module.
    """

    def refuse(what: str) -> LotteryError:
        return LotteryError(f"{own.file}: {own.name}: {what}")

    owners = dict(module.named_modules(remove_duplicate=False))
    if any(hasattr(layer, "_orig_mod") for layer in owners.values()):
        raise refuse("is compiled, to bits that depend on this machine's compiler; leave torch.compile out")
    pruned = [name for name, layer in module.named_modules() if isinstance(layer, PRUNED)]
    calls = pruned if calls is None else calls
    output = getattr(module, "output_layer", None)
    if output is None or isinstance(output, nn.Module):
        output = next((name for name in reversed(calls) if isinstance(owners[name], nn.Linear)), None)
    if not pruned:
        raise refuse("has no Linear and no Conv layer, and so nothing that is pruned; use another class")
    if output not in pruned:
        said = "has no Linear layer" if output is None else f"names the output_layer {output!r}, which is none of these"
        raise refuse(f"{said}; set output_layer in the class to one of {', '.join(pruned[-5:])}")
    weights, others, statistics, seen = [], [], [], dict[int, str]()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        layer, _, own_name = name.rpartition(".")
        owner = owners[layer]
        if not isinstance(parameter, UninitializedParameter) and not parameter.numel():
            raise refuse(f"{name} has no elements; give its layer inputs and outputs, or leave it out")
        if isinstance(parameter, UninitializedParameter):
            raise refuse(f"{name} has no shape yet; give its layer all sizes, as lazy modules do not")
        if parameter.dtype != torch.float32:
            raise refuse(f"{name} is {parameter.dtype}, and all parameters are torch.float32 here; make it that")
        if (same := seen.setdefault(id(parameter), name)) != name:
            raise refuse(f"{same} and {name} are one tensor; give each layer its own, as shared ones are not supported")
        if not parameter.requires_grad:
            raise refuse(f"{name} is frozen, and all parameters are trained here; make it a buffer")
        if isinstance(owner, PRUNED) and own_name == "weight":
            kind: Kind = "output" if layer == output else "hidden" if isinstance(owner, nn.Linear) else "convolution"
            weights.append(Piece(name, kind, tuple(parameter.shape), fans(tuple(parameter.shape))))
        elif isinstance(owner, PRUNED) and own_name == "bias":
            shape = tuple(owner.weight.shape)
            others.append(Piece(name, "bias", tuple(parameter.shape), fans(shape)))
        elif isinstance(owner, NORMALIZING) and own_name in ("weight", "bias"):
            others.append(Piece(name, "normalization", tuple(parameter.shape), (0, 0)))
        else:
            known = f"only weights and biases of {KNOWN} layers are known"
            raise refuse(f"the parameter {name} is of a {type(owner).__name__}, and {known}; use these")
    for name, layer in module.named_modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            if layer.momentum is None:
                raise refuse(f"{name} has momentum=None, an average over all batches; give it a number")
            statistics += [
                Piece(f"{name}.{each}".lstrip("."), "statistics", tuple(getattr(layer, each).shape), (0, 0))
                for each in STATISTICS
            ]
    weights.sort(key=lambda piece: calls.index(piece.layer))
    return (*weights, *others, *statistics)


def normalized_by_input(own: Own) -> list[str]:
    """The names of the layers that normalize by what flows in, and not by statistics of their own."""
    return [
        name
        for name, layer in build(own).named_modules()
        if isinstance(layer, NORMALIZING) and not getattr(layer, "track_running_stats", False)
    ]


def is_random(module: nn.Module) -> bool:
    """Whether a module has dropout, and so draws numbers as it learns."""
    return any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in module.modules())


def without_dropout(module: nn.Module) -> nn.Module:
    """The module as it learns, but for dropout."""
    module.train()
    for layer in module.modules():
        if isinstance(layer, _DropoutNd):
            layer.eval()
    return module


def _attributes(module: nn.Module) -> dict[str, bytes]:
    """What the modules of a module have beside parameters, buffers and modules, as far as that can be compared."""
    found = {}
    for name, layer in module.named_modules():
        for key, value in vars(layer).items():
            if key not in INTERNAL:
                with suppress(Exception):
                    found[f"{name}.{key}".lstrip(".")] = pickle.dumps(value)
    return found


def _leaves(logits: Tensor) -> Iterator[Tensor]:
    """The parameters that logits were computed from."""
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
            if hasattr(node, "variable"):
                yield node.variable


def _try(module: Fitted, own: Own, layout: Layout, classes: int) -> list[str]:
    """Try a module on a few examples; the layers that are pruned, as it calls them.

    Raises LotteryError where it cannot learn from them or not be relied on.
    """

    def refuse(what: str) -> LotteryError:
        return LotteryError(f"{own.file}: {own.name}: {what}")

    def logits_of(tried: Fitted, examples: Tensor) -> Tensor:
        channels = layout.example if len(layout.example) == 1 else ((*layout.example, 1)[2], *layout.example[:2])
        before, shape, given = torch.get_rng_state(), [len(examples), *channels], examples.clone()
        try:
            logits = tried(examples)
        except (Exception, SystemExit) as error:
            raise refuse(f"fails on inputs {shape}: {in_short(error)}; it has to take examples of data.name") from error
        expected = [len(examples), classes]
        if not isinstance(logits, Tensor) or [*logits.shape] != expected or logits.dtype != torch.float32:
            said = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise refuse(f"gives {said} for inputs {shape}; make it logits, torch.float32 {expected}")
        if not torch.equal(before, torch.get_rng_state()):
            raise refuse("draws from torch's global generator, which no seed fixes; draw by nn.Dropout alone")
        if not torch.equal(examples, given):
            raise refuse("changes the images that it is given; work on a copy of them")
        if not logits.isfinite().all():
            raise refuse(f"gives logits that are not finite for inputs {shape}; mend it")
        return logits

    another = Fitted(build(own), layout.example)
    try:
        another = deepcopy(another)
    except Exception as error:
        raise refuse(f"cannot be copied: {in_short(error)}; let it keep layers and buffers alone") from error
    another.load_state_dict(dict(module.named_parameters()), strict=False)
    buffers = {name: each.clone() for name, each in another.named_buffers()}
    places = {name: each.data_ptr() for name, each in another.named_buffers()}
    attributes, calls = _attributes(another.own), list[str]()
    for name, layer in module.own.named_modules():
        if isinstance(layer, PRUNED):
            layer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    examples = torch.randn(BATCH, layout.inputs, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        logits = logits_of(module.eval(), examples)
        if not torch.equal(logits_of(module, examples), logits):
            raise refuse("gives the same images other logits when it is asked again; make it depend on its input alone")
        if not torch.equal(logits_of(another.eval(), examples), logits):
            raise refuse(
                "gives the same images other logits when it is made again; make it depend on its arguments alone"
            )
        for some in (2, 1):
            if not torch.allclose(logits_of(another, examples[:some]), logits[:some], rtol=1e-3, atol=1e-4):
                raise refuse("gives an image other logits beside others; make each image's depend on that image alone")
        without_dropout(another)
        logits = logits_of(another, examples)
        if not torch.equal(logits_of(another, examples), logits):
            raise refuse("gives the same images other logits when it learns again; draw by nn.Dropout alone")
        own_statistics = tuple(f".{name}" for name in (*STATISTICS, COUNT))
        for name, buffer in another.named_buffers():
            if places[name] != buffer.data_ptr() or (
                not name.endswith(own_statistics) and not torch.equal(buffer, buffers[name])
            ):
                raise refuse(f"changes its buffer {name.removeprefix('own.')}, which is not kept; keep no such state")
        for name, value in _attributes(another.own).items():
            if attributes.get(name) != value:
                raise refuse(f"changes its attribute {name}, which is not kept; keep no such state")
        if not logits.requires_grad:
            raise refuse("gives logits without gradients; compute them without torch.no_grad and detach")
        try:
            torch.autograd.backward([cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64))])
        except Exception as error:
            raise refuse(f"fails when its gradients are computed: {in_short(error)}; mend it") from error
    parameters = dict(another.named_parameters())
    for piece in layout.pieces:
        if piece.kind != "statistics" and parameters[f"own.{piece.name}"].grad is None:
            raise refuse(f"{piece.name} has no part in its output; use it in forward, or remove it")
    if strangers := [each for each in _leaves(logits) if all(each is not known for known in parameters.values())]:
        shape = list(strangers[0].shape)
        raise refuse(f"uses a parameter {shape} that it does not have; keep layers in nn.ModuleList, not in lists")
    for piece in layout.weights:
        if piece.layer not in calls:
            raise refuse(f"{piece.layer} is never called, though its weight is used; call the layer itself")
    return calls
