"""Matplotlib figures: one function per figure, each drawn from the `Results` of a pipeline.

Adding a figure is one function and its entry in `FIGURES`; `describe` gives it words for those who cannot see it. The
same results give the same bytes: the style starts from matplotlib's own defaults, whatever a matplotlibrc says, and no
version or date enters a file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lottery.core.workers import Workers
from lottery.evaluation.connectivity import BARRIERS, STABLE
from lottery.evaluation.statistics import interval
from lottery.report import drawing
from lottery.report.drawing import GREY, LINE, STYLE, WIDTH, Found, Results
from lottery.report.mask_figures import kept_weights, mask_inputs, mask_overlap, mask_structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 6  # levels with learning curves, spread over the levels; more would be too small to read
SIZES = {  # of reports/compression.json: what dense has, and the columns that are compared with it
    "bytes of a file": (
        "checkpoint",
        {
            "ticket_half": ("half precision", "s"),
            "ticket": ("ticket.safetensors", "o"),
            "checkpoint_zstd": ("zeros and all, by zstd", "v"),
        },
    ),
    "multiply-adds per image": (
        "multiply_adds",
        {
            "multiply_adds_kept": ("kept weights", "o"),
            "multiply_adds_compact": ("compact network, dense products", "D"),
        },
    ),
}
HOLLOW = "Hollow: a network or more is censored (best at its last evaluation), and the interval has no upper limit."


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
        with Workers(min(processes, len(FIGURES)) if sys.platform == "linux" else 1, results) as workers:
            drawn = [workers.submit(_save_figure, name, folder) for name in FIGURES]
            meanwhile()
            for each in drawn:
                each.result()


def _save_figure(results: Results, name: str, folder: Path) -> None:
    figure = FIGURES[name](results)
    if figure:
        figure.savefig(folder / f"{name}.png", metadata={"Software": None, "Description": figure.get_label()})


# --- figures ---------------------------------------------------------------------------------------------------------


def accuracy_vs_pruning(results: Results) -> Figure:
    """Test accuracy at the early-stopping iteration against density, sparser to the right as in the paper."""
    figure = drawing.new_figure(4.5)
    _draw_accuracy(figure.subplots(), results)
    drawing.add_legend(figure, results, _dots(results), drawing.paths_in_words(results))
    return drawing.describe(figure, _accuracy_in_words(results))


def accuracy_difference(results: Results) -> Figure:
    """Each network's test accuracy minus that of the dense network of the same seed."""
    figure = drawing.new_figure(4.5)
    axes = figure.subplots()
    _draw_difference(axes, results)
    axes.set_title("Difference in test accuracy from the dense network of the same seed")
    drawing.add_legend(figure, results, _dots(results))
    points = drawing.in_words(results, drawing.over_seeds(results.differences, "difference"), "+.2f")
    return drawing.describe(figure, f"Mean difference from dense in percentage points: {points}.")


def early_stopping(results: Results) -> Figure:
    """Early-stopping iteration against density: how fast each arm learns."""
    figure = drawing.new_figure(4.5)
    _draw_early_stopping(figure.subplots(), results)
    drawing.add_legend(figure, results, _dots(results), drawing.paths_in_words(results), HOLLOW)
    stops = drawing.in_words(results, drawing.over_seeds(results.networks, "early_stopping_iteration"), ",.0f")
    return drawing.describe(figure, f"Mean early-stopping iteration: {stops}.", _censored_in_words(results))


