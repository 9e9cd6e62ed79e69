"""`lottery doctor` says what is wrong and what mends it; `lottery tidy` removes what runs left behind."""

import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from clones import SMALL, Clone
from filelock import FileLock
from stores import PATIENCE, stage

from lottery.doctor import outputs


def _doctor(clone: Clone, *options: str, code: int = 0, **variables: str) -> dict[str, str]:
    """The checks by their names."""
    command, environment = ["lottery", "doctor", *options], clone.environment | variables
    done = subprocess.run(command, cwd=clone.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return {line[7:19].strip(): f"{line[:5].strip()}: {line[21:]}" for line in done.stdout.splitlines()}


def test_a_finished_pipeline_is_well(clone: Clone) -> None:
    clone.commit("Run")
    checks = _doctor(clone, "--deep")
    assert {check: told for check, told in checks.items() if not told.startswith("ok: ")} == {}
    assert list(checks) == [
        "Python", "torch", "torchvision", "processor", "params.yaml", "memory", "disk", "git", "code", "dvc.lock",
        "data", "outputs", "MLflow", "runs", "left over", "contents",
    ]  # fmt: skip


def test_a_clone_that_has_not_run_is_well(origin: Path, tmp_path: Path) -> None:
    checks = _doctor(Clone(tmp_path / "clone", origin))
    assert {check: told for check, told in checks.items() if not told.startswith("ok: ")} == {}
    assert checks["dvc.lock"] == "ok: none yet"
    assert checks["data"] == "ok: data/digits.safetensors: not here yet, `dvc repro` fetches it"


TORN = "schema: '2.0'\nstages:\n  train:\n    cmd: env PYTH"
OUTSIDE = "schema: '2.0'\nstages: {train: {outs: [{path: models/../../outside, md5: 0}]}}"


@pytest.mark.parametrize("content", ["", TORN, "schema: '2.0'\nstag", "\0" * 99, OUTSIDE])
def test_a_lock_that_is_torn_or_leads_outside_has_no_outputs(content: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(content)
    assert outputs(tmp_path / "dvc.lock") is None


def test_a_torn_lock_is_named_with_its_remedy(clone: Clone) -> None:
    clone.commit("Run")
    (clone.folder / "dvc.lock").write_text(TORN)
    told = _doctor(clone, code=1)["dvc.lock"]
    assert told.startswith("FAILS: torn: DVC was killed or had no room as it wrote it; `git checkout dvc.lock` ")
    clone.run("git", "checkout", "-q", "dvc.lock")
    assert _doctor(clone)["dvc.lock"] == "ok: 9 stages"


def test_a_torn_rwlock_is_named_and_mended(clone: Clone) -> None:
    """DVC writes it in place, so that a kill at the wrong moment leaves it empty, and DVC refuses to run."""
    clone.commit("Run")
    rwlock = clone.folder / ".dvc/tmp/rwlock"
    rwlock.write_text("")
    assert "RWLock-file '.dvc/tmp/rwlock'" in clone.run("dvc", "repro", check=False)
    told = _doctor(clone, code=1)["rwlock"]
    assert told.startswith("FAILS: .dvc/tmp/rwlock is torn: DVC was killed as it wrote it; `lottery doctor --mend` ")
    assert "removed .dvc/tmp/rwlock\n" in clone.run("lottery", "doctor", "--mend")
    assert clone.repro() == []


def test_runs_that_are_missing_are_counted(clone: Clone) -> None:
    with sqlite3.connect(clone.folder / "mlflow.db") as database:
        stages = "key = 'lottery.key' AND value LIKE 'p50/%' AND value NOT LIKE 'p50/%/%'"
        (run,) = database.execute(f"SELECT run_uuid FROM tags WHERE {stages}")
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", run)
    clone.change(levels=SMALL["levels"] | {"p90": {"sparsity": 0.9, "parent": "p75"}})  # not run yet: none is missing
    assert _doctor(clone)["runs"] == "note: 7 of 8 outputs have theirs; `lottery sync` adds what is missing"


def test_faults_are_named_with_their_remedies(clone: Clone) -> None:
    with sqlite3.connect(clone.folder / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    (clone.folder / "data/digits.safetensors").unlink()
    (clone.folder / "data/digits.safetensors").write_bytes(b"no data")
    checks = _doctor(clone, code=1)
    assert checks["MLflow"].startswith("note: sqlite:///")
    assert "the store is of a newer MLflow than" in checks["MLflow"]
    assert checks["data"].startswith("FAILS: not whole; data/digits.safetensors: truncated or altered; `lottery doctor")
    assert checks["dvc.lock"] == "note: 9 stages; not committed: `git add dvc.lock reports`"
    checks = _doctor(clone, code=1, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert checks["MLflow"].startswith("note: http://127.0.0.1:9; URLError: ")
    clone.change(train=SMALL["train"] | {"epochs": 0})
    told = _doctor(clone, code=1)["params.yaml"]
    assert told.startswith("FAILS: has mistakes; params.yaml: train.epochs: 0 ")


def test_outputs_that_are_nowhere_are_counted(clone: Clone) -> None:
    clone.run("rm", "-r", "models/p75", ".dvc/cache")
    assert _doctor(clone)["outputs"].startswith("note: 10 of 11 here; `dvc pull` fetches them from a remote")
    levels = {name: level for name, level in SMALL["levels"].items() if name != "p75"}
    clone.change(levels=levels)  # DVC keeps the entry of the level that was removed
    assert _doctor(clone)["outputs"] == "ok: 10 of 10 here"


def _make_old(folder: Path) -> None:
    """Have a folder and all in it be of the month before."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - 30 * 86_400,) * 2)


def test_tidy_says_where_it_cannot_tell(clone: Clone) -> None:
    told = Clone(clone.folder / "docs").run("lottery", "tidy", check=False)
    assert told == "dvc.yaml: not here; run this in the folder that holds it\n"
    (clone.folder / "params.yaml").write_text("train: [\n")
    assert clone.run("lottery", "tidy", check=False).startswith("params.yaml: ")


def test_whole_outputs_that_dvc_has_not_recorded_are_not_mended_away(clone: Clone) -> None:
    clone.commit("Run")
    (clone.folder / "dvc.lock").write_text((clone.folder / "dvc.lock").read_text().replace("prune@p75", "prune@p76"))
    before = clone.files("models")
    clone.run("lottery", "doctor", "--mend", check=False)
    assert clone.files("models") == before


def test_where_dvc_has_no_repository_nothing_is_mended(tmp_path: Path) -> None:
    told = Clone(tmp_path).run("lottery", "doctor", "--mend", check=False)
    assert re.fullmatch(
        r"DVC: you are not inside of a DVC repository.*; run this in the folder that holds dvc.yaml\n", told
    )


@pytest.mark.slow
def test_nothing_is_mended_while_dvc_writes(clone: Clone) -> None:
    level = clone.folder / "models/p75/weights.safetensors"
    level.unlink()
    level.write_bytes(b"no weights")
    with FileLock(clone.folder / ".dvc/tmp/lock"):
        told = clone.run("lottery", "doctor", "--mend", check=False)
    assert told == "DVC: another command of it writes in this folder; run this again when it has ended\n"
    assert level.exists()
    assert "removed models/p75\n" in clone.run("lottery", "doctor", "--mend")
    assert not level.exists()


@pytest.mark.slow
def test_tidy_removes_what_no_run_goes_on_from(clone: Clone) -> None:
    clone.run("lottery", "tidy")
    clone.change(train=SMALL["train"] | {"epochs": 2000}, run={"threads": 2, "checkpoint_every": 0.2})
    running = stage(clone, "train", "train")
    checkpoints = clone.folder / ".lottery/checkpoints"
    deadline = time.monotonic() + PATIENCE
    while not any(checkpoints.glob("*/*.safetensors")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert clone.run("lottery", "tidy") == "nothing to remove\n"  # a process has them open
    running.send_signal(signal.SIGTERM)
    running.wait(PATIENCE)
    assert clone.run("lottery", "tidy") == "nothing to remove\n"  # the next run goes on from them
    assert _doctor(clone)["left over"] == "ok: nothing stale"
    clone.change(train=SMALL["train"] | {"epochs": 1000})
    assert clone.run("lottery", "tidy") == "nothing to remove\n"  # an experiment may go on from them
    _make_old(clone.folder / ".lottery/checkpoints")
    clone.change(train=SMALL["train"] | {"epochs": 2000})
    assert clone.run("lottery", "tidy") == "nothing to remove\n"  # the next run would go on from them
    clone.change(train=SMALL["train"] | {"epochs": 1000})
    assert _doctor(clone)["left over"].startswith("note: 1 stale folders; `lottery tidy`")
    copy = clone.folder / ".dvc/tmp/exps/standalone/tmp1"
    (copy / "models").mkdir(parents=True)
    _make_old(copy)
    with subprocess.Popen(["sleep", "60"], cwd=copy / "models") as process:
        lines = clone.run("lottery", "tidy").splitlines()
        assert [line.partition("/")[0] for line in lines] == ["removed .lottery"]  # not the copy that is in use
        process.kill()
    assert clone.run("lottery", "tidy") == "removed .dvc/tmp/exps/standalone/tmp1: 0.0 MB\n"
    assert not any(checkpoints.iterdir())
