"""The process that `lottery ui` is: what it prints, and how it ends."""

import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from clones import ROOT

PATIENCE = 120  # seconds


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def _in_a_folder_with_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with params.yaml, the Makefile and an environment that is ready, as far as `make ui` asks."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for name in ("params.yaml", "Makefile"):
        shutil.copy(ROOT / name, name)
    Path("scripts").mkdir()
    Path("scripts/environment").symlink_to("/bin/true")


def in_terminal(command: list[str], until: str) -> tuple[list[str], list[str], int]:
    """What a terminal shows of a command until a word comes, what after ctrl-C, and the exit code."""
    process, terminal = pty.fork()
    if not process:
        os.execvp(command[0], command)
    before, after = b"", b""
    while until not in before.decode():
        assert select.select([terminal], [], [], PATIENCE)[0], before
        before += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    try:
        while more := os.read(terminal, 4096):
            after += more
    except OSError:  # how Linux says that the other side has closed
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return before.decode().splitlines(), after.decode().splitlines(), code


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    "command",
    [["lottery", "ui", "--port"], pytest.param(["make", "ui"], marks=pytest.mark.slow)],
    ids=["lottery", "make"],
)
def test_the_last_line_opens_the_runs_and_ctrl_c_ends_it_with_one_more(command: list[str], port: int) -> None:
    typed = [*command, str(port)] if command[0] == "lottery" else [*command, f"PORT={port}"]
    before, after, code = in_terminal(typed, "viewStateShareKey=all\r\n")
    assert len(before) == 1
    assert before[0].startswith(f"MLflow UI: http://127.0.0.1:{port}/#/experiments/1/runs?")
    assert [line for line in after if line != "^C"] == ["MLflow UI: ended"]
    assert code == (0 if command[0] == "lottery" else -signal.SIGINT)  # make ends by the signal, and says nothing
    assert is_free(port)


@pytest.mark.slow
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_with_its_starter_and_no_list_of_processes_shows_the_stores_address(
    name: signal.Signals, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path('secret.db').resolve()}")
    command = ["lottery", "ui", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        assert not is_free(port)  # whoever reads the address can open it at once
        lines = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
        assert [line for line in lines if "mlflow server" in line]
        assert not [line for line in lines if "secret" in line]
        process.send_signal(name)
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out.strip(), errors) == (0, "MLflow UI: ended", "")
    assert is_free(port)


def test_a_port_that_is_taken_is_told_before_anything_is_done() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(["lottery", "ui", "--port", str(port)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"lottery ui: --port {port}: [Errno 98] Address already in use; choose another\n"
    assert not Path("mlflow.db").exists()


@pytest.mark.slow
def test_a_server_that_does_not_start_is_one_line_that_names_its_log(port: int) -> None:
    environment = os.environ | {"MLFLOW_STATIC_PREFIX": "no-slash"}
    command = ["lottery", "ui", "--port", str(port)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    log = Path(f".lottery/ui-{port}.log").resolve()
    assert done.stderr == f"{log}: says why MLflow's server ended, with exit code 2; `lottery ui` starts it anew\n"
    assert "static-prefix" in log.read_text()