def parameter_reduction(results: Results) -> Figure:
    """Weights kept at each level, and the fraction that each layer keeps of its own."""
    kept = results.kept_by_layer
    shares = 100 * kept / kept.iloc[0]
    figure = drawing.new_figure(1.75 + 0.36 * len(kept))
    counts, fractions = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    _draw_weights_kept(counts, results)
    for place, (layer, color) in enumerate(drawing.shades(kept)):
        size = 11 - 5 * place / kept.shape[1]  # where layers keep the same fraction, all of them show
        fractions.plot(shares[layer], range(len(kept)), "o", color=color, markersize=size)
    fractions.set_xscale("log")
    fractions.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if shares.min(axis=None) > 4 else (1,)))
    fractions.xaxis.set_minor_locator(NullLocator())
    fractions.xaxis.set_major_formatter("{x:g} %")
    fractions.set(title="Kept of each layer", xlabel="share of the layer's weights, log scale")
    weights = results.tree["weights_kept"]
    said = ", ".join(f"{level} {weights[level]:,.0f}" for level in drawing.spread(list(weights.index), 8))
    return drawing.describe(figure, f"Weights kept: {said}.")


def learning_curves(results: Results) -> Figure:
    """Validation loss against iteration for up to six levels, with the dense networks as the reference."""
    shown = drawing.spread(results.pruned, MOST_CURVES)
    columns = min(len(shown), 2 if len(shown) < 5 else 3)
    rows = math.ceil(len(shown) / columns)
    figure = drawing.new_figure(1.2 + 2.6 * rows, "Validation loss while training")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    # before training the loss is so high that the axis would show little else
    begun = results.history.groupby(["level", "arm"])["iteration"].transform("min")
    history = results.history[results.history["iteration"] > begun].set_index(["level", "arm"]).sort_index()
    losses = history.loc[[level in ("dense", *shown) for level in history.index.get_level_values("level")]]
    panels[0].set(yscale="log", ylim=(0.9 * losses["validation_loss"].min(), 1.1 * losses["validation_loss"].max()))
    stops = drawing.over_seeds(results.networks, "early_stopping_iteration")
    lowest = {}
    for axes, level in zip(panels, shown, strict=False):
        for arm, look in reversed(results.looks.items()):
            network = ("dense" if arm == "dense" else level, arm)
            if network in stops:
                curves = history.loc[[network]].pivot(index="iteration", columns="seed", values="validation_loss")
                found = [interval(losses) for losses in curves.to_numpy().tolist()]
                mean = [each.mean for each in found]
                drawing.draw_band(axes, curves.index, [each.low for each in found], [each.high for each in found], look)
                axes.plot(curves.index, mean, color=look.color, linestyle=look.line, linewidth=1.4)
                stop = stops[network].mean
                height = np.interp(stop, curves.index, mean)
                axes.plot(stop, height, look.marker, color=look.color, markeredgecolor="white", markersize=8)
                lowest[network] = interval(curves.min().tolist())
        axes.set_title(results.label(level, ", density "), weight="normal", size="medium")
        drawing.label_log_axis(axes, "{x:g}")
        axes.xaxis.set_major_locator(MaxNLocator(6 - columns))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="iteration", ylabel="validation loss, log scale")
    drawing.label_outer(panels, len(shown), columns)
    some = f"{len(shown)} of {len(results.pruned)} levels." if len(shown) < len(results.pruned) else ""
    drawing.add_legend(figure, results, "Markers: mean early-stopping iteration.", some, curves=True)
    return drawing.describe(
        figure, f"Lowest validation loss, mean over seeds: {drawing.in_words(results, lowest, '.3f')}."
    )


