"""The engine that trains groups of networks on a Ray cluster: the same bits as one machine's, from states that travel.

The stage is Ray's driver. A group's task streams the group's state after each evaluation; when a worker or a node is
lost, another task goes on from the last state that the driver has. Nodes get the images once, and this folder's code,
from Ray; workers reach no file of the repository, no DVC and no MLflow.
"""

import atexit
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

import lottery
from lottery import LotteryError
from lottery.core.engines import Engine
from lottery.core.families import Lessons
from lottery.core.stack import Stack
from lottery.core.training import DivergedError, Group, State, Task
from lottery.files.checkpoints import OPERATORS, operators
from lottery.files.digests import digest, digest_of_files
from lottery.params import HOST_AND_PORT

Arrays = Mapping[str, np.ndarray]
PACKAGE = Path(lottery.__file__).parent
VARIABLE = "RAY_ADDRESS"
TRIES = 3  # of a group between two evaluations
ANSWER = 10.0  # seconds in which an address answers, and a cluster has a processor
JOINED = 30.0  # seconds in which a cluster lets this process in
TRAINED = ("parameters", "moments")  # the tensors of a state that training changes
AHEAD = 2  # evaluations that a task may be ahead of the driver, whose states Ray holds
TURNS = 4  # tasks of a group, one after another, where groups are few: so that three share two processors evenly
LOOK = 1.0  # seconds between two looks at what nodes there are
WORKER = 500_000_000  # bytes of a worker that has imported torch, beside the images and its networks
STATES = 4  # of a group in its worker: as it came, as it trains, its gradients and batches, as it goes
NO_RAY = "params.yaml: run.engine: ray is not installed: `pip install -e '.[ray]'` installs it; or choose local"
# for a shell: say what $1 is where the input ends without a line
WATCH = "trap '' INT TERM HUP; read -r _ || printf '%s\\n' \"$1\" >&2"


class GoneError(LotteryError):
    """The cluster's head is gone; Ray may end this process at any time."""


class UnlikeError(Exception):
    """A worker's code, torch, numpy or processor is not the driver's; it carries the worker's `environment`."""


def environment() -> dict[str, str]:
    """What decides a network's bits beside its task and its state: the code, and what says how operators round."""
    files = {file.relative_to(PACKAGE).as_posix(): digest(file) for file in PACKAGE.rglob("*.py")}
    return {"code": digest_of_files(files)} | operators()


@contextmanager
def connected(address: str | None, threads: int) -> Iterator["Cluster"]:
    """A connection to the cluster at ``address``, or at Ray's own variable RAY_ADDRESS.

    Without one, to a Ray of this machine, with so many ``threads``, which ends with the block. Raises LotteryError
    where there is none.
    """
    address, named = (address, "params.yaml: run.ray.address") if address else (os.environ.get(VARIABLE), VARIABLE)
    if address and not re.fullmatch(HOST_AND_PORT, address):
        raise LotteryError(f"{named}: {_first(address)}: give host:port of a Ray cluster's head, or unset it")
    _set_up(address)
    try:
        ray = _ray()
    except ImportError:
        raise LotteryError(NO_RAY) from None
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {
            "py_modules": [str(PACKAGE)],
            "excludes": ["__pycache__"],
            "env_vars": {name: value for name, value in os.environ.items() if name.startswith(OPERATORS)},
        },
    }
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own, which would end a stage unsaved
    with _watched(_gone(address or "127.0.0.1")), ExitStack() as held:
        held.callback(signal.signal, signal.SIGTERM, handler)
        # of a short path, for sockets lie in it
        folder = None if address else held.enter_context(TemporaryDirectory("", "ray-", ignore_cleanup_errors=True))
        shutdown = held.enter_context(ExitStack())
        shutdown.callback(ray.shutdown)
        try:
            if address:
                _join(address, named, options)
            else:
                try:
                    ray.init("local", num_cpus=threads, include_dashboard=False, _temp_dir=folder, **options)
                except Exception as error:
                    line = f"params.yaml: run.engine: ray: it does not start on this machine: {_first(error)}"
                    raise LotteryError(line) from error
            signal.signal(signal.SIGTERM, handler)
            ray._private.worker._worker_logs_enabled = False  # else a page for each worker that is lost
            yield Cluster(ray.get_runtime_context().gcs_address)
        except GoneError:
            shutdown.pop_all()  # it would end the process before that has saved
            raise


