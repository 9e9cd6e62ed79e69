"""What `lottery repro` says before, while and after DVC runs the pipeline."""

import os
import pty
import shutil
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from clones import SMALL, Clone

from lottery import calibration, outlook
from lottery.calibration import Machine, calibrated
from lottery.params import Params
from lottery.stages import progress
from lottery.stages.progress import Progress, duration

STAGES = ["download", "train", "prune@p50", "prune@p75", "prune@p80-at-once", "evaluate", "export", "plot"]


def _params(**sections: object) -> Params:
    return Params.model_validate(SMALL | sections)


def _to_run(clone: Clone, monkeypatch: pytest.MonkeyPatch, fate: str = "run") -> set[str]:
    monkeypatch.chdir(clone.folder)
    return {stage for stage, found in outlook.fates().items() if found == fate} - {"check"}


def test_what_changed_and_what_depends_on_it_would_run(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _to_run(clone, monkeypatch) == set()
    clone.change(verdict={"margin": 0.3, "speed_margin": 1.25})
    assert _to_run(clone, monkeypatch) == {"evaluate", "export", "plot"}
    clone.change(levels=SMALL["levels"] | {"p50": {"sparsity": 0.4, "parent": "dense"}})
    assert _to_run(clone, monkeypatch) == {"prune@p50", "prune@p75", "evaluate", "export", "plot"}
    clone.change(data=SMALL["data"] | {"name": "mnist"})
    assert _to_run(clone, monkeypatch) == {*STAGES}


def test_stages_are_in_the_order_in_which_dvc_runs_them(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(origin)
    assert outlook.fates() == dict.fromkeys(["check", *STAGES], "run")


@pytest.mark.parametrize(("twins", "dense", "level"), [(False, 2, 6), (True, 4, 10)])
def test_networks_are_counted_with_their_twins(twins: bool, dense: int, level: int) -> None:
    params = _params(train=SMALL["train"] | {"twins": twins})
    assert params.networks("dense") == dense
    assert params.networks("p75") == level


@pytest.mark.slow
def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of processors; twenty times the weights take longer whatever else this machine does."""
    monkeypatch.chdir(tmp_path)
    small = _params(network=SMALL["network"] | {"hidden": [100]})
    large = _params(network=SMALL["network"] | {"hidden": [2000]})
    first, second = calibrated(small, 1), calibrated(large, 1)
    assert first.dense < second.dense
    assert first.sparse < second.sparse
    began = time.monotonic()
    assert calibrated(small, 1) == first
    assert calibrated(large, 1) == second
    assert time.monotonic() - began < 0.5


def test_a_gpu_is_said_to_be_left_out() -> None:
    steps = [outlook.Step("train", "run", networks=2, iterations=10, parameters=10, work=300.0)]
    found = outlook.Outlook(steps, 2, 0.0, "Some GPU")
    assert str(found).endswith(" without Some GPU, whose time is not known")
    assert " on 2 processors without Some GPU, whose time is not known, " in found.table()
    assert "without" not in outlook.Outlook(steps, 2, 0.0).table()


def _machine() -> Machine:
    return Machine(2.0, 0.001, 0.0004)


@pytest.mark.parametrize(("density", "seconds"), [(1.0, 0.001), (0.5, 0.001), (0.02, 0.0004), (0.01, 0.0004)])
def test_the_time_of_an_iteration_falls_with_the_density_where_networks_are_sparse(
    density: float, seconds: float
) -> None:
    assert _machine().at(density) == seconds
    assert _machine().at(0.02) < _machine().at(0.1) < _machine().at(0.2) < _machine().at(0.3)


def test_work_is_shared_among_the_processors_that_networks_can_use() -> None:
    flat = {name: {"sparsity": sparsity, "parent": "dense"} for name, sparsity in (("p20", 0.2), ("p50", 0.5))}
    params = _params(levels=flat, train=SMALL["train"] | {"seeds": [0]}, prune=SMALL["prune"] | {"arms": ["ticket"]})
    stages = ["train", "prune@p20", "prune@p50"]
    alone, both = (
        outlook._step(params, _machine(), "prune@p20", "run", pending) for pending in (["train", "prune@p20"], stages)
    )
    assert alone.work == both.work == pytest.approx(params.iterations * 0.001, rel=0.2)
    assert alone.seconds(4) == alone.fixed + alone.work  # a network uses one processor
    assert both.seconds(4) == both.fixed + both.work / 2  # p50 is trained ahead beside it
    assert both.seconds(4, alone=True) == both.fixed + both.work  # but not on a cluster


def test_more_processors_share_a_levels_networks_one_by_one() -> None:
    step = outlook._step(_params(train=SMALL["train"] | {"seeds": [0, 1, 2, 3, 4]}), _machine(), "prune@p50", "run", [])
    assert step.networks == 15
    assert step.seconds(15) == step.seconds(64) == step.fixed + step.work / 15


@pytest.mark.parametrize("content", ["[]", "{", '{"a": {"start": 1}}', '{"a": 1}'])
def test_a_calibration_of_another_version_is_none(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calibration.FILE.parent.mkdir()
    calibration.FILE.write_text(content)
    assert calibration._known() == {}


@pytest.mark.slow
def test_what_dvcs_cache_has_would_be_restored(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = SMALL["levels"] | {"p50": {"sparsity": 0.4, "parent": "dense"}}
    clone.change(levels=levels)
    clone.repro()
    assert _to_run(clone, monkeypatch) == set()
    clone.change(levels=SMALL["levels"])
    assert _to_run(clone, monkeypatch, "restore") == {"prune@p50", "prune@p75"}
    assert _to_run(clone, monkeypatch) == {"evaluate", "export", "plot"}  # of all of `models`
    table = clone.run("lottery", "plan")
    fates = {line.split()[0]: line.split()[1] for line in table.splitlines() if line.split()[0] in STAGES}
    assert fates == dict.fromkeys(STAGES, "skip") | dict.fromkeys(
        ["prune@p50", "prune@p75"], "restore"
    ) | dict.fromkeys(["evaluate", "export", "plot"], "run")
    assert "in all: 0 networks" in table
    clone.change(levels=levels | {"p50": {"sparsity": 0.3, "parent": "dense"}})
    table = clone.run("lottery", "plan")
    assert "in all: 12 networks, " in table
    assert "on 2, 4, 8 nodes like this one (run.engine: ray): " in table


@pytest.mark.slow
def test_a_clone_with_a_cache_and_without_outputs_has_them_restored(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.commit("Results")
    bare = Clone(tmp_path / "bare", clone.folder)
    shutil.copytree(clone.folder / ".dvc/cache", bare.folder / ".dvc/cache")
    assert _to_run(bare, monkeypatch, "restore") == {"download", "train", "prune@p50", "prune@p75", "prune@p80-at-once"}
    assert "in all: 0 networks" in bare.run("lottery", "plan")


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
    assert "to run: prune@p75, evaluate, export, plot, 6 networks to train\nabout " in begin
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
