"""Images, from which networks learn and on which they are measured, and the scaling that makes them inputs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 250  # images that are measured together; their activations (300 KB at 300 units) fit a core's cache


@dataclass(frozen=True)
class Images:
    """N images of D pixels and their classes."""

    pixels: Tensor  # uint8 [N, D]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)


def as_square(values: Tensor) -> Tensor:
    """Lay one value per pixel, [D], out as a square picture; the places that they do not fill are NaN."""
    side = math.ceil(math.sqrt(len(values)))
    picture = torch.full((side * side,), torch.nan, dtype=torch.float64)
    picture[: len(values)] = values
    return picture.view(side, side)


@dataclass(frozen=True)
class Scaling:
    """A network's input is (pixel - shift) / scale, in float32."""

    shift: float
    scale: float

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale uint8 pixels [..., D] to float32 of the same shape, into ``out`` where one is given."""
        inputs = torch.empty(pixels.shape, dtype=torch.float32) if out is None else out
        return inputs.copy_(pixels).sub_(self.shift).div_(self.scale)


@dataclass(frozen=True)
class Split:
    """The training images, the validation images that early stopping looks at, and the scaling of both.

    The test images are not here: only the ``evaluate`` stage reads them.
    """

    train: Images
    validation: Images
    scaling: Scaling
