"""Families of networks: what each has to offer for everything else to work with stacks of it.

Adding a published convolutional network is its entry in `layout.PUBLISHED` and its name in `params.NetworkName`;
anything else that torch can express is a person's own module, and needs no change here.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import Layout
from lottery.core.networks.module import Module
from lottery.core.networks.perceptron import Perceptron
from lottery.core.stack import Masks, Stack


class Learner(Protocol):
    """Losses and gradients of R networks on batches of B images; memory for gradients is allocated once."""

    gradients: Stack

    def __call__(self, batch: Tensor, log_likelihoods: Tensor, noise: Sequence[int] = ()) -> None:
        """Set ``gradients`` to those of each network's mean cross-entropy over its own batch.

        ``batch`` int64 [R, B] says which training images; log_likelihoods float32 [R, B, 1] receives each image's
        log-likelihood, the negative of its loss. ``noise`` [R] seeds what the networks draw, where they draw.
        """


class Examples(Protocol):
    """N images to measure networks on, in the order that suits the family."""

    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        """The number of images."""


class Lessons(Protocol):
    """A split's images as a family's networks learn from them, which may want the networks arranged in another way."""

    validation: Any  # Examples for networks that are arranged
    is_random: bool  # whether a learner draws numbers, as dropout does

    def __len__(self) -> int:
        """The number of training images."""

    def arranged(self, networks: Stack) -> Stack:
        """A copy of networks, or of their masks, that learns from these images."""

    def restored(self, networks: Stack) -> Stack:
        """A copy of arranged networks as they were before."""

    def learner(self, networks: Stack, batch_size: int) -> Learner:
        """A learner of these arranged networks, whose memory it reads whenever it is called."""


class Family(Protocol):
    """The abilities of R networks of one family; no result depends on what a network is stacked with."""

    def lessons(self, split: Split) -> Lessons:
        """Arrange a split's images for networks to learn from."""

    def examples(self, images: Images, scaling: Scaling) -> Any:
        """`Examples` for networks that are not arranged."""

    def log_probabilities(self, networks: Stack, examples: Any) -> Tensor:
        """Logarithms of the class probabilities [R, N, C] for the N `Examples` in their order."""

    def gradients(self, networks: Stack, images: Images, scaling: Scaling, chosen: Tensor) -> Stack:
        """Gradients of each network's mean cross-entropy on images of its own, whose indices are ``chosen`` [R, B]."""

    def flow(self, networks: Stack, masks: Masks) -> Stack:
        """|w| dR/d|w| of the kept weights, float64; for R see `pruning.synflow`."""

    def connections(self, masks: Masks) -> tuple[Tensor, ...] | None:
        """Count the weights kept between any two units, [R, in, out] per layer; bool where 1 is the most.

        A layer's ``out`` are the units that are the next layer's ``in``. None where that is not known.
        """

    def picture(self, masks: Masks) -> Tensor:
        """Count the first-layer connections that each place keeps, as a picture [H, W]; NaN where there is no place.

        The mean over the networks where their places are the same, otherwise those of the first network.
        """

    def module(self, network: Stack) -> nn.Module:
        """The first network as a torch module that takes scaled pixels [N, D] and gives logits [N, C]."""

    def module_masks(self, masks: Masks) -> list[Tensor]:
        """The first network's masks, each in the shape of its weight in `module`."""


_PERCEPTRON = Perceptron()


def family(layout: Layout) -> Family:
    """The family of networks of this layout. Raises LotteryError where a person's own module is another by now."""
    return _PERCEPTRON if layout.family == "perceptron" else _of_modules(layout)


@lru_cache(maxsize=8)
def _of_modules(layout: Layout) -> Family:
    return Module(layout)


def score(networks: Stack, examples: Examples) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of each network, both float64 [R]."""
    return mean_scores(family(networks.layout).log_probabilities(networks, examples), examples.labels)


def mean_scores(logs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy, both float64 [R], of log-probabilities [R, N, C] for labels [N]."""
    likelihoods = logs.gather(2, labels.expand(len(logs), -1)[..., None])
    loss = torch.stack([-network.double().mean() for network in likelihoods])
    accuracy = (logs.argmax(dim=2) == labels).double().mean(dim=1)
    return loss, accuracy


def accuracy(networks: Stack, examples: Examples, threads: int) -> Tensor:
    """Accuracy of each network, float64 [R], one network at a time on each thread."""
    with torch.no_grad(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = [networks.rows(slice(row, row + 1)) for row in range(len(networks))]
        return torch.cat([accuracy for _, accuracy in pool.map(lambda row: score(row, examples), rows)])