def compression(results: Results) -> Figure | None:
    """How many times smaller than dense a level's ticket is, in bytes and in multiply-adds; None without tickets."""
    from matplotlib.lines import Line2D

    found = results.compression
    if len(found) < 2:
        return None
    figure = drawing.new_figure(4.2, "How many times smaller than dense a ticket is")
    colors = cycle(look.color for arm, look in drawing.LOOKS.items() if arm != "dense")
    said: list[str] = []
    handles: list[Line2D] = []
    for axes, (title, (whole, lines)) in zip(figure.subplots(1, 2), SIZES.items(), strict=True):
        drawing.set_density_axis(axes, results)
        axes.set_yscale("log")
        for column, (label, marker) in lines.items():
            times = (found[whole].iloc[0] / found[column].astype(float)).iloc[found["density"].argsort()[::-1]]
            if times.notna().all():
                color = next(colors)
                axes.plot(100 * found["density"][times.index], times, color=color, marker=marker)
                handles.append(Line2D([], [], label=label, color=color, marker=marker))
                by_level = ", ".join(f"{found['level'][row]} {each:.1f}" for row, each in times.items())
                said.append(f"{label}: {by_level}.")
        axes.axhline(1, color="black", linewidth=1, linestyle=drawing.LOOKS["dense"].line)
        drawing.label_log_axis(axes, "{x:g}")
        axes.set_title(title, weight="normal", size="medium")
        axes.set_ylabel("dense / ticket, log scale")
    drawing.add_key(figure, handles, "Of each level the ticket with the lowest validation loss.")
    return drawing.describe(figure, "How many times smaller than dense.", *said)


def connectivity(results: Results) -> Figure | None:
    """How high the barrier between a network and its twin is; None where the pipeline trains no twins."""
    if results.connectivity.empty:
        return None
    figure = drawing.new_figure(4.2, "Error barrier on the line between a network and its twin")
    found = {title: drawing.over_seeds(results.connectivity, images, scale=100) for images, title in BARRIERS.items()}
    limits = (0, max(drawing.limits_of(barriers)[1] for barriers in found.values()))
    panels, said = figure.subplots(1, 2), []
    for axes, (title, barriers) in zip(panels, found.items(), strict=True):
        drawing.draw_lines(axes, results, barriers, limits=limits)
        axes.axhspan(0, 100 * STABLE, color="black", alpha=0.08, linewidth=0)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(title, weight="normal", size="medium")
        axes.set_ylabel("percentage points")
        said.append(f"Mean barrier on {title} in percentage points: {drawing.in_words(results, barriers, '.2f')}.")
    drawing.label_outer(panels, 2, 2)
    arms = results.connectivity["arm"].unique()
    note = f"Twins differ in their batch order alone. Below {100 * STABLE:g} points, shaded grey, training is stable."
    drawing.add_legend(figure, results, _dots(results), note, drawing.paths_in_words(results), arms=arms)
    return drawing.describe(figure, *said)


def combined_metrics(results: Results) -> Figure:
    """Accuracy, its difference from dense, early stopping and weights kept, at a glance."""
    figure = drawing.new_figure(7.6)
    (accuracy, difference), (stopping, weights) = figure.subplots(2, 2)
    _draw_accuracy(accuracy, results, dots=False)
    _draw_difference(difference, results, dots=False)
    _draw_early_stopping(stopping, results, dots=False)
    _draw_weights_kept(weights, results)
    drawing.add_legend(figure, results, drawing.paths_in_words(results), HOLLOW)
    return drawing.describe(figure, _accuracy_in_words(results))


