"""Stages of `lottery repro` are copies of a process that has imported: they do and say what stages alone would."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clones import SMALL, Clone
from stores import PATIENCE

from lottery.stages import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks what has imported torch")


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, str]]:
    """The variable with a warm process's address."""
    with warm.kept() as found:
        yield found


def _start(folder: Path, kept: dict[str, str], code: str) -> "subprocess.Popen[str]":
    """A module that begins as stages begin, and then runs this code."""
    (folder / "probe.py").write_text(f"import lottery.stages, os, signal, sys, time\n{code}\n")
    return subprocess.Popen(
        [sys.executable, "-m", "probe", "--option"],
        cwd=folder,
        env=os.environ | kept | {"PROBE": "here"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_copy_has_all_that_the_stage_was_started_with(tmp_path: Path, kept: dict[str, str]) -> None:
    told = "print(os.getcwd(), os.environ['PROBE'], __name__, *sys.argv, 'torch' in sys.modules, os.getpid(), input())"
    stage = _start(tmp_path, kept, f"{told}\nprint('wrong', file=sys.stderr)\nsys.exit(7)")
    out, errors = stage.communicate("given\n", timeout=PATIENCE)
    folder, variable, name, program, option, imported, process, given = out.split()
    assert (Path(folder), variable, name, imported, given) == (tmp_path, "here", "__main__", "True", "given")
    assert (Path(program), option) == (tmp_path / "probe.py", "--option")
    assert (errors, stage.returncode) == ("wrong\n", 7)
    assert int(process) != stage.pid


def test_no_module_of_the_warm_process_is_the_copys(tmp_path: Path, kept: dict[str, str]) -> None:
    """In a copy of the repository the code of that copy runs."""
    package = tmp_path / "lottery" / "stages"
    package.mkdir(parents=True)
    (tmp_path / "lottery" / "__init__.py").write_text("OTHER = True\n")
    source = Path(warm.__file__).read_text()
    (package / "warm.py").write_text(source)
    (package / "__init__.py").write_text("from lottery.stages import warm\n")
    kept = kept | {"PYTHONPATH": str(tmp_path)}
    out, errors = _start(tmp_path, kept, "import lottery; print(lottery.OTHER, lottery.__file__)").communicate()
    assert out.split() == ["True", str(tmp_path / "lottery" / "__init__.py")], errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_copy_and_its_end_is_the_stages(
    tmp_path: Path, kept: dict[str, str], number: signal.Signals
) -> None:
    code = f"signal.signal({int(number)}, lambda *_: sys.exit(9))\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    stage = _start(tmp_path, kept, code)
    assert stage.stdout
    copy = psutil.Process(int(stage.stdout.readline()))
    stage.send_signal(number)
    assert stage.wait(PATIENCE) == 9
    assert not copy.is_running()


def test_a_copy_that_is_killed_ends_its_stage(tmp_path: Path, kept: dict[str, str]) -> None:
    stage = _start(tmp_path, kept, "os.kill(os.getpid(), signal.SIGKILL)")
    assert stage.wait(PATIENCE) == 128 + signal.SIGKILL


def test_a_copy_ends_as_a_signal_ends_it_when_its_stage_is_killed(tmp_path: Path, kept: dict[str, str]) -> None:
    saved = tmp_path / "saved"
    code = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(saved)!r}, 'w'), sys.exit()))"
    stage = _start(tmp_path, kept, f"{code}\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    assert stage.stdout
    copy = psutil.Process(int(stage.stdout.readline()))
    stage.kill()
    psutil.wait_procs([copy], PATIENCE)
    assert saved.exists()
    _expect_a_copy(tmp_path, kept)


def _expect_a_copy(folder: Path, kept: dict[str, str]) -> None:
    out, errors = _start(folder, kept, "print('torch' in sys.modules)").communicate(timeout=PATIENCE)
    assert out == "True\n", errors


@pytest.mark.parametrize("sent", [b"", b"\n", b"\n{\n"])
def test_a_stage_that_ends_before_it_has_asked_costs_the_next_one_nothing(
    tmp_path: Path, kept: dict[str, str], sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(kept[warm.ADDRESS])
        connection.sendall(sent)
    _expect_a_copy(tmp_path, kept)


def test_a_stage_without_input_runs_itself(tmp_path: Path, kept: dict[str, str]) -> None:
    (tmp_path / "probe.py").write_text("import lottery.stages, os, sys\nprint(os.getpid(), 'torch' in sys.modules)\n")
    command = f"{sys.executable} -m probe <&-"
    out = subprocess.check_output(["sh", "-c", command], cwd=tmp_path, env=os.environ | kept, text=True)
    assert out.split()[1] == "False"
    _expect_a_copy(tmp_path, kept)


def test_a_copy_ends_when_the_process_that_forked_it_is_killed(tmp_path: Path) -> None:
    with warm.kept() as kept:
        servers = [each for each in psutil.Process().children() if warm.__file__ in each.cmdline()]
        server = max(servers, key=psutil.Process.create_time)  # another may be kept by the tests, of a higher number
        stage = _start(tmp_path, kept, "print(os.getpid(), flush=True)\ntime.sleep(60)")
        assert stage.stdout
        copy = psutil.Process(int(stage.stdout.readline()))
        server.kill()
        assert stage.wait(20) == 1
        assert psutil.wait_procs([copy], 0)[1] == [] or copy.status() == psutil.STATUS_ZOMBIE


def test_a_folder_whose_path_is_too_long_for_a_socket_has_no_such_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ("long" * 30)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))
    with warm.kept() as kept:
        assert kept == {}


def test_without_a_warm_process_a_stage_runs_itself(tmp_path: Path) -> None:
    stage = _start(tmp_path, {warm.ADDRESS: str(tmp_path / "none")}, "print(os.getpid())")
    out, errors = stage.communicate(timeout=PATIENCE)
    assert int(out) == stage.pid, errors


@pytest.mark.slow
def test_a_warm_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = "from lottery.stages import warm\nwith warm.kept() as found: print(found, flush=True); input()"
    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdout
    starter.stdout.readline()
    (server,) = psutil.Process(starter.pid).children()
    starter.kill()
    starter.wait()
    assert psutil.wait_procs([server], PATIENCE)[1] == []


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dvc", "lottery"])
def test_each_command_leaves_the_same_bytes(finished: Clone, origin: Path, tmp_path: Path, command: str) -> None:
    """`dvc repro` has no process to copy; `lottery repro` starts one of its own. That of the other tests is none."""
    clone = Clone(tmp_path / "clone", origin)
    subprocess.run([command, "repro"], cwd=clone.folder, env=clone.environment, check=True)
    for folder in ("data", "models", "reports"):
        assert clone.files(folder) == finished.files(folder)
    assert (clone.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["dvc", "stage", "warm"])
def test_whatever_is_killed_nothing_trains_on_and_the_next_goes_on(clone: Clone, victim: str) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 400}, run={"threads": 2, "checkpoint_every": 0.2})
    command = [sys.executable, "-m", "lottery.cli", "repro"]
    repro = subprocess.Popen(command, cwd=clone.folder, env=clone.environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not any(clone.folder.glob(".lottery/checkpoints/*/*.safetensors")):
        assert repro.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(repro.pid).children(recursive=True)
    words = {"dvc": "dvc", "stage": "lottery.stages.train", "warm": warm.__file__}
    next(each for each in family if words[victim] in each.cmdline()).kill()
    assert repro.wait(30) != 0
    assert psutil.wait_procs(family, PATIENCE)[1] == []
    assert "train: goes on from iteration " in clone.run("dvc", "repro", "--single-item", "train")
