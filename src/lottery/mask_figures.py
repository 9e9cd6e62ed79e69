"""Figures of masks: which connections they keep, and the picture of a network's mask in MLflow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lottery.drawing import WIDTH, Results, axes_at, new_figure

if TYPE_CHECKING:  # most stages only save mask pictures, which need none of these
    from matplotlib.figure import Figure

PICTURE = 280  # pixels; the MLflow UI shows a smaller image as a stamp
CONNECTIONS = "viridis"  # the colour map of connections kept


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


def mask_inputs(results: Results) -> Figure:
    """For each level, how many first-layer connections each pixel keeps, mean over seeds; each has its own scale."""
    rows = math.ceil(len(results.connections) / 5)
    columns = math.ceil(len(results.connections) / rows)
    side, gap = WIDTH / max(columns, 3) - 0.25, 0.75  # inches
    over = f", mean over {results.seeds} seeds" if results.seeds > 1 else ""
    figure = new_figure(0.35 + rows * (side + gap), f"First-layer connections that each pixel keeps{over}")
    figure.set_layout_engine("none")
    for place, (level, connections) in enumerate(results.connections.items()):
        row, column = divmod(place, columns)
        x, y = 0.1 + column * (side + 0.25), 0.65 + row * (side + gap)
        picture = _square(connections)
        most = np.nanmax(picture)
        axes = axes_at(figure, x, y, side, side)
        image = axes.imshow(picture, cmap=CONNECTIONS, vmin=0, vmax=max(most, 1), interpolation="nearest")
        axes.set_title(results.label(level, ", "), weight="normal", size="medium")
        axes.set_axis_off()
        bar = figure.colorbar(image, cax=axes_at(figure, x, y + side + 0.07, side, 0.08), orientation="horizontal")
        bar.set_ticks([0, most], labels=["0", f"{most:.0f}"])
        bar.outline.set_visible(False)
    return figure
