"""Prune the parent's tickets to one level, rewind, and train the level's arms."""

from pathlib import Path

from lottery import experiment, params, tracking
from lottery.artifacts import load_contents, load_masks, load_parameters, save_level
from lottery.experiment import Pruning
from lottery.stages import level_name, run
from lottery.stages.training import trainer


def main() -> None:
    """Steps 3 and 4 of the experiment."""
    p = params.load()
    name = level_name()
    folder, parent = Path("models") / name, Path("models") / p.levels[name].parent
    with tracking.stage(p, name) as tracked:
        held = load_contents(parent)
        tickets = held.rows("ticket" if held.path else "dense")
        path = (*held.path, p.levels[name].sparsity)
        masks = experiment.prune(
            load_parameters(parent, "final").rows(tickets),
            tuple(mask[tickets] for mask in load_masks(parent)),
            path,
            Pruning(p.criterion(name), p.scope(name), p.prune.output_rate),
        )
        level = experiment.level(
            masks,
            load_parameters(Path("models/dense"), "initial"),
            path,
            p.arms(name),
            p.train.seeds,
            p.network.initialization,
            trainer(p, name, tracked.watch),
        )
        save_level(level, folder)
        tracked.log_level(folder)


if __name__ == "__main__":
    run(main)
