"""Training as params.yaml says it: what the stages `train` and `prune` share."""

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

from lottery import LotteryError
from lottery.data import load_split
from lottery.experiment import Train
from lottery.images import Split
from lottery.network import Masks, Parameters
from lottery.params import Params
from lottery.schedules import Schedule, Step, WarmUp, constant, cosine
from lottery.stages import threads
from lottery.stages.progress import report
from lottery.training import DivergedError, Group, Recipe, Trained, train


def load_images(params: Params) -> Split:
    """The pipeline's training and validation images."""
    return load_split(params.data_file, params.validation_images, params.data.scale)


def recipe(params: Params) -> Recipe:
    """The dense networks' recipe, which those of the arms derive from."""
    t = params.train
    return Recipe(
        iterations=params.iterations,
        batch_size=t.batch_size,
        learning_rate=t.learning_rate,
        evaluate_every=t.evaluate_every,
        optimizer=t.optimizer,
        momentum=t.momentum,
        weight_decay=t.weight_decay,
        schedule=schedule(params),
    )


def schedule(params: Params) -> Schedule:
    """The schedule of the learning rate; `params` has seen to it that each has its own settings."""
    t = params.train
    match t.schedule:
        case "warm-up":
            return WarmUp(t.warm_up or 1)
        case "step":
            return Step(t.drops or ()) if t.drop_factor is None else Step(t.drops or (), t.drop_factor)
        case "cosine":
            return cosine
        case "constant":
            return constant


def trainer(params: Params, level: str, images: Split, watch: Callable[[Group], None]) -> Train:
    """`training.train` on these images and the pipeline's threads; ``watch`` is told of every evaluation."""

    def run(
        start: Parameters, masks: Masks, seeds: Sequence[int], path: Sequence[float], recipes: Sequence[Recipe]
    ) -> Trained:
        last = recipes[0].iterations
        done = [recipe.start for recipe in recipes]
        first, total = sum(done), len(done) * last - sum(done)

        def advanced(group: Group) -> None:
            watch(group)
            done[group.first : group.first + len(group.seeds)] = [group.iteration] * len(group.seeds)
            report(sum(done) - first, total, f"iteration {min(done):,} of {last:,}")

        try:
            return train(start, masks, seeds, path, images, recipes, threads=threads(params), advanced=advanced)
        except DivergedError as error:
            raise LotteryError(
                f"params.yaml: train.learning_rate: training diverged at {params.train.learning_rate}: the "
                f"validation loss of {level}, seed {seeds[error.row]}, is not finite at iteration "
                f"{error.iteration}; lower it"
            ) from error
        except BrokenProcessPool as error:
            raise LotteryError(
                f"run.threads: a worker that trained {level} was ended from outside, as happens where memory runs "
                "out: `dvc repro` starts this stage anew; with fewer run.threads it takes less memory"
            ) from error

    return run
