"""The MLflow UI on this machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy import create_engine

from lottery import LotteryError, params
from lottery.files.workplace import root
from lottery.server import check_port
from lottery.tracking.address import fault, is_own, shown_uri, tracking_uri
from lottery.tracking.outputs import PIPELINE, recorded
from lottery.tracking.store import Store, milliseconds

HOST = "127.0.0.1"
ALL = "all"  # what an address calls the view of all runs; that of a pipeline has the pipeline's name
STAGES = f" and tags.{MLFLOW_PARENT_RUN_ID} IS NULL"  # no networks
FIRST_PAGE = 100  # runs that MLflow's page loads at first


def connect(experiment: str) -> Store:
    """The store, with every fault of its as a LotteryError: one line, without the address's password."""
    try:
        if tracking_uri().startswith("postgresql"):
            create_engine(tracking_uri()).connect().close()  # a dead one says so at once; MLflow tries for two minutes
        return Store(experiment)
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error


def serve_ui(port: int) -> None:
    """Serve the MLflow UI on 127.0.0.1 until interrupted, and print the address that opens it well once it answers.

    Where MLFLOW_TRACKING_URI is a server's, that one serves it, and the address is all.
    """
    settings = params.load()
    remote = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    if not remote:
        check_port(f"lottery ui: --port {port}", HOST, port)
    if is_own() and (root() / "dvc.lock").exists():
        _complete(settings)
    store = connect(settings.tracking.mlflow_experiment)
    pipeline, count = _pipeline(store)
    views = {ALL: _view("All runs", settings.every_arm)}
    if pipeline:
        condition = f"tags.`{PIPELINE}{pipeline}` = 'true'" + (STAGES if count > FIRST_PAGE else "")
        views[pipeline] = _view(f"Pipeline {pipeline}", settings.every_arm, condition)
    with suppress(MlflowException, OSError):  # who may not write sees the views that others left, or the usual columns
        for name, view in views.items():
            store.call("set_experiment_tag", store.experiment, f"mlflow.sharedViewState.{name}", view)
    base = shown_uri() if remote else f"http://{HOST}:{port}"
    # the page opens in its mode for language models unless its address says otherwise; an order or a search in the
    # address would make MLflow ignore the view, so the view has them
    page = f"{base}/#/experiments/{store.experiment}/runs?workflowType=machine_learning&viewStateShareKey="
    told = f"pipeline {pipeline}; all runs: {page}{ALL}\n" if pipeline else ""
    if count > FIRST_PAGE:
        told += f"stages alone: the page shows {FIRST_PAGE} runs, and this pipeline has {count}; "
        told += f"`{PIPELINE}{pipeline}` in the search without `{STAGES.strip()}` shows networks too\n"
    told += f"MLflow UI: {page}{pipeline or ALL}"
    if remote:
        print(told)
    else:
        _serve(port, told)


def _serve(port: int, told: str) -> None:
    """Run MLflow's server until ctrl-C, SIGTERM or SIGHUP, and print what is told once it answers."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri(),  # a command line, which all users see, would show its password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four processes for language models' evaluations
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    log = root() / ".lottery" / f"ui-{port}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--uvicorn-opts", "--log-level warning"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,  # MLflow's lines name pages that open something else
            stderr=file,
            process_group=0,  # ctrl-C in a terminal would reach MLflow and Uvicorn too, which end with tracebacks
        )
    try:
        while server.poll() is None and not _answers(port):
            time.sleep(0.1)
        if server.returncode is None:
            print(told, flush=True)
        code = server.wait()
        raise LotteryError(f"{log}: says why MLflow's server ended, with exit code {code}; `lottery ui` starts it anew")
    except KeyboardInterrupt:
        print("\nMLflow UI: ended", flush=True)
    finally:
        with suppress(ProcessLookupError):  # an end by SIGTERM waits for pages that are open; databases lose nothing
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


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


def _pipeline(store: Store) -> tuple[str, int]:
    """The pipeline that this workspace's dvc.lock records, and how many runs it has; "" and 0 where it has none."""
    with suppress(OSError, LotteryError):
        for entry in recorded((root() / "dvc.lock").read_text(encoding="utf-8"), params.load()):
            if entry.name == "evaluate" and entry.pipeline:
                count = len(store.search(f"tags.`{PIPELINE}{entry.pipeline}` = 'true'"))
                return (entry.pipeline, count) if count else ("", 0)
    return "", 0


def _view(name: str, arms: Sequence[str], condition: str = "") -> str:
    """The runs in the order of the pipeline with their test accuracy, as a saved view of MLflow's.

    An address cannot name columns, but it can name a saved view, which is a tag of the MLflow experiment. MLflow's page
    lists it under "Views".
    """
    widths = {
        "attributes.`Run Name`": 230,
        "runDateAndNestInfo": 135,  # the column "Created", which MLflow shows here in any case
        **dict.fromkeys(("metrics.`test_accuracy.dense`", "metrics.`test_accuracy.ticket`"), 147),  # means over seeds
        "metrics.`test_accuracy`": 115,  # a network's
        **{f"metrics.`test_accuracy.{arm}`": 150 for arm in arms if arm != "ticket"},
        "metrics.`density`": 90,
        "tags.`lottery.experiment`": 130,
        "params.`dataset`": 90,
        "params.`learning_rate`": 110,
        "duration": 90,
        "attributes.`Source`": 130,
        "attributes.`Dataset`": 260,
    }
    state = {
        "searchFilter": condition,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    return json.dumps({"name": name, "createdAt": milliseconds(), "state": json.dumps(state)})
