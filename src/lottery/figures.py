"""Matplotlib figures: one function a figure, each drawn from the `Results` of a pipeline.

Adding a figure is one function and its entry in `FIGURES`. The same results give the same bytes: the style starts from
matplotlib's own defaults, whatever a matplotlibrc says, and no version or date enters a file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from lottery.connectivity import STABLE
from lottery.drawing import (
    GREY,
    LINE,
    STYLE,
    WIDTH,
    Results,
    add_legend,
    as_percent,
    draw_band,
    draw_lines,
    new_figure,
    over_seeds,
    paths_in_words,
    shades,
    size_in_inches,
    spread,
    width_of,
)
from lottery.mask_figures import kept_weights, mask_inputs, mask_overlap, mask_structure
from lottery.workers import shared, workers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARRIERS = {"barrier_test": "test images", "barrier_train": "training images"}
HOLLOW = "Hollow: a seed or more is censored, its last evaluation being its best."


def save_figures(
    results: Results, folder: Path, processes: int = 1, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Save every figure that has something to show in a folder, as a PNG file of its name.

    ``meanwhile`` is called in this process, once others draw.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        # matplotlib may draw in one thread alone
        pool = workers(min(processes, len(FIGURES)) if sys.platform == "linux" else 1, results)
        try:
            drawn = [pool.submit(_save_figure, name, folder) for name in FIGURES]
            meanwhile()
            for each in drawn:
                each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _save_figure(name: str, folder: Path) -> None:
    figure = FIGURES[name](shared())
    if figure:
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})


# --- figures ---------------------------------------------------------------------------------------------------------


def accuracy_vs_pruning(results: Results) -> Figure:
    """Test accuracy against density, sparser to the right as in Frankle & Carbin (2019)."""
    figure = new_figure(4.5)
    _draw_accuracy(figure.subplots(), results)
    add_legend(figure, results, paths_in_words(results))
    return figure


def accuracy_difference(results: Results) -> Figure:
    """Each network's test accuracy minus that of the dense network of the same seed."""
    figure = new_figure(4.5)
    axes = figure.subplots()
    _draw_difference(axes, results)
    axes.set_title("Difference in test accuracy from the dense network of the same seed")
    add_legend(figure, results)
    return figure


def early_stopping(results: Results) -> Figure:
    """Early-stopping iteration against density: how fast each arm learns."""
    figure = new_figure(4.5)
    _draw_early_stopping(figure.subplots(), results)
    add_legend(figure, results, paths_in_words(results), HOLLOW)
    return figure


def parameter_reduction(results: Results) -> Figure:
    """Weights kept at each level, and the fraction that each layer keeps of its own."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    kept = results.kept_by_layer
    percent = 100 * kept / kept.iloc[0]
    figure = new_figure(1.5 + 0.36 * len(kept))
    counts, fractions = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    _draw_weights_kept(counts, results)
    for place, (layer, color) in enumerate(shades(kept)):
        size = 11 - 5 * place / kept.shape[1]  # where layers keep the same fraction, all of them show
        fractions.plot(percent[layer], range(len(kept)), "o", color=color, markersize=size)
    fractions.set_xscale("log")
    fractions.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if percent.min(axis=None) > 4 else (1,)))
    fractions.xaxis.set_minor_locator(NullLocator())
    fractions.xaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    fractions.set(title="Kept of each layer", xlabel="log scale")
    return figure


def learning_curves(results: Results) -> Figure:
    """Validation loss against iteration for up to four levels, with the dense networks as the reference."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    shown = spread(results.pruned, 4)
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(1.2 + 2.6 * rows, "Validation loss while training")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    # before training the loss is so high that the axis would show little else
    begun = results.history.groupby(["level", "arm"])["iteration"].transform("min")
    history = results.history[results.history["iteration"] > begun].set_index(["level", "arm"]).sort_index()
    stops = over_seeds(results.networks, "early_stopping_iteration")
    for axes, level in zip(panels, shown, strict=False):
        for arm, look in reversed(results.looks.items()):
            network = ("dense" if arm == "dense" else level, arm)
            if network in stops:
                curves = history.loc[[network]].pivot(index="iteration", columns="seed", values="validation_loss")
                mean = curves.mean(axis=1)
                draw_band(axes, curves.index, curves.min(axis=1), curves.max(axis=1), look)
                axes.plot(curves.index, mean, color=look.color, linestyle=look.line, linewidth=1.4)
                stop = stops[network].mean
                lowest = np.interp(stop, curves.index, mean)
                axes.plot(stop, lowest, look.marker, color=look.color, markeredgecolor="white", markersize=8)
        axes.set_title(results.label(level, ", density "), weight="normal", size="medium")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set(xlabel="iteration", ylabel="validation loss, log scale")
        axes.label_outer()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    add_legend(figure, results, "Markers: mean early-stopping iteration.")
    return figure


