"""Any torch.nn.Module as a family of networks: by autograd, on the rows of a stack."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from lottery.core.images import CHUNK, Images, Scaling, Split, as_square
from lottery.core.stack import Masks, Stack


class Examples:
    """N images to measure networks on, in their own order; they are scaled a chunk at a time."""

    def __init__(self, images: Images, scaling: Scaling) -> None:
        self.labels = images.labels  # int64 [N]
        self._images, self._scaling = images, scaling

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self) -> Iterator[Tensor]:
        """Scaled pixels, float32 [n, D] each."""
        return map(self._scaling, torch.split(self._images.pixels, CHUNK))


class Learner:
    """Gradients of R networks by autograd, one network after the other; see `families.Learner`."""

    def __init__(self, family: "Module", networks: Stack, images: Images, scaling: Scaling) -> None:
        self.gradients = Stack.zeros(len(networks), networks.layout)
        self._modules = family.bound(networks, self.gradients)
        self._images, self._scaling = images, scaling

    def __call__(self, batch: Tensor, log_likelihoods: Tensor) -> None:
        """See `families.Learner`."""
        self.gradients.flat.zero_()
        with torch.enable_grad():
            for module, indices, out in zip(self._modules, batch, log_likelihoods, strict=True):
                logits = module(self._scaling(self._images.pixels[indices]))
                losses = cross_entropy(logits, self._images.labels[indices], reduction="none")
                torch.autograd.backward([losses.mean()])
                out[:, 0] = -losses.detach()


class Lessons:
    """A split's images as they are."""

    def __init__(self, family: "Module", split: Split) -> None:
        self._family, self._split = family, split
        self.validation = Examples(split.validation, split.scaling)

    def __len__(self) -> int:
        return len(self._split.train)

    def arranged(self, networks: Stack) -> Stack:
        """The networks as they are."""
        return networks

    def restored(self, networks: Stack) -> Stack:
        """The networks as they are."""
        return networks

    def learner(self, networks: Stack, batch_size: int) -> Learner:
        """A learner of these networks, whose memory it reads whenever it is called."""
        return Learner(self._family, networks, self._split.train, self._split.scaling)


class Module:
    """Networks that are modules of one class; see `families.Family`.

    The module takes scaled pixels [N, D] and gives logits [N, C]. Its parameters are the pieces of the layout by name,
    it has no buffers, as normalization over batches would need, and nothing random, as dropout is.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        with torch.device("meta"):  # its own parameters are never used
            self._module = build()

    def bound(self, networks: Stack, gradients: Stack | None = None) -> list[nn.Module]:
        """R modules whose parameters are the networks' own memory; backward adds to ``gradients``, where given."""
        modules = []
        for row in range(len(networks)):
            module = deepcopy(self._module)
            for piece in networks.layout.pieces:
                layer, _, name = piece.name.rpartition(".")
                parameter = nn.Parameter(networks[piece.name][row])
                parameter.grad = None if gradients is None else gradients[piece.name][row]
                setattr(module.get_submodule(layer), name, parameter)
            modules.append(module)
        return modules

    def lessons(self, split: Split) -> Lessons:
        return Lessons(self, split)

    def examples(self, images: Images, scaling: Scaling) -> Examples:
        return Examples(images, scaling)

    def log_probabilities(self, networks: Stack, examples: Examples) -> Tensor:
        with torch.no_grad():
            return torch.stack(
                [
                    torch.cat([log_softmax(module(chunk), dim=1) for chunk in examples.chunks()])
                    for module in self.bound(networks)
                ]
            )

    def gradients(self, networks: Stack, images: Images, scaling: Scaling, chosen: Tensor) -> Stack:
        learner = Learner(self, networks, images, scaling)
        learner(chosen, torch.empty(*chosen.shape, 1))
        return learner.gradients

    def flow(self, networks: Stack, masks: Masks) -> Stack:
        weights, gradients = (Stack.zeros(len(networks), networks.layout, torch.float64) for _ in range(2))
        for piece in networks.layout.weights:
            weights[piece.name].copy_(networks[piece.name].double().abs() * masks[piece.name])
        ones = torch.ones(1, networks.layout.inputs, dtype=torch.float64)
        with torch.enable_grad():
            for module in self.bound(weights, gradients):
                torch.autograd.backward([module(ones).sum()])
        return Stack(weights.flat * gradients.flat, networks.layout)

    def connections(self, masks: Masks) -> tuple[Tensor, ...]:
        # a mask is [R, out, in, ...], and a unit before may have several places, as a channel has 4x4 pixels
        kept, units = [], masks.weights[0].shape[2]
        for mask in masks.weights:
            kept.append(mask.flatten(2).view(len(masks), mask.shape[1], units, -1).sum(dim=3).mT)
            units = mask.shape[1]
        return tuple(kept)

    def module(self, network: Stack) -> nn.Module:
        return self.bound(network.rows([0]))[0]

    def module_masks(self, masks: Masks) -> list[Tensor]:
        return [mask[0].clone() for mask in masks.weights]

    def picture(self, masks: Masks) -> Tensor:
        """The kernels of the first network, side by side with a gap; of a dense layer, one value per pixel."""
        if masks.weights[0].dim() == 3:
            return as_square(masks.weights[0].sum(dim=1).double().mean(dim=0))
        kernels = masks.weights[0][0].sum(dim=1).float()  # [filters, height, width]
        rows = next(rows for rows in range(math.isqrt(len(kernels)), 0, -1) if len(kernels) % rows == 0)
        framed = nn.functional.pad(kernels, (0, 1, 0, 1), value=torch.nan)
        side_by_side = [torch.cat(list(row), dim=1) for row in torch.split(framed, len(kernels) // rows)]
        return torch.cat(side_by_side)[:-1, :-1]
