"""What `lottery repro` says before, while and after DVC runs the pipeline."""

import os
import pty
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from clones import SMALL, Clone

from lottery import outlook
from lottery.params import Params
from lottery.stages import progress
from lottery.stages.progress import Progress, duration

STAGES = ["download", "train", "prune@p50", "prune@p75", "prune@p80-at-once", "evaluate", "plot"]


def _params(**sections: object) -> Params:
    return Params.model_validate(SMALL | sections)


def _to_run(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.chdir(clone.folder)
    return {*outlook.to_run()} - {"check"}


def test_what_changed_and_what_depends_on_it_would_run(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _to_run(clone, monkeypatch) == set()
    clone.change(verdict={"margin": 0.3, "speed_margin": 1.25})
    assert _to_run(clone, monkeypatch) == {"evaluate", "plot"}
    clone.change(levels=SMALL["levels"] | {"p50": {"sparsity": 0.4, "parent": "dense"}})
    assert _to_run(clone, monkeypatch) == {"prune@p50", "prune@p75", "evaluate", "plot"}
    clone.change(data=SMALL["data"] | {"name": "mnist"})
    assert _to_run(clone, monkeypatch) == {*STAGES}


def test_stages_are_in_the_order_in_which_dvc_runs_them(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(origin)
    assert outlook.to_run() == ["check", *STAGES]


@pytest.mark.parametrize(("twins", "dense", "level"), [(False, 2, 6), (True, 4, 10)])
def test_networks_are_counted_with_their_twins(twins: bool, dense: int, level: int) -> None:
    params = _params(train=SMALL["train"] | {"twins": twins})
    assert outlook.networks(params, "train") == dense
    assert outlook.networks(params, "prune@p75") == level
    assert outlook.networks(params, "evaluate") == 0


def test_the_pace_is_that_of_training() -> None:
    """Seconds of processors; twenty times the weights take longer whatever else this machine does."""
    small = _params(network={"hidden": [100], "initialization": "glorot-normal"})
    large = _params(network={"hidden": [2000], "initialization": "glorot-normal"})
    assert outlook.seconds_per_iteration(small, 1) < outlook.seconds_per_iteration(large, 1)


def test_time_left_is_that_of_the_stage_and_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = Progress("prune@p50", {"train": 10.0, "prune@p50": 20.0, "evaluate": 30.0})
    now = 110.0
    assert str(told) == "10 s so far, pipeline: 40 s left"
    told.report(1, 4, "iteration 20 of 80")  # a quarter in 10 s: twice the time that was expected
    assert str(told) == "iteration 20 of 80, 30 s left, pipeline: 90 s left"
    alone = Progress("prune@p50", {})
    now = 115.0
    assert str(alone) == "5 s so far"


def test_where_the_output_is_no_terminal_a_line_comes_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert progress.EVERY < 10
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with progress.shown("train"):
        progress.report(1, 2, "iteration 5 of 10")
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 1
    assert all(line.startswith("train: iteration 5 of 10, ") for line in lines)


def test_in_a_terminal_a_bar_shows_it() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, 100))
    script = "from lottery.stages.progress import *\nwith shown('train'): report(1, 2, 'iteration 5 of 10')"
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = ""
    with suppress(OSError):  # Linux has no other end of a terminal
        while piece := os.read(ours, 10_000):
            shown += piece.decode()
    os.close(ours)
    assert "50%|##########          | train: iteration 5 of 10, " in shown.replace("█", "#")
    assert shown.rstrip("\r").rpartition("\r")[2].strip() == ""  # what is drawn last is an empty line


def test_durations_are_as_people_say_them() -> None:
    assert [duration(each) for each in (0.4, 59, 99, 100, 3599, 6300)] == [
        "0 s",
        "59 s",
        "99 s",
        "2 min",
        "1 h 0 min",
        "1 h 45 min",
    ]


@pytest.mark.slow
def test_repro_says_what_it_will_do_and_ends_with_the_answer(clone: Clone) -> None:
    clone.change(levels=SMALL["levels"] | {"p75": {"sparsity": 0.7, "parent": "p50"}})
    output = clone.run("lottery", "repro")
    begin, _, end = output.partition("Running stage")
    assert "to run: prune@p75, evaluate, plot, 6 networks to train\nabout " in begin
    *_, sentences, table, reasons, ways = end.partition("(parameters and")[0].split("\n\n")
    assert "2 seeds" in sentences
    assert [line.split()[0] for line in table.splitlines()] == ["level", "dense", "p50", "p75", "p80-at-once"]
    assert table.count("undecided") == 3
    assert reasons.count("2 seeds; a verdict needs 3 train.seeds") == 3
    assert "git restore . && " in ways
    clone.run(*ways.partition("&& ")[2].split())  # as it is typed
    again = clone.run("lottery", "repro")
    assert "nothing has to run" in again
    assert ways in again
    assert "\nMLflow: runs: " in again


def test_what_undoes_works_where_the_committed_networks_were_never_made(clone: Clone, tmp_path: Path) -> None:
    clone.commit("Results")
    new = Clone(tmp_path / "new", clone.folder)
    undo = clone.run("lottery", "answer").partition("to undo:")[2].partition("(")[0]
    (new.folder / "params.yaml").write_text("{}")
    new.run("sh", "-c", undo)
    assert new.run("git", "status", "--short") == ""


@pytest.mark.slow
def test_repro_ends_with_dvcs_exit_code_and_no_answer_where_a_stage_fails(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"optimizer": "sgd", "learning_rate": 1e9})
    done = subprocess.run(["lottery", "repro"], cwd=clone.folder, env=clone.environment, capture_output=True, text=True)
    assert done.returncode not in (0, 2)
    assert "training diverged" in done.stderr
    assert "git restore" not in done.stdout
