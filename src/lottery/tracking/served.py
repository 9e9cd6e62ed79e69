"""The exported ticket as an MLflow model: MLflow copies this file into it, and a server runs it alone."""

from typing import Any

import mlflow
import numpy as np
import onnxruntime
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray


class Served(PythonModel):
    """`ticket.onnx`: images in, a class and the share of each class in the softmax out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the graph, on one thread: a server has several requests at a time."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        graph = context.artifacts["graph"]
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._takes_pixels = self._session.get_inputs()[0].type == "tensor(uint8)"

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,  # without its type, at which MLflow warns
        params: dict[str, Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Answer for images or features [N, ...]: ``class`` [N], and ``softmax`` [N, C]. Raises MlflowException."""
        with np.errstate(invalid="ignore", over="ignore"):  # of what is no number, which differs from what it is made
            taken = model_input.astype(np.uint8 if self._takes_pixels else np.float32)
        if self._takes_pixels and not (model_input == taken).all():
            raise MlflowException("images: a pixel is no whole number from 0 to 255", BAD_REQUEST)
        if not np.isfinite(taken).all():
            raise MlflowException("images: a feature is no finite number", BAD_REQUEST)
        (logits,) = self._session.run(["logits"], {"images": taken})
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return {"class": logits.argmax(axis=1), "softmax": shares / shares.sum(axis=1, keepdims=True)}


mlflow.models.set_model(Served())
