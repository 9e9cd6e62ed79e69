"""Measure every network on the test images, and summarize over seeds."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lottery import params, tracking
from lottery.core import device as devices
from lottery.core.families import accuracy, family
from lottery.core.images import Images
from lottery.core.pruning import density, weights_kept
from lottery.core.stack import Stack, stack
from lottery.evaluation import claims, connectivity, structure, verdicts
from lottery.evaluation import tables as reports
from lottery.evaluation.connectivity import Accuracy
from lottery.evaluation.statistics import early_stopping, reached, summarize
from lottery.files.artifacts import load_contents, load_history, load_masks, load_parameters, load_twins
from lottery.files.checkpoints import remove_trained
from lottery.files.data import load_split, load_test
from lottery.files.sealed import seal_folder
from lottery.files.workplace import replacing
from lottery.params import Params
from lottery.plan import BEFORE_TRAINING
from lottery.stages import device, device_name, run, threads
from lottery.stages.levels import check_level, check_origin
from lottery.stages.progress import report
from lottery.ticket.sizes import sizes
from lottery.ticket.workspace import best_networks, ticket_of

MODELS, METRICS, TABLES = Path("models"), Path("reports/metrics.json"), Path("reports/tables")
COMPRESSION = Path("reports/compression.json")


def main() -> None:
    """Leave the reports on the current levels; folders of levels that are no more go first."""
    p = params.load()
    remove_old_levels(p)
    remove_trained()
    with tracking.stage(p, "evaluate") as tracked:
        tracked.connect()
        made_on: dict[str, list[str]] = {}
        for name in ("dense", *p.order):
            made_on.setdefault(check_level(p, name).device or "a processor", []).append(name)
            check_origin(p, name)
        if len(made_on) > 1:
            said = "; ".join(f"{', '.join(names)} on {name}" for name, names in made_on.items())
            print(f"warning: levels were trained on different devices: {said}", file=sys.stderr)
        elif (here := device_name(p) or "a processor") not in made_on:
            print(f"warning: levels were trained on {next(iter(made_on))}, and are measured on {here}", file=sys.stderr)
        on_test, on_train = images(p)
        networks = measure(p, on_test, on_train)
        levels = summarize(networks).assign(trainings=lambda table: table["level"].map(lambda name: trainings(p, name)))
        barriers = of_every_level(p, lambda folder: measure_barriers(folder, on_test, on_train), connectivity.COLUMNS)
        judged = verdicts.judge(networks, p.verdict.margin, p.verdict.speed_margin)
        tables = {
            "networks": networks,
            "levels": connectivity.summarize(levels, barriers),
            "connectivity": barriers,
            "structure": of_every_level(p, describe_masks, structure.COLUMNS),
            "kept_weights": of_every_level(p, distribute_weights, structure.WEIGHTS_COLUMNS),
            "verdicts": verdicts.table(judged),
            "conditions": verdicts.conditions_table(judged),
        }
        with replacing(TABLES) as folder:
            folder.mkdir()
            for name, table in tables.items():
                reports.rounded(table).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            _write(folder / "claims.json", reports.judged_claims(judge_claims(p, networks)))
            if name := device_name(p):
                (folder / reports.DEVICE).write_text(name + "\n", encoding="utf-8")
            seal_folder(folder)
        _write(COMPRESSION, measure_sizes(p, networks))
        _write(METRICS, reports.compared(levels, judged))
        if warning := reports.warning(levels, p.iterations, p.train.evaluate_every):
            print(f"warning: {warning}", file=sys.stderr)
        tracked.log_evaluation(MODELS, [COMPRESSION, METRICS, TABLES])


def remove_old_levels(p: Params) -> None:
    """Remove the folders under models/ that are no current level; DVC's cache keeps what they held.

    They are part of this stage's dependency, which DVC hashes after this command has run.
    """
    for folder in MODELS.iterdir():
        if folder.is_dir() and folder.name not in {"dense", *p.levels}:
            shutil.rmtree(folder)


def trainings(p: Params, level: str) -> int:
    """The cost of a level's ticket: the number of networks trained one after the other, its own the last."""
    return 1 if level != "dense" and p.criterion(level) in BEFORE_TRAINING else len(p.path(level)) + 1


def judge_claims(p: Params, networks: pd.DataFrame) -> list[tuple[claims.Claim, claims.Finding]]:
    """The paper's claims, which are about its own method: what differs from it tests none, nor does such a level."""
    settings = p.model_dump(mode="json", by_alias=True)
    for section, papers in claims.PAPERS.items():
        for key, value in papers.items():
            if (here := settings[section].get(key)) != value:
                return claims.not_tested(f"the paper has {section}.{key} {value}, not {here}")
    alike = ["dense"]
    for name in p.order:
        if p.levels[name].parent in alike and (p.criterion(name), p.scope(name)) == ("magnitude", "layer"):
            alike.append(name)
    return claims.judge(networks[networks["level"].isin(alike)], p.iterations)


