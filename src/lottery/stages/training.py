"""Training as params.yaml says it, with a progress bar: what the stages `train` and `prune` share."""

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from lottery import LotteryError
from lottery.data import load_split
from lottery.experiment import Train
from lottery.network import Masks, Parameters
from lottery.params import Params
from lottery.stages import threads
from lottery.training import DivergedError, Group, Recipe, Trained, train


def recipe(params: Params) -> Recipe:
    """The training recipe of every network."""
    t = params.train
    return Recipe(
        iterations=params.iterations,
        batch_size=t.batch_size,
        learning_rate=t.learning_rate,
        evaluate_every=t.evaluate_every,
        optimizer=t.optimizer,
        momentum=t.momentum,
        weight_decay=t.weight_decay,
    )


def trainer(params: Params, level: str, watch: Callable[[Group], None]) -> Train:
    """`training.train` on the pipeline's data, by its recipe, on its threads; ``watch`` is told of every evaluation."""
    split = load_split(params.data_file, params.validation_images, params.data.scale)
    how = recipe(params)

    def run(start: Parameters, masks: Masks | None, seeds: Sequence[int], path: Sequence[float]) -> Trained:
        batches = len(split.train) // how.batch_size
        epochs = -(-how.iterations // batches)
        total = len(start) * how.iterations * how.batch_size
        done = [0] * len(start)
        # disable=None: quiet where the output is no terminal
        with tqdm(total=total, desc=level, unit=" images", unit_scale=True, disable=None) as bar:

            def advanced(group: Group) -> None:
                watch(group)
                here = slice(group.first, group.first + len(group.seeds))
                bar.update((group.iteration - done[here][0]) * len(group.seeds) * how.batch_size)
                done[here] = [group.iteration] * len(group.seeds)
                bar.set_postfix_str(f"epoch {min(min(done) // batches + 1, epochs)}/{epochs}")

            try:
                return train(start, masks, seeds, path, split, how, threads=threads(params), advanced=advanced)
            except DivergedError as error:
                raise LotteryError(
                    f"params.yaml: train.learning_rate: training diverged at {how.learning_rate}: the validation loss "
                    f"of {level}, seed {seeds[error.row]}, is not finite at iteration {error.iteration}; lower it"
                ) from error
            except BrokenProcessPool as error:
                raise LotteryError(
                    f"run.threads: a worker that trained {level} was ended from outside, as happens where memory runs "
                    "out: `dvc repro` starts this stage anew; with fewer run.threads it takes less memory"
                ) from error

    return run
