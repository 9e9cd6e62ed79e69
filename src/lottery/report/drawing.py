"""The parts of figures: a pipeline's `Results`, the looks of arms, axes, lines, legends and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy
from numpy.typing import ArrayLike, NDArray

from lottery.core.arms import ARMS, Look
from lottery.core.layout import Layout
from lottery.evaluation.statistics import Interval, by_level, interval

if TYPE_CHECKING:  # most stages only save mask pictures, which need none of these
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

WIDTH = 8.0  # inches; as wide as a README, an inch is about 100 pixels
LINE = 0.17  # inches from one line of text to the next
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


LOOKS = {"dense": Look("#000000", "o", (0, (4, 2))), **{name: arm.look for name, arm in ARMS.items()}}
PATHS = {"solid": "-", "dashed": "--", "dash-dotted": "-.", "dotted": ":"}  # the lines of a tree, by turns
MORE_LOOKS = (Look("#F0E442", "h", (0, (3, 3))),)  # for arms that are not listed above, by turns


Item = TypeVar("Item")
Found = Mapping[tuple[str, str], Interval]  # a measure over seeds, by level and arm


@dataclass(frozen=True)
class Results:
    """The contents of figures. Levels come in the reports' order: dense first, parents before children."""

    levels: pd.DataFrame  # reports/tables/levels.csv, one row per level and arm
    networks: pd.DataFrame  # reports/tables/networks.csv, one row per network
    history: pd.DataFrame  # the levels' histories, with a column `level`
    pictures: Mapping[str, NDArray[np.float64]]  # level: what the first layer keeps, [H, W]; see `families.Family`
    structure: pd.DataFrame  # reports/tables/structure.csv, one row per level, arm and layer
    kept_weights: pd.DataFrame  # reports/tables/kept_weights.csv, one row per level, layer and bin
    connectivity: pd.DataFrame  # reports/tables/connectivity.csv, one row per network with a twin
    layout: Layout
    compression: pd.DataFrame  # reports/compression.json, one row per level

    @cached_property
    def looks(self) -> dict[str, Look]:
        """The look of each arm, dense first."""
        more = cycle(MORE_LOOKS)
        return {arm: LOOKS.get(arm) or next(more) for arm in self.levels["arm"].unique()}

    @cached_property
    def seeds(self) -> int:
        """The number of seeds."""
        return int(self.networks["seed"].nunique())

    @cached_property
    def tree(self) -> pd.DataFrame:
        """One row per level, indexed by its name: what all its arms share."""
        return by_level(self.levels)

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
        """Weights kept, one row per level and one column per layer."""
        return self.tree.filter(regex="^weights_kept_layer").set_axis(self.layers, axis=1)

    @cached_property
    def layers(self) -> list[str]:
        """The layers' names, from the inputs to the outputs."""
        return self.layout.titles

    @cached_property
    def differences(self) -> pd.DataFrame:
        """`networks` without dense, and their `difference` from the dense network of the same seed, in points."""
        dense = self.networks[self.networks["level"] == "dense"].set_index("seed")["test_accuracy"]
        pruned = self.networks[self.networks["level"] != "dense"]
        return pruned.assign(difference=100 * (pruned["test_accuracy"] - pruned["seed"].map(dense)))

    def label(self, level: str, between: str) -> str:
        """A level's name and density."""
        return level + between + as_percent(self.percent[level])


# --- axes ------------------------------------------------------------------------------------------------------------


def new_figure(height: float, title: str = "", width: float = WIDTH) -> Figure:
    """An empty figure, its size in inches."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    if title:
        figure.suptitle(title, x=0.012, ha="left")
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def label_outer(panels: Sequence[Axes], shown: int, columns: int) -> None:
    """Label the first ``shown`` of panels, in rows of so many, at the left and below alone; hide those that follow."""
    for place, axes in enumerate(panels):
        axes.set_visible(place < shown)
        axes.tick_params(labelbottom=place + columns >= shown, labelleft=place % columns == 0)
        if place + columns < shown:
            axes.set_xlabel("")
        if place % columns:
            axes.set_ylabel("")


def label_log_axis(axes: Axes, form: str) -> None:
    """Number a logarithmic axis at 1, 2 and 5 of each decade, in that format."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())


