"""MLflow: what the outputs say, as runs that people compare. Nothing else imports mlflow.

A run per stage execution, its networks as children. Every child repeats what people filter by, because a filter looks
at one run at a time. All that a network's run shows, its times apart, is read back from the level's folder, so a run
that is missing can be made from the outputs.

Tracking never costs a result: where MLflow does not answer, a stage says so in one line and goes on without it.
"""

import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from filelock import FileLock
from safetensors.torch import save
from sqlalchemy.exc import SQLAlchemyError

from lottery import LotteryError
from lottery.artifacts import fingerprint, load_contents, load_history, load_masks
from lottery.figures import save_mask_picture
from lottery.params import Params, load
from lottery.pruning import density, weights_kept
from lottery.statistics import ACCURACIES, early_stopping
from lottery.workplace import root, scratch

# Set before mlflow is imported: nothing calls home, and a server that is down costs seconds, where MLflow's own
# 7 retries of 120 s cost a quarter of an hour.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags as tags

KEY = "lottery.key"  # one network, one identity: level, arm, seed and a hash of the level's files
METRICS_A_BATCH = 1000  # MLflow's limit
VIEW = "networks"  # what the UI's address calls the view that `lottery ui` saves

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)


# --- the store ---------------------------------------------------------------------------------------------------


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file at the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


def _without_password(text: str) -> str:
    password = urlsplit(tracking_uri()).password
    return text.replace(password, "***") if password else text


def _create_store(path: Path) -> None:
    """Create the SQLite store whole or not at all, in WAL mode.

    Two processes that create it at once break each other, and a kill on the way leaves a file that nothing repairs:
    so one process at a time, in a temporary file.
    """
    (path.parent / ".lottery").mkdir(exist_ok=True)
    with FileLock(path.parent / ".lottery" / "store.lock"), scratch() as folder:
        if not path.exists():
            MlflowClient(f"sqlite:///{folder / 'new.db'}").search_experiments()
            with closing(sqlite3.connect(folder / "new.db")) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for log in ("-wal", "-shm"):  # of a store that was deleted while somebody read it: SQLite would replay it
                path.with_name(path.name + log).unlink(missing_ok=True)
            (folder / "new.db").replace(path)


def _connect(experiment: str) -> tuple[MlflowClient, str]:
    """A client and the id of the MLflow experiment, both created where they are missing."""
    uri = tracking_uri()
    default = root() / "mlflow.db"
    if uri == f"sqlite:///{default}" and not default.exists():
        _create_store(default)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        # absolute, or the folder would depend on where a stage and the UI were started
        location = (root() / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
        try:
            return client, client.create_experiment(experiment, artifact_location=location)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"the MLflow experiment {experiment!r} was deleted; `mlflow experiments restore -x {found.experiment_id}` "
            "brings it back, or choose another tracking.mlflow_experiment in params.yaml"
        )
    return client, str(found.experiment_id)