def images(p: Params) -> tuple[Accuracy, Accuracy]:
    """The accuracy of networks on the test images and on the training images."""
    split, own = load_split(p.data_file, p.validation_images, p.data.scale), device(p)

    def on(part: Images) -> Accuracy:
        if own == "cpu":
            examples = family(p.layout).examples(part, split.scaling)
            return lambda networks: accuracy(networks, examples, threads(p))
        there = devices.Examples(part, split.scaling, torch.device(own))
        return lambda networks: devices.accuracy(networks, there)

    return on(load_test(p.data_file)), on(split.train)


def measure(p: Params, on_test: Accuracy, on_train: Accuracy) -> pd.DataFrame:
    """One row per network: what it keeps, when it stopped, and its accuracy on the test and the training images."""
    tables, levels = [], ("dense", *p.order)
    for done, level in enumerate(levels):
        report(done, len(levels), f"level {level}")
        tables.append(_measure_level(p, level, on_test, on_train))
    return pd.concat(tables, ignore_index=True)


def _measure_level(p: Params, name: str, on_test: Accuracy, on_train: Accuracy) -> pd.DataFrame:
    folder = MODELS / name
    masks, contents = load_masks(folder), load_contents(folder)
    initial, final, stopped = (load_parameters(folder, which) for which in ("initial", "final", "early_stopping"))
    kept = weights_kept(masks)
    history = load_history(folder)
    stops = early_stopping(history)
    dense_losses = load_history(MODELS / "dense").query("iteration > 0").groupby("seed")["validation_loss"].min()
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
            **structure.of_networks(masks),
            "early_stopping_iteration": stops["early_stopping_iteration"],
            "censored": stops["censored"],
            "dense_loss_iteration": reached(history, dense_losses),
            **_accuracies("test_accuracy", {"": stopped, "_last": final, "_start": initial}, on_test),
            **_accuracies("train_accuracy", {"": stopped, "_last": final}, on_train),
        }
    )


def _accuracies(name: str, networks: Mapping[str, Stack], on: Accuracy) -> dict[str, Tensor]:
    """A column for each of several states of the same networks, measured together to keep every core at work.

    A censored network is in the same state at its early-stopping iteration and at the last, and is measured once.
    """
    states = stack(list(networks.values()))
    different, where = torch.unique(states.flat, dim=0, return_inverse=True)
    accuracies = on(Stack(different, states.layout))[where].chunk(len(networks))
    return {f"{name}{state}": measured for state, measured in zip(networks, accuracies, strict=True)}


def of_every_level(p: Params, table: Callable[[Path], pd.DataFrame | None], columns: Sequence[str]) -> pd.DataFrame:
    """The tables of all levels below one another; ``table`` makes a level's from its folder, or None."""
    said = {level: table(MODELS / level) for level in ("dense", *p.order)}
    rows = [found.assign(level=level) for level, found in said.items() if found is not None]
    return pd.concat(rows, ignore_index=True)[[*columns]] if rows else pd.DataFrame(columns=columns)


def describe_masks(folder: Path) -> pd.DataFrame:
    """Describe a level's masks: what they connect, and how far those of different seeds agree."""
    contents, masks = load_contents(folder), load_masks(folder)
    return structure.describe({arm: masks.rows(contents.rows.of(arm)) for arm in contents.rows.arms})


def distribute_weights(folder: Path) -> pd.DataFrame | None:
    """The distribution of the weights that a level's tickets keep, or of dense's weights, before and after training."""
    contents = load_contents(folder)
    arm = "ticket" if contents.path else "dense"
    if arm not in contents.rows.arms:
        return None
    rows = contents.rows.of(arm)
    initial, final = (load_parameters(folder, which).rows(rows) for which in ("initial", "final"))
    limits = [structure.edges(weights) for weights in load_parameters(MODELS / "dense", "initial").weights]
    return structure.kept_weights(load_masks(folder).rows(rows).weights, initial.weights, final.weights, limits)


def measure_barriers(folder: Path, on_test: Accuracy, on_train: Accuracy) -> pd.DataFrame | None:
    """Measure the barriers between a level's networks and their twins; None where it has no twins."""
    twins = load_twins(folder)
    if twins is None:
        return None
    rows, second = twins
    own, final = load_contents(folder).rows, load_parameters(folder, "final")
    first = stack([final.rows(own.of(arm)) for arm in rows.arms])
    return connectivity.table(rows, first, second, on_test, on_train)


def measure_sizes(p: Params, networks: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry per level: the sizes of its ticket, or of dense, that has the lowest validation loss."""
    scaling = load_split(p.data_file, p.validation_images, p.data.scale).scaling
    accuracies, entries = networks.set_index(["level", "arm", "seed"])["test_accuracy"], []
    for level, network in best_networks(p, MODELS).items():
        accuracy = round(float(accuracies[(level, *network)]), reports.DECIMALS)
        entries.append(sizes(ticket_of(p, MODELS / level, network, accuracy, scaling)))
    return entries


def _write(path: Path, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
