"""A level that trains on a Ray cluster ends with one machine's bytes, whatever is killed on the way.

Each test kills a node, a worker, the head or the driver at a random moment: 5 in `make test-all`, 20 in
`make test-faults`.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from clones import SMALL, Clone
from rays import Nodes, cluster
from stores import PATIENCE

pytest.importorskip("ray", reason="the extra `ray` is not installed")

VICTIMS = ("node", "worker", "head", "driver")
REPRO = ("dvc", "repro", "--force", "--single-item", "prune@p50")
TRIALS = min(int(os.environ.get("LOTTERY_KILLS", 5)), 20)
SEEDS, ITERATIONS, EVERY = [0, 1, 2, 3], 6000, 100
LATEST = 4.0  # seconds after the first checkpoint in which something is killed: the level takes longer


@dataclass
class Clusters:
    """A cluster of two nodes, started anew where it has been killed."""

    nodes: Nodes | None = None
    _open: list[object] = field(default_factory=list)

    def ready(self) -> Nodes:
        """The cluster, with two living nodes."""
        if self.nodes is None or self.nodes.nodes[0].poll() is not None:
            self.close()
            self._folder = TemporaryDirectory(prefix="ray-")  # of a short path, for sockets
            self._cluster = cluster(Path(self._folder.name))
            self.nodes = self._cluster.__enter__()
        if self.nodes.nodes[-1].poll() is not None:
            self.nodes.add()
        return self.nodes

    def close(self) -> None:
        if self.nodes is not None:
            self._cluster.__exit__(None, None, None)
            self._folder.cleanup()


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    clusters = Clusters()
    yield clusters
    clusters.close()


@pytest.fixture(scope="module")
def undisturbed(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose level this machine trained alone."""
    clone = Clone(tmp_path_factory.mktemp("undisturbed") / "clone", origin)
    recipe = {key: value for key, value in SMALL["train"].items() if key != "epochs"}
    clone.change(train=recipe | {"seeds": SEEDS, "iterations": ITERATIONS, "evaluate_every": EVERY})
    clone.run("dvc", "repro", "prune@p50")
    return clone


def _kill(victim: str, nodes: Nodes, driver: psutil.Process, draw: random.Random) -> None:
    if victim == "driver":
        driver.kill()
    elif victim == "worker":
        while not (workers := nodes.workers()):  # between two tasks
            assert driver.is_running()
            time.sleep(0.01)
        draw.choice(workers).kill()
    else:
        nodes.kill(nodes.nodes[0 if victim == "head" else -1])


def _trains(folder: Path) -> bool:
    return any(folder.glob(".lottery/checkpoints/*/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(TRIALS))
def test_a_level_ends_with_the_same_bytes_whatever_is_killed(
    undisturbed: Clone, clusters: Clusters, tmp_path: Path, number: int
) -> None:
    draw, victim, nodes = random.Random(number), VICTIMS[number % len(VICTIMS)], clusters.ready()
    shutil.copytree(undisturbed.folder, tmp_path / "clone", symlinks=True)
    clone = Clone(tmp_path / "clone")
    shutil.rmtree(clone.folder / ".lottery/checkpoints")

    def run_on(nodes: Nodes) -> None:
        clone.change(run={"threads": 2, "checkpoint_every": 0.5, "engine": "ray", "ray": {"address": nodes.address}})

    run_on(nodes)
    with (tmp_path / "first").open("wb") as output:
        repro = subprocess.Popen(REPRO, cwd=clone.folder, env=clone.environment, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE
        while not _trains(clone.folder):
            assert repro.poll() is None, (tmp_path / "first").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(repro.pid).children(recursive=True)
        stage = next(each for each in children if "lottery.stages.prune" in each.cmdline())
        time.sleep(draw.uniform(0, LATEST))
        assert stage.is_running()  # so that something is killed while the level trains or ends
        _kill(victim, nodes, stage, draw)
        code = repro.wait(PATIENCE)
    first = second = (tmp_path / "first").read_text()
    if code:
        assert victim in ("head", "driver")
        assert victim == "driver" or f"the cluster at {nodes.address} is gone" in first
        run_on(clusters.ready())
        second = clone.run(*REPRO)
        assert "prune@p50: goes on from iteration " in second
    print(f"kill {number}: {victim}; {'ended, and went on' if code else 'went on'}")
    assert "Traceback" not in first + second
    assert clone.files("models") == undisturbed.files("models")
    assert (clone.folder / "dvc.lock").read_bytes() == (undisturbed.folder / "dvc.lock").read_bytes()