# --- what a run says about where it comes from -----------------------------------------------------------------------


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _origin() -> dict[str, str]:
    """Tags: the code's commit, the DVC stage and the DVC experiment."""
    # dvc.lock and reports/ are what a running pipeline writes itself
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/dvc.lock", ":!/reports")
    stage = os.environ.get("DVC_STAGE", "")
    origin = {
        tags.MLFLOW_GIT_COMMIT: _git("rev-parse", "HEAD"),
        "git.dirty": str(bool(changed)).lower(),
        tags.MLFLOW_SOURCE_NAME: stage,
        tags.MLFLOW_SOURCE_TYPE: "PROJECT",
        "dvc.stage": stage,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {key: value for key, value in origin.items() if value}


def _settings(params: Params) -> dict[str, str]:
    """The settings that all networks of a pipeline share, by the names that people filter by."""
    train, prune = params.train, params.prune
    settings: dict[str, Any] = {
        "dataset": params.data.name,
        "validation": params.validation_images,
        "scale": params.data.scale,
        "hidden": ", ".join(map(str, params.network.hidden)),
        "initialization": params.network.initialization,
        "iterations": params.iterations,
        "batch_size": train.batch_size,
        "optimizer": train.optimizer,
        "learning_rate": train.learning_rate,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "evaluate_every": train.evaluate_every,
        "criterion": prune.criterion,
        "scope": prune.scope,
        "output_rate": prune.output_rate,
    }
    return {key: str(value) for key, value in settings.items()}


def _data(params: Params) -> DatasetInput:
    digest = hashlib.sha256(params.data_file.read_bytes()).hexdigest()[:16]
    profile = {"training images": params.training_images, "validation images": params.validation_images}
    data = Dataset(
        name=params.data.name,
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": str(params.data_file)}),
        profile=json.dumps(profile),
    )
    return DatasetInput(data, [InputTag(tags.MLFLOW_DATASET_CONTEXT, "training")])


# --- a stage's run ---------------------------------------------------------------------------------------------------


class StageRun:
    """The run of one stage execution. After MLflow's first failure it says so, once, and does nothing more."""

    def __init__(self, params: Params, name: str) -> None:
        self._params = params
        self._started = _now()
        self._client: MlflowClient | None = None
        with self._guard():
            client, self._experiment = _connect(params.tracking.mlflow_experiment)
            self._client = client
            self._run = self._create(client, name, self._started)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            self._client = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            line = (
                f"MLflow at {tracking_uri()} failed: {reason}: this stage goes on untracked; start the server or "
                "correct MLFLOW_TRACKING_URI, and the next `evaluate` adds the networks that are missing"
            )
            print(_without_password(line), file=sys.stderr)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        if self._client:
            with self._guard():
                self._client.set_terminated(self._run, status)

    def log_data(self) -> None:
        """The data set that `download` left."""
        if self._client:
            with self._guard():
                _log(self._client, self._run, params={"dataset": self._params.data.name}, data=_data(self._params))

    def log_level(self, name: str, folder: Path) -> None:
        """A level's networks as this run's children, its arms' means on this run.

        Where these very networks are tracked already (`dvc repro --force`), this run is deleted.
        """
        if self._client:
            with self._guard():
                if _find(self._client, self._experiment, _level_key(name, folder)):
                    self._client.set_terminated(self._run)
                    self._client.delete_run(self._run)
                    self._client = None
                else:
                    self._log_level(self._client, self._run, name, folder, self._started)

    def log_evaluation(self, networks: pd.DataFrame, levels: pd.DataFrame, models: Path, reports: list[Path]) -> None:
        """Every network's test results on its own run, which is made from the files where it is missing.

        ``networks`` and ``levels`` are reports/networks.csv and levels.csv. This run gets accuracy against pruning as
        one metric an arm, the step being round(1000 (1 - density)): the UI's chart of two pipelines shows two curves.
        """
        if self._client:
            with self._guard():
                self._log_evaluation(self._client, networks, levels, models, reports)

    def log_figures(self, folder: Path) -> None:
        """The figures of the `plot` stage."""
        if self._client:
            with self._guard():
                _log(self._client, self._run, params=_settings(self._params), data=_data(self._params))
                self._client.log_artifacts(self._run, str(folder), "figures")

    def _create(self, client: MlflowClient, name: str, start: int, **more: str) -> str:
        run = client.create_run(self._experiment, start_time=start, tags=_origin() | more, run_name=name)
        return str(run.info.run_id)

    def _log_level(self, client: MlflowClient, run: str, name: str, folder: Path, started: int) -> None:
        contents, history, masks = load_contents(folder), load_history(folder), load_masks(folder)
        stops = early_stopping(history).set_index(["arm", "seed"])
        data = _data(self._params)
        level = _settings(self._params) | {
            "level": name,
            "parent": "" if name == "dense" else self._params.levels[name].parent,
            "path": ", ".join(map(str, contents.path)),
            "sparsity": str(contents.path[-1] if contents.path else 0.0),
        }
        fingerprint = _level_key(name, folder).partition("/")[2]
        densities, kept = density(masks).tolist(), weights_kept(masks).tolist()
        histories = dict(iter(history.groupby(["arm", "seed"], sort=False)))
        for row, (arm, seed) in enumerate(contents.networks):
            stop = stops.loc[(arm, seed)]
            child = self._create(
                client,
                f"{name} {arm} {seed}",
                started + 1 + row,
                **{tags.MLFLOW_PARENT_RUN_ID: run, KEY: f"{name}/{arm}/{seed}/{fingerprint}"},
            )
            metrics = _metrics(
                {
                    "sparsity": float(level["sparsity"]),
                    "density": densities[row],
                    "weights_kept": sum(kept[row]),
                    "early_stopping_iteration": stop["early_stopping_iteration"],
                    "censored": stop["censored"],
                }
            )
            curves = _curves(histories[(arm, seed)].drop(columns=["arm", "seed"]))
            _log(client, child, level | {"arm": arm, "seed": str(seed)}, [*metrics, *curves], data)
            with scratch() as files:
                network_masks = {f"layer{i}": mask[row].contiguous() for i, mask in enumerate(masks)}
                (files / "mask.safetensors").write_bytes(save(network_masks))
                save_mask_picture(masks[0][row], files / "mask.png")
                client.log_artifacts(child, str(files), "mask")
            client.set_terminated(child)
        means = history.groupby(["arm", "iteration"], sort=False).mean().drop(columns="seed").reset_index()
        curves = [
            point
            for arm, curve in means.groupby("arm", sort=False)
            for point in _curves(curve.drop(columns="arm"), f".{arm}")
        ]
        shared = {"sparsity": float(level["sparsity"]), "density": sum(densities) / len(densities)}
        _log(client, run, level, [*_metrics(shared), *curves], data)
        client.set_tag(run, KEY, _level_key(name, folder))  # last: a run that has it is whole

    def _log_evaluation(
        self, client: MlflowClient, networks: pd.DataFrame, levels: pd.DataFrame, models: Path, reports: list[Path]
    ) -> None:
        for name, rows in networks.groupby("level", sort=False):
            folder = models / str(name)
            key = _level_key(str(name), folder)
            parent = _find(client, self._experiment, key)
            if parent is None:
                run = self._create(client, str(name), now := _now())
                self._log_level(client, run, str(name), folder, now)
                client.set_terminated(run)
            else:
                run = parent.info.run_id
            children = {
                child.data.tags[KEY]: child.info.run_id
                for child in _search(client, self._experiment, f"tags.`{tags.MLFLOW_PARENT_RUN_ID}` = '{run}'")
            }
            fingerprint = key.partition("/")[2]
            for row in rows.to_dict("records"):
                child = children.get(f"{name}/{row['arm']}/{row['seed']}/{fingerprint}")
                if child:
                    _log(client, child, metrics=_metrics({measure: row[measure] for measure in ACCURACIES}))
            for row in levels[levels["level"] == name].to_dict("records"):
                means = {f"{measure}.{row['arm']}": row[f"{measure}_mean"] for measure in ACCURACIES}
                _log(client, run, metrics=_metrics(means))
        _log(client, self._run, _settings(self._params), _summary(levels), _data(self._params))
        for report in reports:
            client.log_artifact(self._run, str(report), "reports")


@contextmanager
def stage(params: Params, name: str) -> Iterator[StageRun]:
    """The run of a stage execution, FINISHED, FAILED or KILLED as its block ends."""
    run = StageRun(params, name)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.close("FINISHED")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _level_key(name: str, folder: Path) -> str:
    return f"{name}/{fingerprint(folder)[:16]}"


def _search(client: MlflowClient, experiment: str, condition: str) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], condition, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def _find(client: MlflowClient, experiment: str, key: str) -> Run | None:
    return next(iter(_search(client, experiment, f"tags.`{KEY}` = '{key}'")), None)


