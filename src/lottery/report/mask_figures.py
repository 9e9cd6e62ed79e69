"""Figures of masks: what they connect, how far seeds agree, what they keep; and a mask's picture in MLflow."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from lottery.core.arms import ARMS
from lottery.core.families import family
from lottery.core.stack import Masks
from lottery.report import drawing
from lottery.report.drawing import GREY, LOOKS, PATHS, WIDTH, Results

if TYPE_CHECKING:  # most stages only save mask pictures, which need none of these
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KERNELS = "place of a kernel"  # `Layout.place` of convolutions
PICTURE = 280  # pixels; the MLflow UI shows a smaller image as a stamp
BAR = 10  # pixels; the height of the bar of colours below a picture
CONNECTIONS = "viridis"  # the colour map of connections kept
WIDE = 5.0  # points; lines of chance, of which masks that agree by chance alone lie in the middle
CHANCES = (("chance", "#bbbbbb", "chance"), ("chance_by_input", "#F0D090", "chance given each pixel's connections"))
NO_TICKETS = "No level of this pipeline has the arm ticket."
SHARED = [name for name, arm in ARMS.items() if name != "ticket" and not arm.own_mask]


# --- mask pictures ---------------------------------------------------------------------------------------------------


def save_mask_picture(masks: Masks, path: Path) -> None:
    """Draw how many first-layer connections a network keeps at each place, from none to the most.

    A place is a square block, and the picture at least 280 pixels wide, with a scale below.
    """
    counts = family(masks.layout).picture(masks).double().numpy()
    most = max(int(np.nanmax(counts)), 1)
    colors = matplotlib.colormaps[CONNECTIONS]
    block = math.ceil(PICTURE / counts.shape[1])
    height, width = (block * length for length in counts.shape)
    blocks = Image.fromarray(colors(counts / most, bytes=True).repeat(block, axis=0).repeat(block, axis=1))
    bar = Image.fromarray(colors(np.linspace(0, 1, width), bytes=True)[None].repeat(BAR, axis=0))
    picture = Image.new("RGBA", (width, height + 4 * BAR))
    picture.paste(blocks, (0, 0))
    picture.paste(bar, (0, height + BAR))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for text, place, anchor in (("0", 0, "la"), ("connections kept", width // 2, "ma"), (str(most), width, "ra")):
        draw.text((place, height + 2.4 * BAR), text, "#808080", font, anchor)
    picture.save(path, format="png")


# --- figures ---------------------------------------------------------------------------------------------------------


def mask_inputs(results: Results) -> Figure:
    """For each level, how many first-layer connections each pixel or place of a kernel keeps, each on its own scale."""
    rows = math.ceil(len(results.pictures) / 5)
    columns = math.ceil(len(results.pictures) / rows)
    side, gap = WIDTH / max(columns, 3) - 0.25, 0.85  # inches
    each = results.layout.place
    over = f", mean over {results.seeds} seeds" if results.seeds > 1 else ""
    over = over if each != KERNELS else ", first seed"  # whose kernels are not those of other seeds
    figure = drawing.new_figure(0.35 + rows * (side + gap), f"First-layer connections that each {each} keeps{over}")
    figure.set_layout_engine("none")
    for place, (level, picture) in enumerate(results.pictures.items()):
        row, column = divmod(place, columns)
        x, y = 0.1 + column * (side + 0.25), 0.65 + row * (side + gap)
        most = np.nanmax(picture)
        axes = drawing.axes_at(figure, x, y, side, side)
        image = axes.imshow(picture, cmap=CONNECTIONS, vmin=0, vmax=max(most, 1), interpolation="nearest")
        axes.set_title(results.label(level, ", "), weight="normal", size="medium")
        axes.set_axis_off()
        bar = figure.colorbar(
            image, cax=drawing.axes_at(figure, x, y + side + 0.07, side, 0.08), orientation="horizontal"
        )
        bar.set_ticks([0, most], labels=["0", f"{most:.0f}"])
        none, all_of_them = bar.ax.get_xticklabels()  # whose neighbours are other panels' labels
        none.set_horizontalalignment("left")
        all_of_them.set_horizontalalignment("right")
        bar.set_label("connections", size="small", labelpad=-6)  # between the two numbers
        bar.outline.set_visible(False)
    shown = {level: results.pictures[level] for level in drawing.spread(list(results.pictures), 8)}
    if each == KERNELS:
        said = "; ".join(f"{level} {np.nanmean(picture):.2f}" for level, picture in shown.items())
        return drawing.describe(figure, f"Connections kept per {each}, the mean: {said}.")
    said = "; ".join(
        f"{level} {np.nanmin(picture):.0f} to {np.nanmax(picture):.0f}" for level, picture in shown.items()
    )
    return drawing.describe(figure, f"Connections of the {each} with the fewest and of that with the most: {said}.")


def mask_structure(results: Results) -> Figure:
    """How many inputs and hidden units have lost their connections, and how much of what is kept is on no path."""
    counts = [column for column in results.networks if column.startswith("connected_")]
    if not counts:
        figure = drawing.new_figure(3.0, "What pruning cuts off")
        return _with_words(figure, "Which layer reads which is not known of a network of one's own.")
    units = ("channels" if layer.startswith("convolution") else "units" for layer in results.layers[:-1])
    inputs = "inputs" if results.layout.place != KERNELS else "channels of the images"
    names = [inputs, *(f"{kind} of {layer}" for kind, layer in zip(units, results.layers[:-1], strict=True))]
    rows = math.ceil((len(counts) + 1) / 2)
    figure = drawing.new_figure(0.9 + 2.6 * rows, "What pruning cuts off")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    said = []
    for axes, column, name in zip(panels, counts, names, strict=False):
        connected = results.networks[column]
        every = connected[results.networks["level"] == "dense"].max()
        cut_off = drawing.over_seeds(results.networks.assign(cut_off=every - connected), "cut_off")
        drawing.draw_lines(axes, results, cut_off, limits=(0, max(1, drawing.limits_of(cut_off)[1])), dots=False)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(f"{name[0].upper()}{name[1:]} without a connection", weight="normal", size="medium")
        axes.set_ylabel(f"of {every:.0f}")
        said.append(f"Of {every:.0f} {name} without a connection: {drawing.in_words(results, cut_off, '.1f', most=2)}.")
    last = panels[len(counts)]
    off_path = 1 - results.networks["effective_density"] / results.networks["density"]
    share = drawing.over_seeds(results.networks.assign(off_path=off_path.clip(lower=0)), "off_path", scale=100)
    drawing.draw_lines(last, results, share, limits=(0, max(1, drawing.limits_of(share)[1])), dots=False)
    last.yaxis.set_major_formatter("{x:g} %")
    last.set_title("Kept weights on no path", weight="normal", size="medium")
    last.set_ylabel("of the weights kept")
    for axes in panels[len(counts) + 1 :]:
        axes.set_visible(False)
    shared = [arm for arm in results.looks if arm in SHARED]
    under = f"Under ticket, with the same mask: {', '.join(shared)}." if shared and "ticket" in results.looks else ""
    drawing.add_legend(figure, results, under, drawing.paths_in_words(results))
    said.append(f"Percent of the weights kept on no path: {drawing.in_words(results, share, '.1f', most=2)}.")
    return drawing.describe(figure, *said)


def mask_overlap(results: Results) -> Figure:
    """The overlap of the tickets' masks over seeds in each layer, beside what chance would give at the same density."""
    from matplotlib.lines import Line2D

    names = dict(zip([*map(str, range(len(results.layers))), "all"], [*results.layers, "all layers"], strict=True))
    rows = math.ceil(len(names) / 2)
    figure = drawing.new_figure(0.9 + 2.6 * rows, "Overlap of the tickets' masks between seeds")
    if results.seeds == 1:
        return _with_words(figure, "Overlap is between the masks of different seeds, and this pipeline has one seed.")
    tickets = results.structure[results.structure["arm"].isin(["dense", "ticket"])]
    if "ticket" not in set(tickets["arm"]):
        return _with_words(figure, NO_TICKETS)
    panels = list(figure.subplots(rows, 2, sharey=True, squeeze=False).flat)
    for axes, (layer, name) in zip(panels, names.items(), strict=False):
        _draw_overlap(axes, results, tickets[tickets["layer"] == layer].set_index("level"))
        axes.set(yscale="log", ylabel="overlap, log scale")
        drawing.label_log_axis(axes, "{x:g} %")
        axes.set_title(name, weight="normal", size="medium")
    drawing.label_outer(panels, len(names), 2)
    ticket = LOOKS["ticket"]
    key = [
        Line2D([], [], color=ticket.color, marker=ticket.marker, label="ticket"),
        *(
            Line2D([], [], color=color, linewidth=WIDE, label=label)
            for column, color, label in CHANCES
            if tickets[column].notna().any()
        ),
    ]
    what = "Of the connections that either of two seeds keeps, those that both keep, mean over pairs of"
    drawing.add_key(figure, key, f"{what} {results.seeds} seeds.", drawing.paths_in_words(results))
    together = tickets[tickets["layer"] == "all"].set_index("level")[["overlap", "chance"]]
    said = "; ".join(
        f"{level} {drawing.as_percent(100 * row.overlap)} ({drawing.as_percent(100 * row.chance)})"
        for level, row in together.loc[drawing.spread(list(together.index), 8)].iterrows()
    )
    return drawing.describe(figure, f"Overlap over all layers, and by chance: {said}.")


