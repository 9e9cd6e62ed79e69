"""What networks learn from and are measured on: images, and the scaling that makes them inputs."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

CHUNK = 250  # images that are measured together; their activations (300 KB at 300 units) fit a core's cache


@dataclass(frozen=True)
class Images:
    """N images of D pixels and their classes.

    A pixel of an image is blank where it is 0, as four in five of MNIST's are, and used elsewhere. All blank pixels
    are the same input, so that products need not go over them one by one.
    """

    pixels: Tensor  # uint8 [N, D]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def by_use(self) -> Tensor:
        """The pixels by how many images use them, int64 [D]; most images that are `rearranged` so end early."""
        uses = np.count_nonzero(self.pixels.numpy(), axis=0)  # five times as fast as torch's
        return torch.from_numpy(uses).argsort(descending=True, stable=True)

    def rearranged(self, order: Tensor) -> "Images":
        """The same images, pixel i being the one that was ``order[i]``."""
        return Images(torch.from_numpy(self.pixels.numpy().take(order.numpy(), axis=1)), self.labels)

    @cached_property
    def ends(self) -> Tensor:
        """How many of its first pixels each image needs, those after them being blank, int64 [N]."""
        used = self.pixels.numpy() != 0
        blank_at_the_end = used[:, ::-1].argmax(axis=1)
        return torch.from_numpy(np.where(used.any(axis=1), used.shape[1] - blank_at_the_end, 0))


@dataclass(frozen=True)
class Scaling:
    """A network's input is (pixel - shift) / scale, in float32."""

    shift: float
    scale: float

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale uint8 pixels [..., D] to float32 of the same shape, into ``out`` where one is given."""
        inputs = torch.empty(pixels.shape, dtype=torch.float32) if out is None else out
        return inputs.copy_(pixels).sub_(self.shift).div_(self.scale)

    @property
    def blank(self) -> float:
        """The input that a blank pixel is."""
        return float(self(torch.zeros(1, dtype=torch.uint8)))


@dataclass(frozen=True)
class Split:
    """The training images, the validation images that early stopping looks at, and the scaling of both.

    The test images are not here: only the ``evaluate`` stage reads them.
    """

    train: Images
    validation: Images
    scaling: Scaling

    def rearranged(self, order: Tensor) -> "Split":
        """The same images, pixel i being the one that was ``order[i]``."""
        return Split(self.train.rearranged(order), self.validation.rearranged(order), self.scaling)


class Examples:
    """N images of D pixels to measure networks on, arranged so that they need few multiplications.

    Pixels come by how many images use them, images by the last pixel that they use, and a chunk of images ends with
    the last that any of them uses. What the others add to a unit is the same for the whole chunk: the blank input
    times the sum of their weights.
    """

    def __init__(self, images: Images, scaling: Scaling) -> None:
        self.pixels = images.by_use()  # int64 [D], where each pixel was in the image
        images = images.rearranged(self.pixels)
        order = images.ends.argsort(stable=True)
        self.labels = images.labels[order]  # int64 [N]
        self.blank = scaling.blank
        # float32 [n, the chunk's last pixel] each
        self.chunks = [scaling(images.pixels[chunk, : images.ends[chunk[-1]]]) for chunk in torch.split(order, CHUNK)]

    def __len__(self) -> int:
        return len(self.labels)