def _metrics(values: Mapping[str, Any], step: int = 0) -> list[Metric]:
    return [Metric(key, float(value), _now(), step) for key, value in values.items()]


def _curves(history: pd.DataFrame, suffix: str = "") -> list[Metric]:
    """A metric a column, with the iteration as the step; what was not measured (NaN) is left out."""
    return [
        Metric(f"{column}{suffix}", float(value), _now(), int(iteration))
        for column in history.columns.drop("iteration")
        for iteration, value in zip(history["iteration"], history[column], strict=True)
        if pd.notna(value)
    ]


def _summary(levels: pd.DataFrame) -> list[Metric]:
    """Test accuracy against pruning: for each arm, and each path where the tree has several, from dense to a leaf."""
    parents = dict(zip(levels["level"], levels["parent"], strict=True))
    leaves = [level for level in parents if level not in parents.values()]
    accuracy = levels.set_index(["level", "arm"])["test_accuracy_mean"]
    pruned = levels.groupby("level")["density"].first().rsub(1).mul(1000).round().astype(int)
    metrics = []
    for leaf in leaves:
        path = [leaf]
        while path[0] != "dense":
            path.insert(0, parents[path[0]])
        for arm in levels["arm"].unique():
            if arm != "dense":
                name = f"test_accuracy.{arm}" + (f".{leaf}" if len(leaves) > 1 else "")
                for level in path:
                    value = accuracy.get((level, arm if level != "dense" else "dense"))
                    if value is not None:
                        metrics += _metrics({name: value}, step=int(pruned[level]))
    return metrics


def _log(
    client: MlflowClient,
    run: str,
    params: Mapping[str, str] | None = None,
    metrics: Sequence[Metric] = (),
    data: DatasetInput | None = None,
) -> None:
    for start in range(0, max(len(metrics), 1), METRICS_A_BATCH):
        batch = metrics[start : start + METRICS_A_BATCH]
        client.log_batch(run, batch, [Param(*item) for item in (params or {}).items()] if start == 0 else [])
    if data:
        client.log_inputs(run, [data])


# --- the UI ----------------------------------------------------------------------------------------------------------


def serve_ui(port: int) -> None:
    """Serve the MLflow UI on 127.0.0.1 until interrupted, after printing the address that opens it well."""
    params = load()
    try:
        client, experiment = _connect(params.tracking.mlflow_experiment)
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", _view(params.prune.arms))
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise LotteryError(
            _without_password(f"MLflow at {tracking_uri()} failed: {str(error).splitlines()[0]}")
        ) from error
    uri = tracking_uri()
    base = uri if uri.startswith("http") else f"http://127.0.0.1:{port}"
    # the page opens in its mode for language models unless its address says otherwise; an order in the address would
    # make MLflow ignore the view, so the view has it
    view = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    print(f"MLflow UI: {base}/#/experiments/{experiment}/runs?{view}", flush=True)
    if base != uri:
        server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
        os.execv(sys.executable, [*server, "--host", "127.0.0.1", "--port", str(port)])


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
    return json.dumps({"name": "Networks", "createdAt": _now(), "state": json.dumps(state)})
