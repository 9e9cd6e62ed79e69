"""R multilayer perceptrons as one: a hand-written pass that leaves out blank pixels.

Layer l maps inputs [R, B, in] to [R, B, out], with a ReLU between layers and cross-entropy at the end. A pixel of an
image is blank where it is 0, as four in five of MNIST's are. All blank pixels are the same input, so that products need
not go over them one by one: pixels and first-layer weights are rearranged by how many images use each pixel, and most
images end early.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor, nn

from lottery.core.images import CHUNK, Images, Scaling, Split, as_square
from lottery.core.layout import Initialization, Layout, padded, perceptron
from lottery.core.stack import Masks, Stack, initialize


def aligned(networks: int, *shape: int) -> Tensor:
    """Zeros [networks, *shape] in which each network begins on a cache line.

    The matrix library may add in another order where the memory is aligned otherwise, and a network's bits
    must not depend on its place in the stack.
    """
    size = math.prod(shape)
    return torch.zeros(networks, padded(size))[:, :size].view(networks, *shape)


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

    It works on the memory of a `Gradients`: inputs [1, B, D], blank [D], activations and deltas [1, B, out].
    """

    def __init__(self, whole: "Gradients", network: slice, used: int) -> None:
        parameters, gradients = whole.parameters.rows(network), whole.gradients.rows(network)
        activations, deltas = whole.activations[0][network], whole.deltas[0][network]
        weights, to_weights = parameters.weights[0], gradients.weights[0].mT  # so they lie in memory
        inputs, blank = whole.inputs[network, :, :used], whole.blank[None, None, used:]
        self._activations, self._biases = activations, parameters.biases[0][:, None]
        self._of_blank = aligned(1, 1, weights.shape[2])
        self._forward = Product(inputs, weights[:, :used], activations)
        self._blank_forward = Product(blank, weights[:, used:], self._of_blank)
        self._to_weights = Product(deltas.mT, inputs, to_weights[..., :used])
        self._blank_to_weights = Product(gradients.biases[0][:, :, None], blank, to_weights[..., used:])

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

    def __init__(self, parameters: Stack, batch_size: int, blank: float = 0.0) -> None:
        networks, weights = len(parameters), parameters.weights
        pixels, units = parameters.layout.inputs, [weight.shape[2] for weight in weights]
        self.inputs = aligned(networks, batch_size, pixels)
        self.labels = torch.zeros(networks, batch_size, 1, dtype=torch.int64)
        self.used = [pixels] * networks
        self.gradients = Stack.zeros(networks, parameters.layout)
        self.parameters = parameters
        self._biases = [bias[:, None] for bias in parameters.biases]
        self._bias_gradients = [bias[:, None] for bias in self.gradients.biases]
        self.blank = torch.full((pixels,), blank)
        self._first_layers: dict[tuple[int, int], FirstLayer] = {}
        self.activations = [aligned(networks, batch_size, size) for size in units]
        self.deltas = [aligned(networks, batch_size, size) for size in units]
        self._minus_one = torch.full((networks, batch_size, 1), -1.0)
        values, deltas = self.activations, self.deltas
        gradients, above = self.gradients.weights, range(1, len(weights))
        self._forward = [Product(values[i - 1], weights[i], values[i]) for i in above]
        self._down = [Product(deltas[i], weights[i].mT, deltas[i - 1]) for i in above]
        # the gradients lie in memory as the weights do
        self._to_weights = [Product(deltas[i].mT, values[i - 1], gradients[i].mT) for i in above[:-1]]
        self._to_weights += [Product(values[i - 1].mT, deltas[i], gradients[i]) for i in above[-1:]]

    def __call__(self, log_likelihoods: Tensor) -> None:
        """Set ``gradients`` to those of each network's mean cross-entropy over its batch.

        log_likelihoods float32 [R, B, 1] receives each image's log-likelihood, the negative of its loss.
        """
        activations, deltas = self.activations, self.deltas
        biases, bias_gradients = self._biases, self._bias_gradients
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
        used = min(padded(used), self.inputs.shape[2])
        if (r, used) not in self._first_layers:
            self._first_layers[r, used] = FirstLayer(self, slice(r, r + 1), used)
        return self._first_layers[r, used]


# --- images that end early -------------------------------------------------------------------------------------------


def by_use(images: Images, scaling: Scaling) -> Tensor:
    """The pixels by how many images use them, the most used first, int64 [D].

    Of several channels they stay as they are: what is blank in one is another input than in the next.
    """
    if len(scaling.shift) > 1:
        return torch.arange(images.pixels.shape[1])
    uses = np.count_nonzero(images.pixels.numpy(), axis=0)  # five times as fast as torch's
    return torch.from_numpy(uses).argsort(descending=True, stable=True)


