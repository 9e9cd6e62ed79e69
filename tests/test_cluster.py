"""Networks that train on a Ray cluster of several nodes are those of one machine, whatever is lost on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import torch
from clones import SMALL, Clone
from conftest import random_masks
from rays import TOKEN, Nodes, cluster
from stores import PATIENCE, stage
from test_training import _bits, _same_bits

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from lottery import LotteryError
from lottery.cluster import TRIES, Cluster, _Attempt, _changed, connected, environment
from lottery.core.families import family
from lottery.core.images import Split
from lottery.core.layout import perceptron
from lottery.core.randomness import generator
from lottery.core.stack import initialize
from lottery.core.training import DivergedError, Group, Recipe, State, Task, Trained, train

LAYOUT = perceptron((64, 40, 20, 10))
SEEDS = (0, 1, 2, 3, 4)
RECIPE = Recipe(400, 60, 0.001, 100)
MakeSplit = Callable[..., Split]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of two nodes."""
    with TemporaryDirectory(prefix="ray-") as folder, cluster(Path(folder)) as nodes:
        yield nodes


@pytest.fixture
def joined(nodes: Nodes) -> Iterator[Cluster]:
    """A connection to the cluster of two nodes."""
    with connected(nodes.address, threads=2) as joined:
        yield joined


@pytest.fixture(scope="module")
def split(make_split: MakeSplit) -> Split:
    return make_split(2000, 200, 64, 10)


def _train(
    split: Split, recipe: Recipe = RECIPE, cluster: Cluster | None = None, mixed: bool = False, **options: object
) -> Trained:
    start = initialize(LAYOUT, "glorot-normal", [generator("initialization", seed) for seed in SEEDS])
    masks = random_masks(len(SEEDS), LAYOUT, 0.2)
    if cluster:
        options["engine"] = cluster.engine(mixed)
    recipes = [recipe] * 3 + [replace(recipe, rewind=150)] * 2
    return train(start.masked(masks), masks, SEEDS, (0.8,), split, recipes, threads=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [1, 2, None])
