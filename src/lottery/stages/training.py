"""Training as params.yaml says it: what the stages `train` and `prune` share."""

from collections.abc import Callable, Sequence
from datetime import datetime

from lottery import LotteryError
from lottery.core.experiment import Train
from lottery.core.images import Split
from lottery.core.schedules import Constant, Cosine, Schedule, Step, WarmUp
from lottery.core.stack import Masks, Stack
from lottery.core.training import DivergedError, Group, Recipe, State, Task, Trained, train
from lottery.files import checkpoints
from lottery.files.checkpoints import Checkpoints
from lottery.files.data import load_split
from lottery.params import Params
from lottery.stages import BEGAN_WITH, STAGE, hashed, threads
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


def trainer(params: Params, level: str, images: Split, watch: Callable[[Group], None]) -> Train:
    """`training.train` on these images and the pipeline's threads, from where an earlier run was interrupted.

    ``watch`` is told of every evaluation.
    """

    def run(
        start: Stack, masks: Masks, seeds: Sequence[int], path: Sequence[float], recipes: Sequence[Recipe]
    ) -> Trained:
        tasks = [Task(start.layout, (seed,), tuple(path), recipe) for seed, recipe in zip(seeds, recipes, strict=True)]
        if not BEGAN_WITH:  # a person started the stage without DVC, and nobody knows which sources run
            return go_on(start, masks, tasks, None)
        hashed.check_unchanged(STAGE, BEGAN_WITH)  # what is saved is of the sources that the key names
        key = checkpoints.key(BEGAN_WITH, images, start, masks, tasks)
        with checkpoints.opened(key, params.run.checkpoint_every, STAGE, BEGAN_WITH) as saved:
            return go_on(start, masks, tasks, saved)

    def go_on(start: Stack, masks: Masks, tasks: Sequence[Task], saved: Checkpoints | None) -> Trained:
        earlier = [saved.load(row, task) if saved else None for row, task in enumerate(tasks)]
        last = tasks[0].recipe.iterations
        done = [
            task.recipe.evaluations[int(state.evaluated) - 1] if state else task.recipe.start
            for task, state in zip(tasks, earlier, strict=True)
        ]
        first, total = sum(done), len(done) * last - sum(done)
        if saved and any(earlier):
            print(
                f"{STAGE}: goes on from iteration {min(done):,} of {last:,}, saved {_clock(saved.saved_at())}",
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
            return train(
                start, masks, seeds, tasks[0].path, images, recipes,
                threads=threads(params), saved=take, advanced=advanced,
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


def _clock(when: datetime) -> str:
    """A time as people say it: the hour, and the day where that is another."""
    return f"{when:%H:%M}" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d %H:%M}"
