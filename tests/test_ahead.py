"""What is trained ahead for later levels is what their stages would train, and nothing of it is left behind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from clones import SMALL, Clone
from stores import PATIENCE

from lottery import LotteryError
from lottery.core.images import Split
from lottery.params import Params
from lottery.stages import ahead, hashed, training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
FLAT = {
    name: {"sparsity": sparsity, "parent": "dense"} for name, sparsity in (("p50", 0.5), ("p70", 0.7), ("p80", 0.8))
}
ONE = {"levels": FLAT, "run": {"threads": 2, "checkpoint_every": 0.2}, "prune": SMALL["prune"] | {"arms": ["ticket"]}}


def _one_network(clone: Clone, epochs: int) -> None:
    """Levels of one network each, for which one of two processors would be idle."""
    clone.change(**ONE, train=SMALL["train"] | {"seeds": [0], "epochs": epochs})


def _saved(clone: Clone) -> set[str]:
    """The stages of which a network is saved; a finished stage's checkpoints may go meanwhile."""
    stages = set()
    for file in clone.folder.glob(".lottery/checkpoints/*/0.safetensors"):
        with suppress(FileNotFoundError):
            stages.add(json.loads((file.parent / "about.json").read_text())["stage"])
    return stages


@pytest.mark.parametrize(
    ("stage", "expected", "later"),
    [
        ("prune@p50", ["train", "prune@p50", "prune@p70", "prune@p75", "prune@p80", "evaluate"], ["p70", "p80"]),
        ("pipeline/dvc.yaml:prune@p50", [], []),  # `dvc repro`, of which nobody knows what it will run
        ("prune@p80", ["prune@p50", "prune@p80"], []),
    ],
)
def test_later_levels_of_the_same_parent_are_trained_ahead(
    stage: str, expected: list[str], later: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = FLAT | {"p75": {"sparsity": 0.75, "parent": "p50"}}
    seconds: Mapping[str, float] = dict.fromkeys(expected, 1.0)
    monkeypatch.setattr(ahead, "STAGE", stage)
    monkeypatch.setattr(ahead, "expected", lambda: seconds)
    assert ahead._later(Params.model_validate(SMALL | {"levels": levels}), "p50" if "p50" in stage else "p80") == later


def test_what_was_edited_while_the_stage_runs_is_trained_by_nobody_ahead(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, make_split: Callable[..., Split]
) -> None:
    """The networks would be those of the code that this process imported, under the key of the edited one."""
    stages = {"prune": {"foreach": {}, "do": {"cmd": "", "deps": ["src/code.py"], "params": ["levels.${key}"]}}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    Path("params.yaml").write_text(yaml.safe_dump(SMALL))
    Path("src").mkdir()
    Path("src/code.py").write_text("before")
    monkeypatch.setattr(training, "STAGE", "prune@p50")
    monkeypatch.setattr(training, "BEGAN_WITH", hashed.inputs("prune@p50"))
    params, split = Params.model_validate(SMALL), make_split(10, 2, 64, 10)
    training.trainer(params, "p75", split, ahead=True)
    Path("src/code.py").write_text("after")
    with pytest.raises(LotteryError, match=r"^src/code.py: changed while prune@p50 ran"):
        training.trainer(params, "p75", split, ahead=True)


@pytest.mark.slow
def test_levels_that_were_trained_ahead_are_the_same_bytes(origin: Path, tmp_path: Path) -> None:
    each, together = (Clone(tmp_path / name, origin) for name in ("each", "together"))
    for clone in (each, together):
        _one_network(clone, 200)
    each.run("dvc", "repro")
    output = together.run("lottery", "repro")
    assert "prune@p70: goes on from iteration " in output
    for folder in ("models", "reports"):
        assert together.files(folder) == each.files(folder)
    assert (together.folder / "dvc.lock").read_bytes() == (each.folder / "dvc.lock").read_bytes()
    left = {path.parent.name for path in together.folder.glob(".lottery/checkpoints/*/about.json")}
    assert len(left) <= 1  # of the last level, which goes when another stage trains


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_stage_that_ends_early_ends_what_trains_ahead_and_both_are_saved(
    origin: Path, tmp_path: Path, how: str
) -> None:
    clone = Clone(tmp_path / "clone", origin)
    _one_network(clone, 1000)
    command = [sys.executable, "-m", "lottery.cli", "repro"]
    repro = subprocess.Popen(command, cwd=clone.folder, env=clone.environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not {"prune@p50", "prune@p70"} <= _saved(clone):
        assert repro.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(repro.pid).children(recursive=True)
    next(each for each in family if "lottery.stages.prune" in each.cmdline()).send_signal(signal.Signals[how])
    assert repro.wait(PATIENCE) != 0
    assert psutil.wait_procs(family, PATIENCE)[1] == []
    again = clone.run("dvc", "repro", "prune@p50", "prune@p70")
    assert "prune@p50: goes on from iteration " in again
    assert "prune@p70: goes on from iteration " in again