def test_a_cluster_trains_to_the_same_bits(joined: Cluster, split: Split, group: int | None) -> None:
    assert joined.cores == 2
    there, here = _train(split, cluster=joined, group=group), _train(split)
    assert _same_bits(_bits(there), _bits(here))
    assert there.rewound
    assert here.rewound
    assert torch.equal(there.rewound.flat, here.rewound.flat)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}, {"rewind": 150}])
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_what_travels_after_an_evaluation_is_enough(split: Split, changes: dict[str, Any], density: float) -> None:
    task, masks = Task(LAYOUT, SEEDS, (), replace(RECIPE, **changes)), random_masks(len(SEEDS), LAYOUT, density)
    start = initialize(LAYOUT, "glorot-normal", [generator("initialization", seed) for seed in SEEDS]).masked(masks)
    here, there = (Group(0, task, masks, family(LAYOUT).lessons(split), State.begin(task, start)) for _ in range(2))
    attempt = _Attempt(here)
    while not there.finished:
        before = there.iteration
        there.advance()
        attempt.advance(_changed(there, before))
        for name, tensor in there.state.tensors().items():
            torch.testing.assert_close(here.state.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_a_level_that_has_trained_to_its_end_is_left_as_it_is(joined: Cluster, split: Split) -> None:
    states: dict[int, State] = {}
    done = _train(split, group=1, advanced=lambda group: states.update({group.first: group.state.rows(slice(None))}))
    again = _train(split, cluster=joined, saved=states.get)
    assert _same_bits(_bits(again), _bits(done))


def test_a_worker_that_is_killed_costs_less_than_an_evaluation(joined: Cluster, nodes: Nodes, split: Split) -> None:
    recipe, seen = replace(RECIPE, iterations=4000), list[tuple[int, int]]()

    def advanced(group: Group) -> None:
        seen.append((group.first, group.iteration))
        if len(seen) in (10, 30):
            while not (workers := nodes.workers()):  # between two tasks
                time.sleep(0.01)
            workers[0].kill()

    assert _same_bits(_bits(_train(split, recipe, joined, group=1, advanced=advanced)), _bits(_train(split, recipe)))
    every = [(row, iteration) for row in range(len(SEEDS)) for iteration in range(0, 4001, 100)]
    assert sorted(seen) == every  # nothing that the driver has is trained again


@pytest.mark.slow
def test_a_task_that_fails_again_and_again_ends_the_stage_with_one_line(
    joined: Cluster, nodes: Nodes, make_split: MakeSplit
) -> None:
    split, over, killed = make_split(20_000, 5000, 64, 10), threading.Event(), list[int]()

    def kill() -> None:
        while not over.wait(0.02):
            for worker in nodes.workers():
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
                    killed.append(worker.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(LotteryError, match=rf"^run.engine: ray: a task failed {TRIES} times at iteration 0, the "):
            _train(split, cluster=joined, group=5)
    finally:
        over.set()
        thread.join()
    assert len(set(killed)) >= TRIES


def test_training_that_diverges_says_where(joined: Cluster, split: Split) -> None:
    with pytest.raises(DivergedError) as there:
        _train(split, replace(RECIPE, learning_rate=1e30), joined, group=1)
    with pytest.raises(DivergedError) as here:
        _train(split, replace(RECIPE, learning_rate=1e30), group=1)
    assert there.value.iteration == here.value.iteration


@pytest.mark.slow
def test_a_node_that_is_killed_costs_less_than_an_evaluation_and_one_that_comes_helps(
    joined: Cluster, nodes: Nodes, split: Split
) -> None:
    recipe, seen = replace(RECIPE, iterations=8000), list[tuple[int, int]]()

    def advanced(group: Group) -> None:
        seen.append((group.first, group.iteration))
        if len(seen) == 20:
            nodes.kill(nodes.nodes[1])
            nodes.add()

    assert _same_bits(_bits(_train(split, recipe, joined, group=1, advanced=advanced)), _bits(_train(split, recipe)))
    assert len(seen) == len(set(seen)) == len(SEEDS) * 81
    assert joined.cores == 2


GONE = """
import os, sys
from lottery.cluster import GoneError, connected
try:
    with connected(sys.argv[1], threads=2):
        raise GoneError("its head was found to be gone")
except GoneError as error:
    {end}
"""


@pytest.mark.parametrize(
    ("end", "said"), [("os._exit(1)", "is gone, or this stage was killed"), ("sys.exit('the line')", "the line\n")]
)
def test_a_cluster_that_is_gone_is_one_line_whenever_ray_ends_the_process(nodes: Nodes, end: str, said: str) -> None:
    """Ray may end a stage after it has found the head gone, and before it has said so; else it says so itself."""
    command = [sys.executable, "-c", GONE.format(end=end), nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_worker_that_computes_in_another_way_is_refused(
    nodes: Nodes, joined: Cluster, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = environment()
    monkeypatch.setattr("lottery.cluster.environment", lambda: here | {"numpy": "1.0"})  # of the driver alone
    with pytest.raises(LotteryError, match=r"^run.ray.address: a worker has numpy \S+ and not 1.0: its networks would"):
        _train(split, cluster=joined)
    assert _same_bits(_bits(_train(split, cluster=joined, mixed=True)), _bits(_train(split)))
    monkeypatch.setattr("lottery.cluster.environment", lambda: here | {"code": "other"})
    with pytest.raises(LotteryError, match=r"^run.ray.address: a worker does not run the code of src/lottery; "):
        _train(split, cluster=joined, mixed=True)


def test_a_cluster_without_processors_is_one_line(short: Path, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lottery.cluster.ANSWER", 1.0)
    with (
        cluster(short, cores=[0]) as head,
        connected(head.address, 2) as joined,
        pytest.raises(LotteryError, match=r"^run.ray: no node of the cluster at \S+ has a processor and 0.5 GB"),
    ):
        _train(split, cluster=joined)


def test_a_cluster_without_enough_memory_is_one_line(
    joined: Cluster, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lottery.cluster.WORKER", 10**12)
    with pytest.raises(LotteryError, match=r"^run.ray: a task takes 1000.0 GB of memory, and the largest node gives"):
        _train(split, cluster=joined)


def test_a_cluster_of_another_ray_is_one_line(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.0.0")  # of the driver, for which the cluster's is another one
    with (
        pytest.raises(LotteryError, match=f"^params.yaml: run.ray.address: {nodes.address}: .*2.0.0"),
        connected(nodes.address, 2),
    ):
        pass


OWN = """
import psutil
from lottery.cluster import connected
with connected(None, threads=2) as own:
    mine = {each.pid for each in psutil.Process().children(recursive=True)}
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    hosts = {each.laddr.ip.removeprefix("::ffff:") for each in listening if each.pid in mine}
    print(own.cores, own.address, *hosts, flush=True)
    input()
"""


@pytest.mark.slow
def test_a_ray_of_this_machine_listens_to_it_alone_lets_nobody_else_in_and_leaves_nothing(short: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in TOKEN} | {"TMPDIR": str(short)}
    own = subprocess.Popen(
        [sys.executable, "-c", OWN], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert own.stdout
    cores, address, *listening = own.stdout.readline().split()
    assert (cores, listening) == ("2", ["127.0.0.1"])
    stranger = f"from lottery import cluster\ncluster.JOINED = 5.0\nwith cluster.connected({address!r}, 2): pass"
    done = subprocess.run([sys.executable, "-c", stranger], env=variables, capture_output=True, text=True, timeout=60)
    assert f"LotteryError: params.yaml: run.ray.address: {address}: does not let this process in" in done.stderr
    processes = psutil.Process(own.pid).children(recursive=True)
    assert len(processes) > 3
    own.communicate("\n")
    assert psutil.wait_procs(processes, 30)[1] == []
    assert not any(short.iterdir())


def test_a_ray_of_this_machine_trains_to_the_same_bits(split: Split) -> None:
    with connected(None, threads=2) as own:
        assert _same_bits(_bits(_train(split, cluster=own)), _bits(_train(split)))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("address", "named"), [("127.0.0.1:9", "RAY_ADDRESS"), ("nowhere.invalid:6379", "params.yaml: run.ray.address")]
)
def test_an_address_that_does_not_answer_is_one_line(
    address: str, named: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    if named == "RAY_ADDRESS":
        monkeypatch.setenv(named, address)
    own = None if named == "RAY_ADDRESS" else address
    with pytest.raises(LotteryError, match=f"^{named}: {address}: no answer within 10 s"), connected(own, 2):
        pass
    assert time.monotonic() - began < 15
    assert capfd.readouterr().err == ""


def test_a_machine_without_ray_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(LotteryError, match=r"ray is not installed: `pip install -e '.\[ray\]'`"), connected(None, 2):
        pass
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


# --- the pipeline ----------------------------------------------------------------------------------------------------


def _on_a_cluster(clone: Clone, address: str | None, **ray: object) -> None:
    clone.change(run={"threads": 2, "checkpoint_every": 0.2, "engine": "ray", "ray": {"address": address, **ray}})


@pytest.mark.slow
@pytest.mark.parametrize(("count", "networks"), [(1, 2), (2, "auto"), (3, 1)])
def test_a_pipeline_leaves_the_same_bytes_on_a_cluster(
    finished: Clone, origin: Path, nodes: Nodes, tmp_path: Path, count: int, networks: object
) -> None:
    clone = Clone(tmp_path / "clone", origin)
    third = nodes.add() if count == 3 else None
    _on_a_cluster(clone, None if count == 1 else nodes.address, networks_per_task=networks)
    output = clone.run("dvc", "repro", "--no-run-cache")
    assert (clone.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()
    assert not [line for line in output.splitlines() if "ray" in line.lower()]
    if third:
        nodes.kill(third)


@pytest.mark.slow
def test_a_stage_that_is_killed_ends_its_ray_and_goes_on(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 400})
    _on_a_cluster(clone, None)
    running, deadline = stage(clone, "train", "train"), time.monotonic() + PATIENCE
    while not any(clone.folder.glob(".lottery/checkpoints/*/*.safetensors")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ray = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    assert len(ray) > 3
    assert psutil.wait_procs(ray, PATIENCE)[1] == []
    assert "train: goes on from iteration " in clone.run("dvc", "repro", "--single-item", "train")


@pytest.mark.slow
def test_an_experiment_runs_the_copys_code_on_the_cluster(clone: Clone, nodes: Nodes) -> None:
    """What workers run is compared with what the stage runs, and that with what DVC hashes."""
    _on_a_cluster(clone, nodes.address)
    training = clone.folder / "src/lottery/core/training.py"
    training.write_text(training.read_text() + "\nraise SystemExit('this code runs')\n")
    clone.commit("Another code")
    training.write_text(training.read_text().replace("\nraise SystemExit('this code runs')\n", "\n# as before\n"))
    output = clone.run("dvc", "exp", "run", "--temp", "train")
    assert "this code runs" not in output


@pytest.mark.slow
def test_mixed_clusters_are_told(clone: Clone, nodes: Nodes) -> None:
    _on_a_cluster(clone, nodes.address, mixed=True)
    clone.change(train=SMALL["train"] | {"seeds": [0, 1, 2]})
    clone.repro()
    page = (clone.folder / "reports/report.html").read_text(encoding="utf-8")
    assert "dense, p50, p75, p80-at-once: trained on machines that may differ in torch" in page
