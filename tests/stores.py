"""What a store shows of a pipeline, read by its own client and compared field by field."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests
from clones import Clone, said
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from lottery.cli import main

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
PARENT = "mlflow.parentRunId"
KEY = "lottery.key"
PATIENCE = 300  # seconds, against a hang: no test fails because a machine is slow
# when, by whom and from where: not part of what a run shows
CIRCUMSTANCES = {"mlflow.source.git.commit", "mlflow.runName", "lottery.dirty", "lottery.experiment"}


def address(clone: Clone) -> str:
    return f"sqlite:///{clone.folder / 'mlflow.db'}"


def connect(uri: str) -> MlflowClient:
    client = MlflowClient(uri)
    if uri.startswith(("sqlite:", "postgresql:")):
        client._tracking_client.store.engine.dispose()  # MLflow keeps connections, also to a file that was deleted
    return client


def store(clone: Clone) -> MlflowClient:
    return connect(address(clone))


def runs(client: MlflowClient, condition: str = "", view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    experiment = client.get_experiment_by_name("lottery-tickets")
    return list(client.search_runs([experiment.experiment_id], condition, view, order_by=["attributes.start_time ASC"]))


def name(run: Run) -> str:
    """A run's name without what it says of where the run comes from."""
    return run.info.run_name.partition(" · ")[0]


def networks(client: MlflowClient) -> dict[tuple[str, str, int], Run]:
    """The runs of networks by level, arm and seed."""
    children = [run for run in runs(client) if PARENT in run.data.tags]
    found = {(run.data.params["level"], run.data.params["arm"], int(run.data.params["seed"])): run for run in children}
    assert len(found) == len(children), "a network has two runs"
    return found


def keys(client: MlflowClient) -> list[str]:
    """The keys of all active runs; a run without one is ``no key``."""
    return sorted(run.data.tags.get(KEY, f"no key: {name(run)} {run.info.status}") for run in runs(client))


def picture(client: MlflowClient) -> dict[str, dict[str, Any]]:
    """All that the keyed runs show, circumstances apart, by key."""
    found = [run for run in runs(client) if KEY in run.data.tags]
    names = {run.info.run_id: run.data.tags[KEY] for run in found}
    assert len(set(names.values())) == len(names), "a key has two runs"
    return {names[run.info.run_id]: _fields(client, run, names) for run in found}


def _fields(client: MlflowClient, run: Run, names: dict[str, str]) -> dict[str, Any]:
    identity, tags = run.info.run_id, run.data.tags
    return {
        "name": name(run),
        "status": run.info.status,
        "ended": run.info.end_time is not None,
        "params": run.data.params,
        "metrics": {
            key: sorted((point.step, point.value) for point in client.get_metric_history(identity, key))
            for key in run.data.metrics
        },
        "tags": {key: value for key, value in tags.items() if key not in {*CIRCUMSTANCES, PARENT}},
        "below": names[tags[PARENT]] if PARENT in tags else None,
        "inputs": [
            ({**dict(given.dataset)}, sorted((tag.key, tag.value) for tag in given.tags))
            for given in run.inputs.dataset_inputs
        ],
        "artifacts": _artifacts(client, run),
    }


def _artifacts(client: MlflowClient, run: Run) -> dict[str, str]:
    if run.info.artifact_uri.startswith("file:"):
        return _files(Path(run.info.artifact_uri.removeprefix("file://")))
    with TemporaryDirectory() as folder:
        for item in client.list_artifacts(run.info.run_id):
            client.download_artifacts(run.info.run_id, item.path, folder)
        return _files(Path(folder))


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def versions(client: MlflowClient) -> dict[int, ModelVersion]:
    """The versions of the registered ticket by their numbers."""
    return {int(each.version): each for each in client.search_model_versions("name = 'lottery-ticket'")}


def aliases(client: MlflowClient) -> dict[str, int]:
    """The numbers of the versions of the registered ticket that have aliases."""
    return {alias: int(number) for alias, number in client.get_registered_model("lottery-ticket").aliases.items()}


def lose_the_store(clone: Clone) -> None:
    for path in clone.folder.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(clone.folder / "mlartifacts")


def stage(
    clone: Clone, module: str, name: str, prepare: Callable[[], None] | None = None, **variables: str
) -> "subprocess.Popen[str]":
    """A stage as DVC starts it; ``prepare`` is called in its process before."""
    return subprocess.Popen(
        [sys.executable, "-m", f"lottery.stages.{module}"],
        cwd=clone.folder,
        env=clone.environment | {"PYTHONPATH": "src", "DVC_STAGE": name, "DVC_ROOT": str(clone.folder)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def run_stage(
    clone: Clone, module: str, name: str, code: int = 0, prepare: Callable[[], None] | None = None, **variables: str
) -> list[str]:
    """Run a stage to this exit code: the lines that it says."""
    return lines_of(stage(clone, module, name, prepare, **variables), code)


def lines_of(running: "subprocess.Popen[str]", code: int = 0) -> list[str]:
    """Wait for a stage to end with this exit code: the lines that it says, its progress left out."""
    _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == code, errors
    return said(errors)


def _sync(clone: Clone, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lottery.cli", "sync", *arguments]
    where = {"cwd": clone.folder, "env": clone.environment | variables}
    return subprocess.run(command, **where, capture_output=True, text=True, timeout=PATIENCE)


def refused_sync(clone: Clone, *arguments: str, **variables: str) -> str:
    """Run `lottery sync` to its refusal: its one line."""
    done = _sync(clone, *arguments, **variables)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr.strip()


def sync(clone: Clone, *arguments: str, **variables: str) -> list[str]:
    """`lottery sync`: the lines that it prints."""
    done = _sync(clone, *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def command(clone: Clone, *arguments: str, code: int = 0, **variables: str) -> list[str]:
    """The lines that `lottery` says in a clone, in this process, which has imported MLflow."""
    _artifact_repos_cache.clear()  # by the ids of runs, which copies of a clone have in common
    printed, errors = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.chdir(clone.folder)
        for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
            patch.delenv(variable, raising=False)
        for variable, value in variables.items():
            patch.setenv(variable, value)
        ended = main(arguments)
    told, other = (errors, printed) if code else (printed, errors)
    assert (ended, other.getvalue()) == (code, ""), printed.getvalue() + errors.getvalue()
    return told.getvalue().splitlines()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A real MLflow server on 127.0.0.1 with its files in a folder: its address and its process."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen(
        [*command, *places],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # five processes that nobody asked for
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_up(address):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "no server came up"
            time.sleep(0.1)
        yield address, process
    finally:
        kill(process)


def is_up(address: str) -> bool:
    """Whether a server answers, which is later than that its port is open."""
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a server and its workers at once, as a power failure does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(PATIENCE)