def connectivity(results: Results) -> Figure | None:
    """How high the barrier between a network and its twin is; None where the pipeline trains no twins."""
    from matplotlib.ticker import StrMethodFormatter

    if results.connectivity.empty:
        return None
    figure = new_figure(4.2, "Error barrier on the line between a network and its twin")
    for axes, (images, title) in zip(figure.subplots(1, 2, sharey=True), BARRIERS.items(), strict=True):
        barriers = over_seeds(results.connectivity, images, scale=100)
        draw_lines(axes, results, barriers)
        axes.axhspan(0, 100 * STABLE, color="black", alpha=0.08, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(title, weight="normal", size="medium")
        axes.set_ylabel("percentage points")
        axes.label_outer()
    arms = results.connectivity["arm"].unique()
    note = f"Twins differ in their batch order alone. Below {100 * STABLE:g} points, shaded grey, training is stable."
    add_legend(figure, results, note, paths_in_words(results), arms=arms)
    return figure


def combined_metrics(results: Results) -> Figure:
    """Accuracy, its difference from dense, early stopping and weights kept, at a glance."""
    figure = new_figure(7.2)
    (accuracy, difference), (stopping, weights) = figure.subplots(2, 2)
    _draw_accuracy(accuracy, results)
    _draw_difference(difference, results)
    _draw_early_stopping(stopping, results)
    _draw_weights_kept(weights, results)
    add_legend(figure, results, paths_in_words(results), HOLLOW)
    return figure


def results_table(results: Results) -> Figure:
    """A row a level: density, weights kept, and each arm's test accuracy with its difference from dense below."""
    arms = [arm for arm in results.looks if arm != "dense"]
    accuracies = {
        (row["level"], row["arm"]): _with_deviation(100 * row["test_accuracy_mean"], 100 * row["test_accuracy_std"])
        + ("*" if row["censored"] else "")
        for row in results.levels.to_dict("records")
    }
    differences = over_seeds(results.differences, "difference")
    left, column = 3.1, min(1.6, max(1.15, 4.8 / len(arms)))  # inches, as all lengths here
    columns = {arm: left + column * (place + 1) for place, arm in enumerate(arms)}
    right, bottom = left + column * len(arms) + 0.1, 0.4 + 0.5 * len(results.tree)
    figure = new_figure(bottom + 0.9, "Test accuracy of each level and arm", max(WIDTH, right))
    axes = figure.subplots()
    axes.set(xlim=(0, max(WIDTH, right)), ylim=(bottom + 0.4, 0))
    axes.set_axis_off()

    for y, width in ((0, 1.2), (0.4, 0.8), (0.9, 0.5), (bottom, 1.2)):
        axes.plot([0, right], [y, y], color="black", linewidth=width, clip_on=False)
    axes.text(0, 0.2, "level", va="center", weight="bold")
    axes.text(1.9, 0.2, "density", va="center", ha="right", weight="bold")
    axes.text(left, 0.2, "weights kept", va="center", ha="right", weight="bold")
    for arm, x in columns.items():
        axes.text(x, 0.2, arm, va="center", ha="right", weight="bold", color=results.looks[arm].color)
    for row, level in enumerate(results.tree.index):
        y = 0.65 + 0.5 * row
        axes.text(0, y, level, va="center")
        axes.text(1.9, y, as_percent(results.percent[level]), va="center", ha="right")
        axes.text(left, y, f"{results.tree['weights_kept'][level]:,.0f}", va="center", ha="right")
        if level == "dense":
            axes.text(left + column * (len(arms) + 1) / 2, y, accuracies["dense", "dense"], va="center", ha="right")
        for arm, x in columns.items():
            if (level, arm) in accuracies:
                points = f"{differences[level, arm].mean:+z.2f}".replace("-", "\N{MINUS SIGN}")
                axes.text(x, y - 0.1, accuracies[level, arm], va="center", ha="right")
                axes.text(x, y + 0.12, points, va="center", ha="right", color=GREY, size="small")
    over = f"mean ± standard deviation over {results.seeds} seeds" if results.seeds > 1 else "one seed"
    note = f"Test accuracy in %, {over}; below it the difference from dense in percentage points."
    if results.levels["censored"].any():
        note += "\n* of some networks the last evaluation was the best: they are censored."
    axes.text(0, bottom + 0.12, note, va="top", size="small", color=GREY)
    return figure


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    figure.__name__: figure
    for figure in (
        accuracy_vs_pruning,
        accuracy_difference,
        early_stopping,
        parameter_reduction,
        learning_curves,
        mask_inputs,
        mask_structure,
        mask_overlap,
        kept_weights,
        connectivity,
        combined_metrics,
        results_table,
    )
}


