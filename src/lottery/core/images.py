"""Images, from which networks learn and on which they are measured, and the scaling that makes them inputs."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

CHUNK = 250  # images that are measured together; their activations (300 KB at 300 units) fit a core's cache


@dataclass(frozen=True)
class Images:
    """N images of D pixels and their classes; D values of a colour image, or the D features of a row of a table."""

    pixels: Tensor  # uint8 [N, D], rows, columns and channels in this order; float32 of features
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
    """A network's input is (pixel - shift) / scale, in float32, by channels.

    Pixel i of an image is of channel i modulo C: grey images have one channel, and each feature of a table is its own.
    """

    shift: tuple[float, ...]  # [C]
    scale: tuple[float, ...]  # [C]

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale pixels [..., D] to float32 of the same shape, into ``out`` where one is given."""
        inputs = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device) if out is None else out
        inputs.copy_(pixels)
        if len(self.shift) == 1:
            return inputs.sub_(self.shift[0]).div_(self.scale[0])
        by_channel = inputs.view(*inputs.shape[:-1], -1, len(self.shift))
        shift, scale = _on(inputs.device, self)
        by_channel.sub_(shift).div_(scale)
        return inputs


@lru_cache(maxsize=8)
def _on(device: torch.device, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """A scaling's numbers on a device, for which each copy would be waited for."""
    return torch.tensor(scaling.shift, device=device), torch.tensor(scaling.scale, device=device)


@dataclass(frozen=True)
class Split:
    """The training images, the validation images that early stopping looks at, and the scaling of both.

    The test images are not here: only the ``evaluate`` stage reads them.
    """

    train: Images
    validation: Images
    scaling: Scaling