def _draw_overlap(axes: Axes, results: Results, layer: pd.DataFrame) -> None:
    """Draw a layer's rows of reports/tables/structure.csv, one per level, against density."""
    percent, ticket = pd.Series(results.percent), LOOKS["ticket"]
    for line, style in zip(results.lines, cycle(PATHS.values()), strict=False):
        path = [level for level in line if level in layer.index]
        for column, color, _ in CHANCES:
            axes.plot(percent[path], 100 * layer[column][path], color=color, linewidth=WIDE, zorder=1)
        axes.plot(percent[path], 100 * layer["overlap"][path], style, marker=ticket.marker, color=ticket.color)
    drawing.set_density_axis(axes, results)


def kept_weights(results: Results) -> Figure:
    """The distribution of the weights that tickets keep, before and after training, for up to six levels."""
    from matplotlib.patches import Patch

    levels = drawing.spread(list(results.kept_weights["level"].unique()), 6)
    figure = drawing.new_figure(1.2 + 1.15 * len(levels), "Weights that tickets keep, before and after training")
    if levels == ["dense"]:
        return _with_words(figure, NO_TICKETS)
    panels = figure.subplots(len(levels), len(results.layers), sharex="col", squeeze=False)
    bins = results.kept_weights.set_index(["level", "layer"])
    for row, level in zip(panels, levels, strict=True):
        for layer, axes in enumerate(row):
            _draw_distribution(axes, bins.loc[[(level, layer)]])
        row[0].set_ylabel(results.label(level, "\n"), rotation=0, ha="right", va="center")
    for layer, (name, top, bottom) in enumerate(zip(results.layers, panels[0], panels[-1], strict=True)):
        top.set_title(name, weight="normal", size="medium")
        bottom.set_xlabel("weight")
        bottom.xaxis.set_major_locator(MaxNLocator(5 if len(results.layers) < 4 else 3, symmetric=True))
        reach = max(_reach(bins.loc[[(level, layer)]]) for level in levels)
        bottom.set_xlim(-reach, reach)
    key = [
        Patch(color=GREY, alpha=0.35, label="before training"),
        Patch(facecolor="none", edgecolor=LOOKS["ticket"].color, linewidth=1.4, label="after training"),
    ]
    seeds = f"All {results.seeds} seeds together. " if results.seeds > 1 else ""
    drawing.add_key(figure, key, f"{seeds}Each panel has its own height; the few weights further out are not shown.")
    said = "; ".join(f"{level} {_deviations(bins.loc[[(level, 0)]])}" for level in levels)
    return drawing.describe(figure, f"Standard deviation in {results.layers[0]} before and after training: {said}.")


