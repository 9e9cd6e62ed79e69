"""Each run once and complete, whatever went before: a level and its networks on SQLite stores in temporary folders."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from clones import SMALL
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE as NOTE
from stores import KEY, PARENT, name

from lottery.core.arms import Rows
from lottery.core.experiment import Level
from lottery.core.layout import perceptron
from lottery.core.stack import Stack, everything
from lottery.core.training import History, Trained
from lottery.files.artifacts import save_level
from lottery.params import Params
from lottery.tracking.outputs import MissingError, Output
from lottery.tracking.runs import Attempt, Origin, Recorder, level_settings, network_settings
from lottery.tracking.store import PROCESS, Store
from lottery.tracking.sync import _end_dead

ARMS, SEEDS = ("ticket", "reinit"), (0, 1)
PARAMS = Params.model_validate(SMALL | {"prune": SMALL["prune"] | {"arms": list(ARMS)}})
NAMES = ["p50", *(f"p50 {arm} {seed}" for arm in ARMS for seed in SEEDS)]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an MLflow store that has no run."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        Store("lottery-tickets")
    return folder


@pytest.fixture
def store(empty: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The empty store in a folder of its own."""
    shutil.copy(empty / "mlflow.db", workspace)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store("lottery-tickets")


@pytest.fixture
def output(workspace: Path) -> Output:
    """Level p50, of networks that were never trained."""
    rows, layout = Rows(ARMS, SEEDS), perceptron((9, 5, 4))
    weights, masks = Stack.zeros(len(rows), layout), everything(len(rows), layout)
    for each in weights.weights:
        each.normal_(generator=torch.Generator().manual_seed(0))
    for mask, each in zip(masks.weights, weights.weights, strict=True):
        mask.copy_(each > 0)
    curves = (torch.tensor([float("nan"), 0.5]).double(), *(torch.tensor([0.9, 0.5]).double() for _ in range(2)))
    trained = Trained(weights.masked(masks), weights.masked(masks), (History([0, 20], *curves),) * len(rows))
    save_level(Level((0.5,), rows, weights.masked(masks), masks, trained), Path("models/p50"), {})
    return Output("p50", "prune@p50", "0" * 32, "1" * 32, PARAMS, lambda: nullcontext(Path("models/p50")))


@pytest.fixture
def dead() -> str:
    """The tag of a process of this host that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    named = _process(process.pid)
    process.wait()
    return named


def _process(pid: int, started: float | None = None) -> str:
    """A process of this host as the store names it."""
    started = psutil.Process(pid).create_time() if started is None else started
    return f"{socket.gethostname()} {pid} {started:.0f}"


def sync(store: Store, output: Output) -> list[str]:
    """What `lottery sync` does about one level: the names of the stages whose runs it marked KILLED."""
    ended = _end_dead(store)
    Recorder(store, Origin()).level(output)
    return [run.info.run_name for run in ended]


def shown(store: Store) -> list[str]:
    """The names of the active runs with a key, each of which is FINISHED; the networks' are below their level's."""
    keyed = [run for run in store.search("attributes.run_name LIKE '%'") if KEY in run.data.tags]
    assert {run.info.status for run in keyed} <= {"FINISHED"}
    (level,) = [run.info.run_id for run in keyed if run.info.run_name == "p50"]
    assert {run.data.tags[PARENT] for run in keyed if run.info.run_name != "p50"} <= {level}
    return sorted(run.info.run_name for run in keyed)


def others(store: Store) -> list[tuple[str, str]]:
    """The names and states of the active runs without a key."""
    found = store.search("attributes.run_name LIKE '%'")
    return sorted((run.info.run_name, run.info.status) for run in found if KEY not in run.data.tags)


def attempt(store: Store, process: str = "", params: Params = PARAMS) -> Attempt:
    """The runs that a stage opens, as of another process where one is given."""
    opened = Attempt(store.create("p50", {}, 0))
    store.log(opened.run, (), level_settings(params, "p50"))
    for arm, seed in params.rows("p50"):
        run = store.create(f"p50 {arm} {seed}", {PARENT: opened.run}, 0)
        store.log(run, (), network_settings(params, "p50", arm, seed))
        opened.networks[arm, seed] = run
    for run in (opened.run, *opened.networks.values()) if process else ():
        store.call("set_tag", run, PROCESS, process)
    return opened


def runs(store: Store) -> list[Run]:
    return store.search("attributes.run_name LIKE '%'")


def test_a_stage_completes_the_runs_that_it_opened(store: Store, output: Output) -> None:
    opened = attempt(store)
    Recorder(store, Origin()).level(output, opened)
    assert shown(store) == sorted(NAMES)
    assert {run.info.run_id for run in runs(store)} == {opened.run, *opened.networks.values()}


def test_a_repeated_stage_leaves_the_runs_of_the_first(store: Store, output: Output) -> None:
    Recorder(store, Origin()).level(output)
    before = {run.info.run_id for run in runs(store)}
    Recorder(store, Origin()).level(output, attempt(store))
    assert {run.info.run_id for run in runs(store)} == before


def test_a_stage_whose_networks_are_there_opens_none_beside_them(store: Store, output: Output) -> None:
    """The level's own run was purged, and the stage is repeated."""
    Recorder(store, Origin()).level(output)
    (level,) = store.find(output.key)
    store.call("delete_tag", level.info.run_id, KEY)
    store.call("delete_run", level.info.run_id)
    Recorder(store, Origin()).level(output, attempt(store))
    assert (shown(store), others(store)) == (sorted(NAMES), [])


