"""What networks learn from and are measured on: images, and the scaling that makes them inputs."""

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


class Examples:
    """N images of D pixels to measure networks on, arranged so that they need few multiplications.

    A pixel is blank where it is 0, as four in five of MNIST's are, and all blank pixels are the same input. Pixels
    come by how many images use them, images by the last pixel that they use, and a chunk of images ends with the last
    that any of them uses. What the others add to a unit is then the same for the whole chunk: the blank input times
    the sum of their weights.
    """

    def __init__(self, images: Images, scaling: Scaling) -> None:
        used = images.pixels != 0
        self.pixels = used.sum(dim=0).argsort(descending=True, stable=True)  # int64 [D], where each was in the image
        places = torch.arange(1, len(self.pixels) + 1, dtype=torch.int16)
        ends = used[:, self.pixels].mul(places).amax(dim=1)
        order = ends.argsort(stable=True)
        self.labels = images.labels[order]  # int64 [N]
        self.blank = float(scaling(torch.zeros(1, dtype=torch.uint8)))
        # float32 [n, its last pixel] each
        self.chunks = [
            scaling(images.pixels[chunk][:, self.pixels[: ends[chunk[-1]]]]) for chunk in torch.split(order, CHUNK)
        ]

    def __len__(self) -> int:
        return len(self.labels)