def _draw_distribution(axes: Axes, bins: pd.DataFrame) -> None:
    """Draw a level's rows of reports/tables/kept_weights.csv for one layer."""
    edges = [*bins["low"], bins["high"].iloc[-1]]
    axes.stairs(bins["start"], edges, fill=True, color=GREY, alpha=0.35)
    axes.stairs(bins["end"], edges, color=LOOKS["ticket"].color, linewidth=1.4)
    axes.set_yticks([])
    axes.grid(visible=False)


def _deviations(bins: pd.DataFrame) -> str:
    """The standard deviations of a level's weights in one layer, at the start and at the end."""
    middle = (bins["low"] + bins["high"]) / 2
    if not bins["start"].any():
        return "none kept"
    start, end = (math.sqrt(np.cov(middle, fweights=bins[when], ddof=0)) for when in ("start", "end"))
    return f"{start:.3f} and {end:.3f}"


def _reach(bins: pd.DataFrame) -> float:
    """The distance from 0 of the furthest bin that holds at least two weights in a thousand."""
    counts = bins[["start", "end"]]
    shown = bins[(counts >= 0.002 * counts.sum()).any(axis=1)]
    return float(max(shown["high"].max(), -shown["low"].min()))


def _with_words(figure: Figure, words: str) -> Figure:
    """A figure that says why it shows nothing."""
    figure.set_size_inches(WIDTH, 1.2)
    figure.text(0.012, 0.4, words, ha="left")
    return drawing.describe(figure, words)
