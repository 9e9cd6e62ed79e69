"""The engine that trains all networks of a level as one stack on one device, as suits a GPU.

Perceptrons are batched products over the stack, and modules run under `torch.func.vmap`, or one after another where
that does not take a person's own; all by autograd. Between two evaluations nothing waits for the device: batches and
learning rates lie there, and on a GPU an iteration is one CUDA graph. Any device will do, so that the processor can be
compared with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from lottery import LotteryError
from lottery.core.engines import Engine
from lottery.core.families import family, mean_scores
from lottery.core.images import CHUNK, Images, Scaling, Split
from lottery.core.layout import Layout
from lottery.core.networks.module import Learner as OneByOne
from lottery.core.networks.module import Module
from lottery.core.networks.own import in_short
from lottery.core.stack import Stack, initialize
from lottery.core.training import Group, Optimizer, State

BLOCK = 256  # iterations whose batches are on the device at a time
UNSTEADY = "does not have a deterministic implementation"  # what torch says after an operator's name
SHARED = 1.0  # seconds between two copies of a group's state from the device, each of which waits for it
WARM_UP = 3  # iterations before a CUDA graph is made, in which libraries choose and allocate

Pieces = Mapping[str, Tensor]  # of R networks by their names, [R, *shape]
Forward = Callable[[Pieces, Tensor], Tensor]


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Have a GPU give the same bits each time, in whole float32.

    Raises LotteryError where an operator cannot.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    except RuntimeError as error:
        if UNSTEADY not in str(error):
            raise
        operator = str(error).partition(UNSTEADY)[0].strip()
        raise LotteryError(
            f"params.yaml: run.device: {operator} does not give the same bits each time on a GPU; set it to cpu, or "
            "use another layer in network.file"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# --- networks as one -------------------------------------------------------------------------------------------------


def _forward(layout: Layout, device: torch.device, learns: bool) -> Forward:
    """A function from the pieces of R networks and inputs [R, B, D] or [B, D] to logits [R, B, C].

    Where it ``learns``, batch normalization changes its statistics, which are among the pieces.

    Raises LotteryError where a person's own module fails on the device.
    """
    own = family(layout)
    if not isinstance(own, Module):
        return partial(_perceptron, [piece.layer for piece in layout.weights])
    one = _network(own, layout, device, learns)
    if _maps(layout, device, learns):
        return lambda pieces, inputs: vmap(one, (0, 0 if inputs.dim() == 3 else None))(pieces, inputs)
    return partial(_one_by_one, one)


def _network(own: Module, layout: Layout, device: torch.device, learns: bool) -> Forward:
    """A function from the pieces of one network and inputs [B, D] to logits [B, C]."""
    module = own.template(device).train(learns)

    def forward(pieces: Pieces, inputs: Tensor) -> Tensor:
        named = {f"{own.prefix}{name}": each for name, each in pieces.items()}
        logits: Tensor = functional_call(module, named, (inputs,))
        return logits

    return forward


def _one_by_one(one: Forward, pieces: Pieces, inputs: Tensor) -> Tensor:
    count = len(next(iter(pieces.values())))
    networks = ({name: each[row] for name, each in pieces.items()} for row in range(count))
    several = inputs if inputs.dim() == 3 else [inputs] * count
    return torch.stack([one(network, own) for network, own in zip(networks, several, strict=True)])


@lru_cache(maxsize=8)
def _maps(layout: Layout, device: torch.device, learns: bool) -> bool:
    """Whether `vmap` takes a module: not where it asks for a tensor's values, or fills memory of its own.

    Raises LotteryError where it fails on the device even alone.
    """
    own, code = family(layout), layout.own
    if code is None:
        return True
    one = _network(cast(Module, own), layout, device, learns)
    networks = initialize(layout, "glorot-normal", [torch.Generator().manual_seed(seed) for seed in range(2)])
    inputs = torch.randn(*([2] if learns else []), 6, layout.inputs, generator=torch.Generator().manual_seed(0))

    def trial(forward: Forward) -> None:
        pieces = {piece.name: networks[piece.name].to(device, copy=True) for piece in layout.pieces}
        leaves = [pieces[piece.name].requires_grad_(learns) for piece in layout.pieces if piece.kind != "statistics"]
        with torch.set_grad_enabled(learns):
            logits = forward(pieces, inputs.to(device))
            if learns:
                torch.autograd.grad([logits.sum()], leaves, materialize_grads=True)

    try:
        trial(partial(_one_by_one, one))
    except Exception as error:
        if UNSTEADY in str(error):
            raise
        raise LotteryError(
            f"{code.file}: {code.name}: fails on {device}: {in_short(error)}; mend it, or set run.device to cpu"
        ) from error
    try:
        trial(vmap(one, (0, 0 if learns else None)))
    except Exception:
        return False
    return True


def _perceptron(layers: Sequence[str], pieces: Pieces, inputs: Tensor) -> Tensor:
    values = inputs if inputs.dim() == 3 else inputs.expand(len(pieces[f"{layers[0]}.bias"]), *inputs.shape)
    for place, layer in enumerate(layers):
        values = values.relu() if place else values
        values = torch.baddbmm(pieces[f"{layer}.bias"][:, None], values, pieces[f"{layer}.weight"])
    return values


class Examples:
    """N images on a device to measure networks on."""

    def __init__(self, images: Images, scaling: Scaling, device: torch.device) -> None:
        self.labels = images.labels.to(device)
        self._pixels, self._scaling = images.pixels.to(device), scaling

    def __len__(self) -> int:
        return len(self.labels)

    @torch.no_grad()
    def score(self, networks: Stack) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of networks on this device, both float64 [R]; see `families.score`."""
        forward = _forward(networks.layout, self.labels.device, learns=False)
        pieces = {piece.name: networks[piece.name] for piece in networks.layout.pieces}
        with deterministic(self.labels.device):
            parts = [forward(pieces, self._scaling(part)) for part in torch.split(self._pixels, CHUNK)]
        return mean_scores(torch.cat(parts, dim=1).log_softmax(dim=2), self.labels)


