"""Torch modules of a ticket, which take uint8 images and give logits: masked, compact, and with sparse weights."""

import torch
from torch import Tensor, nn

from lottery.core.families import family
from lottery.core.images import Scaling
from lottery.core.stack import Stack
from lottery.ticket.ticket import Ticket

# Below this density a sparse product is faster where many images come at once (docs/speed.md); with few it never is.
SPARSE = 0.1


class Network(nn.Module):
    """Scaling, and the layers behind it. It takes uint8 images [N, ...] and gives logits [N, C]."""

    def __init__(self, layers: nn.Module, scaling: Scaling, inputs: Tensor | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.inputs: Tensor | None
        self._shift, self._scale = scaling.shift, scaling.scale
        self.register_buffer("inputs", inputs)  # int64, the pixels that are read; None: all

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of uint8 images [N, ...]."""
        pixels = images.flatten(1)
        if self.inputs is not None:
            pixels = pixels.index_select(1, self.inputs)
        logits: Tensor = self.layers((pixels.to(torch.float32) - self._shift) / self._scale)
        return logits


class SparseLinear(nn.Module):
    """A linear layer whose weight, [out, in], is kept in compressed sparse rows."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
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
    return Network(family(ticket.facts.layout).module(stack(ticket)).eval(), _scaling(ticket))


def compact(ticket: Ticket, sparse: float = 0.0) -> Network:
    """The network without what no output depends on; weights below this density are sparse.

    Of another family than the perceptron it is the masked one.
    """
    if ticket.facts.layout.family != "perceptron":
        return masked(ticket)
    layers: list[nn.Module] = []
    for weight, bias in zip(ticket.compact.weights, ticket.compact.biases, strict=True):
        weight_, bias_ = torch.from_numpy(weight).T.contiguous(), torch.from_numpy(bias)
        if torch.count_nonzero(weight_) < sparse * weight_.numel():
            layers += [SparseLinear(weight_, bias_), nn.ReLU()]
        else:
            layer = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
            layer.weight, layer.bias = nn.Parameter(weight_), nn.Parameter(bias_)
            layers += [layer, nn.ReLU()]
    inputs = torch.from_numpy(ticket.compact.inputs)
    every = len(inputs) == ticket.facts.layout.inputs
    return Network(nn.Sequential(*layers[:-1]).eval(), _scaling(ticket), None if every else inputs)


def _scaling(ticket: Ticket) -> Scaling:
    return Scaling(ticket.facts.shift, ticket.facts.scale)
