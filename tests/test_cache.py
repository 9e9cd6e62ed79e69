"""DVC's cache and the workspace share their files (`cache.type` in .dvc/config): what runs leaves the cache whole."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clones import SMALL, Clone

from lottery.files.artifacts import load_history

PATIENCE = 120  # seconds


@pytest.fixture
def linked(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished clone whose outputs are links to its cache, as they are there; committed."""
    subprocess.run(["cp", "-a", finished.folder, tmp_path / "linked"], check=True)
    clone = Clone(tmp_path / "linked")
    clone.commit("Run")
    return clone


def outputs(clone: Clone) -> list[Path]:
    """The files that stages left in DVC's cache."""
    return [path for path in clone.folder.glob("models/*/*") if path.is_file()] + [*clone.folder.glob("data/*.s*")]


def damaged(clone: Clone) -> list[str]:
    """The files of the cache that do not have the MD5 sum that is their name."""
    files = [path for path in (clone.folder / ".dvc/cache/files/md5").glob("*/*") if path.is_file()]
    assert len(files) > len(SMALL["levels"])
    sums = {path: hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    return [str(path) for path, name in sums.items() if path.parent.name + path.name.removesuffix(".dir") != name]


def test_outputs_take_no_room_beside_the_cache(linked: Clone) -> None:
    cache = {path.stat().st_ino for path in (linked.folder / ".dvc/cache/files/md5").glob("*/*")}
    assert len(outputs(linked)) == 3 * (1 + len(SMALL["levels"])) + 1
    assert {path.stat().st_ino for path in outputs(linked)} <= cache


@pytest.mark.slow
def test_no_stage_writes_into_the_cache(linked: Clone) -> None:
    before = linked.files("models") | linked.files("data")
    linked.change(train=SMALL["train"] | {"learning_rate": 0.02})
    assert "prune@p75" in linked.repro("--force")
    assert damaged(linked) == []
    assert linked.files("models") | linked.files("data") != before

    # a person starts a stage without DVC, which would have removed its outputs
    linked.change(train=SMALL["train"] | {"learning_rate": 0.03, "epochs": 2})
    environment = linked.environment | {"PYTHONPATH": "src"}
    for stage in ("download", "train"):
        command = [sys.executable, "-m", f"lottery.stages.{stage}"]
        subprocess.run(command, cwd=linked.folder, env=environment, capture_output=True, check=True)
    assert load_history(linked.folder / "models/dense")["iteration"].max() == 2 * (1295 // 60)
    assert damaged(linked) == []

    linked.run("dvc", "exp", "run", "--temp", "-n", "elsewhere", "-S", "train.learning_rate=0.04", "train")
    assert damaged(linked) == []

    linked.run("git", "checkout", "-q", ".")
    linked.run("dvc", "checkout", "--force")
    assert linked.files("models") | linked.files("data") == before


@pytest.mark.slow
def test_a_stage_that_is_interrupted_leaves_the_cache_whole(linked: Clone) -> None:
    before = linked.files("models")
    linked.change(train=SMALL["train"] | {"epochs": 4000})
    process = subprocess.Popen(
        ["dvc", "repro", "train"],
        cwd=linked.folder,
        env=linked.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while (linked.folder / "models/dense").exists():  # DVC removes a stage's outputs before it runs
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode
    assert damaged(linked) == []
    linked.run("git", "checkout", "-q", ".")
    linked.run("dvc", "checkout", "--force")
    assert linked.files("models") == before
