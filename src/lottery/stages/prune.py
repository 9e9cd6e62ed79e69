"""Prune the parent's tickets to one level, rewind, and train the level's arms."""

from dataclasses import replace
from pathlib import Path

from lottery import experiment, params, tracking
from lottery.arms import Ticket
from lottery.artifacts import load_masks, load_parameters, save_level
from lottery.experiment import Pruning
from lottery.pruning import Evidence
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
        pruned = held.rows(p.prune.source if held.path else "dense")
        initial, final = (load_parameters(parent, which).rows(pruned) for which in ("initial", "final"))
        path = (*held.path, p.levels[name].sparsity)
        masks = experiment.prune(
            Evidence(initial, final, p.train.seeds, path, images),
            tuple(mask[pruned] for mask in load_masks(parent)),
            Pruning(p.criterion(name), p.scope(name), p.prune.output_rate),
        )
        ticket = Ticket(
            masks,
            load_parameters(Path("models/dense"), "rewind" if p.prune.rewind else "initial"),
            final,
            p.train.seeds,
            path,
            p.network.initialization,
            replace(recipe(p), start=p.prune.rewind),
        )
        level = experiment.level(ticket, p.arms(name), trainer(p, name, images, tracked.watch), p.train.twins)
        save_level(level, folder)
        tracked.log_level(folder)


if __name__ == "__main__":
    run(main)
