"""A drawing as an image such as the networks learned from."""

import base64
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """How the images of a data set lie in their squares.

    MNIST's digits were scaled to fit 20x20 pixels, which made them grey at their edges, and placed by their centre of
    mass in 28x28 (LeCun et al. 1998, section III.A). Other data sets were made in other ways, so that the size and the
    place are measured. Those of MNIST's images are 20 and 14.
    """

    side: int  # pixels
    fit: float  # pixels; the longer side of the box around what is not 0, the median over the images
    centre: tuple[float, float]  # of mass: row and column, counted from 0, the means over the images

    @classmethod
    def of(cls, images: Pixels) -> "Frame":
        """Measure images [N, side, side]; empty ones are left out."""
        side, images = images.shape[1], images[images.any(axis=(1, 2))]
        rows, columns = (images.sum(axis=axis, dtype=np.float64) for axis in (2, 1))  # [N, side]
        spans = [side - (sums > 0).argmax(axis=1) - (sums[:, ::-1] > 0).argmax(axis=1) for sums in (rows, columns)]
        row, column = (float((sums @ np.arange(side) / sums.sum(axis=1)).mean()) for sums in (rows, columns))
        return cls(side, float(np.median(np.maximum(*spans))), (row, column))

    def __call__(self, ink: Pixels) -> Pixels | None:
        """An image [side, side] of a drawing [H, W], whose strokes are high values; None where nothing is drawn."""
        if not ink.any():
            return None
        sums = [ink.sum(axis=axis, dtype=np.float64) for axis in (1, 0)]  # of rows, of columns
        boxes = [(int(drawn[0]), int(drawn[-1]) + 1) for drawn in map(np.flatnonzero, sums)]
        step = max(high - low for low, high in boxes) / self.fit  # pixels of the drawing per pixel of the image
        shares = []
        for line, (low, high), centre in zip(sums, boxes, self.centre, strict=True):
            places = np.arange(len(line))
            start = line @ places / line.sum() + 0.5 - (centre + 0.5) * step
            start = min(
                max(start, high - self.side * step), low
            )  # where the centre of mass is far off, ink stays inside
            edges = start + step * np.arange(self.side + 1)[:, None]
            overlaps = np.minimum(edges[1:], places + 1) - np.maximum(edges[:-1], places)
            shares.append(overlaps.clip(min=0) / step)  # [side, H] or [side, W]
        rows, columns = shares
        # each pixel is the mean over its place in the drawing
        image: Pixels = np.rint(rows @ ink @ columns.T).astype(np.uint8)
        return image


def as_ink(drawing: str) -> Pixels:
    """The ink of a canvas, [H, W], which is the alpha channel of the PNG that this data address has."""
    content = base64.b64decode(drawing.partition(",")[2])
    return np.asarray(Image.open(BytesIO(content), formats=["png"]).getchannel("A"))


def as_address(pixels: NDArray[np.float64] | Pixels) -> str:
    """A picture, [H, W] or [H, W, 3] from 0 to 255, as a data address."""
    content = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