# --- panels, which figures share -------------------------------------------------------------------------------------


def _draw_accuracy(axes: Axes, results: Results) -> None:
    from matplotlib.ticker import StrMethodFormatter

    accuracy = over_seeds(results.networks, "test_accuracy", scale=100)
    dense = accuracy["dense", "dense"]
    axes.axhspan(dense.lowest, dense.highest, color="black", alpha=0.08, linewidth=0)
    draw_lines(axes, results, accuracy)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.1f} %" if high - low > 0.5 else "{x:.2f} %"))
    axes.set_title("Test accuracy at early stopping")


def _draw_early_stopping(axes: Axes, results: Results) -> None:
    from matplotlib.ticker import StrMethodFormatter

    rows = results.levels[results.levels["censored"] > 0]
    censored = set(zip(rows["level"], rows["arm"], strict=True))
    draw_lines(axes, results, over_seeds(results.networks, "early_stopping_iteration"), hollow=censored)
    last = results.history["iteration"].max()
    axes.axhline(last, color=GREY, linewidth=1, linestyle=":")
    axes.text(0.01, 1.015 * last, "last evaluation", transform=axes.get_yaxis_transform(), color=GREY, size="small")
    axes.set_ylim(0, 1.12 * last)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title("Early-stopping iteration")


def _draw_difference(axes: Axes, results: Results) -> None:
    """Mean and range over seeds, the arms of a level side by side."""
    ranges = over_seeds(results.differences, "difference")
    arms = [arm for arm in results.looks if arm != "dense"]
    axes.axhline(0, color="black", linewidth=1, linestyle=results.looks["dense"].line)
    for place, arm in enumerate(arms):
        look, offset = results.looks[arm], 0.6 * ((place + 0.5) / len(arms) - 0.5)
        for x, level in enumerate(results.pruned):
            if (level, arm) in ranges:
                mean, lowest, highest = ranges[level, arm]
                axes.vlines(x + offset, lowest, highest, color=look.color, alpha=0.4, linewidth=4)
                axes.plot(x + offset, mean, look.marker, color=look.color, markeredgecolor="white", markersize=7.5)
    labels = [results.label(level, "\n") for level in results.pruned]
    room = size_in_inches(axes)[0] / len(labels)
    if all(width_of(line) < room for label in labels for line in label.splitlines()):
        axes.set_xticks(range(len(labels)), labels=labels)
    else:
        every = math.ceil(LINE / room)
        labels = [results.label(level, "  ") for level in results.pruned[::every]]
        axes.set_xticks(range(0, len(results.pruned), every), labels=labels, rotation=90)
    axes.grid(axis="x", visible=False)
    axes.set(title="Difference from dense", ylabel="percentage points")


def _draw_weights_kept(axes: Axes, results: Results) -> None:
    """A bar a level, made of its layers."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    kept = results.kept_by_layer
    levels = range(len(kept))
    before = np.zeros(len(kept))
    for layer, color in shades(kept):
        axes.barh(levels, kept[layer], 0.62, before, color=color, label=layer)
        before += kept[layer].to_numpy()
    every = math.ceil(LINE * len(kept) / size_in_inches(axes)[1])
    axes.set_yticks(levels[::every], labels=[results.label(level, "  ") for level in kept.index[::every]])
    for level in levels[::every]:
        place = (before[level], level)
        axes.annotate(f"{place[0]:,.0f}", place, (4, 0), textcoords="offset points", va="center", size="small")
    axes.set_ylim(len(kept) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * before[0])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(loc="lower right", fontsize="small")
    axes.set_title("Weights kept")


def _with_deviation(mean: float, deviation: float) -> str:
    """Mean ± standard deviation, which one seed does not have."""
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"
