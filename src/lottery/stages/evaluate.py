"""Measure every network on the test images, and summarize over seeds."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from lottery import claims, params, reports, tracking, verdicts
from lottery.artifacts import load_contents, load_history, load_masks, load_parameters
from lottery.data import load_split, load_test
from lottery.network import accuracy
from lottery.params import BEFORE_TRAINING, Params
from lottery.pruning import density, weights_kept
from lottery.stages import run, threads
from lottery.statistics import early_stopping, reached, summarize

MODELS, REPORTS = Path("models"), Path("reports")


def main() -> None:
    """Leave the reports on the current levels; folders of levels that are no more go first."""
    p = params.load()
    remove_old_levels(p)
    with tracking.stage(p, "evaluate") as tracked:
        networks = measure(p)
        levels = summarize(networks).assign(trainings=lambda table: table["level"].map(lambda name: trainings(p, name)))
        judged = verdicts.judge(networks, p.verdict.margin, p.verdict.speed_margin)
        REPORTS.mkdir(exist_ok=True)
        _write_table("networks.csv", networks)
        _write_table("levels.csv", levels)
        _write_table("verdicts.csv", verdicts.table(judged))
        _write_table("conditions.csv", verdicts.conditions_table(judged))
        _write("metrics.json", reports.compared(levels, judged))
        _write("claims.json", reports.judged_claims(judge_claims(p, networks)))
        _write("experiment_results.json", reports.experiment_results(levels))
        for warning in reports.warnings(levels):
            print(f"warning: {warning}", file=sys.stderr)
        tracked.log_evaluation(MODELS, REPORTS)


def remove_old_levels(p: Params) -> None:
    """Remove the folders under models/ that are no current level; DVC's cache keeps what they held.

    They are part of this stage's dependency, which DVC hashes after this command has run.
    """
    for folder in MODELS.iterdir():
        if folder.is_dir() and folder.name not in {"dense", *p.levels}:
            shutil.rmtree(folder)


def trainings(p: Params, level: str) -> int:
    """What finding a level's ticket costs: how many networks are trained one after the other, its own the last."""
    return 1 if level != "dense" and p.criterion(level) in BEFORE_TRAINING else len(p.path(level)) + 1


def judge_claims(p: Params, networks: pd.DataFrame) -> list[tuple[claims.Claim, claims.Finding]]:
    """The paper's claims, which are about LeNet-300-100 on MNIST alone."""
    if (p.data.name, p.network.hidden) != ("mnist", (300, 100)):
        return claims.not_tested("the claims are about LeNet-300-100 on MNIST")
    return claims.judge(networks, p.iterations)


def measure(p: Params) -> pd.DataFrame:
    """A row a network: what it keeps, when it stopped, and its accuracy on the test and the training images."""
    split = load_split(p.data_file, p.validation_images, p.data.scale)
    test = load_test(p.data_file)
    on_test = split.scaling(test.pixels), test.labels, threads(p)
    on_train = split.scaling(split.train.pixels), split.train.labels, threads(p)
    return pd.concat([_measure_level(p, level, on_test, on_train) for level in ("dense", *p.order)], ignore_index=True)


def _measure_level(p: Params, name: str, on_test: Any, on_train: Any) -> pd.DataFrame:
    folder = MODELS / name
    masks, contents = load_masks(folder), load_contents(folder)
    initial, final, stopped = (load_parameters(folder, which) for which in ("initial", "final", "early_stopping"))
    kept = weights_kept(masks)
    history = load_history(folder)
    stops = early_stopping(history)
    dense_losses = load_history(MODELS / "dense").groupby("seed")["validation_loss"].min()
    return pd.DataFrame(
        {
            "level": name,
            "parent": "" if name == "dense" else p.levels[name].parent,
            "arm": stops["arm"],
            "seed": stops["seed"],
            "sparsity": contents.path[-1] if contents.path else 0.0,
            "density": density(masks),
            "weights_kept": kept.sum(dim=1),
            **{f"weights_kept_layer{layer}": kept[:, layer] for layer in range(kept.shape[1])},
            "early_stopping_iteration": stops["early_stopping_iteration"],
            "censored": stops["censored"],
            "dense_loss_iteration": reached(history, dense_losses),
            "test_accuracy": accuracy(stopped, *on_test),
            "test_accuracy_last": accuracy(final, *on_test),
            "test_accuracy_start": accuracy(initial, *on_test),
            "train_accuracy": accuracy(stopped, *on_train),
            "train_accuracy_last": accuracy(final, *on_train),
        }
    )


def _write_table(name: str, table: pd.DataFrame) -> None:
    table.to_csv(REPORTS / name, index=False, lineterminator="\n")


def _write(name: str, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    (REPORTS / name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
