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

from lottery.images import CHUNK, Examples

Initialization = Literal["glorot-normal", "kaiming-uniform"]
Masks = tuple[Tensor, ...]  # a layer each: bool [R, in, out], True = kept

CACHE_LINE = 16  # float32 values


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
    a cache line; the padding between pieces is zero and stays zero. All layers but the last lie there transposed,
    because products with the longer side first are faster: an iteration of LeNet-300-100 takes 5 % less time.
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
        pieces, start = [], 0
        for size in [n * m for n, m in layers] + list(self.sizes[1:]):
            pieces.append(self.flat[:, start : start + size])
            start += -(-size // CACHE_LINE) * CACHE_LINE
        weights = [piece.view(-1, m, n).mT for piece, (n, m) in zip(pieces, layers[:-1], strict=False)]
        weights.append(pieces[len(layers) - 1].view(-1, *layers[-1]))
        return tuple(weights), tuple(piece[:, None] for piece in pieces[len(layers) :])

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
                weight[network] = torch.empty(inputs, outputs).normal_(
                    0, math.sqrt(2 / (inputs + outputs)), generator=generator
                )
            else:
                bound = 1 / math.sqrt(inputs)
                weight[network] = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
                bias[network].uniform_(-bound, bound, generator=generator)
    return parameters


class Product:
    """left @ right for each network, [R, n, k] @ [R, k, m] -> [R, n, m], in one call a network.

    MKL picks its kernel by the size of the stack too, so one call for all would let a network's last bits depend
    on what it is stacked with. The views are made once: making them takes a microsecond each.
    """

    def __init__(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        rows = [slice(r, r + 1) for r in range(len(out))]
        self._networks = [(left[row], right[row], out[row]) for row in rows]

    def __call__(self) -> None:
        for left, right, out in self._networks:
            torch.bmm(left, right, out=out)


class Gradients:
    """Loss and gradients of R networks on batches of B images, by a hand-written backward pass.

    All memory is allocated here, once. Against autograd this saves the graph and the page faults of fresh tensors.
    The caller fills ``inputs``, float32 [R, B, D], and ``labels``, int64 [R, B, 1].
    """

    def __init__(self, parameters: Parameters, batch_size: int) -> None:
        networks, layers = len(parameters), len(parameters.weights)
        self.inputs = aligned(networks, batch_size, parameters.sizes[0])
        self.labels = torch.zeros(networks, batch_size, 1, dtype=torch.int64)
        self.gradients = Parameters.zeros(networks, parameters.sizes)
        self._biases = parameters.biases
        self._bias_gradients = self.gradients.biases
        self._activations = [aligned(networks, batch_size, size) for size in parameters.sizes[1:]]
        self._deltas = [aligned(networks, batch_size, size) for size in parameters.sizes[1:]]
        self._minus_one = torch.full((networks, batch_size, 1), -1.0)
        below = [self.inputs, *self._activations]
        weights, gradients, deltas = parameters.weights, self.gradients.weights, self._deltas
        self._forward = [Product(below[i], weights[i], self._activations[i]) for i in range(layers)]
        # transposed, as `Parameters` keeps them
        self._to_weights = [Product(deltas[i].mT, below[i], gradients[i].mT) for i in range(layers - 1)]
        self._to_weights.append(Product(below[-2].mT, deltas[-1], gradients[-1]))
        self._down = [Product(deltas[i], weights[i].mT, deltas[i - 1]) for i in range(1, layers)]

    def __call__(self, log_likelihoods: Tensor) -> None:
        """Set ``gradients`` to those of each network's mean cross-entropy over its batch.

        log_likelihoods float32 [R, B, 1] receives each image's log-likelihood, the negative of its loss.
        """
        activations, deltas, last = self._activations, self._deltas, len(self._forward) - 1

        for layer, activation in enumerate(activations):
            self._forward[layer]()
            activation.add_(self._biases[layer])
            if layer < last:
                activation.relu_()

        delta = deltas[last]
        torch.log_softmax(activations[last], dim=2, out=delta)
        torch.gather(delta, 2, self.labels, out=log_likelihoods)
        delta.exp_().scatter_add_(2, self.labels, self._minus_one).div_(delta.shape[1])

        for layer in range(last, -1, -1):
            self._to_weights[layer]()
            torch.sum(deltas[layer], dim=1, keepdim=True, out=self._bias_gradients[layer])
            if layer:
                self._down[layer - 1]()
                delta, below = deltas[layer - 1], activations[layer - 1]
                # the derivative of the ReLU, in place, without a tensor for (below > 0)
                torch.ops.aten.threshold_backward.grad_input(delta, below, 0, grad_input=delta)


def log_probabilities(parameters: Parameters, examples: Examples) -> Tensor:
    """Logarithms of the class probabilities [R, N, C] of all networks for each of the N examples."""
    result = torch.empty(len(parameters), len(examples), parameters.sizes[-1])
    for r in range(len(parameters)):
        first, *weights = (weight[r] for weight in parameters.weights)
        first_bias, *biases = (bias[r] for bias in parameters.biases)
        first = first.T[:, examples.pixels].T  # of the transposed weights, which are contiguous
        for inputs, out in zip(examples.chunks, torch.split(result[r], CHUNK), strict=True):
            end = inputs.shape[1]
            values = torch.addmm(first_bias + examples.blank * first[end:].sum(dim=0), inputs, first[:end])
            for weight, bias in zip(weights, biases, strict=True):
                values = torch.addmm(bias, values.relu_(), weight)
            torch.log_softmax(values, dim=1, out=out)
    return result


def score(parameters: Parameters, examples: Examples) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of each network, both float64 [R]."""
    logs, labels = log_probabilities(parameters, examples), examples.labels
    likelihoods = logs.gather(2, labels.expand(len(parameters), -1)[..., None])
    loss = torch.stack([-network.double().mean() for network in likelihoods])
    accuracy = (logs.argmax(dim=2) == labels).double().mean(dim=1)
    return loss, accuracy


def accuracy(parameters: Parameters, examples: Examples, threads: int) -> Tensor:
    """Accuracy of each network, float64 [R], a network at a time on each thread."""
    with torch.no_grad(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = [parameters.rows(slice(row, row + 1)) for row in range(len(parameters))]
        return torch.cat([accuracy for _, accuracy in pool.map(lambda row: score(row, examples), rows)])
