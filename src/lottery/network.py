"""R multilayer perceptrons as one: initialize, forward, loss and gradients.

All tensors lead with the dimension R. The sizes (D, ..., C) of a network are its inputs, hidden layers and classes;
layer l maps sizes[l] inputs to sizes[l + 1] outputs, with a ReLU between layers and cross-entropy at the end.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Generator, Tensor

Initialization = Literal["glorot-normal", "kaiming-uniform"]
Masks = tuple[Tensor, ...]  # a layer each: bool [R, in, out], True = kept

CACHE_LINE = 16  # float32 values
EVALUATION_CHUNK = 250  # images; a chunk's activations (300 KB at 300 units) fit a core's cache


def aligned(networks: int, *shape: int) -> Tensor:
    """Zeros [networks, *shape] in which each network begins on a cache line.

    The matrix library may add in another order where the memory is aligned otherwise, and a network's bits
    must not depend on its place in the stack.
    """
    size = math.prod(shape)
    padded = torch.zeros(networks, -(-size // CACHE_LINE) * CACHE_LINE)
    return padded[:, :size].view(networks, *shape)


@dataclass(frozen=True)
class Parameters:
    """The weights and biases of R networks, a row of ``flat`` each.

    One buffer, because an optimizer that updates one long tensor beats one that updates many. Each piece begins on
    a cache line; the padding between pieces is zero and stays zero.
    """

    flat: Tensor  # float32 [R, P]
    sizes: tuple[int, ...]

    @classmethod
    def zeros(cls, networks: int, sizes: Sequence[int]) -> Self:
        """R networks of these sizes with all weights and biases 0."""
        pieces = [n * m for n, m in pairwise(sizes)] + list(sizes[1:])
        padded = sum(-(-piece // CACHE_LINE) * CACHE_LINE for piece in pieces)
        return cls(torch.zeros(networks, padded), tuple(sizes))

    @cached_property
    def _views(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        layers = list(pairwise(self.sizes))
        shapes = layers + [(1, outputs) for _, outputs in layers]
        views, start = [], 0
        for n, m in shapes:
            views.append(self.flat[:, start : start + n * m].view(-1, n, m))
            start += -(-n * m // CACHE_LINE) * CACHE_LINE
        return tuple(views[: len(layers)]), tuple(views[len(layers) :])

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """A view per layer, [R, in, out]."""
        return self._views[0]

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """A view per layer, [R, 1, out]."""
        return self._views[1]

    def __len__(self) -> int:
        return len(self.flat)

    def rows(self, rows: slice | Sequence[int]) -> "Parameters":
        """Those networks: views of a slice, copies of a list."""
        return Parameters(self.flat[rows], self.sizes)

    def clone(self) -> "Parameters":
        return Parameters(self.flat.clone(), self.sizes)

    def masked(self, masks: Masks) -> "Parameters":
        """A copy whose pruned weights are 0; biases are never pruned."""
        copy = self.clone()
        for weight, mask in zip(copy.weights, masks, strict=True):
            weight.masked_fill_(~mask, 0.0)
        return copy


def stack(parameters: Sequence[Parameters]) -> Parameters:
    """All their networks in one stack, in this order."""
    return Parameters(torch.cat([p.flat for p in parameters]), parameters[0].sizes)


def initialize(sizes: Sequence[int], scheme: Initialization, generators: Sequence[Generator]) -> Parameters:
    """Fresh networks, one a generator.

    ``glorot-normal`` draws weights from N(0, 2 / (in + out)) and starts biases at 0 (Glorot & Bengio 2010; Frankle &
    Carbin 2019, figure 2). ``kaiming-uniform`` draws both from U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default.
    """
    parameters = Parameters.zeros(len(generators), sizes)
    for network, generator in enumerate(generators):
        for weight, bias in zip(parameters.weights, parameters.biases, strict=True):
            inputs, outputs = weight.shape[1:]
            if scheme == "glorot-normal":
                weight[network].normal_(0, math.sqrt(2 / (inputs + outputs)), generator=generator)
            else:
                bound = 1 / math.sqrt(inputs)
                weight[network].uniform_(-bound, bound, generator=generator)
                bias[network].uniform_(-bound, bound, generator=generator)
    return parameters


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left @ right for each network to ``out``, in one call a network.

    MKL picks its kernel by the size of the stack too, so one call for all would let a network's last bits depend
    on what it is stacked with. ``bmm`` of one matrix, because on one thread it reached 90 GFLOP/s where ``mm``
    reached 70.
    """
    for r in range(len(out)):
        torch.bmm(left[r : r + 1], right[r : r + 1], out=out[r : r + 1])


