"""A pipeline that is killed with SIGKILL, and run again, leaves the bytes of an undisturbed one and loses little.

Each test kills one process, or all, of a real `dvc repro` at a random moment of a random stage: 9 in `make test-all`,
50 in `make test-faults`, which prints how it went.
"""

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from clones import SMALL, Clone
from stores import PATIENCE, picture, runs, store, sync

from lottery.doctor import outputs
from lottery.files.checkpoints import TRAINED

LEVELS = {"p50": {"sparsity": 0.5, "parent": "dense"}, "p75": {"sparsity": 0.75, "parent": "p50"}}
OUTPUTS = {
    "download": "data/digits.safetensors",
    "train": "models/dense",
    "prune@p50": "models/p50",
    "prune@p75": "models/p75",
    "evaluate": "reports/tables",
    "export": "tickets",
    "plot": "reports/figures",
}
VICTIMS = ("dvc", "stage", "worker", "group")
REPRO = ("dvc", "repro", "--no-run-cache")  # else DVC would restore what an earlier test made
TRIALS = int(os.environ.get("LOTTERY_KILLS", 9))


@dataclass(frozen=True)
class Undisturbed:
    """A clone whose pipeline ran undisturbed."""

    clone: Clone
    seconds: dict[str, float]  # that each stage took, DVC's own included

    def copy_before(self, stage: str, folder: Path) -> Clone:
        """A copy of the clone as it was before a stage."""
        shutil.copytree(self.clone.folder, folder, symlinks=True)
        later = list(OUTPUTS)[list(OUTPUTS).index(stage) :]
        lock = yaml.safe_load((folder / "dvc.lock").read_text())
        lock["stages"] = {name: entry for name, entry in lock["stages"].items() if name not in later}
        (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
        for name in later:
            path = folder / OUTPUTS[name]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Clone(folder)


@pytest.fixture(scope="module")
def undisturbed(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    clone = Clone(tmp_path_factory.mktemp("undisturbed") / "clone", origin)
    iterations = {key: value for key, value in SMALL["train"].items() if key != "epochs"} | {"iterations": 2500}
    run = {"threads": 2, "checkpoint_every": 1}
    clone.change(levels=LEVELS, train=iterations | {"evaluate_every": 100}, run=run)
    clone.run(*REPRO, "--single-item", "check")
    seconds = {}
    for stage in OUTPUTS:
        began = time.monotonic()
        clone.run(*REPRO, "--single-item", stage)
        seconds[stage] = time.monotonic() - began
    sync(clone)
    return Undisturbed(clone, seconds)


def _find(repro: psutil.Process, victim: str) -> psutil.Process | None:
    """The process of `dvc repro` to kill, if it runs at this moment."""
    children = repro.children(recursive=True)
    stages = [each for each in children if any("lottery.stages" in word for word in each.cmdline())]
    stage = next((each for each in stages if each.name() not in ("sh", "env")), None)
    if victim == "worker":
        return next(iter(stage.children()), None) if stage else None
    return stage if victim == "stage" else repro


def _kill(repro: "subprocess.Popen[bytes]", victim: str) -> str:
    """Kill one of the processes, or `dvc` where that does not run at the moment; return which."""
    if victim == "group":
        os.killpg(repro.pid, signal.SIGKILL)
        return victim
    try:
        process = _find(psutil.Process(repro.pid), victim)
        if process:
            process.kill()
            return victim
    except psutil.Error:
        pass
    repro.kill()
    return "dvc"


def _lost(clone: Clone, began: float, killed: float) -> float | None:
    """The seconds of training that a kill cost: since the networks' states were saved, or since their training began.

    None where no network trained that DVC has not recorded.
    """
    recorded = outputs(clone.folder / "dvc.lock") or {}
    for about in clone.folder.glob(".lottery/checkpoints/*/about.json"):
        if json.loads(about.read_text())["stage"] not in recorded and (training := about.stat().st_mtime) >= began:
            saved = [file.stat().st_mtime for file in about.parent.glob("*.safetensors")]
            ended = [file.stat().st_mtime for file in about.parent.glob(TRAINED)]  # what came after was no training
            return max(0.0, min([killed, *ended]) - max(training, min(saved, default=training)))
    return None


@pytest.fixture(scope="module")
def tally() -> Iterator[list[tuple[str, float | None]]]:
    """The victim of each kill that was survived and what it cost, which the last test prints."""
    kills: list[tuple[str, float | None]] = []
    yield kills
    lost = [seconds for _, seconds in kills if seconds is not None]
    kinds = ", ".join(f"{count} of {victim}" for victim, count in Counter(victim for victim, _ in kills).items())
    print(f"{len(kills)} kills survived: {kinds}")
    if lost:
        seconds = f"median {statistics.median(lost):.1f}, worst {max(lost):.1f}"
        print(f"seconds of training lost in {len(lost)} kills while networks trained: {seconds}")


def _content(clone: Clone) -> dict[str, bytes]:
    outputs = {
        f"{folder}/{name}": data
        for folder in ("data", "models", "reports")
        for name, data in clone.files(folder).items()
    }
    return outputs | {"dvc.lock": (clone.folder / "dvc.lock").read_bytes()}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(TRIALS))
def test_what_is_killed_goes_on_to_the_same_bytes(
    undisturbed: Undisturbed, tally: list[tuple[str, float | None]], tmp_path: Path, number: int
) -> None:
    draw = random.Random(number)
    stage, victim = list(OUTPUTS)[1:][number % 5], VICTIMS[number % 4]
    clone = undisturbed.copy_before(stage, tmp_path / "clone")
    began = time.time()
    with (tmp_path / "first").open("wb") as output:
        repro = subprocess.Popen(
            REPRO, cwd=clone.folder, env=clone.environment, stdout=output, stderr=output, start_new_session=True
        )
        time.sleep(draw.uniform(0.5, undisturbed.seconds[stage] + 0.5))
        family = psutil.Process(repro.pid).children(recursive=True)
        victim, killed = _kill(repro, victim), time.time()
        repro.wait(PATIENCE)
        psutil.wait_procs(family, PATIENCE)  # a stage whose DVC was killed saves what it trained, and ends
    first, lost = (tmp_path / "first").read_text(), _lost(clone, began, killed)
    torn = outputs(clone.folder / "dvc.lock") is None  # as `lottery doctor` says
    if torn:
        shutil.copy(undisturbed.clone.folder / "dvc.lock", clone.folder / "dvc.lock")  # as `git checkout` restores it
    second = clone.run(*REPRO, check=False)
    if "JSON structure is corrupted" in second:  # of DVC's rwlock, which it was killed writing
        second = clone.run("lottery", "doctor", "--mend", check=False) + clone.run(*REPRO)
        assert "removed .dvc/tmp/rwlock\n" in second
    went_on = re.findall(r"(\S+: goes on from iteration \S+ of \S+), saved", second)
    cost = f"{lost:.1f} s of training lost" if lost is not None else "no network trained"
    told = [f"{victim} in {stage}", *(["dvc.lock torn"] if torn else []), *(went_on or ["anew"]), cost]
    print(f"kill {number}: {'; '.join(told)}")
    assert "Traceback" not in first + second
    assert _content(clone) == _content(undisturbed.clone)
    sync(clone)
    assert not runs(store(clone), "attributes.status = 'RUNNING'")
    assert picture(store(clone)) == picture(store(undisturbed.clone))
    tally.append((victim, lost))
