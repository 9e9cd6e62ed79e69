"""Training as params.yaml says it: what the stages `train` and `prune` share."""

from collections.abc import Callable, Sequence

from lottery import LotteryError
from lottery.core.experiment import Train
from lottery.core.images import Split
from lottery.core.schedules import Constant, Cosine, Schedule, Step, WarmUp
from lottery.core.stack import Masks, Stack
from lottery.core.training import DivergedError, Group, Recipe, Trained, train
from lottery.files.data import load_split
from lottery.params import Params
from lottery.stages import threads
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
    """`training.train` on these images and the pipeline's threads; ``watch`` is told of every evaluation."""

    def run(
        start: Stack, masks: Masks, seeds: Sequence[int], path: Sequence[float], recipes: Sequence[Recipe]
    ) -> Trained:
        last = recipes[0].iterations
        done = [recipe.start for recipe in recipes]
        first, total = sum(done), len(done) * last - sum(done)

        def advanced(group: Group) -> None:
            watch(group)
            done[group.rows] = [group.iteration] * len(group.task.seeds)
            report(sum(done) - first, total, f"iteration {min(done):,} of {last:,}")

        try:
            return train(start, masks, seeds, path, images, recipes, threads=threads(params), advanced=advanced)
        except DivergedError as error:
            raise LotteryError(
                f"params.yaml: train.learning_rate: training diverged at {params.train.learning_rate}: the "
                f"validation loss of {level}, seed {seeds[error.row]}, is not finite at iteration "
                f"{error.iteration}; lower it"
            ) from error

    return run
