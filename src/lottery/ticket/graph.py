"""`ticket.onnx`: the compact network as a graph that takes uint8 images, for any runtime of ONNX."""

import contextlib
import io
import logging
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lottery.ticket.modules import compact
from lottery.ticket.ticket import Ticket


def graph(ticket: Ticket) -> bytes:
    """The bytes of a graph with the input ``images``, uint8 [N, *image], and the output ``logits``, float32 [N, C]."""
    images = torch.zeros(2, *ticket.facts.image, dtype=torch.uint8)  # two, as a size of 1 would be taken for fixed
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch on its own internals
        exporter.setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                compact(ticket),
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        finally:
            exporter.setLevel(level)
    model: Any = exported.model_proto  # type: ignore[union-attr]  # None is for another way of calling
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # where in which file of this machine each node comes from
    return bytes(model.SerializeToString(deterministic=True))


def run(model: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits [N, C] of uint8 images [N, *image], by ONNX Runtime on one thread."""
    own = session(model)
    parts = [own.run(["logits"], {"images": part})[0] for part in np.array_split(images, -(-len(images) // 1000))]
    return np.concatenate(parts)


def session(model: bytes) -> Any:
    """A session of ONNX Runtime's, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