def ends(images: Images, scaling: Scaling) -> Tensor:
    """Count the first pixels that each image needs, int64 [N]; those after them are blank, as none of several channels
    are.
    """
    if len(scaling.shift) > 1:
        return torch.full((len(images),), images.pixels.shape[1])
    used = images.pixels.numpy() != 0
    blank_at_the_end = used[:, ::-1].argmax(axis=1)
    return torch.from_numpy(np.where(used.any(axis=1), used.shape[1] - blank_at_the_end, 0))


def rearranged(images: Images, order: Tensor) -> Images:
    """The same images; pixel i is the one that was ``order[i]``."""
    return Images(torch.from_numpy(images.pixels.numpy().take(order.numpy(), axis=1)), images.labels)


def rearranged_networks(networks: Stack, order: Tensor) -> Stack:
    """A copy of the networks, or of their masks, for images that are `rearranged`."""
    copy = networks.clone()
    copy.weights[0].copy_(networks.weights[0][:, order])
    return copy


class Examples:
    """N images of D pixels to measure networks on, arranged so that they need few multiplications.

    Pixels come by how many images use them, images by the last pixel that they use, and a chunk of images ends with
    the last that any of them uses. What the others add to a unit is the same for the whole chunk: the blank input
    times the sum of their weights.
    """

    def __init__(self, images: Images, scaling: Scaling) -> None:
        self.pixels = by_use(images, scaling)  # int64 [D], where each pixel was in the image
        images = rearranged(images, self.pixels)
        last = ends(images, scaling)
        order = last.argsort(stable=True)
        self.labels = images.labels[order]  # int64 [N]
        self.blank = blank(scaling)
        # float32 [n, the chunk's last pixel] each
        self.chunks = [scaling(images.pixels[chunk, : last[chunk[-1]]]) for chunk in torch.split(order, CHUNK)]

    def __len__(self) -> int:
        return len(self.labels)


def blank(scaling: Scaling) -> float:
    """The input that a blank pixel is; of several channels none is blank."""
    return float(scaling(torch.zeros(len(scaling.shift), dtype=torch.uint8))[0])


class Learner:
    """Gradients of R networks on batches of a split whose pixels are arranged by use."""

    def __init__(self, networks: Stack, images: Images, last: Tensor, scaling: Scaling, batch_size: int) -> None:
        self._backward = Gradients(networks, batch_size, blank(scaling))
        self.gradients = self._backward.gradients
        self._images, self._last, self._scaling = images, last.numpy(), scaling  # which numpy indexes twice as fast
        self._pixels = torch.empty(len(networks) * batch_size, images.pixels.shape[1], dtype=images.pixels.dtype)

    def __call__(self, batch: Tensor, log_likelihoods: Tensor, noise: Sequence[int] = ()) -> None:
        """See `families.Learner`."""
        backward, indices = self._backward, batch.view(-1)
        torch.index_select(self._images.pixels, 0, indices, out=self._pixels)
        torch.index_select(self._images.labels, 0, indices, out=backward.labels.view(-1))
        self._scaling(self._pixels.view(backward.inputs.shape), out=backward.inputs)
        backward.used = self._last[batch.numpy()].max(axis=1).tolist()
        backward(log_likelihoods)


class Lessons:
    """A split's images with the pixels that few images use last, where most batches need no products with them."""

    is_random = False

    def __init__(self, split: Split) -> None:
        self._order = by_use(split.train, split.scaling)
        self._scaling = split.scaling
        self._train = rearranged(split.train, self._order)
        self._last = ends(self._train, split.scaling)
        self.validation = Examples(rearranged(split.validation, self._order), split.scaling)

    def __len__(self) -> int:
        return len(self._train)

    def arranged(self, networks: Stack) -> Stack:
        """A copy of networks or masks whose inputs come in the order of these images."""
        return rearranged_networks(networks, self._order)

    def restored(self, networks: Stack) -> Stack:
        """A copy of arranged networks as they were before."""
        return rearranged_networks(networks, self._order.argsort())

    def learner(self, networks: Stack, batch_size: int) -> Learner:
        """A learner of these networks, whose memory it reads whenever it is called."""
        return Learner(networks, self._train, self._last, self._scaling, batch_size)


# --- the family ------------------------------------------------------------------------------------------------------


