"""Training as params.yaml says it: what the stages `train` and `prune` share."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import torch

from lottery import LotteryError
from lottery.core import device as devices
from lottery.core import engines
from lottery.core.engines import Engine
from lottery.core.experiment import Train
from lottery.core.families import Lessons
from lottery.core.images import Split
from lottery.core.layout import Layout
from lottery.core.schedules import Constant, Cosine, Schedule, Step, WarmUp
from lottery.core.stack import Masks, Stack
from lottery.core.training import DivergedError, Group, Recipe, State, Task, Trained, teach, train
from lottery.files import checkpoints
from lottery.files.checkpoints import Checkpoints
from lottery.files.data import load_split
from lottery.params import Params
from lottery.stages import BEGAN_WITH, STAGE, device, device_name, hashed, threads
from lottery.stages.progress import report


def load_images(params: Params) -> Split:
    """The pipeline's training and validation images."""
    return load_split(params.data_file, params.validation_images, params.data.scale)


def recipe(params: Params) -> Recipe:
    """The dense networks' recipe, which those of the arms derive from."""
    same = {"batch_size", "learning_rate", "evaluate_every", "optimizer", "momentum", "weight_decay"}
    settings = params.train.model_dump(include=same)
    return Recipe(iterations=params.iterations, schedule=schedule(params), **settings)


def schedule(params: Params) -> Schedule:
    """The schedule of the learning rate; `params` has seen to it that each has its own settings."""
    t = params.train
    step = Step(t.drops or ()) if t.drop_factor is None else Step(t.drops or (), t.drop_factor)
    every: dict[str, Schedule] = {"constant": Constant(), "cosine": Cosine(), "step": step}
    return WarmUp(t.warm_up or 1) if t.schedule == "warm-up" else every[t.schedule]


def trainer(
    params: Params,
    level: str,
    images: Split,
    watch: Callable[[Group], None] = lambda group: None,
    ahead: bool = False,
) -> Train:
    """`training.train` on these images and the pipeline's threads, from where an earlier run was interrupted.

    ``watch`` is told of every evaluation. ``ahead``: on one thread, for a later stage `prune`, and only where it can be
    saved for that.
    """
    stage, began_with, cores = STAGE, BEGAN_WITH, threads(params)
    if ahead:
        stage = f"{STAGE.partition('@')[0]}@{level}"
        began_with, cores = hashed.inputs(stage), 1
        hashed.check_unchanged(STAGE, BEGAN_WITH)  # the sources of both: those that this process has imported

    def run(
        start: Stack, masks: Masks, seeds: Sequence[int], path: Sequence[float], recipes: Sequence[Recipe]
    ) -> Trained:
        tasks = [Task(start.layout, (seed,), tuple(path), recipe) for seed, recipe in zip(seeds, recipes, strict=True)]
        if not began_with:  # a person started the stage without DVC, and nobody knows which sources run
            return go_on(start, masks, tasks, None)
        hashed.check_unchanged(stage, began_with)  # what is saved is of the sources that the key names
        inputs = began_with | ({"mixed": True} if params.run.mixed else {})  # whose states are of no other use
        inputs |= {"device": name} if (name := device_name(params)) else {}
        key = checkpoints.key(inputs, images, start, masks, tasks)
        with checkpoints.opened(key, params.run.checkpoint_every, stage, began_with, ahead) as saved:
            if ahead and saved is None:
                raise LotteryError(f"{stage}: another process trains its networks")
            return go_on(start, masks, tasks, saved)

    def go_on(start: Stack, masks: Masks, tasks: Sequence[Task], saved: Checkpoints | None) -> Trained:
        earlier = [saved.load(row, task) if saved else None for row, task in enumerate(tasks)]
        last = tasks[0].recipe.iterations
        done = [
            task.recipe.evaluations[int(state.evaluated) - 1] if state else task.recipe.start
            for task, state in zip(tasks, earlier, strict=True)
        ]
        first, total = sum(done), len(done) * last - sum(done)  # of this run
        if saved and any(earlier):
            print(
                f"{stage}: goes on from iteration {min(done):,} of {last:,}, saved {_clock(saved.saved_at())}",
                flush=True,
            )

        def take(row: int) -> State | None:
            """A state that nobody else holds while it is trained."""
            state, earlier[row] = earlier[row], None
            return state

        def advanced(group: Group) -> None:
            if saved:
                saved.keep(group)
            watch(group)
            done[group.rows] = [group.iteration] * len(group.task.seeds)
            report(sum(done) - first, total, f"iteration {min(done):,} of {last:,}")

        seeds, recipes = [task.seeds[0] for task in tasks], [task.recipe for task in tasks]
        try:
            with _engine(params, cores, total) as (engine, processors, group, lessons):
                return train(
                    start, masks, seeds, tasks[0].path, images, recipes,
                    threads=processors, group=group, saved=take, advanced=advanced, engine=engine, lessons=lessons,
                )  # fmt: skip
        except DivergedError as error:
            raise LotteryError(
                f"params.yaml: train.learning_rate: training diverged at {params.train.learning_rate}: the "
                f"validation loss of {level}, seed {seeds[error.row]}, is not finite at iteration "
                f"{error.iteration}; lower it"
            ) from error
        except KeyboardInterrupt:
            if saved:
                raise KeyboardInterrupt(f"`dvc repro` goes on from iteration {min(done):,}") from None
            raise

    return run


Teach = Callable[[Layout, Split], Lessons]


@contextmanager
def _engine(params: Params, cores: int, iterations: int) -> Iterator[tuple[Engine, int, int | None, Teach]]:
    """The engine that `run.engine` and `run.device` ask for, and what else `train` is to have with it.

    Its processors, how many networks it stacks (None: as many as is best) and who makes the lessons. On this machine
    there are ``cores``, which also train where no ``iterations`` are left.
    """
    if (own := device(params)) != "cpu":
        there = torch.device(own)
        engine = devices.engine(own, lambda line: print(f"{STAGE}: {line}", file=sys.stderr))
        yield engine, 1, sys.maxsize, lambda layout, split: devices.Lessons(layout, split, there)
        return
    if params.run.engine == "local" or not iterations:
        yield engines.run, cores, None, teach
        return
    from lottery.cluster import connected

    ray = params.run.ray
    together = None if ray.networks_per_task == "auto" else ray.networks_per_task
    with connected(ray.address, cores) as cluster:
        yield cluster.engine(ray.mixed), cluster.cores, together, teach


def _clock(when: datetime) -> str:
    """A time as people say it: the hour, and the day where that is another."""
    return f"{when:%H:%M}" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d %H:%M}"
