"""The MLflow store: connected, locked, and its runs found, claimed and completed by `lottery.key`."""

import hashlib
import logging
import os
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from lottery.tracking.address import StoreError, is_sqlite, sqlite_path, sqlite_uri, tracking_uri
from lottery.workplace import root, scratch

# Set before mlflow is imported: nothing calls home, and a server that is down costs seconds, where MLflow's own
# 7 retries of 120 s cost a quarter of an hour.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("PGCONNECT_TIMEOUT", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# for each run of a server's it would print the address, with the password that it may have
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

KEY = "lottery.key"  # one network, one identity: level, arm, seed and the DVC hash of the level's files
CLAIMED = "lottery.claimed"  # which machine writes a run, and since when
COMPLETE = "lottery.complete"  # written last: a run that has it is whole, and is never changed
ATTEMPT = "lottery.attempt"  # on the runs of a stage that is not done; see `live`
METRICS_A_BATCH = 800  # MLflow's limit of 1000 counts parameters and tags too
SETTLING = 2.0  # seconds after which another machine's claim that was made at the same time can be seen
ARTIFACT_COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"))  # MLflow's tables
WRITING = 120_000  # milliseconds that another machine has to complete what it claimed

# what it logs as an error it raises too: a stage says it in a line, and not in a traceback of 40
logging.getLogger("mlflow").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.CRITICAL)

Points = Sequence[tuple[str, float, int]]  # key, value, step


