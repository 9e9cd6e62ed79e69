"""The MLflow UI on this machine."""

import os
import sys

from lottery import LotteryError, params
from lottery.tracking.address import shown_uri, tracking_uri, without_password
from lottery.tracking.store import Store


def connect(experiment: str) -> Store:
    """The store, with every fault of its as a LotteryError: one line, without the address's password."""
    try:
        return Store(experiment)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LotteryError(without_password(f"MLflow at {shown_uri()} failed: {reason}")) from error


def serve_ui(port: int) -> None:
    """Serve the MLflow UI on 127.0.0.1 until interrupted, after printing the address that opens it well."""
    store = connect(params.load().tracking.mlflow_experiment)
    uri = tracking_uri()
    base = shown_uri() if uri.startswith("http") else f"http://127.0.0.1:{port}"
    # the page opens in its mode for language models, newest first, unless its address says otherwise
    view = "workflowType=machine_learning&orderByKey=attributes.start_time&orderByAsc=true"
    print(f"MLflow UI: {base}/#/experiments/{store.experiment}/runs?{view}", flush=True)
    if not uri.startswith("http"):
        server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
        os.execv(sys.executable, [*server, "--host", "127.0.0.1", "--port", str(port)])