def test_two_machines_leave_doubles_that_the_next_sync_removes(
    store: Store, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "find", lambda self, *key: [])  # what is made at the same time is not seen
        for _ in range(2):
            Recorder(store, Origin()).level(output)
    assert len(runs(store)) == 2 * len(NAMES)
    sync(store, output)
    assert (shown(store), others(store)) == (sorted(NAMES), [])


def test_a_killed_stages_runs_end_killed_beside_those_of_its_repetition(
    store: Store, output: Output, dead: str
) -> None:
    attempt(store, dead)
    Recorder(store, Origin()).level(output, attempt(store))
    assert sync(store, output) == ["p50"]
    assert shown(store) == sorted(NAMES)
    assert others(store) == sorted((name, "KILLED") for name in NAMES)
    assert sync(store, output) == []  # said once


@pytest.mark.parametrize("earlier", [False, True])
def test_an_attempt_whose_stage_went_on_untracked_makes_way_for_the_redrawn_runs(
    store: Store, output: Output, dead: str, earlier: bool
) -> None:
    attempt(store, dead)
    if earlier:
        _end_dead(store)  # a sync to which the outputs were out of reach
    sync(store, output)
    assert (shown(store), others(store)) == (sorted(NAMES), [])


def test_an_attempt_with_other_settings_stays_killed(store: Store, output: Output, dead: str) -> None:
    faster = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update={"learning_rate": 0.5})})
    attempt(store, dead, faster)
    sync(store, output)
    assert shown(store) == sorted(NAMES)
    assert others(store) == sorted((name, "KILLED") for name in NAMES)


