"""A process that has imported torch and MLflow already, and that each stage of `lottery repro` is a copy of.

A stage spends seconds on importing, which in a small level is more than its training takes. `lottery repro` starts this
file once. A stage that finds its address has it make a copy of itself, by fork, and waits for the copy's end; the copy
has the stage's folder, environment, arguments, input and outputs, and imports this project's code from there, which DVC
hashes: only packages are imported ahead. The waiting stage passes signals on; where it is killed, its copy ends as a
stage whose DVC was killed.

It imports nothing of `lottery`, which in a copy of this repository would be the code of another folder.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

ADDRESS = "LOTTERY_WARM"
WAITS = "LOTTERY_WAITS"  # the id of the process that waits for this copy
PACKAGES = (
    "torch", "pandas", "safetensors.torch", "psutil", "tqdm", "pydantic", "ruamel.yaml", "yaml",
    "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.artifact.local_artifact_repo",
)  # fmt: skip
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def kept() -> Iterator[dict[str, str]]:
    """The variable by which stages find such a process, which lives as long as the block; none but on Linux."""
    if sys.platform != "linux":  # elsewhere what has imported torch is not safely copied
        yield {}
        return
    with TemporaryDirectory(prefix="lottery-") as folder:
        address = str(Path(folder) / "stages")
        with socket.socket(socket.AF_UNIX) as listening:  # from now on stages wait until it has imported
            try:
                listening.bind(address)
            except OSError:  # its path is too long
                yield {}
                return
            listening.listen()
            server = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listening.fileno()), str(os.getpid())],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                pass_fds=[listening.fileno()],
            )
        try:
            yield {ADDRESS: address}
        finally:
            server.kill()
            server.wait()


def _hand_over() -> None:
    """Have a copy of the process at ADDRESS do what this process was started for, and end as the copy ends.

    Returns in the copy, and where there is no such process.
    """
    address, arguments = os.environ.pop(ADDRESS, None), sys.orig_argv
    if address is None or "-m" not in arguments or None in (sys.stdin, sys.stdout, sys.stderr):
        return
    ignored = [int(each) for each in SIGNALS if signal.getsignal(each) == signal.SIG_IGN]
    request = {
        "module": arguments[arguments.index("-m") + 1],
        "arguments": sys.argv,
        "path": sys.path,
        "folder": str(Path.cwd()),
        "environment": os.environ | {WAITS: str(os.getpid())},
        "ignored": ignored,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [b"\n"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            told = connection.makefile()
            copy = int(told.readline())
        except (OSError, ValueError):  # it was killed
            return
        for each in SIGNALS:
            if each not in ignored:
                signal.signal(each, lambda number, _: _signal(copy, number))
        code = told.readline()
    if not code:
        os.write(2, b"the process that this stage runs in was killed; `dvc repro` goes on from what it saved\n")
    number = int(code or 1)
    os._exit(number if number >= 0 else 128 - number)


def _signal(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _serve(listening: socket.socket, parent: int) -> None:
    """Make copies, one after another, until the parent has ended; returns in a copy, whose module has then run."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a terminal's reach the copy too
    for name in PACKAGES:
        import_module(name)
    gc.freeze()  # what the imports made stays shared with the copies
    alive, own = os.pipe()  # a copy reads the end of this process
    listening.settimeout(1.0)
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        request = _asked(connection)
        copy = os.fork() if request else None
        if request and copy == 0:
            listening.close()
            os.close(own)
            return _become(request, [connection.fileno(), alive])
        with connection, suppress(OSError):  # of a stage that was killed
            if request and copy:
                _follow(copy, request["streams"], connection)
    return None


def _asked(connection: socket.socket) -> dict[str, Any] | None:
    """What a stage asks for, its input and outputs among it; None where it has ended."""
    connection.settimeout(None)
    with suppress(OSError, ValueError):
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        request: dict[str, Any] = json.loads(connection.makefile().readline())
        return request | {"streams": streams}
    return None


def _follow(copy: int, streams: list[int], connection: socket.socket) -> None:
    """Tell a stage its copy's id, and when the copy has ended its exit code."""
    for each in streams:
        os.close(each)
    try:
        connection.sendall(b"%d\n" % copy)
    finally:
        _, status = os.waitpid(copy, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any], others: list[int]) -> None:
    """Run a stage's module with all that the stage was started with, until one of the ``others`` is closed."""
    for number, each in enumerate(request["streams"]):
        os.dup2(each, number)
        os.close(each)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:], sys.argv[:] = request["path"], request["arguments"]
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN if each in request["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    Thread(target=_end_with, args=(others,), name="waits", daemon=True).start()
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _end_with(others: list[int]) -> None:
    """End this process, as SIGTERM does, when the stage that waits for it is killed, or the process that forked it."""
    select(others, [], [])
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
else:
    _hand_over()
