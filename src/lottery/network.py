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

Initialization = Literal["glorot-normal", "kaiming-uniform", "kaiming-normal"]
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
    because products with the longer side first are faster.
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

    def rearranged(self, order: Tensor) -> "Parameters":
        """A copy of the networks for rearranged `Images`: input i is the one that was ``order[i]``."""
        copy = self.clone()
        copy.weights[0].copy_(self.weights[0][:, order])
        return copy

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
    ``kaiming-normal`` draws weights from N(0, 2 / in) (He et al. 2015, section 2.2) and biases as kaiming-uniform:
    open_lth's default, which leaves biases as PyTorch made them.
    """
    parameters = Parameters.zeros(len(generators), sizes)
    for network, generator in enumerate(generators):
        for weight, bias in zip(parameters.weights, parameters.biases, strict=True):
            inputs, outputs = weight.shape[1:]
            # drawn from input to input, however the weights lie in memory
            weights = torch.empty(inputs, outputs)
            bound = 1 / math.sqrt(inputs)
            if scheme == "kaiming-uniform":
                weights.uniform_(-bound, bound, generator=generator)
            else:
                fans = inputs + outputs if scheme == "glorot-normal" else inputs
                weights.normal_(0, math.sqrt(2 / fans), generator=generator)
            weight[network] = weights
            if scheme != "glorot-normal":
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


class FirstLayer:
    """A network's products with the first ``used`` of its inputs, and with the others, which are blank in all images.

    Inputs [1, B, D], blank [D], activations and deltas [1, B, out]; parameters and gradients of one network.
    """

    def __init__(
        self,
        used: int,
        inputs: Tensor,
        blank: Tensor,
        activations: Tensor,
        deltas: Tensor,
        parameters: Parameters,
        gradients: Parameters,
    ) -> None:
        weights, to_weights = parameters.weights[0], gradients.weights[0].mT  # so they lie in memory
        inputs, blank = inputs[..., :used], blank[None, None, used:]
        self._activations, self._biases = activations, parameters.biases[0]
        self._of_blank = aligned(1, 1, weights.shape[2])
        self._forward = Product(inputs, weights[:, :used], activations)
        self._blank_forward = Product(blank, weights[:, used:], self._of_blank)
        self._to_weights = Product(deltas.mT, inputs, to_weights[..., :used])
        self._blank_to_weights = Product(gradients.biases[0].mT, blank, to_weights[..., used:])

    def forward(self) -> None:
        """Set the activations before the ReLU."""
        self._forward()
        self._blank_forward()
        self._activations.add_(self._of_blank.add_(self._biases))

    def backward(self) -> None:
        """Set the gradients of the weights, once those of the biases are set."""
        self._to_weights()
        self._blank_to_weights()


class Gradients:
    """Loss and gradients of R networks on batches of B images, by a hand-written backward pass.

    All memory is allocated here, once. Against autograd this saves the graph and the page faults of fresh tensors.
    The caller fills ``inputs``, float32 [R, B, D], and ``labels``, int64 [R, B, 1], and sets in ``used``, for each
    network, how many of the first inputs its batch needs, those after them being ``blank`` in all its images.
    """

    def __init__(self, parameters: Parameters, batch_size: int, blank: float = 0.0) -> None:
        networks, layers = len(parameters), len(parameters.weights)
        self.inputs = aligned(networks, batch_size, parameters.sizes[0])
        self.labels = torch.zeros(networks, batch_size, 1, dtype=torch.int64)
        self.used = [parameters.sizes[0]] * networks
        self.gradients = Parameters.zeros(networks, parameters.sizes)
        self._parameters = parameters
        self._blank = torch.full(parameters.sizes[:1], blank)
        self._first_layers: dict[tuple[int, int], FirstLayer] = {}
        self._activations = [aligned(networks, batch_size, size) for size in parameters.sizes[1:]]
        self._deltas = [aligned(networks, batch_size, size) for size in parameters.sizes[1:]]
        self._minus_one = torch.full((networks, batch_size, 1), -1.0)
        values, deltas = self._activations, self._deltas
        weights, gradients, above = parameters.weights, self.gradients.weights, range(1, layers)
        self._forward = [Product(values[i - 1], weights[i], values[i]) for i in above]
        self._down = [Product(deltas[i], weights[i].mT, deltas[i - 1]) for i in above]
        # the gradients lie in memory as the weights do
        self._to_weights = [Product(deltas[i].mT, values[i - 1], gradients[i].mT) for i in above[:-1]]
        self._to_weights += [Product(values[i - 1].mT, deltas[i], gradients[i]) for i in above[-1:]]

    def __call__(self, log_likelihoods: Tensor) -> None:
        """Set ``gradients`` to those of each network's mean cross-entropy over its batch.

        log_likelihoods float32 [R, B, 1] receives each image's log-likelihood, the negative of its loss.
        """
        activations, deltas, biases = self._activations, self._deltas, self._parameters.biases
        bias_gradients = self.gradients.biases
        first_layers = [self._first_layer(r, used) for r, used in enumerate(self.used)]

        for network in first_layers:
            network.forward()
        for layer, product in enumerate(self._forward, start=1):
            activations[layer - 1].relu_()
            product()
            activations[layer].add_(biases[layer])

        delta = deltas[-1]
        torch.log_softmax(activations[-1], dim=2, out=delta)
        torch.gather(delta, 2, self.labels, out=log_likelihoods)
        delta.exp_().scatter_add_(2, self.labels, self._minus_one).div_(delta.shape[1])

        for layer in range(len(deltas) - 1, 0, -1):
            torch.sum(deltas[layer], dim=1, keepdim=True, out=bias_gradients[layer])
            self._to_weights[layer - 1]()
            self._down[layer - 1]()
            delta, below = deltas[layer - 1], activations[layer - 1]
            # the derivative of the ReLU, in place, without a tensor for (below > 0)
            torch.ops.aten.threshold_backward.grad_input(delta, below, 0, grad_input=delta)
        torch.sum(deltas[0], dim=1, keepdim=True, out=bias_gradients[0])
        for network in first_layers:
            network.backward()

    def _first_layer(self, r: int, used: int) -> FirstLayer:
        """Made once for every cache line of inputs at which a batch may end."""
        used = min(-(-used // CACHE_LINE) * CACHE_LINE, self.inputs.shape[2])
        if (r, used) not in self._first_layers:
            row = slice(r, r + 1)
            self._first_layers[r, used] = FirstLayer(
                used,
                self.inputs[row],
                self._blank,
                self._activations[0][row],
                self._deltas[0][row],
                self._parameters.rows(row),
                self.gradients.rows(row),
            )
        return self._first_layers[r, used]


def log_probabilities(parameters: Parameters, examples: Examples) -> Tensor:
    """Logarithms of the class probabilities [R, N, C] of all networks for the N examples in their order."""
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