def results_table(results: Results) -> Figure:
    """One row per level: density, weights kept, and each arm's test accuracy with its difference from dense below."""
    accuracies = {
        (row["level"], row["arm"]): drawing.percent(row["test_accuracy_mean"], row["test_accuracy_std"])
        for row in results.levels.to_dict("records")
    }
    censored = _censored(results)
    differences = drawing.over_seeds(results.differences, "difference")
    left, column = 2.9, min(1.6, max(1.25, 4.9 / len(results.looks)))  # inches, as all lengths here
    columns = {arm: left + column * (place + 1) for place, arm in enumerate(results.looks)}
    right, bottom = left + column * len(columns) + 0.1, 0.4 + 0.5 * len(results.tree)
    figure = drawing.new_figure(bottom + 0.9, "Test accuracy of each level and arm", max(WIDTH, right))
    axes = figure.subplots()
    axes.set(xlim=(0, max(WIDTH, right)), ylim=(bottom + 0.4, 0))
    axes.set_axis_off()

    for y, width in ((0, 1.2), (0.4, 0.8), (0.9, 0.5), (bottom, 1.2)):
        axes.plot([0, right], [y, y], color="black", linewidth=width, clip_on=False)
    axes.text(0, 0.2, "level", va="center", weight="bold")
    axes.text(1.7, 0.2, "density", va="center", ha="right", weight="bold")
    axes.text(left, 0.2, "weights kept", va="center", ha="right", weight="bold")
    for arm, x in columns.items():
        axes.text(x, 0.2, arm, va="center", ha="right", weight="bold", color=results.looks[arm].color)
    for row, level in enumerate(results.tree.index):
        y = 0.65 + 0.5 * row
        axes.text(0, y, level, va="center")
        axes.text(1.7, y, f"{results.percent[level]:.2f} %", va="center", ha="right")
        axes.text(left, y, f"{results.tree['weights_kept'][level]:,.0f}", va="center", ha="right")
        for arm, x in columns.items():
            if (level, arm) in accuracies:
                above = 0.1 if (level, arm) in differences else 0.0
                axes.text(x, y - above, accuracies[level, arm], va="center", ha="right")
                if (level, arm) in censored:
                    axes.text(x, y - above, "*", va="center", ha="left")  # beside the column of digits
                if (level, arm) in differences:
                    points = drawing.number(differences[level, arm].mean, "+z.2f")
                    axes.text(x, y + 0.12, points, va="center", ha="right", color=GREY, size="small")
    over = f"mean ± standard deviation over {results.seeds} seeds" if results.seeds > 1 else "one seed"
    note = f"Test accuracy in %, {over}; below it the difference from dense in percentage points."
    if censored:
        note += "\n* of some networks the last evaluation was the best: they are censored."
    axes.text(0, bottom + 0.12, note, va="top", size="small", color=GREY)
    return drawing.describe(figure, _accuracy_in_words(results))


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    figure.__name__: figure
    for figure in (
        *(accuracy_vs_pruning, accuracy_difference, early_stopping, parameter_reduction, learning_curves),
        *(mask_inputs, mask_structure, mask_overlap, kept_weights, compression, connectivity),
        *(combined_metrics, results_table),
    )
}


# --- panels, which figures share -------------------------------------------------------------------------------------


def _draw_accuracy(axes: Axes, results: Results, dots: bool = True) -> None:
    accuracy = _accuracy(results)
    dense = accuracy["dense", "dense"]
    drawing.draw_lines(axes, results, accuracy, dots=dots)
    low, high = axes.get_ylim()
    axes.axhspan(max(dense.low, low), min(dense.high, high), color="black", alpha=0.08, linewidth=0)
    axes.yaxis.set_major_formatter("{x:.1f} %" if high - low > 0.5 else "{x:.2f} %")
    axes.set(title="Test accuracy at early stopping", ylabel="test accuracy")


def _draw_early_stopping(axes: Axes, results: Results, dots: bool = True) -> None:
    censored = _censored(results)
    found = drawing.over_seeds(results.networks, "early_stopping_iteration")
    found |= {network: replace(found[network], high=math.inf) for network in censored}
    last = results.history["iteration"].max()
    drawing.draw_lines(axes, results, found, hollow=censored, limits=(0, 1.12 * last), dots=dots)
    axes.axhline(last, color=GREY, linewidth=1, linestyle=":")
    axes.text(0.01, 1.015 * last, "last evaluation", transform=axes.get_yaxis_transform(), color=GREY, size="small")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(title="Early-stopping iteration", ylabel="iteration")


