"""Tickets as files that other programs read: `lottery.ticket.load` needs numpy and safetensors alone.

- `ticket`: a network with its masks, what is known of it, and its predictions by numpy
- `format`: `ticket.safetensors`, written and read
- `compact`: a perceptron without what no output depends on
- `modules`: torch modules of it
- `graph`: `ticket.onnx`
- `sizes`: bytes and multiply-adds, dense and sparse
- `workspace`: tickets of the networks in models/, and which of them is exported
- `export`: the files of an exported network; `card`: `model_card.md`
"""

from lottery.ticket.format import load
from lottery.ticket.ticket import Facts, Ticket

__all__ = ["Facts", "Ticket", "load"]
