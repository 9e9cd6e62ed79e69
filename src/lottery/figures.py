"""Matplotlib figures: one function a figure, each drawn from the `Results` of a pipeline.

Adding a figure is one function and its entry in `FIGURES`. The same results give the same bytes: the style starts from
matplotlib's own defaults, whatever a matplotlibrc says, and no version or date enters a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:  # most stages only save mask pictures, which need none of these
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType, RcKeyType

WIDTH = 8.0  # inches; as wide as a README, an inch is about 100 pixels
LINE = 0.17  # inches from one line of text to the next
PICTURE = 280  # pixels; the MLflow UI shows a smaller image as a stamp
CONNECTIONS = "viridis"  # the colour map of connections kept
HOLLOW = "Hollow: a seed or more is censored, its last evaluation being its best."
GREY, PALE = "#666666", "#e4e4e4"

STYLE: dict[RcKeyType, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "savefig.dpi": 160,
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
}


@dataclass(frozen=True)
class Look:
    """How an arm looks in every figure."""

    color: str
    marker: str
    line: LineStyleType = "-"


# from the palette of Okabe & Ito (2008), whose colours the colour-blind tell apart
LOOKS = {
    "dense": Look("#000000", "o", (0, (4, 2))),
    "ticket": Look("#0072B2", "o"),
    "reinit": Look("#D55E00", "s"),
    "random": Look("#009E73", "^"),
    "random-inputs": Look("#56B4E9", "v"),
    "small-dense": Look("#999999", "X"),
    "finetune": Look("#CC79A7", "D"),
    "lr-rewind": Look("#E69F00", "P"),
}
PATHS = {"solid": "-", "dashed": "--", "dash-dotted": "-.", "dotted": ":"}  # the lines of a tree, by turns
MORE_LOOKS = (Look("#F0E442", "h"),)  # for arms that are not listed above, by turns


class Range(NamedTuple):
    """A measure over seeds."""

    mean: float
    lowest: float
    highest: float


Ranges = dict[tuple[str, str], Range]  # by level and arm


@dataclass(frozen=True)
class Results:
    """What figures show of a pipeline. Levels come in the reports' order: dense first, parents before children."""

    levels: pd.DataFrame  # reports/levels.csv, a row a level and arm
    networks: pd.DataFrame  # reports/networks.csv, a row a network
    history: pd.DataFrame  # the levels' histories, with a column `level`
    connections: Mapping[str, NDArray[np.float64]]  # level: first-layer connections that each input keeps, [in]

    @cached_property
    def looks(self) -> dict[str, Look]:
        """The arms, dense first, and how each looks."""
        more = cycle(MORE_LOOKS)
        return {arm: LOOKS.get(arm) or next(more) for arm in self.levels["arm"].unique()}

    @cached_property
    def seeds(self) -> int:
        """How many seeds there are."""
        return int(self.networks["seed"].nunique())

    @cached_property
    def tree(self) -> pd.DataFrame:
        """A row a level, indexed by its name: what all its arms share."""
        return self.levels.groupby("level", sort=False).first()

    @cached_property
    def pruned(self) -> list[str]:
        """The names of all levels but dense."""
        return [level for level in self.tree.index if level != "dense"]

    @cached_property
    def percent(self) -> dict[str, float]:
        """Each level's density in percent."""
        return dict(zip(self.tree.index, 100 * self.tree["density"], strict=True))

    @cached_property
    def lines(self) -> list[list[str]]:
        """The levels that each line joins, parent to child: from dense to a leaf, or from where a path branches off.

        Leaves that are pruned from dense itself, which is one-shot pruning, share a line by falling density.
        """
        parents = {level: self.tree["parent"][level] for level in self.pruned}
        one_shot = [level for level in parents if parents[level] == "dense" and level not in parents.values()]
        lines: list[list[str]] = []
        for level in parents:
            if level not in one_shot:
                line = next((line for line in lines if line[-1] == parents[level]), None)
                if line is None:
                    lines.append([parents[level], level])
                else:
                    line.append(level)
        if one_shot:
            lines.append(["dense", *sorted(one_shot, key=lambda level: -self.percent[level])])
        return lines

    @cached_property
    def kept_by_layer(self) -> pd.DataFrame:
        """Weights kept, a row a level and a column a layer."""
        kept = self.tree.filter(regex="^weights_kept_layer")
        hidden = [f"hidden layer {i + 1}" for i in range(kept.shape[1] - 1)]
        return kept.set_axis([*hidden, "output layer"], axis=1)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """`networks` without dense, and their `difference` from the dense network of the same seed, in points."""
        dense = self.networks[self.networks["level"] == "dense"].set_index("seed")["test_accuracy"]
        pruned = self.networks[self.networks["level"] != "dense"]
        return pruned.assign(difference=100 * (pruned["test_accuracy"] - pruned["seed"].map(dense)))

    def label(self, level: str, between: str) -> str:
        """A level's name and density."""
        return level + between + _percent(self.percent[level])


