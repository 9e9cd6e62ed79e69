"""The training loop over a stack of networks."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lottery.core import engines
from lottery.core.families import Learner, Lessons, family, score
from lottery.core.images import Split
from lottery.core.layout import Layout, padded
from lottery.core.randomness import generator
from lottery.core.schedules import Constant, Schedule
from lottery.core.stack import Masks, Stack, stack

CONSTANT = Constant()
SPARSE = 0.25  # the density below which the optimizer gathers the kept weights; see `Group`
GROUP_BYTES = 6 << 20  # what a group's weights, gradients, moments and masks may take; see `group_size`


@dataclass(frozen=True)
class Recipe:
    """The training of a network, from iteration ``start`` to iteration ``iterations`` of the dense run's axis."""

    iterations: int  # T, at which all networks of a pipeline end
    batch_size: int
    learning_rate: float
    evaluate_every: int  # iterations
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = CONSTANT
    start: int = 0  # the position in the schedule and in the batch order; the optimizer starts fresh all the same
    rewind: int = 0  # an iteration after ``start`` whose parameters are left too, for tickets to start from; 0: none
    order: str = "batches"  # the purpose that the batch order is drawn for

    @cached_property
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
    """The losses and accuracies of a network at E evaluations."""

    iterations: list[int]  # [E], that of the start first
    train_loss: Tensor  # float64 [E], mean over the iterations since the evaluation before; NaN at the start
    validation_loss: Tensor  # float64 [E]
    validation_accuracy: Tensor  # float64 [E], a fraction


@dataclass(frozen=True)
class Trained:
    """R trained networks."""

    final: Stack
    early_stopping: Stack  # at each network's early-stopping iteration
    histories: tuple[History, ...]  # [R]
    rewound: Stack | None = None  # at iteration ``rewind``, of those networks whose recipe has one

    def rows(self, rows: slice) -> "Trained":
        """The networks of these rows; ``rewound`` is left as it is."""
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
    """``torch.optim``'s Adam or SGD on tensors of one shape each, by the operator that its step ends in.

    Calling that operator saves 40 of an iteration's 1,200 microseconds.
    """

    def __init__(
        self, recipe: Recipe, parameters: Sequence[Tensor], moments: Sequence[Sequence[Tensor]], done: int
    ) -> None:
        self.recipe = recipe
        self.parameters = list(parameters)
        self.moments = [list(each) for each in moments]  # [moments_of(recipe)], each like the parameters
        self.done = torch.full((), float(done), device=self.parameters[0].device)  # iterations

    @staticmethod
    def moments_of(recipe: Recipe) -> int:
        """The number of tensors like the parameters that the optimizer remembers; they start at zero."""
        return 2 if recipe.optimizer == "adam" else int(recipe.momentum > 0)

    def step(self, gradients: list[Tensor], rate: float | Tensor) -> None:
        """Update the parameters in place by gradients of the same shapes, at a learning rate."""
        r = self.recipe
        if r.optimizer == "adam":
            first, second = self.moments
            self.done.add_(1)
            torch._fused_adam_(
                self.parameters, gradients, first, second, [], [self.done] * len(gradients),
                amsgrad=False, lr=rate, beta1=0.9, beta2=0.999, weight_decay=r.weight_decay, eps=1e-8,
                maximize=False,
            )  # fmt: skip
        else:
            # a buffer of zeros is what torch.optim starts with when dampening is 0
            torch._fused_sgd_(
                self.parameters, gradients, *(self.moments or [[]]), lr=rate, momentum=r.momentum,
                weight_decay=r.weight_decay, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip


def batch_order(seed: int, path: Sequence[float], epoch: int, images: int, order: str = "batches") -> Tensor:
    """The order in which epoch ``epoch`` visits the images: a permutation, int64 [images].

    It depends on the seed and the level's path of sparsities, so the arms of a level share it; ``order`` is the purpose
    that it is drawn for, by which a twin has another.
    """
    return torch.randperm(images, generator=generator(order, seed, path, epoch))


@dataclass(frozen=True)
class Task:
    """The training of a group of networks, as plain data."""

    layout: Layout
    seeds: tuple[int, ...]
    path: tuple[float, ...]  # sparsities from dense to the level
    recipe: Recipe

    @cached_property
    def key(self) -> str:
        """A name that tasks made of the same values share, and no others."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass
class State:
    """All that a group of R networks needs to go on training, after an evaluation.

    Its networks are arranged as their `Lessons` want them. What else training needs follows from the task, the masks
    and the lessons.
    """

    parameters: Stack
    early_stopping: Stack  # as they were at the early-stopping iteration so far
    rewound: Stack  # as they were at iteration ``rewind``, once that is past; no networks where there is none
    moments: Tensor  # float32 [0 to 2, R, P], the optimizer's
    history: Tensor  # float64 [3, R, E]: training loss, validation loss and validation accuracy
    evaluated: Tensor  # int64 [1], how many evaluations are done

    @classmethod
    def begin(cls, task: Task, start: Stack) -> "State":
        """The state before the first evaluation."""
        return cls(
            parameters=start.clone(),
            early_stopping=start.clone(),
            rewound=start.rows(slice(None if task.recipe.rewind else 0)).clone(),
            moments=torch.zeros(Optimizer.moments_of(task.recipe), *start.flat.shape),
            history=torch.zeros(3, len(start), len(task.recipe.evaluations), dtype=torch.float64),
            evaluated=torch.zeros(1, dtype=torch.int64),
        )

    @classmethod
    def names(cls) -> list[str]:
        """The names of its tensors."""
        return [field.name for field in fields(cls)]

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors by name; `of` makes a state of them."""
        values = {name: getattr(self, name) for name in self.names()}
        return {name: value.flat if isinstance(value, Stack) else value for name, value in values.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], layout: Layout) -> "State":
        """The state that is made of these tensors, which it changes as it goes on."""
        stacks = ("parameters", "early_stopping", "rewound")
        values: dict[str, Any] = {
            name: Stack(each, layout) if name in stacks else each for name, each in tensors.items()
        }
        return cls(**values)

    def rows(self, rows: slice) -> "State":
        """The state of these networks, in the same memory where that is possible."""
        several = {name: tensor[_of_networks(name, rows)] for name, tensor in self.tensors().items()}
        return self.of(several, self.parameters.layout)

    def to(self, device: torch.device) -> "State":
        """A state of the same values whose networks are on a device; its history stays."""
        here = ("history", "evaluated")
        tensors = {
            name: each.clone() if name in here else each.to(device, copy=True) for name, each in self.tensors().items()
        }
        return self.of(tensors, self.parameters.layout)

    def copy(self) -> "State":
        """A state of the same values in memory of its own."""
        return self.of({name: tensor.clone() for name, tensor in self.tensors().items()}, self.parameters.layout)

    def copy_from(self, other: "State") -> None:
        """Take the values of another state of the same networks: a tenth of the time that new memory takes."""
        for mine, its in zip(self.tensors().values(), other.tensors().values(), strict=True):
            mine.copy_(its)

    @classmethod
    def joined(cls, states: Sequence["State"]) -> "State":
        """One state of all networks of several states that are equally far."""
        each = [state.tensors() for state in states]
        axes = {name: AXES.get(name, 0) for name in each[0] if name != "evaluated"}
        together = {name: torch.cat([tensors[name] for tensors in each], dim=axis) for name, axis in axes.items()}
        return cls.of(together | {"evaluated": each[0]["evaluated"].clone()}, states[0].parameters.layout)


