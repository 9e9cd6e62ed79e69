"""The bytes and the multiply-adds of a network, dense and sparse: reports/compression.json."""

from typing import Any, NamedTuple

import pyarrow
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from lottery.core.families import family
from lottery.core.layout import Layout
from lottery.core.networks.own import PRUNED
from lottery.core.stack import Stack
from lottery.ticket.format import content
from lottery.ticket.ticket import Ticket

ZSTD = 19  # its level


class Size(NamedTuple):
    """The bytes of a file, and what zstd makes of it."""

    plain: int
    zstd: int

    @classmethod
    def of(cls, content: bytes) -> "Size":
        """Measure a file's content."""
        return cls(len(content), len(pyarrow.Codec("zstd", ZSTD).compress(content)))


def multiply_adds(layout: Layout) -> dict[str, int]:
    """How many multiply-adds per image each weight of a piece stands for: 1, but of a convolution one per place."""
    module = family(layout).module(Stack.zeros(1, layout))
    layers: list[nn.Module] = [layer for layer in module.modules() if isinstance(layer, PRUNED)]
    places = dict.fromkeys(layers, 0)

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        places[layer] += output.numel() // output.shape[-1 if isinstance(layer, nn.Linear) else 1]

    for layer in layers:
        layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, layout.inputs))
    return dict(zip((piece.name for piece in layout.weights), places.values(), strict=True))


def sizes(ticket: Ticket) -> dict[str, Any]:
    """A network's entry of reports/compression.json: bytes of files, and multiply-adds per image.

    ``checkpoint`` is a file of all its values, zeros included, as a dense network's; ``multiply_adds_compact`` are
    those of dense products of the compact network, null where the family has none.
    """
    files = {
        "checkpoint": checkpoint(ticket),
        "ticket": content(ticket),
        "ticket_half": content(ticket, "half"),
    }
    found = {name: Size.of(file) for name, file in files.items()}
    return {
        "level": ticket.facts.level,
        "arm": ticket.facts.arm,
        "seed": ticket.facts.seed,
        "density": round(ticket.density, 6),
        **{
            f"{name}{suffix}": size
            for name, each in found.items()
            for suffix, size in zip(("", "_zstd"), each, strict=True)
        },
        **adds(ticket),
    }


def checkpoint(ticket: Ticket) -> bytes:
    """A file of all values, zeros included, as that of a dense network."""
    return save(dict(ticket.values))


def adds(ticket: Ticket) -> dict[str, int | None]:
    """Multiply-adds per image: of all weights, of the kept ones, and of the compact network."""
    layout, per_weight = ticket.facts.layout, multiply_adds(ticket.facts.layout)
    return {
        "multiply_adds": sum(piece.size * per_weight[piece.name] for piece in layout.weights),
        "multiply_adds_kept": sum(int(mask.sum()) * per_weight[name] for name, mask in ticket.masks.items()),
        "multiply_adds_compact": ticket.compact.multiply_adds if layout.family == "perceptron" else None,
    }
