"""The training loop over a stack of networks."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from lottery.images import Split
from lottery.network import Gradients, Masks, Parameters, aligned, score, stack
from lottery.randomness import generator

GROUP_BYTES = 6 << 20  # what a group's weights, gradients, moments and masks may take; see `group_size`


@dataclass(frozen=True)
class Recipe:
    """How each network is trained; every network of a pipeline by the same recipe."""

    iterations: int
    batch_size: int
    learning_rate: float
    evaluate_every: int  # iterations
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def evaluations(self) -> list[int]:
        """The evaluated iterations: 0, every ``evaluate_every``, and the last."""
        return [*range(0, self.iterations, self.evaluate_every), self.iterations]


@dataclass(frozen=True)
class History:
    """What training saw of R networks at E evaluations."""

    iterations: list[int]  # [E], 0 first
    train_loss: Tensor  # float64 [R, E], mean over the iterations since the evaluation before; NaN at iteration 0
    validation_loss: Tensor  # float64 [R, E]
    validation_accuracy: Tensor  # float64 [R, E], a fraction


@dataclass(frozen=True)
class Trained:
    """R trained networks."""

    final: Parameters
    early_stopping: Parameters  # at each network's early-stopping iteration
    history: History


class DivergedError(ArithmeticError):
    """The validation loss of network ``row`` was no finite number at ``iteration``."""

    def __init__(self, row: int, iteration: int) -> None:
        super().__init__(row, iteration)
        self.row = row
        self.iteration = iteration


class Optimizer:
    """One step of ``torch.optim`` on one flat tensor, by its functional form (20 microseconds a step less)."""

    def __init__(self, recipe: Recipe, parameters: Tensor) -> None:
        self.recipe = recipe
        self.parameters = parameters
        self.moments = [torch.zeros_like(parameters) for _ in range(2 if recipe.optimizer == "adam" else 1)]
        self.steps = torch.zeros(())

    def step(self, gradients: Tensor) -> None:
        """Update the parameters in place by gradients of the same shape."""
        r = self.recipe
        if r.optimizer == "adam":
            first, second = self.moments
            adam(
                [self.parameters], [gradients], [first], [second], [], [self.steps], fused=True, amsgrad=False,
                beta1=0.9, beta2=0.999, lr=r.learning_rate, weight_decay=r.weight_decay, eps=1e-8, maximize=False,
            )  # fmt: skip
        else:
            # zeros are what torch.optim starts the buffer with when dampening is 0
            sgd(
                [self.parameters], [gradients], list(self.moments), fused=True, lr=r.learning_rate,
                momentum=r.momentum, weight_decay=r.weight_decay, dampening=0, nesterov=False, maximize=False,
            )  # fmt: skip


def batch_order(seed: int, path: Sequence[float], epoch: int, images: int) -> Tensor:
    """The order in which epoch ``epoch`` visits the images: a permutation, int64 [images].

    It depends on the seed and the level's path of sparsities alone, so the arms of a level share it.
    """
    return torch.randperm(images, generator=generator("batches", seed, path, epoch))


class Group:
    """A slice of the stack that trains on one thread, with the whole state of its training."""

    def __init__(
        self,
        first: int,
        start: Parameters,
        masks: Masks | None,
        seeds: Sequence[int],
        path: Sequence[float],
        split: Split,
        validation: Tensor,
        recipe: Recipe,
    ) -> None:
        networks, batch = len(start), recipe.batch_size
        self.first = first
        self.seeds = seeds
        self.path = path
        self.split = split
        self.validation = validation
        self.recipe = recipe
        self.parameters = start.clone()
        self.keep = None if masks is None else _keep(start, masks)
        self.optimizer = Optimizer(recipe, self.parameters.flat)
        self.backward = Gradients(self.parameters, batch)
        self.iteration = 0
        self.early_stopping = start.clone()
        self.lowest = [math.inf] * networks
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pixels = torch.empty(networks * batch, split.train.pixels.shape[1], dtype=torch.uint8)
        self._inputs = aligned(networks, batch, split.train.pixels.shape[1])
        self._labels = torch.empty(networks * batch, dtype=torch.int64)
        self._epoch: tuple[int, Tensor] | None = None

    @property
    def finished(self) -> bool:
        return bool(self.history) and self.iteration == self.recipe.iterations

    def advance(self) -> "Group":
        """Train to the next evaluated iteration and evaluate there; the first call evaluates iteration 0."""
        with torch.no_grad():
            loss = self._train(self.recipe.evaluations[len(self.history)])
            self._evaluate(loss)
        return self

    def _train(self, until: int) -> Tensor:
        """The mean training loss [R] of the iterations up to ``until``."""
        networks, batch = len(self.parameters), self.recipe.batch_size
        losses = torch.empty(until - self.iteration, networks, batch, 1)
        gradients = self.backward.gradients.flat
        for log_likelihoods in losses:
            indices = self._batch()
            torch.index_select(self.split.train.pixels, 0, indices, out=self._pixels)
            torch.index_select(self.split.train.labels, 0, indices, out=self._labels)
            inputs = self.split.scaling(self._pixels.view(networks, batch, -1), out=self._inputs)
            self.backward(inputs, self._labels.view(networks, batch, 1), log_likelihoods)
            if self.keep is not None:
                gradients.mul_(self.keep)
            self.optimizer.step(gradients)
            self.iteration += 1
        return torch.stack([-losses[:, r].double().mean() for r in range(networks)])

    def _batch(self) -> Tensor:
        """The next batch of every network: indices of images, int64 [R * B]."""
        images, batch = len(self.split.train), self.recipe.batch_size
        epoch, place = divmod(self.iteration, images // batch)
        if self._epoch is None or self._epoch[0] != epoch:
            orders = [batch_order(seed, self.path, epoch, images) for seed in self.seeds]
            whole = images // batch * batch  # an incomplete last batch is dropped
            self._epoch = epoch, torch.stack([order[:whole].view(-1, batch) for order in orders], dim=1).flatten(1)
        return self._epoch[1][place]

    def _evaluate(self, train_loss: Tensor) -> None:
        losses, accuracies = score(self.parameters, self.validation, self.split.validation.labels)
        self.history.append((train_loss, losses, accuracies))
        for r, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise DivergedError(self.first + r, self.iteration)
            if self.iteration and loss < self.lowest[r]:
                self.lowest[r] = loss
                self.early_stopping.flat[r] = self.parameters.flat[r]


def _keep(parameters: Parameters, masks: Masks) -> Tensor:
    """The masks as one float32 tensor [R, P], 1 for biases.

    As float because multiplying by booleans takes 190 microseconds where multiplying by floats takes 24.
    """
    keep = Parameters(torch.ones_like(parameters.flat), parameters.sizes)
    for weight, mask in zip(keep.weights, masks, strict=True):
        weight.copy_(mask)
    return keep.flat


def group_size(networks: int, parameters: int, threads: int) -> int:
    """How many networks train together on one thread.

    As many as stay in a core's cache, 5 floats a parameter: one LeNet-300-100, but several of a smaller network,
    whose time goes into calls rather than arithmetic. No more than a thread's share.
    """
    return max(1, min(GROUP_BYTES // (20 * parameters), -(-networks // threads)))


def train(
    start: Parameters,
    masks: Masks | None,
    seeds: Sequence[int],
    path: Sequence[float],
    split: Split,
    recipe: Recipe,
    *,
    threads: int = 1,
    group: int | None = None,
    advanced: Callable[[Group], None] = lambda group: None,
) -> Trained:
    """Train R networks from ``start`` on the split's training images.

    ``start`` has its pruned weights at 0 and ``masks`` keeps them there (None where nothing is pruned); ``seeds`` has
    a seed a network, and ``path`` is the level's path of sparsities from dense: the two fix the batch orders.
    ``threads``, ``group`` (networks trained together on a thread) and ``advanced`` (called in this thread after each
    evaluation of a group) change nothing in the result, to the bit: every operator runs on one thread and every
    matrix product is one network's.

    Raises DivergedError where a validation loss is not finite.
    """
    size = group or group_size(len(start), start.flat.shape[1], threads)
    validation = split.scaling(split.validation.pixels)
    groups = [
        Group(
            first,
            start.rows(rows),
            None if masks is None else tuple(mask[rows] for mask in masks),
            seeds[rows],
            path,
            split,
            validation,
            recipe,
        )
        for first in range(0, len(start), size)
        for rows in [slice(first, first + size)]
    ]
    pool = ThreadPoolExecutor(min(threads, len(groups)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        # each group advances by one evaluation at a time and queues up again, which keeps all threads busy to the end
        running = {pool.submit(group.advance) for group in groups}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                current = future.result()
                if not current.finished:
                    running.add(pool.submit(current.advance))
                advanced(current)
    finally:
        pool.shutdown(cancel_futures=True)

    def gather(column: int) -> Tensor:
        return torch.cat([torch.stack([row[column] for row in group.history], dim=1) for group in groups])

    return Trained(
        final=stack([group.parameters for group in groups]),
        early_stopping=stack([group.early_stopping for group in groups]),
        history=History(recipe.evaluations, gather(0), gather(1), gather(2)),
    )
