"""A stage that is told to end says so in one line and saves what it trained; the next one goes on from there."""

import re
import signal
import subprocess
import sys
import time

import pytest
from clones import SMALL, Clone
from stores import PATIENCE, lines_of, stage

SIGNALS = [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGHUP))]


def _saved(clone: Clone) -> bool:
    return any(clone.folder.glob(".lottery/checkpoints/*/*.safetensors"))


@pytest.fixture
def long(clone: Clone) -> Clone:
    """A clone whose `train` takes some seconds, and saves what it trains every second."""
    clone.change(train=SMALL["train"] | {"epochs": 400}, run={"threads": 2, "checkpoint_every": 0.5})
    return clone


@pytest.mark.parametrize("which", SIGNALS, ids=lambda which: which.name)
def test_a_stage_that_trains_saves_its_networks_and_goes_on(long: Clone, which: signal.Signals) -> None:
    running = stage(long, "train", "train")
    deadline = time.monotonic() + PATIENCE
    while not _saved(long):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(which)
    running.send_signal(which)  # as a shell and DVC may both do
    (line,) = lines_of(running, 130)
    (reached,) = re.fullmatch(r"interrupted; `dvc repro` goes on from iteration ([\d,]+)", line).groups()
    output = long.run("dvc", "repro", "--single-item", "train")
    (went_on,) = re.findall(r"train: goes on from iteration ([\d,]+) of 8,400, saved \d\d:\d\d\n", output)
    assert int(went_on.replace(",", "")) >= int(reached.replace(",", ""))
    assert "train" not in long.repro("train")


@pytest.mark.parametrize(
    "module",
    ["train", *(pytest.param(each, marks=pytest.mark.slow) for each in ("download", "evaluate", "export", "plot"))],
)
def test_a_signal_is_one_line_whenever_it_comes(clone: Clone, module: str) -> None:
    before = clone.files("reports") | clone.files("data")
    codes = []
    for delay in (0.5, 0.9, 1.4):  # Python itself takes a moment to start
        running = stage(clone, module, module)
        time.sleep(delay)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=PATIENCE)
        codes.append(running.returncode)
        if running.returncode:  # it may be over already
            # on a fast machine it has networks in training by then
            assert re.fullmatch(
                r"interrupted; `dvc repro` (starts this stage anew|goes on from iteration \d+)\n", errors
            )
            assert clone.files("reports") | clone.files("data") == before
    assert 130 in codes


def test_an_interruption_in_the_midst_of_a_stage_says_how_to_go_on(finished: Clone) -> None:
    code = "import signal; from lottery.stages import run; run(lambda: signal.raise_signal(signal.SIGINT))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=finished.folder,
        env=finished.environment | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted; `dvc repro` starts this stage anew\n")


@pytest.mark.parametrize(
    "where",
    [
        "class Destroyed:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\nDestroyed()",
        'exec(compile("signal.raise_signal(signal.SIGINT); passed = True", "<frozen importlib._bootstrap>", "exec"))',
    ],
    ids=["a destructor", "an import"],
)
def test_a_signal_is_not_lost_where_python_drops_exceptions_nor_breaks_an_import(where: str) -> None:
    code = f"""
import signal, time
from lottery.stages import signals
signals.interrupt()
passed = False
try:
    {where.replace(chr(10), chr(10) + "    ")}
    passed = True
    time.sleep({PATIENCE})
except KeyboardInterrupt:
    print("interrupted", passed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("interrupted True\n", "")


def test_a_shell_that_ignores_a_signal_for_a_stage_has_its_way() -> None:
    code = "import signal; from lottery.stages import signals; signals.interrupt(); signal.raise_signal(signal.SIGHUP)"
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {code}"
    done = [subprocess.run([sys.executable, "-c", each], capture_output=True, text=True) for each in (ignoring, code)]
    assert [each.returncode != 0 for each in done] == [False, True]
    assert done[1].stderr.endswith("KeyboardInterrupt\n")