class Gradients:
    """Loss and gradients of R networks on batches of B images, by a hand-written backward pass.

    All memory is allocated here, once. Against autograd this saves the graph and the page faults of fresh tensors.
    """

    def __init__(self, parameters: Parameters, batch_size: int) -> None:
        self.parameters = parameters
        self.gradients = Parameters.zeros(len(parameters), parameters.sizes)
        self._activations = [aligned(len(parameters), batch_size, size) for size in parameters.sizes[1:]]
        self._deltas = [aligned(len(parameters), batch_size, size) for size in parameters.sizes[1:]]
        self._minus_one = torch.full((len(parameters), batch_size, 1), -1.0)

    def __call__(self, inputs: Tensor, labels: Tensor, log_likelihoods: Tensor) -> None:
        """Set ``gradients`` to those of each network's mean cross-entropy over its batch.

        inputs float32 [R, B, D]; labels int64 [R, B, 1]; log_likelihoods float32 [R, B, 1] receives each image's
        log-likelihood, the negative of its loss.
        """
        weights, biases = self.parameters.weights, self.parameters.biases
        activations, deltas = self._activations, self._deltas
        last = len(weights) - 1

        below = inputs
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            _product(below, weight, out=activations[layer])
            activations[layer].add_(bias)
            if layer < last:
                activations[layer].relu_()
            below = activations[layer]

        delta = deltas[last]
        torch.log_softmax(activations[last], dim=2, out=delta)
        torch.gather(delta, 2, labels, out=log_likelihoods)
        delta.exp_().scatter_add_(2, labels, self._minus_one).div_(labels.shape[1])

        for layer in range(last, -1, -1):
            below = activations[layer - 1] if layer else inputs
            _product(below.mT, deltas[layer], out=self.gradients.weights[layer])
            torch.sum(deltas[layer], dim=1, keepdim=True, out=self.gradients.biases[layer])
            if layer:
                delta = deltas[layer - 1]
                _product(deltas[layer], weights[layer].mT, out=delta)
                # the derivative of the ReLU, in place, without a tensor for (below > 0)
                torch.ops.aten.threshold_backward.grad_input(delta, below, 0, grad_input=delta)


def log_probabilities(parameters: Parameters, inputs: Tensor) -> Tensor:
    """Logarithms of the class probabilities [R, N, C] of all networks on the same float32 inputs [N, D]."""
    result = torch.empty(len(parameters), len(inputs), parameters.sizes[-1])
    for start in range(0, len(inputs), EVALUATION_CHUNK):
        chunk = inputs[start : start + EVALUATION_CHUNK]
        for r in range(len(parameters)):
            values = chunk
            for layer, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
                if layer:
                    values = values.relu_()
                values = torch.bmm(values[None], weight[r : r + 1])[0].add_(bias[r])
            torch.log_softmax(values, dim=1, out=result[r, start : start + len(chunk)])
    return result


def score(parameters: Parameters, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of each network on inputs [N, D] and labels [N], both float64 [R]."""
    logs = log_probabilities(parameters, inputs)
    likelihoods = logs.gather(2, labels.expand(len(parameters), -1)[..., None])
    loss = torch.stack([-network.double().mean() for network in likelihoods])
    accuracy = (logs.argmax(dim=2) == labels).double().mean(dim=1)
    return loss, accuracy


def accuracy(parameters: Parameters, inputs: Tensor, labels: Tensor, threads: int) -> Tensor:
    """Accuracy of each network, float64 [R], a network at a time on each thread."""
    with torch.no_grad(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = [parameters.rows(slice(row, row + 1)) for row in range(len(parameters))]
        return torch.cat([accuracy for _, accuracy in pool.map(lambda row: score(row, inputs, labels), rows)])
