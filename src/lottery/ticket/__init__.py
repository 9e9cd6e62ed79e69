"""Tickets as files that other programs read: `lottery.ticket.load` needs numpy and safetensors alone.

- `ticket`: a network with its masks, what is known of it, and its predictions by numpy
- `format`: `ticket.safetensors`, written and read
- `compact`: a perceptron without what no output depends on
- `graph`: `ticket.onnx`, and the torch modules behind it
- `sizes`: bytes and multiply-adds, dense and sparse
- `card`: `model_card.md`
"""

from lottery.ticket.format import load
from lottery.ticket.ticket import Facts, Ticket

__all__ = ["Facts", "Ticket", "load"]