def describe(figure: Figure, *sentences: str) -> Figure:
    """Say in words what a figure shows, with its values, to those who cannot see it; its file keeps them."""
    figure.set_label(" ".join(filter(None, sentences)))
    return figure


def add_legend(
    figure: Figure, results: Results, *notes: str, arms: Collection[str] | None = None, curves: bool = False
) -> None:
    """Add a legend of the arms, or of those in ``arms``, below the figure, with notes in words.

    ``curves``: each arm has a line of its own.
    """
    from matplotlib.lines import Line2D

    handles = []
    for arm, look in results.looks.items():
        if arms is None or arm in arms:
            line: Any = look.line if curves or arm == "dense" else "-"
            handles.append(Line2D([], [], label=arm, color=look.color, marker=look.marker, linestyle=line))
    over = f"Mean over {results.seeds} seeds with its 95 % interval." if results.seeds > 1 else "One seed."
    add_key(figure, handles, over, *notes)


def add_key(figure: Figure, handles: Sequence[Artist], *notes: str) -> None:
    """Add the meanings of these looks, and notes in words, below the figure."""
    width = sum(0.55 + width_of(str(handle.get_label())) for handle in handles)  # inches, if all stood in one row
    rows = math.ceil(width / figure.get_size_inches()[0])
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=math.ceil(len(handles) / rows),
        title=fill(" ".join(filter(None, notes)), 130),
        title_fontsize="small",
    )
    legend.get_title().set_multialignment("center")


def paths_in_words(results: Results) -> str:
    """Name the path of each line, where there are several."""
    ends = zip(cycle(PATHS), results.lines, strict=False)
    words = ", ".join(f"{style} to {line[-1]}" for style, line in ends)
    return f"Lines: {words}." if len(results.lines) > 1 else ""


def draw_lines(
    axes: Axes,
    results: Results,
    found: Found,
    hollow: Collection[tuple[str, str]] = frozenset(),
    limits: tuple[float, float] | None = None,
    dots: bool = True,
) -> None:
    """Each arm's mean with its interval against density, from parent to child, and the mean of dense across.

    The markers of the levels and arms in ``hollow`` are hollow. ``limits`` are those of the axis; an interval that goes
    further is cut there. ``dots``: the seeds, to the right of their mean.
    """
    set_density_axis(axes, results)
    axes.set_ylim(limits or limits_of(found))
    axes.axhline(found["dense", "dense"].mean, color="black", linewidth=1, linestyle=results.looks["dense"].line)
    room = _room(axes, results)
    for place, (arm, look) in reversed(list(enumerate(results.looks.items()))):  # dense and tickets on top
        for line, style in zip(results.lines, cycle(PATHS.values()), strict=False):
            path = [(level, "dense" if level == "dense" else arm) for level in line]
            path = [network for network in path if network in found]
            density = [results.percent[level] for level, _ in path]
            draw_band(axes, density, [found[each].low for each in path], [found[each].high for each in path], look)
            axes.plot(density, [found[each].mean for each in path], color=look.color, linestyle=style)
        for level, percent in results.percent.items():
            if (level, arm) in found:
                each = found[level, arm]
                face = "white" if (level, arm) in hollow else look.color
                axes.plot([percent] * 2, [each.low, each.high], "_", color=look.color, markersize=min(9, room))
                axes.plot(percent, each.mean, look.marker, color=look.color, markerfacecolor=face)
                if dots:
                    draw_seeds(axes, percent, each, look, min(6 + 3 * place, room * (place + 1) / 5))


def limits_of(found: Found) -> tuple[float, float]:
    """The limits of an axis, over all seeds and their intervals.

    The interval of few seeds is wide, and widens the axis by once the seeds' own range on either side at most.
    """
    values = [value for each in found.values() for value in each.values]
    lowest, highest = min(values), max(values)
    wide = 2 * lowest - highest, 2 * highest - lowest
    ends = [end for each in found.values() for end in (each.low, each.high) if math.isfinite(end)]
    low, high = min(values + [max(end, wide[0]) for end in ends]), max(values + [min(end, wide[1]) for end in ends])
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _room(axes: Axes, results: Results) -> float:
    """The points between the two levels on a density axis that are closest to each other."""
    places = np.log(sorted(set(results.percent.values())))
    gap = np.diff(places).min(initial=places[-1] - places[0]) / abs(math.log(axes.get_xlim()[0] / axes.get_xlim()[1]))
    return float(72 * size_in_inches(axes)[0] * gap)


