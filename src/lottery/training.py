"""The training loop over a stack of networks."""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lottery.images import Examples, Split
from lottery.network import CACHE_LINE, Gradients, Masks, Parameters, score, stack
from lottery.randomness import generator
from lottery.schedules import Schedule, constant
from lottery.workers import shared, workers

SPARSE = 0.25  # the density below which the optimizer gathers the kept weights; see `Group`
GROUP_BYTES = 6 << 20  # what a group's weights, gradients, moments and masks may take; see `group_size`


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, from iteration ``start`` to iteration ``iterations`` of the dense run's axis."""

    iterations: int  # T, at which all networks of a pipeline end
    batch_size: int
    learning_rate: float
    evaluate_every: int  # iterations
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = constant
    start: int = 0  # the position in the schedule and in the batch order; the optimizer starts fresh all the same
    rewind: int | None = None  # an iteration after ``start`` whose parameters are left too, for tickets to start from
    order: str = "batches"  # the purpose that the batch order is drawn for

    @property
    def evaluations(self) -> list[int]:
        """The evaluated iterations: ``start``, the multiples of ``evaluate_every`` after it, and the last."""
        first = (self.start // self.evaluate_every + 1) * self.evaluate_every
        return [self.start, *range(first, self.iterations, self.evaluate_every), self.iterations]

    @cached_property
    def rates(self) -> list[float]:
        """The learning rate at every position from 0, [T]."""
        return [self.learning_rate * self.schedule(i, self.iterations) for i in range(self.iterations)]


@dataclass(frozen=True)
class History:
    """What training saw of a network at E evaluations."""

    iterations: list[int]  # [E], that of the start first
    train_loss: Tensor  # float64 [E], mean over the iterations since the evaluation before; NaN at the start
    validation_loss: Tensor  # float64 [E]
    validation_accuracy: Tensor  # float64 [E], a fraction


@dataclass(frozen=True)
class Trained:
    """R trained networks."""

    final: Parameters
    early_stopping: Parameters  # at each network's early-stopping iteration
    histories: tuple[History, ...]  # [R]
    rewind: Parameters | None = None  # at iteration ``rewind``, of those networks whose recipe has one

    def rows(self, rows: slice) -> "Trained":
        """Those networks; ``rewind`` is left as it is."""
        return replace(
            self,
            final=self.final.rows(rows),
            early_stopping=self.early_stopping.rows(rows),
            histories=self.histories[rows],
        )


class DivergedError(ArithmeticError):
    """The validation loss of network ``row`` was no finite number at ``iteration``."""

    def __init__(self, row: int, iteration: int) -> None:
        super().__init__(row, iteration)
        self.row = row
        self.iteration = iteration


class Optimizer:
    """``torch.optim``'s Adam or SGD on one tensor, by the operator that its step ends in.

    Calling that operator saves 40 of an iteration's 1,200 microseconds.
    """

    def __init__(self, recipe: Recipe, parameters: Tensor, moments: Sequence[Tensor]) -> None:
        self.recipe = recipe
        self.parameters = parameters
        self.moments = list(moments)
        self._rates = recipe.rates
        self._iteration = torch.zeros(())

    @staticmethod
    def moments_of(recipe: Recipe) -> int:
        """How many tensors like the parameters the optimizer remembers; they start at zero."""
        return 2 if recipe.optimizer == "adam" else int(recipe.momentum > 0)

    def step(self, gradients: Tensor, iteration: int) -> None:
        """Update the parameters in place by gradients of the same shape; the first is iteration ``start`` + 1."""
        r, rate = self.recipe, self._rates[iteration - 1]
        if r.optimizer == "adam":
            first, second = self.moments
            torch._fused_adam_(
                [self.parameters], [gradients], [first], [second], [], [self._iteration.fill_(iteration - r.start)],
                amsgrad=False, lr=rate, beta1=0.9, beta2=0.999, weight_decay=r.weight_decay, eps=1e-8,
                maximize=False,
            )  # fmt: skip
        else:
            # a buffer of zeros is what torch.optim starts with when dampening is 0
            torch._fused_sgd_(
                [self.parameters], [gradients], self.moments, lr=rate, momentum=r.momentum,
                weight_decay=r.weight_decay, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip


def batch_order(seed: int, path: Sequence[float], epoch: int, images: int, order: str = "batches") -> Tensor:
    """The order in which epoch ``epoch`` visits the images: a permutation, int64 [images].

    It depends on the seed and the level's path of sparsities, so the arms of a level share it; ``order`` is the purpose
    that it is drawn for, by which a twin has another.
    """
    return torch.randperm(images, generator=generator(order, seed, path, epoch))


class Group:
    """A slice of the stack that trains on one thread.

    The state of its training, whole, is ``parameters``, ``moments``, ``early_stopping``, ``rewind``, ``history`` and
    ``evaluated``. It lies in memory that worker processes share, so that each evaluation's worth of training may run
    in another of them.

    Pruned weights stay at zero because their gradients are multiplied by the mask, or, where few are kept, because
    the optimizer works on a gathered copy of the kept ones alone: the same bits, and at a density of 0.2 a third
    less time between the gradients and the next iteration, at 0.05 three quarters less.
    """

    def __init__(
        self,
        first: int,
        start: Parameters,
        masks: Masks | None,
        seeds: Sequence[int],
        path: Sequence[float],
        split: Split,
        validation: Examples,
        recipe: Recipe,
    ) -> None:
        self.first = first
        self.seeds = seeds
        self.path = path
        self.split = split
        self.validation = validation
        self.recipe = recipe
        keep = None if masks is None or all(mask.all() for mask in masks) else _keep(start, masks)
        sparse = keep is not None and bool(keep.mean() < SPARSE)
        self.keep = None if sparse else keep
        self.kept = keep.flatten().nonzero().flatten() if keep is not None and sparse else None
        self.parameters = Parameters(_shared(start.flat), start.sizes)
        optimized = start.flat if self.kept is None else _whole_vectors(len(self.kept))
        self.moments = [_shared(torch.zeros_like(optimized)) for _ in range(Optimizer.moments_of(recipe))]
        self.early_stopping = Parameters(_shared(start.flat), start.sizes)
        self.rewind = None if recipe.rewind is None else Parameters(_shared(start.flat), start.sizes)
        # training loss, validation loss and validation accuracy, float64 [3, R, E]
        self.history = _shared(torch.zeros(3, len(start), len(recipe.evaluations), dtype=torch.float64))
        self.evaluated = _shared(torch.zeros(1, dtype=torch.int64))
        self._epoch: tuple[int, Tensor, list[list[int]]] | None = None

    @property
    def iteration(self) -> int:
        """The iteration that was evaluated last."""
        return self.recipe.evaluations[max(int(self.evaluated) - 1, 0)]

    @property
    def finished(self) -> bool:
        return int(self.evaluated) == self.history.shape[2]

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self.parameters, self.recipe.batch_size, self.split.scaling.blank)

    @cached_property
    def _pixels(self) -> Tensor:
        return torch.empty(
            len(self.seeds) * self.recipe.batch_size, self.split.train.pixels.shape[1], dtype=torch.uint8
        )

    def advance(self) -> None:
        """Train to the next evaluated iteration and evaluate there; the first call evaluates the start.

        Raises DivergedError.
        """
        with torch.no_grad():
            until = self.recipe.evaluations[int(self.evaluated)]
            self._evaluate(until, self._train(self.iteration, until))

    def _train(self, iteration: int, until: int) -> Tensor:
        """Train from ``iteration`` to ``until``; the mean training loss [R] on the way."""
        backward, networks = self._gradients, len(self.parameters)
        inputs, labels = backward.inputs, backward.labels.view(-1)
        pixels = self._pixels.view(inputs.shape)
        losses = torch.empty(until - iteration, *backward.labels.shape)
        update = self._update()
        for log_likelihoods in losses:
            indices, backward.used = self._batch(iteration)
            torch.index_select(self.split.train.pixels, 0, indices, out=self._pixels)
            torch.index_select(self.split.train.labels, 0, indices, out=labels)
            self.split.scaling(pixels, out=inputs)
            backward(log_likelihoods)
            iteration += 1
            update(iteration)
            if iteration == self.recipe.rewind and self.rewind is not None:
                self.rewind.flat.copy_(self.parameters.flat)
        return torch.stack([-losses[:, r].double().mean() for r in range(networks)])

    def _update(self) -> Callable[[int], None]:
        """What an iteration does with the gradients of its batch: it moves the kept weights and the biases."""
        gradients = self._gradients.gradients.flat
        if self.kept is None:
            optimizer = Optimizer(self.recipe, self.parameters.flat, self.moments)

            def update(iteration: int) -> None:
                if self.keep is not None:
                    gradients.mul_(self.keep)
                optimizer.step(gradients, iteration)

            return update

        kept, parameters, gradients = self.kept, self.parameters.flat.view(-1), gradients.view(-1)
        gathered, gathered_gradients = _whole_vectors(len(kept)), _whole_vectors(len(kept))
        kept_parameters, kept_gradients = gathered[: len(kept)], gathered_gradients[: len(kept)]
        torch.index_select(parameters, 0, kept, out=kept_parameters)
        sparse_optimizer = Optimizer(self.recipe, gathered, self.moments)

        def update_kept(iteration: int) -> None:
            torch.index_select(gradients, 0, kept, out=kept_gradients)
            sparse_optimizer.step(gathered_gradients, iteration)
            parameters.scatter_(0, kept, kept_parameters)

        return update_kept

    def _batch(self, iteration: int) -> tuple[Tensor, list[int]]:
        """Each network's batch after ``iteration``: indices of images, int64 [R * B], and how many pixels it needs."""
        images, batch = len(self.split.train), self.recipe.batch_size
        epoch, place = divmod(iteration, images // batch)
        if self._epoch is None or self._epoch[0] != epoch:
            orders = [batch_order(seed, self.path, epoch, images, self.recipe.order) for seed in self.seeds]
            whole = images // batch * batch  # an incomplete last batch is dropped
            batches = torch.stack([order[:whole].view(-1, batch) for order in orders], dim=1)
            self._epoch = epoch, batches.flatten(1), self.split.train.ends[batches].amax(dim=2).tolist()
        return self._epoch[1][place], self._epoch[2][place]

    def _evaluate(self, iteration: int, train_loss: Tensor) -> None:
        losses, accuracies = score(self.parameters, self.validation)
        evaluation = int(self.evaluated)
        for r, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise DivergedError(self.first + r, iteration)
            earlier = self.history[1, r, 1:evaluation]
            if evaluation and (not len(earlier) or loss < earlier.min()):
                self.early_stopping.flat[r] = self.parameters.flat[r]
        self.history[:, :, evaluation] = torch.stack([train_loss, losses, accuracies])
        self.evaluated += 1


def _whole_vectors(size: int) -> Tensor:
    """Zeros for ``size`` values and for what fills the last vector, where fused Adam would round in another way."""
    return torch.zeros(-(-size // CACHE_LINE) * CACHE_LINE)


def _shared(tensor: Tensor) -> Tensor:
    """A copy in memory that forked processes share, outside /dev/shm, which is often limited to 64 MB."""
    memory = mmap.mmap(-1, tensor.nbytes)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def _keep(parameters: Parameters, masks: Masks) -> Tensor:
    """The masks as one float32 tensor [R, P], 1 for biases.

    As float because multiplying by booleans takes 190 microseconds where multiplying by floats takes 24.
    """
    keep = Parameters(torch.ones_like(parameters.flat), parameters.sizes)
    for weight, mask in zip(keep.weights, masks, strict=True):
        weight.copy_(mask)
    return keep.flat


def group_size(networks: int, parameters: int, threads: int) -> int:
    """How many networks train together on one thread, at most.

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
    recipe: Recipe | Sequence[Recipe],
    *,
    threads: int = 1,
    group: int | None = None,
    advanced: Callable[[Group], None] = lambda group: None,
) -> Trained:
    """Train R networks from ``start`` on the split's training images.

    ``start`` has its pruned weights at 0 and ``masks`` keeps them there (None where nothing is pruned); ``seeds`` has
    a seed a network, and ``path`` is the level's path of sparsities from dense: the two fix the batch orders.
    ``recipe`` is one for all networks, or one each; only neighbours with the same recipe train in one group.
    ``threads``, ``group`` (networks trained together on a thread) and ``advanced`` (called in this process and thread
    after each evaluation of a group) change nothing in the result, to the bit: every operator runs on one thread and
    every matrix product is one network's.

    Raises DivergedError where a validation loss is not finite.
    """
    size = group or group_size(len(start), start.flat.shape[1], threads)
    recipes = [recipe] * len(start) if isinstance(recipe, Recipe) else recipe
    # the pixels that few images use go last, where most batches need no products with them
    order = split.train.by_use()
    back = order.argsort()
    start, split = start.rearranged(order), split.rearranged(order)
    masks = masks and (masks[0][:, order], *masks[1:])
    validation = Examples(split.validation, split.scaling)
    groups = [
        Group(
            rows.start,
            start.rows(rows),
            None if masks is None else tuple(mask[rows] for mask in masks),
            seeds[rows],
            path,
            split,
            validation,
            recipes[rows.start],
        )
        for rows in _slices(recipes, size)
    ]
    pool = workers(min(threads, len(groups)), groups)
    try:
        # each group advances by one evaluation at a time and queues up again, which keeps all workers busy to the end
        running = {pool.submit(_advance, index) for index in range(len(groups))}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = future.result()
                if not groups[index].finished:
                    running.add(pool.submit(_advance, index))
                advanced(groups[index])
    finally:
        pool.shutdown(cancel_futures=True)

    rewind = [group.rewind for group in groups if group.rewind is not None]
    return Trained(
        final=stack([group.parameters for group in groups]).rearranged(back),
        early_stopping=stack([group.early_stopping for group in groups]).rearranged(back),
        histories=tuple(
            History(group.recipe.evaluations, *network) for group in groups for network in group.history.unbind(dim=1)
        ),
        rewind=stack(rewind).rearranged(back) if rewind else None,
    )


def _slices(recipes: Sequence[Recipe], size: int) -> Iterator[slice]:
    """The rows of each group: at most ``size`` neighbours with the same recipe."""
    first = 0
    for row in range(1, len(recipes) + 1):
        if row == len(recipes) or row - first == size or recipes[row] != recipes[first]:
            yield slice(first, row)
            first = row


def _advance(index: int) -> int:
    shared()[index].advance()
    return index
