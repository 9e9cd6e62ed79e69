"""`ticket.onnx`: the compact network as a graph that takes uint8 images, for any runtime of ONNX."""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lottery import LotteryError
from lottery.core.families import family
from lottery.core.images import Scaling
from lottery.core.layout import Layout
from lottery.core.networks.own import in_short
from lottery.core.stack import initialize
from lottery.ticket.modules import Network, compact
from lottery.ticket.ticket import Ticket

OPSET, IR = 20, 10  # ONNX Runtime reads these since its version 1.17


def graph(ticket: Ticket) -> bytes:
    """The bytes of a graph with the input ``images``, uint8 [N, *image] or of a table float32 [N, features], and the
    output ``logits``, float32 [N, C].
    """
    network = compact(ticket, sparse=0.0)  # ONNX has dense products alone
    if ticket.facts.layout.family == "perceptron":
        made = _perceptron(network, ticket)
    else:
        made = _exported(network, ticket.facts.image, ticket.dtype)
    return bytes(made.SerializeToString(deterministic=True))


def try_graph(layout: Layout) -> None:
    """Write a graph of a person's own network and run it. Raises LotteryError where that cannot be, in about 5 s."""
    if (own := layout.own) is None:
        return
    draws = torch.Generator().manual_seed(0)
    module = family(layout).module(initialize(layout, "glorot-normal", [draws]))
    network = Network(module, Scaling((0.0,), (1.0,)), layout.inputs).eval()
    dtype = "uint8" if len(layout.example) > 1 else "float32"
    try:
        written = bytes(_exported(network, layout.example, dtype).SerializeToString())
        for count in (1, 3):
            images = torch.randint(4, (count, *layout.example), generator=draws).to(getattr(torch, dtype))
            with torch.no_grad():
                if not np.allclose(run(written, images.numpy()), network(images).numpy(), rtol=1e-3, atol=1e-3):
                    raise ValueError("it gives other logits")
    except Exception as error:
        raise LotteryError(
            f"params.yaml: network.file: {own.file}: {own.name}: cannot be exported as ticket.onnx, for any number of "
            f"images: {in_short(error.__cause__ or error)}; use other operators"
        ) from error


def _perceptron(network: Network, ticket: Ticket) -> onnx.ModelProto:
    """A perceptron's graph, made by hand: torch's exporter takes seconds for it."""
    arrays = {name: np.array(value, np.float32) for name, value in (("shift", network.shift), ("scale", network.scale))}
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Flatten", [], {}), ("Cast", [], {"to": TensorProto.FLOAT})]
    if network.inputs is not None:
        arrays["inputs"] = network.inputs.numpy()
        steps.append(("Gather", ["inputs"], {"axis": 1}))
    steps += [("Sub", ["shift"], {}), ("Div", ["scale"], {})]
    for place, layer in enumerate(network.layers.children()):
        if isinstance(layer, torch.nn.Linear):
            own = {f"{name}{place}": values.detach().numpy() for name, values in layer.named_parameters()}
            arrays |= own
            steps.append(("Gemm", list(own), {"transB": 1}))
        else:
            steps.append(("Relu", [], {}))
    names = ["images", *(f"step{place}" for place in range(1, len(steps))), "logits"]
    nodes = [
        helper.make_node(operator, [before, *more], [after], **options)
        for (operator, more, options), (before, after) in zip(steps, pairwise(names), strict=True)
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(ticket.dtype))
    images = helper.make_tensor_value_info("images", kind, ["N", *ticket.facts.image])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", ticket.facts.layout.classes])
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    whole = helper.make_graph(nodes, "ticket", [images], [logits], initializers)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _exported(network: Network, example: tuple[int, ...], dtype: str) -> onnx.ModelProto:
    """Any module's graph, made by torch."""
    # two, as a size of 1 would be taken for fixed
    images = torch.zeros(2, *example, dtype=getattr(torch, dtype))
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    silent = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(silent), redirect_stderr(silent), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch on its own internals
        exporter.setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
        finally:
            exporter.setLevel(level)
    made: onnx.ModelProto = exported.model_proto  # type: ignore[union-attr]  # None is for another way of calling
    own = made.graph
    for part in (made, own, *own.node, *own.value_info, *own.initializer, *own.input, *own.output):
        del part.metadata_props[:]  # where in which file of this machine each node comes from
    made.producer_name = made.producer_version = ""  # torch's build, which decides nothing here
    return made


def run(model: bytes, images: NDArray[Any]) -> NDArray[np.float32]:
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