def set_density_axis(axes: Axes, results: Results) -> None:
    """Density across, on a logarithmic axis, sparser to the right as in Frankle & Carbin (2019)."""
    densities = sorted(set(results.percent.values()), reverse=True)
    axes.set_xscale("log")
    axes.set_xlim(1.08 * densities[0], densities[-1] / 1.15)  # with room for the dots of the last level
    axes.set_xticks(densities, labels=_with_room(densities, axes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("density: weights kept, log scale")


def draw_band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, look: Look) -> None:
    """An arm's intervals, cut at the axis' limits; none where there is one seed."""
    limits = axes.get_ylim()
    if np.isfinite(low).any():
        low, high = np.clip(low, *limits), np.clip(high, *limits)
        axes.fill_between(x, low, high, facecolor=(look.color, 0.14), edgecolor=(look.color, 0.5), linewidth=0.5)


def draw_seeds(axes: Axes, x: float, found: Interval, look: Look, aside: float) -> None:
    """A dot for each seed, so many points to the right of ``x``; none where there is one."""
    if len(found.values) > 1:
        place = offset_copy(axes.transData, axes.get_figure(root=True), x=aside, units="points")
        xs = [x] * len(found.values)
        axes.plot(xs, found.values, ".", color=look.color, markersize=4, alpha=0.7, transform=place)


def _with_room(densities: Sequence[float], axes: Axes) -> list[str]:
    """Labels of ticks on a logarithmic axis, empty where they would touch; the first and the last always show."""
    shown = [densities[0]]
    inch = math.log(densities[0] / densities[-1]) / size_in_inches(axes)[0]
    for density in densities[1:-1]:
        gap = math.log(min(shown[-1] / density, density / densities[-1]))
        if gap > 1.1 * width_of(as_percent(density)) * inch:
            shown.append(density)
    return [as_percent(density) if density in (*shown, densities[-1]) else "" for density in densities]


def size_in_inches(axes: Axes) -> tuple[float, float]:
    """The approximate width and height of axes; the layout, which comes last, decides."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def width_of(text: str) -> float:
    """The approximate width of a text, in inches, with some space around."""
    return 0.07 + 0.08 * len(text)


def as_percent(value: float) -> str:
    """A percentage in three digits."""
    return f"{value:.3g} %"


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, spread evenly; the first and the last are among them."""
    return [items[i] for i in sorted({round(i) for i in np.linspace(0, len(items) - 1, most)})]


def shades(kept: pd.DataFrame) -> list[tuple[str, Any]]:
    """The layers and their colours, dark to light, none of them an arm's."""
    places = np.linspace(0.15, 0.85, kept.shape[1])
    return [(str(layer), matplotlib.colormaps["cividis"](place)) for layer, place in zip(kept, places, strict=True)]


def over_seeds(networks: pd.DataFrame, measure: str, scale: float = 1) -> dict[tuple[str, str], Interval]:
    """A column of a table with one row per network, in units of 1 / scale."""
    groups = networks.groupby(["level", "arm"], sort=False)[measure]
    return {(level, arm): interval([scale * float(value) for value in values]) for (level, arm), values in groups}


def in_words(results: Results, found: Found, form: str, most: int = 6) -> str:
    """The means of each arm, in that format, at so many levels at most."""
    levels = spread(results.pruned, most)
    return "; ".join(
        f"{arm} " + ", ".join(f"{number(found[level, arm].mean, form)} ({level})" for level in shown)
        for arm in results.looks
        if (shown := [level for level in ["dense", *levels] if (level, arm) in found])
    )


def number(value: float, form: str) -> str:
    """A number in a format, with a proper minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def percent(mean: float, deviation: float = math.nan) -> str:
    """A fraction in percent, ± the standard deviation, which one seed does not have; nothing where there is none."""
    if math.isnan(mean):
        return ""
    return f"{100 * mean:.2f}" if math.isnan(deviation) else f"{100 * mean:.2f} ± {100 * deviation:.2f}"
