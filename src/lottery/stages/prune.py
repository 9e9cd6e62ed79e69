"""Prune the parent's tickets to one level, rewind, and train the level's arms."""

from dataclasses import replace
from pathlib import Path

from lottery import params, tracking
from lottery.core import experiment
from lottery.core.experiment import Pruning
from lottery.core.ingredients import Ingredients
from lottery.core.pruning import Evidence
from lottery.files.artifacts import load_masks, load_parameters, load_rewound, made_from, save_level
from lottery.stages import level_name, run
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
        path = (*held.path, p.levels[name].sparsity)
        masks = experiment.prune(
            Evidence(initial, final, p.train.seeds, path, images),
            load_masks(parent).rows(pruned),
            Pruning(p.criterion(name), p.scope(name), p.slower),
        )
        ingredients = Ingredients(
            masks,
            load_rewound(Path("models/dense")),
            final,
            p.train.seeds,
            path,
            p.network.initialization,
            replace(recipe(p), start=p.prune.rewind),
        )
        level = experiment.level(ingredients, p.arms(name), trainer(p, name, images, tracked.watch), p.train.twins)
        save_level(level, folder, origin)
        tracked.log_level(folder)


if __name__ == "__main__":
    run(main)