def save_figures(results: Results, folder: Path) -> None:
    """Save every figure in a folder, as a PNG file of its name."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for name, figure in FIGURES.items():
            figure(results).savefig(folder / f"{name}.png", metadata={"Software": None})


# --- mask pictures ---------------------------------------------------------------------------------------------------


def save_mask_picture(mask: Tensor, path: Path) -> None:
    """Draw how many connections of a first-layer mask, bool [in, out], each pixel keeps, from none to the most.

    A pixel is a square block, and the picture at least 280 pixels wide.
    """
    counts = _square(mask.sum(dim=1).double().numpy())
    colors = matplotlib.colormaps[CONNECTIONS](counts / max(np.nanmax(counts), 1), bytes=True)
    block = math.ceil(PICTURE / len(counts))
    Image.fromarray(colors.repeat(block, axis=0).repeat(block, axis=1)).save(path, format="png")


def _square(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """A value an input, [in], as a square picture; where they do not fill a square, its last cells are empty (NaN)."""
    side = math.ceil(math.sqrt(len(inputs)))
    picture = np.full(side * side, np.nan)
    picture[: len(inputs)] = inputs
    return picture.reshape(side, side)


# --- figures ---------------------------------------------------------------------------------------------------------


def accuracy_vs_pruning(results: Results) -> Figure:
    """Test accuracy against density, sparser to the right as in Frankle & Carbin (2019)."""
    figure = _figure(4.5)
    _draw_accuracy(figure.subplots(), results)
    _legend(figure, results, _paths(results))
    return figure


def accuracy_difference(results: Results) -> Figure:
    """Each network's test accuracy minus that of the dense network of the same seed."""
    figure = _figure(4.5)
    axes = figure.subplots()
    _draw_difference(axes, results)
    axes.set_title("Difference in test accuracy from the dense network of the same seed")
    _legend(figure, results)
    return figure


def early_stopping(results: Results) -> Figure:
    """Early-stopping iteration against density: how fast each arm learns."""
    figure = _figure(4.5)
    _draw_early_stopping(figure.subplots(), results)
    _legend(figure, results, _paths(results), HOLLOW)
    return figure


