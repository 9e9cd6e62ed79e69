"""Torch modules of a ticket, which take uint8 images and give logits: masked, compact, and with sparse weights."""

import warnings

import torch
from torch import Tensor, nn

from lottery.core.families import family
from lottery.core.images import Scaling
from lottery.core.stack import Stack
from lottery.ticket.ticket import Ticket

# Below this density sparse products are faster where many images come at once: of LeNet-300-100 1.2 times with 256, and
# as fast at 0.19. A single image takes as long by either at 0.04, and hardly less at 0.01 (docs/speed.md).
SPARSE = 0.15
# ONNX Runtime takes longer to pick a pixel than to multiply by it, so only fewer than this fraction are picked.
PICKED = 0.4


class Network(nn.Module):
    """Scaling, and the layers behind it: from uint8 images, or float32 features, [N, ...] to logits [N, C]."""

    def __init__(self, layers: nn.Module, scaling: Scaling, pixels: int, inputs: Tensor | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.inputs: Tensor | None
        self.shift: Tensor | float
        self.scale: Tensor | float
        self.register_buffer("inputs", inputs)  # int64, the pixels that are read; None: all
        for name, values in (("shift", scaling.shift), ("scale", scaling.scale)):
            if len(values) == 1:
                setattr(self, name, values[0])
            else:
                by_pixel = torch.tensor(values).repeat(pixels // len(values))
                self.register_buffer(name, by_pixel if inputs is None else by_pixel[inputs])

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of uint8 images, or float32 features, [N, ...]."""
        pixels = images.flatten(1).to(torch.float32)  # before any are picked: of uint8 that takes 5 times as long
        if self.inputs is not None:
            pixels = pixels.index_select(1, self.inputs)
        logits: Tensor = self.layers((pixels - self.shift) / self.scale)
        return logits


class SparseLinear(nn.Module):
    """A linear layer whose weight, [out, in], is kept in compressed sparse rows."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the format is in beta
            self.register_buffer("weight", weight.to_sparse_csr())
        self.register_buffer("bias", bias[:, None])

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [N, out] of inputs [N, in]."""
        return torch.addmm(self.bias, self.weight, inputs.T).T


def stack(ticket: Ticket) -> Stack:
    """The ticket's network as a stack of one."""
    network = Stack.zeros(1, ticket.facts.layout)
    for name, values in ticket.values.items():
        network[name][0] = torch.from_numpy(values)
    return network


def masked(ticket: Ticket) -> Network:
    """The network as it was trained: its pruned weights are there, and 0."""
    layout = ticket.facts.layout
    return Network(family(layout).module(stack(ticket)).eval(), _scaling(ticket), layout.inputs)


def compact(ticket: Ticket, sparse: float = SPARSE) -> Network:
    """The network without what no output depends on; below the density ``sparse`` all its weights are sparse.

    A pixel that it does not read stays in, with weights 0, where leaving it out would save no time. Of another family
    than the perceptron it is the masked one.
    """
    layout = ticket.facts.layout
    if layout.family != "perceptron":
        return masked(ticket)
    layer = SparseLinear if ticket.density < sparse else _linear
    inputs, weights = torch.from_numpy(ticket.compact.inputs), [*map(torch.from_numpy, ticket.compact.weights)]
    picked = layer is _linear and len(inputs) < PICKED * layout.inputs
    if not picked:
        weights[0] = torch.zeros(layout.inputs, weights[0].shape[1]).index_copy_(0, inputs, weights[0])
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, ticket.compact.biases, strict=True):
        layers += [layer(weight.T.contiguous(), torch.from_numpy(bias)), nn.ReLU()]
    network = nn.Sequential(*layers[:-1]).eval()
    return Network(network, _scaling(ticket), layout.inputs, inputs if picked else None)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # draws nothing
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _scaling(ticket: Ticket) -> Scaling:
    return Scaling(ticket.facts.shift, ticket.facts.scale)
