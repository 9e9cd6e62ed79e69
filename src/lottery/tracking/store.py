"""The MLflow store: connected, locked, and its runs found and completed by `lottery.key`."""

import hashlib
import logging
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import psutil
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from lottery.evaluation.tables import DECIMALS
from lottery.files.workplace import root, scratch
from lottery.tracking.address import StoreError, is_sqlite, sqlite_path, sqlite_uri, tracking_uri
from lottery.tracking.outputs import KEY

# Which process writes a run, while it does: its host, its id and when it started, as ids come again.
PROCESS = "lottery.process"
METRICS_A_BATCH = 800  # MLflow's limit of 1000 counts parameters and tags too
ARTIFACT_COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"))  # MLflow's tables

# what it logs as an error it raises too: a stage says it in a line, and not in a traceback of 40
logging.getLogger("mlflow").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.CRITICAL)

Points = Sequence[tuple[str, float, int]]  # key, value, step


@dataclass(frozen=True)
class Content:
    """The content of a run, circumstances apart."""

    name: str
    params: Mapping[str, str]
    points: Points
    note: str = ""  # Markdown, what the run's page begins with
    inputs: Sequence[DatasetInput] = ()
    artifacts: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)  # write a folder's files, by its name


class Store:
    """One MLflow experiment of a store.

    ``watch`` is entered around every call of MLflow's.
    """

    def __init__(self, experiment: str, watch: Callable[[Callable[[], Any]], Any] = lambda call: call()) -> None:
        self.uri = tracking_uri()
        self._watch = watch
        if is_sqlite():
            self._prepare_sqlite(sqlite_path())
        self._client = self._watch(lambda: MlflowClient(self.uri))
        self.experiment = self._find_or_create(experiment)
        if is_sqlite():
            _remove_folder_as_written(self.uri)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of MlflowClient's."""
        return self._watch(lambda: getattr(self._client, method)(*arguments, **named))

    def find_or_make(self, method: str, *arguments: Any) -> None:
        """Call a method of MlflowClient's that looks for an entry and then makes it. Raises MlflowException.

        Of two writers that do so at once MLflow refuses one, which then finds the other's entry.
        """
        try:
            self.call(method, *arguments)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            self.call(method, *arguments)

    # --- connecting ---

    def _prepare_sqlite(self, path: Path) -> None:
        """Create the store whole or not at all, in WAL mode; refuse one that is half made.

        Two processes that create it at once break each other, and a kill on the way leaves a file that nothing
        repairs: so one process at a time, in a temporary file.
        """
        with self.lock():
            if path.exists() and path.stat().st_size:
                with closing(sqlite3.connect(path, timeout=20)) as database:
                    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
                    known = "alembic_version" in tables
                    if not known or not database.execute("SELECT * FROM alembic_version").fetchone():
                        raise StoreError(f"{path} is no whole MLflow store; move it away and run `lottery sync`")
                return
            path.parent.joinpath(".lottery").mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent / ".lottery") as name:  # on the store's own file system
                folder = Path(name)
                client = self._watch(lambda: MlflowClient(sqlite_uri(folder / "new.db")))
                self._watch(client.search_experiments)
                with closing(sqlite3.connect(folder / "new.db")) as database:
                    database.execute("PRAGMA journal_mode=WAL")
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                _remove_folder_as_written(sqlite_uri(folder / "new.db"))
                for log in ("-wal", "-shm"):  # of a store that was deleted while somebody read it: SQLite replays it
                    path.with_name(path.name + log).unlink(missing_ok=True)
                (folder / "new.db").replace(path)

    def _find_or_create(self, name: str) -> str:
        found = self.call("get_experiment_by_name", name)
        if found is None:
            # absolute, or it would depend on where a stage and the UI were started; an MLflow server has its own
            with self.lock():
                found = self.call("get_experiment_by_name", name)
                if found is None:
                    location = None if self.uri.startswith("http") else self._artifacts
                    try:
                        return str(self.call("create_experiment", name, artifact_location=location))
                    except Exception:  # another machine was faster
                        found = self.call("get_experiment_by_name", name)
                        if found is None:
                            raise
        if found.lifecycle_stage == "deleted":
            raise StoreError(
                f"the MLflow experiment {name!r} was deleted; `mlflow experiments restore -x {found.experiment_id}` "
                "brings it back, or choose another tracking.mlflow_experiment in params.yaml"
            )
        if is_sqlite() and found.artifact_location != self._artifacts:
            self._bring_artifacts(found.artifact_location)
        return str(found.experiment_id)

    @property
    def _artifacts(self) -> str:
        """The place of artifacts: `mlartifacts` beside the store."""
        return ((sqlite_path().parent if is_sqlite() else root()) / "mlartifacts").resolve().as_uri()

    def _bring_artifacts(self, before: str) -> None:
        """Give the runs of a store that was moved or copied their artifacts beside it: MLflow keeps absolute addresses.

        A place that a person chose otherwise stays.
        """
        if not (before.startswith("file:") and before.endswith("/mlartifacts")):
            return
        with self.lock(), closing(sqlite3.connect(sqlite_path(), timeout=20)) as database, database:
            for table, column in ARTIFACT_COLUMNS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",  # noqa: S608
                    (self._artifacts, len(before) + 1, len(before) + 1, f"{before}/"),
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process of this machine at a time may make or complete the runs of this store; may be entered twice."""
        if is_sqlite():
            folder, name = sqlite_path().parent / ".lottery", "store.lock"
            folder.mkdir(exist_ok=True)
        else:
            address = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
            folder, name = Path(tempfile.gettempdir()), f"lottery-{os.getuid()}-{address}.lock"
        lock = FileLock(folder / name, timeout=120, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError("another process of this machine writes to it for over 120 s; wait for its end") from None
        try:
            yield
        finally:
            lock.release()

    # --- runs ---

    def search(self, condition: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        """All runs that meet a condition."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.call("search_runs", [self.experiment], condition, run_view_type=view, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def find(self, key: str, comparison: str = "=") -> list[Run]:
        """The runs with a key, or with keys LIKE it; the one to keep comes first: active before deleted, by id."""
        found = self.search(f"tags.`{KEY}` {comparison} '{key}'", ViewType.ALL)
        return sorted(found, key=lambda run: (is_deleted(run), run.info.run_id))

    def keep_one(self, runs: Sequence[Run]) -> Run | None:
        """Choose the run to keep of those that `find` gives for one key, and delete the others. Call it under `lock`.

        Two machines that write the same outputs at the same time leave two runs.
        """
        for run in runs[1:]:
            if not is_deleted(run):
                self.discard(run.info.run_id)
        return runs[0] if runs else None

    def unfinished(self) -> list[Run]:
        """The runs without a key whose processes are dead; only those of this host can be known to be."""
        condition = f"tags.`{KEY}` IS NULL AND tags.`{PROCESS}` LIKE '{socket.gethostname()} %'"
        return [run for run in self.search(condition) if _is_dead(run.data.tags[PROCESS])]

    def create(self, name: str, tags: Mapping[str, str], start: int) -> str:
        """A new run's id; ``start`` in milliseconds since 1970."""
        own = {**tags, PROCESS: _this_process()}
        run = self.call("create_run", self.experiment, start_time=start, tags=own, run_name=name)
        return str(run.info.run_id)

    def end(self, run: str, status: str) -> None:
        """End a run that is not complete; its process says so itself, and so the run is none of `unfinished`."""
        self.call("delete_tag", run, PROCESS)
        self.call("set_terminated", run, status)

    def discard(self, run: str) -> None:
        """Delete a run that is no network's and no stage's after all, with its children; it leaves no key behind."""
        children = self.search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run}'")
        for each in [*children, self.call("get_run", run)]:
            if each.info.status == "RUNNING":
                self.call("set_terminated", each.info.run_id, "KILLED")
            if KEY in each.data.tags:
                self.call("delete_tag", each.info.run_id, KEY)
            with suppress(MlflowException):  # an account that may write may not delete: the run stays, as KILLED
                self.call("delete_run", each.info.run_id)

    def log(self, run: str, points: Points, params: Mapping[str, str] | None = None, note: str = "") -> None:
        """Metrics, parameters and a note, in as few calls as may be."""
        at = milliseconds()
        metrics = [metric(key, value, at, step) for key, value, step in points]
        settings = [Param(*item) for item in (params or {}).items()]
        notes = [RunTag(MLFLOW_RUN_NOTE, note)] if note else []
        for start in range(0, max(len(metrics), 1), METRICS_A_BATCH):
            batch = metrics[start : start + METRICS_A_BATCH]
            if batch or settings or notes:
                self.call("log_batch", run, batch, settings, notes)
            settings, notes = [], []

    def complete(self, run: str, key: str, content: Content, logged: Container[tuple[str, int]] = ()) -> None:
        """Write what a run lacks of its content, and its key last.

        ``logged``: the (key, step) of the points that it has.
        """
        points = [point for point in content.points if (point[0], point[2]) not in logged]
        self.log(run, points, content.params, content.note)
        if content.inputs:
            self.find_or_make("log_inputs", run, list(content.inputs))
        self.log_artifacts(run, content)
        self.call("set_terminated", run)
        self.call("set_tag", run, KEY, key)
        self.call("delete_tag", run, PROCESS)

    def log_artifacts(self, run: str, content: Content) -> None:
        """Write a run's artifacts, or write them anew."""
        for name, write in content.artifacts.items():
            with scratch() as folder:
                write(folder)
                for file in sorted(folder.iterdir()):
                    self.call("log_artifact", run, str(file), name)

    def lacks(self, run: Run, artifact: str) -> bool:
        """Whether the folder of a run's artifacts of that name is gone; a server's are not looked at."""
        uri = urlparse(run.info.artifact_uri)
        if not is_sqlite() or uri.scheme != "file":
            return False
        folder = Path(url2pathname(uri.path)) / artifact
        return not folder.is_dir() or not any(folder.iterdir())


def _remove_folder_as_written(uri: str) -> None:
    """Remove the empty folders that MLflow makes of an address's path without decoding it."""
    if "%" in uri:
        with suppress(OSError):
            os.removedirs(Path(uri.removeprefix("sqlite:///")).parent)


def metric(key: str, value: float, at: int, step: int = 0) -> Metric:
    """A point of a metric, with the decimals that the tables have."""
    return Metric(key, round(float(value), DECIMALS), at, int(step))


def milliseconds() -> int:
    """Now, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_dead(process: str) -> bool:
    """Whether a process of this host, as `_this_process` names it, has ended."""
    host, pid, started = process.rsplit(" ", 2)
    if host != socket.gethostname():  # a character of its name may stand for any in the search
        return False
    try:
        found = psutil.Process(int(pid))
        # the clock by which it started may have been set a little since
        return bool(found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - float(started)) > 2)
    except psutil.NoSuchProcess:
        return True


def is_deleted(run: Run) -> bool:
    """Whether a run was deleted, in the UI or by `Store.discard`."""
    return bool(run.info.lifecycle_stage == "deleted")