def parameter_reduction(results: Results) -> Figure:
    """Weights kept at each level, and the fraction that each layer keeps of its own."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    kept = results.kept_by_layer
    percent = 100 * kept / kept.iloc[0]
    figure = _figure(1.5 + 0.36 * len(kept))
    counts, fractions = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    _draw_weights_kept(counts, results)
    for place, (layer, color) in enumerate(_shades(kept)):
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

    shown = [results.pruned[i] for i in sorted({round(i) for i in np.linspace(0, len(results.pruned) - 1, 4)})]
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(1.2 + 2.6 * rows, "Validation loss while training")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    # before training the loss is so high that the axis would show little else
    begun = results.history.groupby(["level", "arm"])["iteration"].transform("min")
    history = results.history[results.history["iteration"] > begun].set_index(["level", "arm"]).sort_index()
    stops = _over_seeds(results.networks, "early_stopping_iteration")
    for axes, level in zip(panels, shown, strict=False):
        for arm, look in reversed(results.looks.items()):
            network = ("dense" if arm == "dense" else level, arm)
            if network in stops:
                curves = history.loc[[network]].pivot(index="iteration", columns="seed", values="validation_loss")
                mean = curves.mean(axis=1)
                _draw_band(axes, curves.index, curves.min(axis=1), curves.max(axis=1), look)
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
    _legend(figure, results, "Markers: mean early-stopping iteration.")
    return figure


def mask_inputs(results: Results) -> Figure:
    """For each level, how many first-layer connections each pixel keeps, mean over seeds; each has its own scale."""
    rows = math.ceil(len(results.connections) / 5)
    columns = math.ceil(len(results.connections) / rows)
    side, gap = WIDTH / max(columns, 3) - 0.25, 0.75  # inches
    over = f", mean over {results.seeds} seeds" if results.seeds > 1 else ""
    figure = _figure(0.35 + rows * (side + gap), f"First-layer connections that each pixel keeps{over}")
    figure.set_layout_engine("none")
    for place, (level, connections) in enumerate(results.connections.items()):
        row, column = divmod(place, columns)
        x, y = 0.1 + column * (side + 0.25), 0.65 + row * (side + gap)
        picture = _square(connections)
        most = np.nanmax(picture)
        axes = _place(figure, x, y, side, side)
        image = axes.imshow(picture, cmap=CONNECTIONS, vmin=0, vmax=max(most, 1), interpolation="nearest")
        axes.set_title(results.label(level, ", "), weight="normal", size="medium")
        axes.set_axis_off()
        bar = figure.colorbar(image, cax=_place(figure, x, y + side + 0.07, side, 0.08), orientation="horizontal")
        bar.set_ticks([0, most], labels=["0", f"{most:.0f}"])
        bar.outline.set_visible(False)
    return figure


def combined_metrics(results: Results) -> Figure:
    """Accuracy, its difference from dense, early stopping and weights kept, at a glance."""
    figure = _figure(7.2)
    (accuracy, difference), (stopping, weights) = figure.subplots(2, 2)
    _draw_accuracy(accuracy, results)
    _draw_difference(difference, results)
    _draw_early_stopping(stopping, results)
    _draw_weights_kept(weights, results)
    _legend(figure, results, _paths(results), HOLLOW)
    return figure


def results_table(results: Results) -> Figure:
    """A row a level: density, weights kept, and each arm's test accuracy with its difference from dense below."""
    arms = [arm for arm in results.looks if arm != "dense"]
    accuracies = {
        (row["level"], row["arm"]): _with_deviation(100 * row["test_accuracy_mean"], 100 * row["test_accuracy_std"])
        for row in results.levels.to_dict("records")
    }
    differences = _over_seeds(results.differences, "difference")
    left, column = 3.1, min(1.6, max(1.15, 4.8 / len(arms)))  # inches, as all lengths here
    columns = {arm: left + column * (place + 1) for place, arm in enumerate(arms)}
    right, bottom = left + column * len(arms) + 0.1, 0.4 + 0.5 * len(results.tree)
    figure = _figure(bottom + 0.9, "Test accuracy of each level and arm", max(WIDTH, right))
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
        axes.text(1.9, y, _percent(results.percent[level]), va="center", ha="right")
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
    axes.text(0, bottom + 0.25, note, va="center", size="small", color=GREY)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    figure.__name__: figure
    for figure in (
        accuracy_vs_pruning,
        accuracy_difference,
        early_stopping,
        parameter_reduction,
        learning_curves,
        mask_inputs,
        combined_metrics,
        results_table,
    )
}


# --- panels, which figures share -------------------------------------------------------------------------------------


def _draw_accuracy(axes: Axes, results: Results) -> None:
    from matplotlib.ticker import StrMethodFormatter

    accuracy = _over_seeds(results.networks, "test_accuracy", scale=100)
    dense = accuracy["dense", "dense"]
    axes.axhspan(dense.lowest, dense.highest, color="black", alpha=0.08, linewidth=0)
    _draw_lines(axes, results, accuracy)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.1f} %" if high - low > 0.5 else "{x:.2f} %"))
    axes.set_title("Test accuracy at early stopping")


def _draw_early_stopping(axes: Axes, results: Results) -> None:
    from matplotlib.ticker import StrMethodFormatter

    rows = results.levels[results.levels["censored"] > 0]
    censored = set(zip(rows["level"], rows["arm"], strict=True))
    _draw_lines(axes, results, _over_seeds(results.networks, "early_stopping_iteration"), hollow=censored)
    last = results.history["iteration"].max()
    axes.axhline(last, color=GREY, linewidth=1, linestyle=":")
    axes.text(0.01, 1.015 * last, "last evaluation", transform=axes.get_yaxis_transform(), color=GREY, size="small")
    axes.set_ylim(0, 1.12 * last)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title("Early-stopping iteration")