@dataclass(frozen=True)
class Content:
    """What a run shows, circumstances apart."""

    name: str
    params: Mapping[str, str]
    points: Points
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
        self.made = 0
        self.completed = 0
        self.experiment = self._find_or_create(experiment)
        if is_sqlite():
            _remove_folder_as_written(self.uri)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of MlflowClient's."""
        return self._watch(lambda: getattr(self._client, method)(*arguments, **named))

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
                    if (
                        "alembic_version" not in tables
                        or not database.execute("SELECT * FROM alembic_version").fetchone()
                    ):
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
        """Where artifacts are: `mlartifacts` beside the store."""
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
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",
                    (self._artifacts, len(before) + 1, len(before) + 1, f"{before}/"),
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process of this machine at a time may make or complete the runs of this store; may be entered twice."""
        if is_sqlite():
            folder, name = sqlite_path().parent / ".lottery", "store.lock"
            folder.mkdir(exist_ok=True)
        else:
            folder, name = Path(tempfile.gettempdir()), f"lottery-{os.getuid()}-{self._address}.lock"
        lock = FileLock(folder / name, timeout=120, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError("another process of this machine writes to it for over 120 s; wait for its end") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _address(self) -> str:
        return hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    @cached_property
    def _machine(self) -> str:
        """A word for whoever shares `lock`: who calls the server by another name is another machine."""
        path = Path(tempfile.gettempdir()) / f"lottery-{os.getuid()}-machine"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_text(uuid.uuid4().hex)
            return f"{path.read_text()}-{self._address}"

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

    def find(self, key: str) -> list[Run]:
        """The runs with a key, in the order of `_rank`."""
        return sorted(self.search(f"tags.`{KEY}` = '{key}'", ViewType.ALL), key=_rank)

    def keep_one(self, runs: Sequence[Run]) -> Run | None:
        """Of the runs with one key that which stays; others, which a failure can leave, are deleted.

        But for those that another machine may be at, which deletes its own. Call it under `lock`.
        """
        ranked = sorted(runs, key=_rank)
        for run in ranked[1:]:
            if not is_deleted(run) and not self.is_being_written(run):
                self.discard(run.info.run_id)
        return ranked[0] if ranked else None

    def children(self, run: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        """The runs below a run."""
        return self.search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run}'", view)

    def create(self, name: str, tags: Mapping[str, str], start: int) -> str:
        """A new run's id; ``start`` in milliseconds since 1970."""
        run = self.call("create_run", self.experiment, start_time=start, tags=dict(tags), run_name=name)
        self.made += 1
        return str(run.info.run_id)

    def claim(self, key: str, run: str) -> bool:
        """Give a run its key, and say whether it is the one that keeps it.

        The lock keeps the processes of one machine apart. Two machines may both find that no run has the key: then
        each sees the other's here, and all but one delete their own.
        """
        self.call("log_batch", run, tags=[RunTag(KEY, key), RunTag(CLAIMED, self.claimed())])
        if not is_sqlite():
            time.sleep(SETTLING)
        keeps = next(found for found in self.find(key) if not is_deleted(found))
        if keeps.info.run_id != run:
            self.discard(run)
            self.made -= 1
            return False
        self.renew(run)
        return True

    def take_over(self, run: str) -> bool:
        """Claim an incomplete run that nobody is at, and say whether no other machine did so at the same time."""
        claim = self.claimed()
        self.call("set_tag", run, CLAIMED, claim)
        if not is_sqlite():
            time.sleep(SETTLING)
            if self.call("get_run", run).data.tags.get(CLAIMED) != claim:
                return False
        self.renew(run)
        return True

    def renew(self, run: str) -> None:
        """Say that this machine still writes a run."""
        self.call("set_tag", run, CLAIMED, f"{self.claimed()} won")

    def claimed(self) -> str:
        """A claim of this machine's, made now."""
        return f"{self._machine} {milliseconds()}"

    def is_being_written(self, run: Run) -> bool:
        """Whether another machine has claimed a run and may be at it; a process of this one would hold the lock."""
        machine, since, *_ = run.data.tags.get(CLAIMED, "none 0").split(" ")
        return machine != self._machine and milliseconds() - int(since) < WRITING

    def discard(self, run: str) -> None:
        """Delete a run that is no network's and no stage's after all, with its children; it leaves no key behind."""
        for child in [*self.children(run), self.call("get_run", run)]:
            if child.info.status == "RUNNING":
                self.call("set_terminated", child.info.run_id, "KILLED")
            if KEY in child.data.tags:
                self.call("delete_tag", child.info.run_id, KEY)
            with suppress(MlflowException):  # an account that may write may not delete: the run stays, as KILLED
                self.call("delete_run", child.info.run_id)

    def log(
        self, run: str, points: Points, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Metrics, parameters and tags, in as few calls as may be."""
        at = milliseconds()
        metrics = [Metric(key, float(value), at, int(step)) for key, value, step in points]
        settings = [Param(*item) for item in (params or {}).items()]
        own = [RunTag(*item) for item in (tags or {}).items()]
        for start in range(0, max(len(metrics), 1), METRICS_A_BATCH):
            batch = metrics[start : start + METRICS_A_BATCH]
            if batch or settings or own:
                self.call("log_batch", run, batch, settings, own)
            settings, own = [], []

    def complete(
        self, run: str, content: Content, logged: set[tuple[str, int]] | None = None, key: str | None = None
    ) -> None:
        """Write what a run lacks of its content, and of ``key`` where one is given, and last that it is complete.

        ``logged``: the (key, step) of the points that it has, where the caller knows and has logged the parameters.
        """
        params = content.params if logged is None else {}
        if logged is None:
            has = self.call("get_run", run).data.metrics
            logged = {(key, point.step) for key in has for point in self.call("get_metric_history", run, key)}
        points = [point for point in content.points if (point[0], point[2]) not in logged]
        self.log(run, points, params, {} if key is None else {KEY: key})
        if content.inputs:
            self.call("log_inputs", run, list(content.inputs))
        self._log_artifacts(run, content)
        self.call("set_terminated", run)
        self.call("set_tag", run, COMPLETE, "true")
        self.completed += 1

    def restore_artifacts(self, run: str, content: Content) -> None:
        """Make a complete run's artifacts anew."""
        self._log_artifacts(run, content)
        self.completed += 1

    def _log_artifacts(self, run: str, content: Content) -> None:
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


def milliseconds() -> int:
    """Now, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def _rank(run: Run) -> tuple[bool, bool, bool, str]:
    """By which of the runs with one key one stays: active before deleted, complete, claimed and settled, by id."""
    won = run.data.tags.get(CLAIMED, "").endswith(" won")
    return is_deleted(run), not is_complete(run), not won, run.info.run_id


def is_complete(run: Run) -> bool:
    """Whether nothing is missing in a run."""
    return COMPLETE in run.data.tags


def is_deleted(run: Run) -> bool:
    """Whether a run was deleted, in the UI or by `Store.discard`."""
    return bool(run.info.lifecycle_stage == "deleted")