@contextmanager
def _watched(line: str) -> Iterator[None]:
    """Say this line where the process ends within the block, as Ray ends it when its head or its store is gone."""
    watch = subprocess.Popen(["sh", "-c", WATCH, "sh", line], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    with ExitStack() as over:
        over.callback(watch.communicate, b".\n")
        try:
            yield
        except GoneError:
            atexit.register(over.pop_all().close)  # until this process has said it: Ray may end it before
            raise


def _gone(address: str) -> str:
    """The line for a cluster that is not there any more."""
    return (
        f"run.engine: ray: the cluster at {address} is gone, or this stage was killed; see that it runs, then "
        "`dvc repro` goes on from what was saved"
    )


def _ray() -> Any:
    """Ray, an extra, which takes a second to import."""
    return import_module("ray")


def _set_up(address: str | None) -> None:
    """Set the variables that Ray reads when it is imported: nothing leaves the machine, and a token lets in."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"  # those that tasks are given; they read them alone
    if not address:  # it listens on 127.0.0.1 alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_AUTH_MODE"] = "token"
    elif {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or Path(
        "~/.ray/auth_token"
    ).expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _join(address: str, named: str, options: Mapping[str, Any]) -> None:
    """Connect to the cluster at an address, which ``named`` gives.

    Raises LotteryError where it does not answer in time, or does not take this process.
    """
    answered, failure = Event(), list[Exception]()

    def join() -> None:
        try:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER).close()
            answered.set()
            _ray().init(address, **options)
        except Exception as error:
            failure.append(error)

    joining = Thread(target=join, daemon=True)  # Ray would try for minutes, and a host's name may take as long
    with _silent():
        joining.start()
        joining.join(ANSWER)
        if answered.is_set():
            joining.join(JOINED)
    if not answered.is_set():
        raise LotteryError(
            f"{named}: {address}: no answer within {ANSWER:.0f} s; `ray start --head` starts a cluster there; without "
            "an address, a stage starts a Ray of this machine alone"
        )
    if joining.is_alive():
        raise LotteryError(
            f"{named}: {address}: does not let this process in; give the cluster's RAY_AUTH_TOKEN, and see that a Ray "
            "of this version answers there"
        )
    for error in failure:
        raise LotteryError(f"{named}: {address}: {_first(error)}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to standard error, by Ray's library too."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _first(error: object) -> str:
    """The beginning of an error's words, on one line."""
    words = " ".join(str(error).split())
    return words if len(words) < 300 else f"{words[:300]} ..."


@dataclass
class _Attempt:
    """The training of a group by one task."""

    group: Group
    failed_on: tuple[str, ...] = ()  # the nodes of the tasks that failed since the group's last evaluation
    node: str = ""  # its own

    def advance(self, changed: Arrays) -> None:
        """Take what an evaluation has `_changed`."""
        self.failed_on = ()
        state, kept = self.group.state.tensors(), self.group.kept
        for name, array in changed.items():
            if name in TRAINED and kept is not None:
                state[name].flatten(-2).numpy()[..., kept.numpy()] = array  # in the state's own memory
            else:
                np.copyto(state[name].numpy(), array)
        self.group.keep_best()

    def again(self, cause: BaseException, here: Mapping[str, str]) -> "_Attempt":
        """The next attempt after this one failed; raises the error where another attempt would fail likewise."""
        if isinstance(cause, DivergedError):
            raise cause from None
        if isinstance(cause, UnlikeError):
            raise LotteryError(_unlike(cause.args[0], here)) from None
        failed_on = (*self.failed_on, self.node)
        if len(failed_on) == TRIES:
            raise LotteryError(
                f"run.engine: ray: a task failed {TRIES} times at iteration {self.group.iteration:,}, the last time by "
                f"{type(cause).__name__}: {_first(cause)}; `dvc repro` goes on from here"
            ) from cause
        return _Attempt(self.group, failed_on)


class Cluster:
    """The cluster that this process is connected to."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def cores(self) -> int:
        """The number of processors that the cluster has at the moment, at least 1."""
        return max(1, int(_ray().cluster_resources().get("CPU", 0)))

    def engine(self, mixed: bool = False) -> Engine:
        """The engine that trains here.

        ``mixed``: train too where torch, numpy or the processor is another than here, which may give other bits.
        """
        from ray.exceptions import RayError, RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray, here = _ray(), environment()
        expected = {"code": here["code"]} if mixed else here
        remote = ray.remote(num_cpus=1, max_retries=0, _generator_backpressure_num_objects=AHEAD)(_advance)

        def need(group: Group) -> int:
            """The bytes of memory that a group's worker takes, beside the images that all workers of a node share."""
            return WORKER + STATES * sum(tensor.nbytes for tensor in group.state.tensors().values())

        def submit(attempt: _Attempt, lessons: Any, turns: int) -> Any:
            group, options = attempt.group, dict[str, Any](memory=need(attempt.group))
            others = [node["NodeID"] for node in ray.nodes() if node["Alive"]] if attempt.failed_on else []
            for node in others:
                if node not in attempt.failed_on:
                    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
            state = {name: tensor.numpy() for name, tensor in group.state.tensors().items()}
            masks = None if group.masks is None else group.masks.flat.numpy()
            task = remote.options(**options)
            evaluations = -(-len(group.task.recipe.evaluations) // turns)
            return task.remote(lessons, group.first, group.task, masks, state, expected, evaluations)

        def run(groups: Sequence[Group], threads: int, advanced: Callable[[Group], None]) -> None:
            waiting = deque(_Attempt(group) for group in groups if not group.finished)
            if not waiting:
                return
            most = max(need(attempt.group) for attempt in waiting)
            with self._alive():
                places, looked = self._places(most), time.monotonic()
                with warnings.catch_warnings(action="ignore"):  # Ray's, that nobody may change them
                    lessons = ray.put(waiting[0].group.lessons)  # the same of all groups
            turns = TURNS if len(waiting) < TURNS * places else 1
            running: dict[Any, _Attempt] = {}  # by the stream of its states
            while waiting or running:
                with self._alive():
                    if time.monotonic() - looked > LOOK:
                        places, looked = self._places(most), time.monotonic()
                    while waiting and len(running) < places:
                        attempt = waiting.popleft()
                        running[submit(attempt, lessons, turns)] = attempt
                    ready, _ = ray.wait(list(running), num_returns=1, timeout=ANSWER)
                if not ready:
                    self._check()
                for stream in ready:
                    attempt = running[stream]
                    try:
                        told = ray.get(next(stream))
                    except StopIteration:
                        del running[stream]
                        if not attempt.group.finished:
                            waiting.append(_Attempt(attempt.group))
                    except RayError as error:  # of the task's own, or because its worker or its node is gone
                        del running[stream]
                        cause = error.cause if isinstance(error, RayTaskError) else error
                        waiting.append(attempt.again(cause, here))
                    except OSError as error:
                        raise GoneError(_gone(self.address)) from error
                    else:
                        if isinstance(told, str):
                            attempt.node = told
                        else:
                            attempt.advance(told)
                            advanced(attempt.group)

        return run

    def _places(self, memory: int) -> int:
        """The number of tasks that the cluster has a processor and so much memory for at the moment.

        Raises LotteryError where no node has so much memory, or none of them a processor for a while.
        """
        deadline = time.monotonic() + ANSWER
        while True:
            nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
            largest = max((node.get("memory", 0) for node in nodes), default=0)
            if nodes and largest < memory:
                raise LotteryError(
                    f"run.ray: a task takes {memory / 1e9:.1f} GB of memory, and the largest node gives Ray "
                    f"{largest / 1e9:.1f}; start the nodes with more (`ray start --memory`), or give fewer "
                    "run.ray.networks_per_task"
                )
            places = sum(min(int(node.get("CPU", 0)), int(node.get("memory", 0) // memory)) for node in nodes)
            if places:
                return places
            if time.monotonic() > deadline:
                raise LotteryError(
                    f"run.ray: no node of the cluster at {self.address} has a processor and {memory / 1e9:.1f} GB of "
                    "memory for a task; start one (`ray start --address`), then `dvc repro` goes on from here"
                )
            time.sleep(LOOK / 5)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Raise GoneError where Ray's own processes do not answer."""
        from ray.exceptions import RayError

        try:
            yield
        except (OSError, RayError) as error:
            raise GoneError(_gone(self.address)) from error

    def _check(self) -> None:
        """Raise GoneError where the cluster's head does not answer; Ray would end this process after a minute."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except OSError as error:
            raise GoneError(_gone(self.address)) from error


def _advance(
    lessons: Lessons,
    first: int,
    task: Task,
    masks: np.ndarray | None,
    state: Arrays,
    expected: Mapping[str, str],
    evaluations: int,
) -> Iterator[str | Arrays]:
    """Train a group for some evaluations, in a worker: the node's name, then what each of them has `_changed`.

    The ``lessons`` lie in the node's store, whose memory all workers read. Raises UnlikeError where the worker's
    `environment` is not the expected one.
    """
    yield _ray().get_runtime_context().get_node_id()
    here = _workers_environment()
    if any(here[name] != value for name, value in expected.items()):
        raise UnlikeError(here)
    torch.set_num_threads(1)
    own = State.of({name: torch.from_numpy(array.copy()) for name, array in state.items()}, task.layout)
    kept = None if masks is None else Stack(torch.from_numpy(masks.copy()), task.layout)
    group = Group(first, task, kept, lessons, own)
    for _ in range(evaluations):
        if group.finished:
            return
        before = group.iteration
        group.advance()
        yield _changed(group, before)


def _changed(group: Group, before: int) -> Arrays:
    """The part of a group's state that has changed since the iteration ``before``, and does not follow from the rest.

    Sparse networks train their kept weights alone, and the early-stopping parameters are the parameters where the
    evaluation was the best so far.
    """
    tensors = group.state.tensors()
    del tensors["early_stopping"]
    if not before < group.task.recipe.rewind <= group.iteration:
        del tensors["rewound"]
    if group.kept is not None:
        tensors |= {name: tensors[name].flatten(-2)[..., group.kept] for name in TRAINED}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _unlike(worker: Mapping[str, str], here: Mapping[str, str]) -> str:
    if worker["code"] != here["code"]:
        return "run.ray.address: a worker does not run the code of src/lottery; remove `lottery` from the nodes"
    differences = [f"{name} {worker[name]} and not {here[name]}" for name in here if worker[name] != here[name]]
    return (
        f"run.ray.address: a worker has {', '.join(differences)}: its networks would have other bits; give the nodes "
        "what this machine has, or set run.ray.mixed to true, which the report tells"
    )


@cache
def _workers_environment() -> dict[str, str]:
    """A worker's `environment`, which stays."""
    return environment()