def _draw_lines(
    axes: Axes, results: Results, ranges: Ranges, hollow: Collection[tuple[str, str]] = frozenset()
) -> None:
    """Each arm's mean and range against density, from parent to child, and the mean of dense across.

    The markers of the levels and arms in ``hollow`` are hollow.
    """
    from matplotlib.ticker import NullLocator

    axes.axhline(ranges["dense", "dense"].mean, color="black", linewidth=1, linestyle=results.looks["dense"].line)
    for arm, look in reversed(results.looks.items()):  # dense and tickets on top
        for line, style in zip(results.lines, cycle(PATHS.values()), strict=False):
            path = [(level, "dense" if level == "dense" else arm) for level in line]
            points = [(results.percent[level], *ranges[level, arm]) for level, arm in path if (level, arm) in ranges]
            density, mean, lowest, highest = np.array(points).reshape(-1, 4).T
            _draw_band(axes, density, lowest, highest, look)
            axes.plot(density, mean, color=look.color, linestyle=style)
        for level, percent in results.percent.items():
            if (level, arm) in ranges:
                face = "white" if (level, arm) in hollow else look.color
                axes.plot(percent, ranges[level, arm].mean, look.marker, color=look.color, markerfacecolor=face)
    densities = sorted(set(results.percent.values()), reverse=True)
    axes.set_xscale("log")
    axes.set_xlim(1.08 * densities[0], densities[-1] / 1.08)
    axes.set_xticks(densities, labels=_with_room(densities, axes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("density: weights kept, log scale")


def _draw_difference(axes: Axes, results: Results) -> None:
    """Mean and range over seeds, the arms of a level side by side."""
    ranges = _over_seeds(results.differences, "difference")
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
    room = _inches(axes)[0] / len(labels)
    if all(_inches_of(line) < room for label in labels for line in label.splitlines()):
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
    for layer, color in _shades(kept):
        axes.barh(levels, kept[layer], 0.62, before, color=color, label=layer)
        before += kept[layer].to_numpy()
    every = math.ceil(LINE * len(kept) / _inches(axes)[1])
    axes.set_yticks(levels[::every], labels=[results.label(level, "  ") for level in kept.index[::every]])
    for level in levels[::every]:
        place = (before[level], level)
        axes.annotate(f"{place[0]:,.0f}", place, (4, 0), textcoords="offset points", va="center", size="small")
    axes.set_ylim(len(kept) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * before[0])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(fontsize="small")
    axes.set_title("Weights kept")


# --- what panels are made of -----------------------------------------------------------------------------------------


def _figure(height: float, title: str = "", width: float = WIDTH) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    if title:
        figure.suptitle(title, x=0.012, ha="left")
    return figure


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _legend(figure: Figure, results: Results, *notes: str) -> None:
    """Below the figure: the arms, and in words what else there is to know."""
    from matplotlib.lines import Line2D

    over = f"Mean over {results.seeds} seeds, shaded from the lowest to the highest."
    legend = figure.legend(
        handles=[
            Line2D([], [], color=look.color, marker=look.marker, linestyle=look.line, label=arm)
            for arm, look in results.looks.items()
        ],
        loc="outside lower center",
        ncols=len(results.looks),
        title=fill(" ".join(filter(None, [over if results.seeds > 1 else "One seed.", *notes])), 130),
        title_fontsize="small",
    )
    legend.get_title().set_multialignment("center")


def _paths(results: Results) -> str:
    """Which line is which path, where there are several."""
    ends = zip(cycle(PATHS), results.lines, strict=False)
    words = ", ".join(f"{style} to {line[-1]}" for style, line in ends)
    return f"Lines: {words}." if len(results.lines) > 1 else ""


def _draw_band(axes: Axes, x: ArrayLike, lowest: ArrayLike, highest: ArrayLike, look: Look) -> None:
    axes.fill_between(x, lowest, highest, facecolor=(look.color, 0.14), edgecolor=(look.color, 0.5), linewidth=0.5)


def _with_room(densities: Sequence[float], axes: Axes) -> list[str]:
    """Labels of ticks on a logarithmic axis, empty where they would touch; the first and the last always show."""
    shown = [densities[0]]
    inch = math.log(densities[0] / densities[-1]) / _inches(axes)[0]
    for density in densities[1:-1]:
        gap = math.log(min(shown[-1] / density, density / densities[-1]))
        if gap > _inches_of(_percent(density)) * inch:
            shown.append(density)
    return [_percent(density) if density in (*shown, densities[-1]) else "" for density in densities]


def _inches(axes: Axes) -> tuple[float, float]:
    """About how wide and how high the axes are; the layout, which comes last, decides."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def _inches_of(text: str) -> float:
    """About how wide a text is with some space around."""
    return 0.07 + 0.08 * len(text)


def _percent(value: float) -> str:
    """A percentage in three digits."""
    return f"{value:.3g} %"


def _with_deviation(mean: float, deviation: float) -> str:
    """Mean ± standard deviation, which one seed does not have."""
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def _shades(kept: pd.DataFrame) -> list[tuple[str, Any]]:
    """The layers and their colours, dark to light, none of them an arm's."""
    places = np.linspace(0.15, 0.85, kept.shape[1])
    return [(str(layer), matplotlib.colormaps["cividis"](place)) for layer, place in zip(kept, places, strict=True)]


def _over_seeds(networks: pd.DataFrame, measure: str, scale: float = 1) -> Ranges:
    """A column of a table with a row a network, in units of 1 / scale."""
    table = scale * networks.groupby(["level", "arm"], sort=False)[measure].agg(["mean", "min", "max"])
    return {network: Range(*row) for network, *row in table.itertuples()}
