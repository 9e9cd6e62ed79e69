"""The MLflow UI on this machine."""

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine

from lottery import LotteryError, params
from lottery.tracking.address import fault, is_own, shown_uri, tracking_uri
from lottery.tracking.store import Store, milliseconds
from lottery.workplace import root

VIEW = "networks"  # what the address calls the view that `serve_ui` saves


def connect(experiment: str) -> Store:
    """The store, with every fault of its as a LotteryError: one line, without the address's password."""
    try:
        if tracking_uri().startswith("postgresql"):
            create_engine(tracking_uri()).connect().close()  # a dead one says so at once; MLflow tries for two minutes
        return Store(experiment)
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error


def serve_ui(port: int) -> None:
    """Serve the MLflow UI on 127.0.0.1 until interrupted, after printing the address that opens it well."""
    settings = params.load()
    if is_own() and (root() / "dvc.lock").exists():
        _complete(settings)
    store = connect(settings.tracking.mlflow_experiment)
    view = f"mlflow.sharedViewState.{VIEW}"
    with suppress(MlflowException, OSError):  # who may not write sees the view that others left, or the usual columns
        store.call("set_experiment_tag", store.experiment, view, _view(settings.every_arm))
    uri = tracking_uri()
    base = shown_uri() if uri.startswith("http") else f"http://127.0.0.1:{port}"
    # the page opens in its mode for language models unless its address says otherwise; an order in the address would
    # make MLflow ignore the view, so the view has it
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    print(f"MLflow UI: {base}/#/experiments/{store.experiment}/runs?{query}", flush=True)
    if not uri.startswith("http"):
        os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # a command line, which all users see, would show its password
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # four processes for language models' evaluations
        server = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        os.execv(sys.executable, [*server, "--host", "127.0.0.1", "--port", str(port)])


def _complete(settings: params.Params) -> None:
    """Bring this workspace's store to what dvc.lock records, with a line on what that added."""
    from lottery.tracking.sync import sync  # which needs `connect`

    try:
        lines = sync(settings)
    except LotteryError as error:  # as far as it is complete it can be looked at
        lines = [str(error)]
    for line in lines:
        if not re.fullmatch(r"runs: (none|\d+ already complete)", line):
            print(line, file=sys.stderr)


def _view(arms: Sequence[str]) -> str:
    """The runs in the order of the pipeline with their test accuracy, as a saved view of MLflow's.

    An address cannot name columns, but it can name a saved view, which is a tag of the MLflow experiment. MLflow's page
    lists it under "Views".
    """
    widths = {
        "attributes.`Run Name`": 180,
        "runDateAndNestInfo": 140,  # the column "Created"
        "metrics.`test_accuracy`": 115,  # a network's
        **{f"metrics.`test_accuracy.{arm}`": 160 for arm in arms},  # a level's mean over seeds
        "metrics.`density`": 100,
        "duration": 90,
        "attributes.`Source`": 130,
        "attributes.`Dataset`": 260,
    }
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    return json.dumps({"name": "Networks", "createdAt": milliseconds(), "state": json.dumps(state)})