def accuracy(networks: Stack, examples: Examples, together: int = 64) -> Tensor:
    """Accuracy of each of the networks, float64 [R], at most so many ``together``; they need not be on the device.

    Fewer where that many do not fit its memory.
    """
    device, found, row = examples.labels.device, [], 0
    while row < len(networks):
        part = networks.rows(slice(row, row + together))
        try:
            found.append(examples.score(part.to(device))[1].cpu())
        except torch.OutOfMemoryError:
            if together == 1:
                raise
            together = -(-together // 2)
        else:
            row += len(part)
    return torch.cat(found)


class Learner:
    """Gradients of R networks at once, by autograd; see `families.Learner`."""

    def __init__(self, networks: Stack, images: Images, scaling: Scaling) -> None:
        layout = networks.layout
        self.gradients = Stack(torch.zeros_like(networks.flat), layout)
        self._images, self._scaling = images, scaling
        self._forward = _forward(layout, networks.flat.device, learns=True)
        self._pieces = {piece.name: networks[piece.name].detach() for piece in layout.pieces}
        trained = [piece.name for piece in layout.pieces if piece.kind != "statistics"]
        self._leaves = [self._pieces[name].requires_grad_() for name in trained]
        self._to = [self.gradients[name] for name in trained]
        # dense, because what vmap changes where they are not is a copy of its own
        dense = {name: each.contiguous() for name, each in self._pieces.items() if name not in trained}
        self._statistics = [(networks[name], each) for name, each in dense.items()]
        self._pieces |= dense

    def __call__(self, batch: Tensor, log_likelihoods: Tensor, noise: Sequence[int] = ()) -> None:
        """See `families.Learner`."""
        pixels = self._images.pixels.index_select(0, batch.view(-1))
        labels = self._images.labels.index_select(0, batch.view(-1))
        for kept, dense in self._statistics:
            dense.copy_(kept)
        with torch.enable_grad():
            logits = self._forward(self._pieces, self._scaling(pixels).view(*batch.shape, -1))
            losses = cross_entropy(logits.flatten(0, 1), labels, reduction="none").view(batch.shape)
            gradients = torch.autograd.grad([losses.mean(dim=1).sum()], self._leaves, materialize_grads=True)
        for to, gradient in zip(self._to, gradients, strict=True):
            to.copy_(gradient)
        for kept, dense in self._statistics:
            kept.copy_(dense)
        log_likelihoods.copy_(-losses.detach()[..., None])


class Lessons:
    """A split's images on a device. Raises LotteryError where a person's own module fails there."""

    def __init__(self, layout: Layout, split: Split, device: torch.device) -> None:
        own = family(layout)
        self.is_random = isinstance(own, Module) and own.is_random
        self.is_captured = device.type == "cuda" and not self.is_random and _maps(layout, device, learns=True)
        self.device = device
        self._train = Images(split.train.pixels.to(device), split.train.labels.to(device))
        self._scaling = split.scaling
        self.validation = Examples(split.validation, split.scaling, device)

    def __len__(self) -> int:
        return len(self._train)

    def arranged(self, networks: Stack) -> Stack:
        """The networks as they are."""
        return networks

    def restored(self, networks: Stack) -> Stack:
        """The networks as they are."""
        return networks

    def learner(self, networks: Stack, batch_size: int) -> OneByOne | Learner:
        """A learner of these networks, whose memory it reads whenever it is called.

        Networks that draw learn one after another, so that none draws what depends on the others.
        """
        own = family(networks.layout)
        if isinstance(own, Module) and own.is_random:
            return own.learner(networks, self._train, self._scaling)
        return Learner(networks, self._train, self._scaling)


# --- training --------------------------------------------------------------------------------------------------------


class _OnDevice(Group):
    """The networks of a group on a device, from the state that the group has."""

    GATHERS = False
    lessons: Lessons

    def __init__(self, group: Group, lessons: Lessons) -> None:
        device = lessons.device
        super().__init__(
            group.first, group.task, group.masks and group.masks.to(device), lessons, group.state.to(device)
        )
        recipe, parameters, moments = self.task.recipe, self.state.parameters.flat, self.state.moments
        done = self.iteration - recipe.start
        self._optimizer = Optimizer(recipe, self._trained(parameters), [*map(self._trained, moments)], done)
        batch = (len(parameters), recipe.batch_size)
        self._batches = torch.zeros(BLOCK, *batch, dtype=torch.int64, device=device)
        self._total = torch.zeros(len(parameters), dtype=torch.float64, device=device)  # of mean losses
        self._rates = torch.zeros(BLOCK, device=device)
        self._likelihoods = torch.zeros(*batch, 1, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)  # of the iteration in the block

    def _score(self) -> tuple[Tensor, Tensor]:
        return self.lessons.validation.score(self.state.parameters)

    def _train(self, iteration: int, until: int) -> Tensor:
        """Train from ``iteration`` to ``until``; the mean training loss [R] on the way."""
        recipe = self.task.recipe
        self._total.zero_()
        for first in range(iteration, until, BLOCK):
            last = min(first + BLOCK, until)
            _send(torch.stack([self._batch(each) for each in range(first, last)]), self._batches)
            _send(torch.tensor(recipe.rates[first:last]), self._rates)
            self._place.zero_()
            for each in range(first, last):
                if self._graph:
                    self._graph.replay()
                else:
                    self._once(self._noise(each))
                if each + 1 == recipe.rewind:
                    self.state.rewound.flat.copy_(self.state.parameters.flat)
        return self._total / (until - iteration)

    @cached_property
    def _graph(self) -> torch.cuda.CUDAGraph | None:
        """An iteration as one CUDA graph; None where it cannot be captured, as where a module copies to the device."""
        if not self.lessons.is_captured:
            return None
        changed = [self.state.parameters.flat, self.state.moments, self._optimizer.done, self._place, self._total]
        before = [each.clone() for each in changed]
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._once()
        torch.cuda.current_stream().wait_stream(aside)
        graph, is_whole = torch.cuda.CUDAGraph(), True
        try:
            with torch.cuda.graph(graph):
                self._once()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            is_whole = False
        for each, value in zip(changed, before, strict=True):
            each.copy_(value)
        return graph if is_whole else None

    def _once(self, noise: Sequence[int] = ()) -> None:
        """Train the iteration at ``place``, and move on; nothing here waits for the device."""
        learner, place = self._learner, self._place
        learner(self._batches.index_select(0, place)[0], self._likelihoods, noise)
        self._total.sub_(self._likelihoods[..., 0].double().mean(dim=1))
        gradients = learner.gradients.flat
        if self._keep is not None:
            gradients.mul_(self._keep)
        self._optimizer.step(self._trained(gradients), self._rates.index_select(0, place)[0])
        place.add_(1)


def _send(values: Tensor, to: Tensor) -> None:
    """Copy values to the first rows of a tensor on a device, and wait for nothing."""
    ready = values.pin_memory() if to.is_cuda else values
    to[: len(values)].copy_(ready, non_blocking=True)


def engine(name: str, announce: Callable[[str], None]) -> Engine:
    """The engine of a device such as ``cuda``, for groups whose lessons lie there.

    A group that does not fit the device's memory trains in halves, which it announces in a line.
    """

    def run(groups: list[Group], threads: int, advanced: Callable[[Group], None]) -> None:
        place = 0
        with deterministic(torch.device(name)):
            while place < len(groups):
                group = groups[place]
                if _advance(group, advanced):
                    place += 1
                    continue
                torch.cuda.empty_cache()
                count = len(group.task.seeds)
                if count == 1:
                    raise LotteryError(
                        f"params.yaml: run.device: a network does not fit the memory of {name}; make it cpu, or give a "
                        "smaller train.batch_size"
                    )
                half = -(-count // 2)
                announce(f"{count} networks do not fit the memory of {name}; they train {half} at a time")
                groups[place : place + 1] = [_part(group, slice(0, half)), _part(group, slice(half, count))]

    return run


def _advance(group: Group, advanced: Callable[[Group], None]) -> bool:
    """Advance a group to its end on the device, and its state from time to time; False where memory does not do."""
    if group.finished:
        return True
    try:
        own, shared = _OnDevice(group, cast(Lessons, group.lessons)), time.monotonic()
        while not own.finished:
            own.advance()
            if own.finished or time.monotonic() - shared >= SHARED:
                group.state.copy_from(own.state)
                advanced(group)
                shared = time.monotonic()
    except torch.OutOfMemoryError:
        return False
    return True


def _part(group: Group, rows: slice) -> Group:
    """Some networks of a group, from its state on."""
    task = replace(group.task, seeds=group.task.seeds[rows])
    state: State = group.state.rows(rows).copy()
    return Group(group.first + rows.start, task, group.masks and group.masks.rows(rows), group.lessons, state)