class Perceptron:
    """Multilayer perceptrons with ReLUs; see `families.Family`."""

    lessons, examples = Lessons, Examples

    def log_probabilities(self, networks: Stack, examples: Examples) -> Tensor:
        result = torch.empty(len(networks), len(examples), networks.weights[-1].shape[2])
        for r in range(len(networks)):
            first, *weights = (weight[r] for weight in networks.weights)
            first_bias, *biases = (bias[r] for bias in networks.biases)
            first = first.T[:, examples.pixels].T  # of the transposed weights, which are contiguous
            for inputs, out in zip(examples.chunks, torch.split(result[r], CHUNK), strict=True):
                end = inputs.shape[1]
                values = torch.addmm(first_bias + examples.blank * first[end:].sum(dim=0), inputs, first[:end])
                for weight, bias in zip(weights, biases, strict=True):
                    values = torch.addmm(bias, values.relu_(), weight)
                torch.log_softmax(values, dim=1, out=out)
        return result

    def gradients(self, networks: Stack, images: Images, scaling: Scaling, chosen: Tensor) -> Stack:
        backward = Gradients(networks, chosen.shape[1])
        scaling(images.pixels[chosen], out=backward.inputs)
        backward.labels.copy_(images.labels[chosen][..., None])
        backward(torch.empty_like(backward.labels, dtype=torch.float32))
        return backward.gradients

    def flow(self, networks: Stack, masks: Masks) -> Stack:
        """R is a sum over paths: a weight's score is what flows into its input, times |w|, times what flows on."""
        scores = Stack.zeros(len(networks), networks.layout, torch.float64)
        for row in range(len(networks)):
            weights = [
                weight[row].double().abs() * mask[row]
                for weight, mask in zip(networks.weights, masks.weights, strict=True)
            ]
            into = [torch.ones(len(weights[0]), dtype=torch.float64)]
            for weight in weights[:-1]:
                into.append(into[-1] @ weight)
            on = torch.ones(weights[-1].shape[1], dtype=torch.float64)
            for layer in reversed(range(len(weights))):
                scores.weights[layer][row] = into[layer][:, None] * weights[layer] * on
                on = weights[layer] @ on
        return scores

    def connections(self, masks: Masks) -> tuple[Tensor, ...]:
        return masks.weights

    def picture(self, masks: Masks) -> Tensor:
        """One value per pixel, in a square."""
        return as_square(masks.weights[0].sum(dim=2).double().mean(dim=0))

    def module(self, network: Stack) -> nn.Module:
        layers: list[nn.Module] = []
        for weight, bias in zip(network.weights, network.biases, strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.weight = nn.Parameter(weight[0].T.clone())
            layer.bias = nn.Parameter(bias[0].clone())
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def module_masks(self, masks: Masks) -> list[Tensor]:
        return [mask[0].T.clone() for mask in masks.weights]


# --- dense networks of few units -------------------------------------------------------------------------------------


def small_dense(masks: Masks, initialization: Initialization, generators: Sequence[Generator]) -> tuple[Masks, Stack]:
    """Masks and fresh parameters of dense networks that have about as many weights as each of ``masks`` keeps.

    Every hidden layer has `small_layout`'s number of units. In the stack they are the first of each layer, with all
    connections between them, and their fresh initialization is drawn at the small size, as its fan-in and fan-out ask
    for. The other units have neither weights nor biases, and stay so.
    """
    kept, parameters = masks.clone(), Stack.zeros(len(masks), masks.layout)
    for row, generator in enumerate(generators):
        budget = sum(int(mask[row].sum()) for mask in masks.weights)
        small = initialize(small_layout(masks.layout, budget), initialization, [generator])
        for layer, (weight, bias) in enumerate(zip(small.weights, small.biases, strict=True)):
            n, m = weight.shape[1:]
            kept.weights[layer][row] = False
            kept.weights[layer][row, :n, :m] = True
            parameters.weights[layer][row, :n, :m] = weight[0]
            parameters.biases[layer][row, :m] = bias[0]
    return kept, parameters


def small_layout(layout: Layout, budget: int) -> Layout:
    """The largest dense network with at most ``budget`` weights and hidden layers in the ratio of ``layout``'s.

    Each hidden layer has its units times one common factor, rounded half up, and 1 at least: a smaller budget than
    that takes is exceeded.
    """
    *hidden, classes = (piece.shape[1] for piece in layout.weights)

    def at(factor: Fraction) -> tuple[int, ...]:
        return (layout.inputs, *(max(1, math.floor(factor * units + Fraction(1, 2))) for units in hidden), classes)

    # where a layer gains a unit, which are all factors that matter
    factors = sorted({Fraction(2 * unit + 1, 2 * units) for units in hidden for unit in range(units)})
    fitting = [small for small in map(at, factors) if sum(n * m for n, m in pairwise(small)) <= budget]
    return perceptron(fitting[-1] if fitting else at(Fraction(0)))