def _draw_difference(axes: Axes, results: Results, dots: bool = True) -> None:
    """Mean and interval over seeds, the arms of a level side by side."""
    found = drawing.over_seeds(results.differences, "difference")
    arms = [arm for arm in results.looks if arm != "dense"]
    axes.axhline(0, color="black", linewidth=1, linestyle=results.looks["dense"].line)
    axes.set(
        xlim=(-0.5, len(results.pruned) - 0.5), ylim=drawing.limits_of(found | {("dense", "dense"): interval([0.0])})
    )
    room = drawing.size_in_inches(axes)[0] / len(results.pruned)
    slot = 72 * 0.75 * room / len(arms)  # points
    for place, arm in enumerate(arms):
        look, offset = results.looks[arm], 0.75 * ((place + 0.5) / len(arms) - 0.5)
        for x, level in enumerate(results.pruned):
            if (level, arm) in found:
                each = found[level, arm]
                ends = (max(each.low, axes.get_ylim()[0]), min(each.high, axes.get_ylim()[1]))
                if math.isfinite(each.low):  # wider than the marker, behind which a short interval would vanish
                    axes.vlines(x + offset, *ends, color=look.color, linewidth=1.3)
                    axes.plot([x + offset] * 2, [each.low, each.high], "_", color=look.color, markersize=min(11, slot))
                axes.plot(x + offset, each.mean, look.marker, color=look.color, markersize=min(6, 0.7 * slot))
                if dots:
                    drawing.draw_seeds(axes, x + offset, each, look, min(8, 0.5 * slot))
    labels = [results.label(level, "\n") for level in results.pruned]
    if all(drawing.width_of(line) < room for label in labels for line in label.splitlines()):
        axes.set_xticks(range(len(labels)), labels=labels)
        axes.set_xlabel("level and density")
    else:
        every = math.ceil(LINE / room)
        axes.set_xticks(range(0, len(results.pruned), every), labels=results.pruned[::every], rotation=90)
        axes.set_xlabel("level")
    axes.grid(axis="x", visible=False)
    axes.set(title="Difference from dense", ylabel="percentage points")


def _draw_weights_kept(axes: Axes, results: Results) -> None:
    """One bar per level, made of its layers."""
    kept = results.kept_by_layer
    levels = range(len(kept))
    before = np.zeros(len(kept))
    for layer, color in drawing.shades(kept):
        axes.barh(levels, kept[layer], 0.62, before, color=color, label=layer)
        before += kept[layer].to_numpy()
    every = math.ceil(LINE * len(kept) / drawing.size_in_inches(axes)[1])
    axes.set_yticks(levels[::every], labels=[results.label(level, "  ") for level in kept.index[::every]])
    for level in levels if every == 1 else ():  # else they would lie on the bars of other levels
        place = (before[level], level)
        axes.annotate(f"{place[0]:,.0f}", place, (4, 0), textcoords="offset points", va="center", size="small")
    axes.set_ylim(len(kept) - 0.5, -0.5)
    axes.set_xlim(0, 1.35 * before[0])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="weights", ylabel="level and density")
    columns = max(1, int(drawing.size_in_inches(axes)[0] / 1.15))
    look = {"fontsize": "small", "handlelength": 1.2, "columnspacing": 1.0, "borderpad": 0.2, "borderaxespad": 0}
    # between the title and the axes, where no bar is
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **look)
    axes.set_title("Weights kept", pad=8 + 13 * math.ceil(kept.shape[1] / columns))


def _accuracy(results: Results) -> Found:
    return drawing.over_seeds(results.networks, "test_accuracy", scale=100)


def _accuracy_in_words(results: Results) -> str:
    return f"Mean test accuracy in percent: {drawing.in_words(results, _accuracy(results), '.2f')}."


def _censored(results: Results) -> list[tuple[str, str]]:
    """The levels and arms of which a network or more is censored."""
    rows = results.levels[results.levels["censored"] > 0]
    return list(zip(rows["level"], rows["arm"], strict=True))


def _censored_in_words(results: Results) -> str:
    said = ", ".join(f"{arm} ({level})" for level, arm in _censored(results))
    return f"Censored networks: {said}." if said else ""


def _dots(results: Results) -> str:
    return "Dots: seeds." if results.seeds > 1 else ""
