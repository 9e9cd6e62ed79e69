"""Train the dense networks, one per seed."""

from dataclasses import replace
from pathlib import Path

from lottery import params, tracking
from lottery.core import experiment
from lottery.files.artifacts import made_from, save_level
from lottery.stages import device_name, run
from lottery.stages.training import load_images, recipe, trainer


def main() -> None:
    """Steps 1 and 2 of the experiment."""
    p = params.load()
    folder = Path("models/dense")
    with tracking.stage(p, "dense") as tracked:
        origin = made_from(p.data_file, {})
        level = experiment.dense(
            p.layout,
            p.network.initialization,
            p.train.seeds,
            replace(recipe(p), rewind=p.prune.rewind),
            trainer(p, "dense", load_images(p), tracked.watch),
            p.train.twins,
        )
        save_level(level, folder, origin, p.run.mixed, device_name(p))
        tracked.log_level(folder)


if __name__ == "__main__":
    run(main)
