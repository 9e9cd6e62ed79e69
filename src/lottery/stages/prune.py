"""Prune the parent's tickets to one level, rewind, and train the level's arms."""

from dataclasses import replace
from pathlib import Path

from lottery import params, tracking
from lottery.core import experiment
from lottery.core.experiment import Level, Pruning, Train
from lottery.core.ingredients import Ingredients
from lottery.core.pruning import Evidence
from lottery.files.artifacts import load_masks, load_parameters, load_rewound, made_from, save_level
from lottery.stages import ahead, device_name, level_name, run
from lottery.stages.levels import check_level
from lottery.stages.training import load_images, recipe, trainer


def main() -> None:
    """Steps 3 and 4 of the experiment."""
    p = params.load()
    name = level_name()
    above = p.levels[name].parent
    folder, parent = Path("models") / name, Path("models") / above
    with tracking.stage(p, name) as tracked:
        images = load_images(p)
        held = check_level(p, above)
        if above != "dense":
            check_level(p, "dense")
        origin = made_from(p.data_file, {"dense": Path("models/dense"), "parent": parent})
        pruned = held.rows.of(p.prune.source if held.path else "dense")
        initial, final = (load_parameters(parent, which).rows(pruned) for which in ("initial", "final"))
        kept, rewound = load_masks(parent).rows(pruned), load_rewound(Path("models/dense"))

        def made(level: str, train: Train) -> Level:
            """Prune to a level of this parent, rewind, and train."""
            path = (*held.path, p.levels[level].sparsity)
            masks = experiment.prune(
                Evidence(initial, final, p.train.seeds, path, images),
                kept,
                Pruning(p.criterion(level), p.scope(level), p.slower),
            )
            ingredients = Ingredients(
                masks,
                rewound,
                final,
                p.train.seeds,
                path,
                p.network.initialization,
                replace(recipe(p), start=p.prune.rewind),
            )
            return experiment.level(ingredients, p.arms(level), train, p.train.twins)

        with ahead.training(p, name, lambda later: made(later, trainer(p, later, images, ahead=True))):
            level = made(name, trainer(p, name, images, tracked.watch))
        save_level(level, folder, origin, p.run.mixed, device_name(p))
        tracked.log_level(folder)


if __name__ == "__main__":
    run(main)
