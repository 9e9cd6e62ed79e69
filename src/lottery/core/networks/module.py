"""Any torch.nn.Module as a family of networks: by autograd, on the rows of a stack."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from lottery.core.images import CHUNK, Images, Scaling, Split, as_square
from lottery.core.layout import Layout
from lottery.core.networks import own
from lottery.core.networks.convolutional import Convolutional
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

    def __init__(self, modules: list[nn.Module], gradients: Stack, images: Images, scaling: Scaling) -> None:
        self.gradients = gradients
        self._modules, self._images, self._scaling = modules, images, scaling

    def __call__(self, batch: Tensor, log_likelihoods: Tensor, noise: Sequence[int] = ()) -> None:
        """See `families.Learner`."""
        self.gradients.flat.zero_()
        devices = [batch.device] if batch.is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices, enabled=bool(noise)):
            for row, (module, indices) in enumerate(zip(self._modules, batch, strict=True)):
                if noise:
                    torch.manual_seed(noise[row])
                logits = module(self._scaling(self._images.pixels[indices]))
                losses = cross_entropy(logits, self._images.labels[indices], reduction="none")
                torch.autograd.backward([losses.mean()])
                log_likelihoods[row, :, 0] = -losses.detach()


class Lessons:
    """A split's images as they are."""

    def __init__(self, family: "Module", split: Split) -> None:
        self._family, self._split = family, split
        self.is_random = family.is_random
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
        return self._family.learner(networks, self._split.train, self._split.scaling)


class Module:
    """Networks that are modules of one layout; see `families.Family`.

    The module takes scaled pixels [N, D] and gives logits [N, C]. Its parameters and statistics are the pieces of the
    layout by name.
    """

    def __init__(self, layout: Layout) -> None:
        if layout.own is None:
            with torch.device("meta"):  # its own parameters are never used
                self._module: nn.Module = Convolutional(layout)
        else:
            self._module = own.Fitted(own.build(layout.own), layout.example)
        self._layout = layout
        self.prefix = "" if layout.own is None else "own."  # of the pieces' names in the module
        self.is_random = own.is_random(self._module)

    def __reduce__(self) -> tuple[Any, ...]:
        """Take along the text of a person's file, which workers on other machines lack."""
        return _again, (self._layout, self._layout.own and own.text_of(self._layout.own))

    def template(self, device: torch.device) -> nn.Module:
        """A copy of the module, whose own parameters have no meaning."""
        module = deepcopy(self._module)
        return module if self._layout.own is None else module.to(device)

    def bound(self, networks: Stack, gradients: Stack | None = None) -> list[nn.Module]:
        """R modules whose parameters are the networks' own memory; backward adds to ``gradients``, where given."""
        modules = []
        for row in range(len(networks)):
            module = self.template(networks.flat.device).eval()
            for piece in networks.layout.pieces:
                layer, _, name = piece.name.rpartition(".")
                owner, value = module.get_submodule(f"{self.prefix}{layer}".rstrip(".")), networks[piece.name][row]
                if piece.kind == "statistics":
                    value = value.data  # else autograd would take the weights beside it for changed
                else:
                    value = nn.Parameter(value)
                    value.grad = None if gradients is None else gradients[piece.name][row]
                setattr(owner, name, value)
            modules.append(module)
        return modules

    def learner(self, networks: Stack, images: Images, scaling: Scaling) -> Learner:
        """A learner of these networks on these images, on whose device they are."""
        gradients = Stack(torch.zeros_like(networks.flat), networks.layout)
        modules = [module.train() for module in self.bound(networks, gradients)]
        return Learner(modules, gradients, images, scaling)

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
        gradients = Stack.zeros(len(networks), networks.layout)
        # of a copy, because batch normalization changes its statistics
        modules = [own.without_dropout(module) for module in self.bound(networks.clone(), gradients)]
        Learner(modules, gradients, images, scaling)(chosen, torch.empty(*chosen.shape, 1))
        return gradients

    def flow(self, networks: Stack, masks: Masks) -> Stack:
        weights, gradients = (Stack.zeros(len(networks), networks.layout, torch.float64) for _ in range(2))
        for piece in networks.layout.weights:
            weights[piece.name].copy_(networks[piece.name].double().abs() * masks[piece.name])
        for piece in networks.layout.others:
            if piece.kind in ("normalization", "statistics"):  # as it begins: it scales by 1
                weights[piece.name].copy_(networks[piece.name])
        ones = torch.ones(1, networks.layout.inputs, dtype=torch.float64)
        with torch.enable_grad():
            for module in self.bound(weights, gradients):
                torch.autograd.backward([module.double()(ones).sum()])
        return Stack(weights.flat * gradients.flat, networks.layout)

    def connections(self, masks: Masks) -> tuple[Tensor, ...] | None:
        if masks.layout.own is not None:
            return None  # nobody knows which layer reads which
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
        first = masks.weights[0]
        if first.dim() == 3:
            return as_square(first.sum(dim=1).double().mean(dim=0))
        kernels = first[0].sum(dim=1).float()
        kernels = kernels.view(len(kernels), -1, kernels.shape[-1])  # [filters, height, width]
        rows = next(rows for rows in range(math.isqrt(len(kernels)), 0, -1) if len(kernels) % rows == 0)
        framed = nn.functional.pad(kernels, (0, 1, 0, 1), value=torch.nan)
        side_by_side = [torch.cat(list(row), dim=1) for row in torch.split(framed, len(kernels) // rows)]
        return torch.cat(side_by_side)[:-1, :-1]


def _again(layout: Layout, text: str | None) -> Module:
    if text is not None:
        own.learn(text)
    return Module(layout)