@pytest.mark.parametrize("calls", range(0, 24, 3))
def test_what_a_dead_server_left_half_written_is_redrawn(
    store: Store, output: Output, dead: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what MLflow was asked to write, so much was written; networks that were complete stay as they are."""
    opened, left = attempt(store), iter(range(calls))
    with monkeypatch.context() as patch:
        asked = Store.call

        def call(self: Store, method: str, *arguments: object, **named: object) -> object:
            if not method.startswith(("search", "get")) and next(left, None) is None:
                raise ConnectionError
            return asked(self, method, *arguments, **named)

        patch.setattr(Store, "call", call)
        with pytest.raises(ConnectionError):
            Recorder(store, Origin()).level(output, opened)
    complete = {run.info.run_id for run in runs(store) if KEY in run.data.tags}
    for run in (opened.run, *opened.networks.values()):
        store.call("set_tag", run, PROCESS, dead)
    sync(store, output)
    assert (shown(store), others(store)) == (sorted(NAMES), [])
    assert complete <= {run.info.run_id for run in runs(store)}


@pytest.mark.parametrize(
    ("change", "is_dead"),
    [
        (lambda process: process, True),
        (lambda process: _process(os.getpid(), started=0), True),  # its id is this process's now
        (lambda process: _process(os.getpid()), False),
        (lambda process: f"another-host {process.partition(' ')[2]}", False),
    ],
    ids=["dead", "an id that came again", "alive", "another host's"],
)
def test_only_what_is_known_to_be_dead_is_ended(
    store: Store, dead: str, change: Callable[[str], str], is_dead: bool
) -> None:
    opened = attempt(store, change(dead))
    assert [run.info.run_name for run in _end_dead(store)] == ["p50"] * is_dead
    assert store.call("get_run", opened.run).info.status == ("KILLED" if is_dead else "RUNNING")


def test_a_run_that_its_stage_ended_itself_stays_as_it_is(store: Store, output: Output, dead: str) -> None:
    opened = attempt(store, dead)
    for run in (*opened.networks.values(), opened.run):
        store.end(run, "FAILED")
    assert sync(store, output) == []
    assert others(store) == sorted((name, "FAILED") for name in NAMES)


def test_a_run_that_a_person_deleted_stays_deleted(store: Store, output: Output) -> None:
    Recorder(store, Origin()).level(output)
    gone = next(run for run in runs(store) if run.info.run_name == "p50 reinit 1")
    store.call("delete_run", gone.info.run_id)
    recorder = Recorder(store, Origin())
    recorder.level(output)
    assert (recorder.tally.deleted, recorder.tally.there) == (["p50 reinit 1"], len(NAMES) - 1)
    assert len(shown(store)) == len(NAMES) - 1
    recorder = Recorder(store, Origin(), restore=True)
    recorder.level(output)
    assert recorder.tally.restored == 1
    assert shown(store) == sorted(NAMES)


def test_the_store_says_of_every_run_which_process_writes_it(store: Store) -> None:
    run = MlflowClient(store.uri).get_run(store.create("p50", {}, 0))
    assert run.data.tags[PROCESS] == _process(os.getpid())


# --- what an evaluation adds -----------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(workspace: Path) -> Output:
    """An evaluation of p50, whose networks are all better than the one before."""
    tables = Path("reports/tables")
    tables.mkdir(parents=True)
    Path("reports/metrics.json").write_text("{}")
    networks = pd.DataFrame([*PARAMS.rows("p50")], columns=["arm", "seed"]).assign(level="p50")
    networks.assign(test_accuracy=[0.1, 0.2, 0.3, 0.4]).to_csv(tables / "networks.csv", index=False)
    networks[:0].assign(barrier_test=[]).to_csv(tables / "connectivity.csv", index=False)
    levels = [
        ("dense", "", "dense", 1.0, 0.5),
        ("p50", "dense", "ticket", 0.5, 0.15),
        ("p50", "dense", "reinit", 0.5, 0.35),
    ]
    columns = ["level", "parent", "arm", "density", "test_accuracy_mean"]
    pd.DataFrame(levels, columns=columns).to_csv(tables / "levels.csv", index=False)
    verdict = ("p50", "undecided", "", "2 seeds, of 3 at least")
    columns = ["level", "verdict", "survives_holm", "why"]
    pd.DataFrame([verdict], columns=columns).to_csv(tables / "verdicts.csv", index=False)
    conditions = [("p50", "equal", "points", -0.25, -1.5, 1.0, 2, 1), ("p50", "fast", "ratio", 0.9, 0.5, 1.6, 2, 1)]
    columns = ["level", "condition", "unit", "mean", "low", "high", "seeds", "censored"]
    pd.DataFrame(conditions, columns=columns).to_csv(tables / "conditions.csv", index=False)
    pd.DataFrame(columns=["level", "arm", "layer"]).to_csv(tables / "structure.csv", index=False)
    return evaluation("2" * 32)


def evaluation(pipeline: str) -> Output:
    """What is in reports/ as the output of a pipeline of this name."""
    files = nullcontext(Path("reports"))
    return Output("evaluate", "evaluate", pipeline, "1" * 32, PARAMS, lambda: files, pipeline[:8])


def test_an_evaluation_is_on_the_runs_of_all_that_it_read(store: Store, output: Output, evaluated: Output) -> None:
    for _ in range(2):  # the second adds nothing
        recorder = Recorder(store, Origin())
        recorder.level(output)
        recorder.evaluation(evaluated, [output])
    found = {name(run): run.data for run in runs(store)}
    accuracies = [found[name].metrics["test_accuracy"] for name in NAMES[1:]]
    assert accuracies == [0.1, 0.2, 0.3, 0.4]
    assert found["p50"].metrics["test_accuracy.reinit"] == 0.35
    assert (found["evaluate"].params["verdict.p50"], found["evaluate"].params["pipeline"]) == ("undecided", "22222222")
    assert all("lottery.pipeline.22222222" in data.tags for data in found.values())
    assert len(found) == len(runs(store)) == len(NAMES) + 1


def test_a_levels_note_has_a_line_per_pipeline_and_its_name_the_first_ones(
    store: Store, output: Output, evaluated: Output
) -> None:
    for each in (evaluated, evaluation("3" * 32), evaluated):
        recorder = Recorder(store, Origin())
        recorder.level(output)
        recorder.evaluation(each, [output])
    found = {run.info.run_name: run.data.tags[NOTE] for run in runs(store)}
    names = {*(f"{name} · 22222222" for name in NAMES), "evaluate · 22222222", "evaluate · 33333333"}
    assert found.keys() == names
    what, *lines = found["p50 · 22222222"].split("\n\n")
    assert what == "Level `p50`: sparsity 0.5, pruned from `dense`; 4 networks of 64-32-16-10, 84 iterations each: " + (
        "ticket, reinit; 2 seeds."
    )
    verdict = (
        "**undecided** (2 seeds, of 3 at least). Test accuracy differs from dense's by −0.25 (−1.50 to +1.00) points"
    )
    for line, pipeline in zip(lines, ("22222222", "33333333"), strict=True):
        assert line.startswith(f"Pipeline {pipeline}: {verdict}; the tickets stop at 0.90 (0.50 to 1.60) times")
    assert f"- `p50`: {verdict}" in found["evaluate · 22222222"]
    assert "`reports/report.html`" in found["evaluate · 22222222"]
    assert "arm `reinit`, seed 1. It keeps " in found["p50 reinit 1 · 22222222"]


def test_a_runs_name_has_the_dvc_experiment_that_made_it(store: Store, output: Output, evaluated: Output) -> None:
    recorder = Recorder(store, Origin(experiment="muddy-sash"))
    recorder.level(output)
    recorder.evaluation(evaluated, [output])
    assert {run.info.run_name for run in runs(store)} == {f"{name} · muddy-sash" for name in (*NAMES, "evaluate")}


def test_a_network_says_by_which_validation_loss_it_was_chosen(store: Store, output: Output) -> None:
    Recorder(store, Origin()).level(output)
    network = next(run for run in runs(store) if run.info.run_name == "p50 ticket 1")
    assert network.data.metrics["early_stopping/validation_loss"] == 0.5
    assert network.data.metrics["early_stopping/iteration"] == 20
    assert PROCESS not in network.data.tags


def test_tables_that_another_version_did_not_leave_are_named(store: Store, evaluated: Output) -> None:
    Path("reports/tables/connectivity.csv").unlink()
    with pytest.raises(
        MissingError, match=r"^evaluate: left no reports/tables/connectivity\.csv, as this version does$"
    ):
        Recorder(store, Origin()).evaluation(evaluated, [])
    assert runs(store) == []