AXES = {"moments": 1, "history": 1}  # of the networks in a tensor of a state, where it is not 0


def _of_networks(name: str, rows: slice) -> tuple[slice, ...]:
    return (slice(None),) if name == "evaluated" else (slice(None),) * AXES.get(name, 0) + (rows,)


class Group:
    """A slice of the stack that trains on one thread: a task, and how far its networks are.

    Pruned weights stay at zero because their gradients are multiplied by the mask, or, where few are kept, because
    the optimizer works on a gathered copy of the kept ones alone: the same bits, and at a density of 0.2 a third
    less time between the gradients and the next iteration, at 0.05 three quarters less.
    """

    GATHERS = True

    def __init__(self, first: int, task: Task, masks: Masks | None, lessons: Lessons, state: State) -> None:
        self.first = first
        self.task = task
        self.lessons = lessons
        self.state = state
        self.masks = masks
        # as float because multiplying by booleans takes 190 microseconds where multiplying by floats takes 24
        keep = None if masks is None or masks.flat.all() else masks.flat.float()
        # where there are statistics, which no optimizer changes, more than the kept ones change
        gathers = self.GATHERS and task.layout.trained == task.layout.starts[-1]
        sparse = keep is not None and gathers and bool(keep.mean() < SPARSE)
        self._keep = None if sparse else keep
        # int64 [K], the places in the flattened parameters that training changes; None: all
        self.kept = keep.flatten().nonzero().flatten() if keep is not None and sparse else None
        self._epoch: tuple[int, Tensor] | None = None

    @property
    def rows(self) -> slice:
        """Its networks' rows in the whole stack."""
        return slice(self.first, self.first + len(self.task.seeds))

    @property
    def iteration(self) -> int:
        """The iteration that was evaluated last."""
        return self.task.recipe.evaluations[max(int(self.state.evaluated) - 1, 0)]

    @property
    def finished(self) -> bool:
        """Whether all evaluations are done."""
        return int(self.state.evaluated) == self.state.history.shape[2]

    @cached_property
    def _learner(self) -> Learner:
        return self.lessons.learner(self.state.parameters, self.task.recipe.batch_size)

    def advance(self) -> None:
        """Train to the next evaluated iteration and evaluate there; the first call evaluates the start.

        It changes ``state`` alone. Raises DivergedError.
        """
        with torch.no_grad():
            until = self.task.recipe.evaluations[int(self.state.evaluated)]
            self._evaluate(until, self._train(self.iteration, until))

    def _train(self, iteration: int, until: int) -> Tensor:
        """Train from ``iteration`` to ``until``; the mean training loss [R] on the way."""
        learner, parameters = self._learner, self.state.parameters
        losses = torch.empty(until - iteration, len(parameters), self.task.recipe.batch_size, 1)
        update, finish = self._update()
        for log_likelihoods in losses:
            learner(self._batch(iteration), log_likelihoods, self._noise(iteration))
            iteration += 1
            update(iteration)
            if iteration == self.task.recipe.rewind:
                self.state.rewound.flat.copy_(parameters.flat)
        finish()
        return torch.stack([-losses[:, r].double().mean() for r in range(len(parameters))])

    def _update(self) -> tuple[Callable[[int], None], Callable[[], None]]:
        """Two functions: one updates kept weights and biases after a batch, one ends the updates of an evaluation."""
        gradients, parameters, moments = self._learner.gradients.flat, self.state.parameters.flat, self.state.moments
        rates, done = self.task.recipe.rates, self.iteration - self.task.recipe.start
        if self.kept is None:
            optimizer = Optimizer(self.task.recipe, self._trained(parameters), [*map(self._trained, moments)], done)
            trained_gradients = self._trained(gradients)

            def update(iteration: int) -> None:
                if self._keep is not None:
                    gradients.mul_(self._keep)
                optimizer.step(trained_gradients, rates[iteration - 1])

            return update, lambda: None

        kept, parameters, gradients = self.kept, parameters.view(-1), gradients.view(-1)
        # whole vectors: where the last is not, fused Adam rounds in another way
        gathered = torch.zeros(2 + len(moments), padded(len(kept)))
        kept_parameters, kept_gradients = gathered[0, : len(kept)], gathered[1, : len(kept)]
        torch.index_select(parameters, 0, kept, out=kept_parameters)
        for moment, kept_moment in zip(moments, gathered[2:], strict=True):
            torch.index_select(moment.view(-1), 0, kept, out=kept_moment[: len(kept)])
        sparse_optimizer = Optimizer(self.task.recipe, [gathered[0]], [[moment] for moment in gathered[2:]], done)

        def update_kept(iteration: int) -> None:
            torch.index_select(gradients, 0, kept, out=kept_gradients)
            sparse_optimizer.step([gathered[1]], rates[iteration - 1])
            parameters.scatter_(0, kept, kept_parameters)

        def finish() -> None:
            for moment, kept_moment in zip(moments, gathered[2:], strict=True):
                moment.view(-1).scatter_(0, kept, kept_moment[: len(kept)])

        return update_kept, finish

    def _trained(self, rows: Tensor) -> list[Tensor]:
        """Views of what gradients change in rows [R, P]: all as one, or where there are statistics a view per row."""
        end = self.task.layout.trained
        return [rows] if end == rows.shape[1] else [row[:end] for row in rows]

    def _batch(self, iteration: int) -> Tensor:
        """Each network's batch after ``iteration``: indices of images, int64 [R, B]."""
        images, batch = len(self.lessons), self.task.recipe.batch_size
        epoch, place = divmod(iteration, images // batch)
        if self._epoch is None or self._epoch[0] != epoch:
            task, whole = self.task, images // batch * batch  # an incomplete last batch is dropped
            orders = [batch_order(seed, task.path, epoch, images, task.recipe.order) for seed in task.seeds]
            self._epoch = epoch, torch.stack([order[:whole].view(-1, batch) for order in orders], dim=1)
        return self._epoch[1][place]

    def _noise(self, iteration: int) -> tuple[int, ...]:
        """The seeds of what each network draws after ``iteration``, where its family draws: as the batches, from the
        seed and the level's path.
        """
        if not self.lessons.is_random:
            return ()
        purpose = f"noise of {self.task.recipe.order}"
        draws = (generator(purpose, seed, self.task.path, iteration) for seed in self.task.seeds)
        return tuple(each.initial_seed() for each in draws)

    def _evaluate(self, iteration: int, train_loss: Tensor) -> None:
        losses, accuracies = self._score()
        for r, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise DivergedError(self.first + r, iteration)
        self.state.history[:, :, int(self.state.evaluated)] = torch.stack([train_loss, losses, accuracies])
        self.state.evaluated += 1
        self.keep_best()

    def _score(self) -> tuple[Tensor, Tensor]:
        return score(self.state.parameters, self.lessons.validation)

    def keep_best(self) -> None:
        """Keep the parameters of the networks whose last evaluation is their best; the start's is no candidate."""
        evaluation = int(self.state.evaluated) - 1
        for r, losses in enumerate(self.state.history[1]):
            earlier = losses[1:evaluation]
            if evaluation and (not len(earlier) or losses[evaluation] < earlier.min()):
                self.state.early_stopping.flat[r] = self.state.parameters.flat[r]


def group_size(networks: int, parameters: int, threads: int) -> int:
    """The number of networks that train together on one thread, at most.

    As many as stay in a core's cache, 5 floats per parameter: one LeNet-300-100, but several of a smaller network,
    whose time goes into calls rather than arithmetic. No more than a thread's share.
    """
    return max(1, min(GROUP_BYTES // (20 * parameters), -(-networks // threads)))


def teach(layout: Layout, split: Split) -> Lessons:
    """A split's images as the networks of a layout learn from them on processors."""
    return family(layout).lessons(split)


def train(
    start: Stack,
    masks: Masks | None,
    seeds: Sequence[int],
    path: Sequence[float],
    split: Split,
    recipe: Recipe | Sequence[Recipe],
    *,
    threads: int = 1,
    group: int | None = None,
    saved: Callable[[int], State | None] = lambda row: None,
    advanced: Callable[[Group], None] = lambda group: None,
    engine: engines.Engine = engines.run,
    lessons: Callable[[Layout, Split], Lessons] = teach,
) -> Trained:
    """Train R networks from ``start`` on the split's training images.

    ``start`` has its pruned weights at 0 and ``masks`` keeps them there (None where nothing is pruned); ``seeds`` has
    one seed per network, and ``path`` is the level's path of sparsities from dense: the two fix the batch orders.
    ``recipe`` is one for all networks, or one each; only neighbours with the same recipe that are equally far train in
    one group.
    ``threads``, ``group`` (networks trained together on a thread), ``saved`` (the state from which a row's network goes
    on, None for its start) and ``advanced`` (called in this process and thread after each evaluation of a group, before
    the group goes on) change nothing in the result, to the bit: every operator runs on one thread and every matrix
    product is one network's. ``engine`` and what makes the ``lessons`` may be a device's; see `device`.

    Raises DivergedError where a validation loss is not finite.
    """
    size = group or group_size(len(start), start.flat.shape[1], threads)
    recipes = [recipe] * len(start) if isinstance(recipe, Recipe) else recipe
    own = lessons(start.layout, split)
    start, masks = own.arranged(start), masks and own.arranged(masks)
    earlier = [saved(row) for row in range(len(start))]
    groups = []
    kinds = [(recipe, state and int(state.evaluated)) for recipe, state in zip(recipes, earlier, strict=True)]
    for rows in _slices(kinds, size):
        task = Task(start.layout, tuple(seeds[rows]), tuple(path), recipes[rows.start])
        states = [state for state in earlier[rows] if state]
        state = State.joined(states) if states else State.begin(task, start.rows(rows))
        groups.append(Group(rows.start, task, masks and masks.rows(rows), own, state))
    del earlier
    engine(groups, threads, advanced)
    states = [group.state for group in groups]
    rewound = [group.state.rewound for group in groups if group.task.recipe.rewind]
    return Trained(
        final=own.restored(stack([state.parameters for state in states])),
        early_stopping=own.restored(stack([state.early_stopping for state in states])),
        histories=tuple(
            History(group.task.recipe.evaluations, *network)
            for group in groups
            for network in group.state.history.unbind(dim=1)
        ),
        rewound=own.restored(stack(rewound)) if rewound else None,
    )


def _slices(kinds: Sequence[object], size: int) -> Iterator[slice]:
    """The rows of each group: at most ``size`` neighbours of the same kind."""
    first = 0
    for row in range(1, len(kinds) + 1):
        if row == len(kinds) or row - first == size or kinds[row] != kinds[first]:
            yield slice(first, row)
            first = row
