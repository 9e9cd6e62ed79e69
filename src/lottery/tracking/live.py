"""The runs of a stage while it works, from a thread of their own.

Tracking never costs a result. All that MLflow does happens in this thread, which training does not wait for; at the
stage's end it has as long as it makes progress. After MLflow's first failure the stage says so, once, and goes on
untracked: `lottery sync` completes the store later.
"""

import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery import LotteryError
from lottery.files.digests import digest
from lottery.files.workplace import root
from lottery.params import Params
from lottery.tracking.address import StoreError, fault, is_sqlite, shown_uri, understood
from lottery.tracking.outputs import KEY, TABLES, Output, digest_of_outs, pipeline_of

if TYPE_CHECKING:
    from lottery.core.training import Group
    from lottery.tracking.runs import Attempt, Recorder
    from lottery.tracking.store import Store

MEANS_EVERY = 4.0  # seconds between live points of the arms' means; a network's curves are logged when it ends
TO_KILL = 1.0  # seconds that a stage which was told to end waits for its runs to be marked KILLED; a sync does it too
NO_ANSWER = 6.0  # seconds that a call may take on a server; HTTP requests give up after 2 by themselves
NO_ANSWER_SQLITE = 120.0  # creating the store takes some, and others may write


class StageRun:
    """The runs of one stage execution, which `stage` opens and closes."""

    def __init__(self, params: Params, name: str) -> None:
        self._params = params
        self._name = name
        self._started = time.time_ns() // 1_000_000
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._since: float | None = None  # when the call began that MLflow has not answered yet
        self._failed: str | None = None
        self._told = threading.Lock()
        self._stderr = sys.stderr  # as it is now: it is another while torchvision downloads
        self._connected = threading.Event()
        self._seen: queue.SimpleQueue[tuple[int, int, list[list[float]]]] = queue.SimpleQueue()
        self._watched_to: dict[int, int] = {}  # how many evaluations of each group are in it, by the group's first row
        # what was seen and is not logged yet, by (arm, iteration) and seed
        self._means: dict[tuple[str, int], dict[int, list[float]]] = {}
        if params.tracking.required:
            self.connect()
            self._wait(self._connected.is_set)
            if self._failed:
                raise LotteryError(f"{self._failed}; tracking.required is true, so the stage stops before it begins")

    # --- what a stage says ---

    def connect(self) -> None:
        """Begin the thread, which opens the runs; what a stage says later does so too.

        A stage that forks does it afterwards: its workers must not inherit a thread in the midst of importing MLflow.
        Where tracking is required, that is over before the stage begins.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def watch(self, group: "Group") -> None:
        """Take note of a group's evaluations; `training.train` calls it after it has forked."""
        self.connect()
        evaluated = int(group.state.evaluated)
        for place in range(self._watched_to.get(group.first, 0), evaluated):
            values: list[list[float]] = group.state.history[:, :, place].T.tolist()
            self._seen.put((group.first, group.task.recipe.evaluations[place], values))
        self._watched_to[group.first] = evaluated

    def log_data(self) -> None:
        """The data set that `download` left."""
        self._post(lambda: self._recorder.simple(self._output([self._params.data_file]), self._attempt))

    def log_level(self, folder: Path) -> None:
        """A level's networks as this run's children, its arms' means on this run.

        Where these very networks are tracked already (`dvc repro --force`), this stage's runs are deleted.
        """
        self._post(lambda: self._recorder.level(self._output([folder]), self._attempt))

    def log_evaluation(self, models: Path, left: Sequence[Path]) -> None:
        """Every network's test results on its own run, which is made from the files where it is missing."""

        def log() -> None:
            levels = [self._output([models / name], name) for name in ("dense", *self._params.order)]
            for level in levels:
                self._recorder.level(level)
            self._recorder.evaluation(self._output(left), levels, self._attempt)

        self._post(log)

    def log_ticket(self, folder: Path) -> None:
        """The network that `export` left."""
        self._post(lambda: self._recorder.simple(self._output([folder]), self._attempt))

    def log_plots(self, left: Sequence[Path]) -> None:
        """The figures and the report of the `plot` stage."""
        self._post(lambda: self._recorder.simple(self._output(left), self._attempt))

    def _output(self, left: Sequence[Path], level: str | None = None) -> Output:
        stage = os.environ.get("DVC_STAGE", "") if level is None else "train" if level == "dense" else f"prune@{level}"
        total = digest_of_outs({path.as_posix(): digest(path) for path in left})
        folder = left[0] if len(left) == 1 else left[0].parent
        name = level or self._name
        pipeline = pipeline_of(digest(Path(TABLES))) if name in ("evaluate", "export", "plot") else ""
        return Output(name, stage, total, self._data_digest, self._params, lambda: nullcontext(folder), pipeline)

    @cached_property
    def _data_digest(self) -> str:
        return digest(self._params.data_file)

    def close(self, status: str) -> None:
        """End the runs, as FINISHED, FAILED or KILLED, and the thread."""
        if status != "FINISHED":
            self._post(lambda: self._end(status))
        self.connect()
        self._jobs.put(None)
        thread, deadline = self._thread, time.monotonic() + (TO_KILL if status == "KILLED" else math.inf)
        self._wait(lambda: thread is None or not thread.is_alive() or time.monotonic() > deadline)

    # --- the thread ---

    @property
    def _trains(self) -> bool:
        return self._name == "dense" or self._name in self._params.levels

    def _post(self, job: Callable[[], None]) -> None:
        self.connect()
        self._jobs.put(job)

    def _work(self) -> None:
        try:
            self._open()
            self._connected.set()
            due = time.monotonic()
            while True:
                try:
                    job = self._jobs.get(timeout=0.5)
                except queue.Empty:
                    if self._trains and time.monotonic() >= due:
                        self._log_means()
                        due = time.monotonic() + MEANS_EVERY
                    continue
                if job is None:
                    return
                job()
        except Exception as error:  # whatever it is, it costs no result
            self._fail(fault(error), has_remedy=isinstance(understood(error), StoreError))
            self._connected.set()

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait for the thread as long as MLflow answers."""
        limit = NO_ANSWER_SQLITE if is_sqlite() else NO_ANSWER
        while not done() and self._failed is None:
            time.sleep(0.02)
            since = self._since
            if since is not None and time.monotonic() - since > limit:
                self._fail(f"no answer in {limit:.0f} s")

    def _fail(self, reason: str, has_remedy: bool = False) -> None:
        with self._told:
            if self._failed is None:
                self._failed = f"MLflow at {shown_uri()} failed: {reason[:300]}"
                first = "see to it that it can be written" if is_sqlite() else "start the server"
                remedy = "then" if has_remedy else f"{first} or correct MLFLOW_TRACKING_URI, and"
                experiment = os.environ.get("DVC_EXP_NAME")
                sync = f"lottery sync --rev {experiment}" if experiment else "lottery sync"
                if not self._params.tracking.required or self._connected.is_set():
                    untracked = f"this stage goes on untracked; {remedy} `{sync}` adds what is missing"
                    print(f"{self._failed}: {untracked}", file=self._stderr)

    def _watched(self, call: Callable[[], Any]) -> Any:
        self._since = time.monotonic()
        try:
            return call()
        finally:
            self._since = None

    def _open(self) -> None:
        """Connect, and open the attempt's runs."""
        from lottery.tracking import runs
        from lottery.tracking.store import Store

        store = Store(self._params.tracking.mlflow_experiment, self._watched)
        in_workspace = Path.cwd().resolve() == root().resolve()  # and not in an experiment's copy of it
        origin = runs.origin_of_workspace(os.environ)
        self._recorder: Recorder = runs.Recorder(store, origin, is_current=in_workspace)
        own = self._recorder.origin.tags(os.environ.get("DVC_STAGE", ""))
        named = self._recorder.origin.named
        self._attempt: Attempt = runs.Attempt(store.create(named(self._name), own, self._started))
        if self._trains:
            if self._is_first(store):
                remedy = "once all is done, `make ui` or `lottery sync` completes it"
                print(f"MLflow's store is new: {remedy}", file=self._stderr)
            store.log(self._attempt.run, (), runs.level_settings(self._params, self._name))
            for row, (arm, seed) in enumerate(self._params.rows(self._name)):
                below = own | {runs.PARENT: self._attempt.run}
                network = store.create(named(f"{self._name} {arm} {seed}"), below, self._started + 1 + row)
                store.log(network, (), runs.network_settings(self._params, self._name, arm, seed))
                self._attempt.networks[arm, seed] = network

    def _is_first(self, store: "Store") -> bool:
        """Say whether the store knows no level, while DVC may skip `evaluate` and `plot`, whose results are here.

        `lottery repro`, which sets LOTTERY_OUTLOOK, ends with a sync, so nothing need be said then.
        """
        if os.environ.get("LOTTERY_OUTLOOK"):
            return False
        with suppress(OSError):
            if re.search(r"^  evaluate:$", (root() / "dvc.lock").read_text(encoding="utf-8"), re.MULTILINE):
                return not store.search(f"tags.`{KEY}` IS NOT NULL and params.level LIKE '%'")
        return False

    def _log_means(self) -> None:
        """Log the means of the arms whose seeds have all come to an iteration."""
        from lottery.tracking import runs

        order = list(self._params.rows(self._name))
        while not self._seen.empty():
            first, iteration, rows = self._seen.get()
            for (arm, seed), values in zip(order[first:], rows, strict=False):
                self._means.setdefault((arm, iteration), {})[seed] = values
        seeds = self._params.train.seeds
        whole = [key for key, each in self._means.items() if len(each) == len(seeds)]
        points: list[tuple[str, float, int]] = []
        for arm, iteration in whole:
            each = self._means.pop((arm, iteration))
            columns = zip(*(each[seed] for seed in seeds), strict=True)
            points += runs.mean_points(arm, iteration, dict(zip(runs.CURVES, columns, strict=True)))
        if points:
            self._recorder.store.log(self._attempt.run, points)
            self._attempt.logged.update((key, step) for key, _, step in points)

    def _end(self, status: str) -> None:
        for run in (*self._attempt.networks.values(), self._attempt.run):
            self._recorder.store.end(run, status)


@contextmanager
def stage(params: Params, name: str) -> Iterator[StageRun]:
    """The runs of a stage execution, FINISHED, FAILED or KILLED as its block ends."""
    run = StageRun(params, name)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.close("FINISHED")
