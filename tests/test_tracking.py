"""What MLflow shows, on real stores and a real server, for a pipeline that ran on digits."""

import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from clones import SMALL, Clone, said
from mlflow import MlflowClient
from PIL import Image
from stores import KEY, PARENT, PATIENCE, lines_of, name, networks, refused_sync, run_stage, runs, serving, stage, store

from lottery.tracking.store import Content, Store

DENSE = ["dense", "dense dense 0", "dense dense 1"]  # the runs of the stage `train`


def table(clone: Clone, name: str) -> pd.DataFrame:
    return pd.read_csv(clone.folder / "reports/tables" / name)


def test_a_run_per_stage_with_its_networks_below(finished: Clone) -> None:
    found = runs(store(finished))
    stages = [name(run) for run in found if PARENT not in run.data.tags]
    assert stages == ["download", "dense", "p50", "p75", "p80-at-once", "evaluate", "export", "plot"]
    names = {run.info.run_id: name(run) for run in found}
    below = [(names[run.data.tags[PARENT]], name(run)) for run in found if PARENT in run.data.tags]
    arms = ["ticket", "reinit", "random"]
    assert sorted(below) == sorted(
        [("dense", f"dense dense {seed}") for seed in (0, 1)]
        + [(level, f"{level} {arm} {seed}") for level in SMALL["levels"] for arm in arms for seed in (0, 1)]
    )
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) < 100  # what the UI's first page shows


def test_a_networks_run_has_what_one_filters_by(finished: Clone) -> None:
    client = store(finished)
    condition = (
        "params.level = 'p75' and params.arm = 'ticket' and params.learning_rate = '0.01' and metrics.density < 0.3"
    )
    assert [run.data.params["seed"] for run in runs(client, condition)] == ["0", "1"]
    run = networks(client)["p75", "ticket", 1]
    shown = {"level": "p75", "parent": "p50", "arm": "ticket", "seed": "1", "sparsity": "0.75", "path": "0.5, 0.75"}
    assert shown.items() <= run.data.params.items()
    assert {
        "dataset": "digits",
        "hidden": "32, 16",
        "optimizer": "adam",
        "batch_size": "60",
    }.items() <= run.data.params.items()
    row = table(finished, "networks.csv").query("level == 'p75' and arm == 'ticket' and seed == 1").iloc[0]
    for metric, column in {
        "sparsity": "sparsity",
        "density": "density",
        "structure/weights_kept": "weights_kept",
        "structure/effective_density": "effective_density",
        "structure/connected_inputs": "connected_inputs",
        "structure/connected_hidden1": "connected_hidden1",
        "structure/connected_hidden2": "connected_hidden2",
        "early_stopping/iteration": "early_stopping_iteration",
        "test_accuracy": "test_accuracy",
        "test/accuracy_last": "test_accuracy_last",
        "train/accuracy": "train_accuracy",
    }.items():
        assert run.data.metrics[metric] == row[column]


def test_every_networks_test_accuracy_is_on_its_own_run(finished: Clone) -> None:
    found = networks(store(finished))
    rows = table(finished, "networks.csv")
    assert len(found) == len(rows)
    for row in rows.itertuples():
        assert found[row.level, row.arm, row.seed].data.metrics["test_accuracy"] == row.test_accuracy


def test_histories_have_the_iteration_as_their_step(finished: Clone) -> None:
    client = store(finished)
    run = networks(client)["p50", "random", 0]
    history = pd.read_csv(finished.folder / "models/p50/history.csv")
    history = history.query("arm == 'random' and seed == 0")
    for column in ("validation_loss", "validation_accuracy"):
        points = client.get_metric_history(run.info.run_id, f"curves/{column}")
        expected = list(zip(history["iteration"], history[column].round(6), strict=True))
        assert [(point.step, point.value) for point in points] == expected
    assert (
        client.get_metric_history(run.info.run_id, "curves/train_loss")[0].step == 20
    )  # nothing is trained at iteration 0


def test_a_networks_mask_and_its_picture_are_artifacts(finished: Clone, tmp_path: Path) -> None:
    client = store(finished)
    folder = Path(client.download_artifacts(networks(client)["p75", "ticket", 0].info.run_id, "mask", str(tmp_path)))
    assert sorted(path.name for path in folder.iterdir()) == ["mask.png", "mask.safetensors"]
    with Image.open(folder / "mask.png") as picture:
        assert picture.height > picture.width >= 280  # the scale is below
    from safetensors.torch import load_file

    kept = sum(int(mask.sum()) for mask in load_file(folder / "mask.safetensors").values())
    assert kept == table(finished, "networks.csv").query("level == 'p75' and arm == 'ticket'")["weights_kept"].iloc[0]


def test_the_evaluate_run_draws_accuracy_against_pruning(finished: Clone) -> None:
    client = store(finished)
    (run,) = runs(client, "attributes.run_name LIKE 'evaluate · %'")
    means = table(finished, "levels.csv").set_index(["level", "arm"])
    # the tree has two leaves: a curve for each path from dense
    points = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "accuracy/ticket.p75")]
    assert points == [
        (round(1000 * (1 - means.loc[key, "density"])), means.loc[key, "test_accuracy_mean"])
        for key in (("dense", "dense"), ("p50", "ticket"), ("p75", "ticket"))
    ]
    assert len(client.get_metric_history(run.info.run_id, "accuracy/random.p80-at-once")) == 2
    folders = ("reports", "reports/tables")
    shown = {file.path for folder in folders for file in client.list_artifacts(run.info.run_id, folder)}
    tables = {f"reports/tables/{file.name}" for file in (finished.folder / "reports/tables").iterdir()}
    assert shown == {"reports/compression.json", "reports/metrics.json", "reports/tables"} | tables


def test_a_pipelines_runs_have_its_tag_and_name_and_a_note(finished: Clone) -> None:
    found = runs(store(finished))
    (pipeline,) = {run.data.params["pipeline"] for run in found if name(run) in ("evaluate", "export", "plot")}
    recorded = yaml.safe_load((finished.folder / "dvc.lock").read_text())["stages"]["plot"]["deps"]
    assert next(dep["md5"] for dep in recorded if dep["path"] == "reports/tables").startswith(pipeline)
    for run in found:
        assert run.info.run_name == f"{name(run)} · {pipeline}"
        own = {"lottery.key", f"lottery.pipeline.{pipeline}"}
        assert {tag for tag in run.data.tags if not tag.startswith("mlflow.")} == own
        assert run.data.tags["mlflow.note.content"]
    notes = {name(run): run.data.tags["mlflow.note.content"] for run in found}
    assert notes["evaluate"].startswith("**No level is shown to have a winning ticket (3 undecided); ")
    assert f"Pipeline {pipeline}: **undecided** (2 seeds; a verdict needs 3 train.seeds). Test acc" in notes["p75"]


def test_numbers_have_six_decimals_at_most(finished: Clone) -> None:
    client = store(finished)
    for run in runs(client):
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                assert point.value == round(point.value, 6), (run.info.run_name, key)


def test_the_plot_run_carries_the_figures(finished: Clone) -> None:
    client = store(finished)
    (run,) = runs(client, "attributes.run_name LIKE 'plot · %'")
    figures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {path.name for path in (finished.folder / "reports/figures").iterdir()}


@pytest.mark.slow
def test_a_stage_that_trains_nothing_may_take_its_time(clone: Clone) -> None:
    slow = (
        "import time; from lottery import params, tracking; p = params.load()\n"
        "with tracking.stage(p, 'plot') as run: run.connect(); run._connected.wait(); time.sleep(2)"
    )
    assert clone.run(sys.executable, "-c", slow) == ""


def test_runs_say_where_they_come_from(finished: Clone) -> None:
    commit = finished.run("git", "rev-parse", "HEAD").strip()
    for run in runs(store(finished)):
        assert run.data.tags["mlflow.source.git.commit"] == commit
        assert "lottery.dirty" not in run.data.tags
        stage = run.data.tags["mlflow.source.name"].partition("@")[0]
        assert stage in {"download", "train", "prune", "evaluate", "export", "plot"}
        assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["digits"]


@pytest.mark.slow
def test_a_dvc_experiment_is_named_in_the_store_it_was_started_from(clone: Clone) -> None:
    clone.run("dvc", "exp", "run", "--temp", "--name", "faster", "-S", "train.learning_rate=0.02", "train")
    found = runs(store(clone), "tags.`lottery.experiment` = 'faster'")
    assert [run.info.run_name for run in found] == [f"{each} · faster" for each in DENSE]


@pytest.mark.slow
def test_a_store_that_was_deleted_under_a_reader_begins_empty(clone: Clone) -> None:
    database = clone.folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as reader:
        reader.execute("VACUUM")  # writes every page into the write-ahead log, which SQLite would replay
        assert database.with_name("mlflow.db-wal").stat().st_size
        database.unlink()
        assert run_stage(clone, "download", "download") == []
    assert [run.info.run_name for run in runs(store(clone))] == ["download"]


def test_an_interrupted_stage_is_killed_in_mlflow_and_leaves_the_outputs_alone(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 100_000})
    before = clone.files("models/dense")
    running = stage(clone, "train", "train")
    deadline = time.monotonic() + PATIENCE
    while not runs(store(clone), "attributes.status = 'RUNNING'"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    (line,) = lines_of(running, 130)
    assert line.startswith("interrupted; `dvc repro` ")
    assert [name(run) for run in runs(store(clone), "attributes.status = 'KILLED'")] == DENSE
    assert clone.files("models/dense") == before


def test_a_failed_stage_is_failed_in_mlflow(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"learning_rate": 1e30})
    (line,) = run_stage(clone, "train", "train", 2)
    assert line.startswith("params.yaml: train.learning_rate: training diverged at 1e+30: ")
    assert [run.info.run_name for run in runs(store(clone), "attributes.status = 'FAILED'")] == DENSE


def test_a_run_is_complete_only_once_all_of_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of MLflow's fails in turn, of a content that MLflow does not take in one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    calls = iter(())

    def watch(call: Callable[[], Any]) -> Any:
        if next(calls, True):
            return call()
        raise ConnectionError

    tracked = Store("failing", watch)
    client = MlflowClient(tracked.uri)
    values = Content("network", {"seed": "1"}, [("loss", step / 2, step) for step in range(1990)])
    for failing in count():
        run = tracked.create("network", {}, 0)
        calls = iter([True] * failing + [False])
        with suppress(ConnectionError):
            tracked.complete(run, "level/ticket/1/digest", values)
        calls = iter(())
        found = client.get_run(run)
        if KEY in found.data.tags:
            break
    assert failing > 4
    assert found.info.status == "FINISHED"
    assert found.data.tags[KEY] == "level/ticket/1/digest"
    assert len(client.get_metric_history(run, "loss")) == 1990


@pytest.mark.slow
def test_figures_are_drawn_also_where_tracking_is_required(clone: Clone) -> None:
    """Then MLflow's thread is there before the processes that draw."""
    clone.change(tracking={"mlflow_experiment": "another", "required": True})
    before = clone.files("reports/figures")
    assert run_stage(clone, "plot", "plot") == []
    assert clone.files("reports/figures") == before


def test_that_a_stage_goes_on_untracked_is_said_also_while_torchvision_is_silenced(clone: Clone) -> None:
    silent = (
        "import contextlib, io, os; os.environ['MLFLOW_TRACKING_URI'] = 'http://127.0.0.1:9'\n"
        "from lottery import params, tracking; p = params.load()\n"
        "with tracking.stage(p, 'download') as run, contextlib.redirect_stderr(io.StringIO()):\n"
        "    run.connect(); run._connected.wait()"
    )
    assert clone.run(sys.executable, "-c", silent).count("this stage goes on untracked") == 1


@pytest.fixture
def deaf_address() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://someone:secret@127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_a_line_and_no_result(clone: Clone, deaf_address: str) -> None:
    before = clone.files("models/p50")
    took = []
    for _ in range(2):  # the first while nothing is in the page cache
        started = time.monotonic()
        assert run_stage(clone, "prune", "prune@p50") == []
        took.append(time.monotonic() - started)
    for address in (
        deaf_address,
        deaf_address.replace("http:", "postgresql:"),
        "http://127.0.0.1:9",
        "nonsense://here",
    ):
        started = time.monotonic()
        (line,) = run_stage(clone, "prune", "prune@p50", MLFLOW_TRACKING_URI=address)
        assert line.startswith(f"MLflow at {address.replace('secret', '***')} failed: ")
        assert "start the server or correct MLFLOW_TRACKING_URI" in line
        assert time.monotonic() - started < max(took) + 10
        assert clone.files("models/p50") == before


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_sync_with_an_address_that_never_answers_ends_with_one_line(
    clone: Clone, deaf_address: str, scheme: str
) -> None:
    if scheme == "postgresql":
        pytest.importorskip("psycopg", reason="the driver comes with the extra `team`")
    address = deaf_address.replace("http:", f"{scheme}:")
    line = refused_sync(clone, MLFLOW_TRACKING_URI=address)
    assert line.startswith(f"MLflow at {address.replace('secret', '***')} failed: ")


@pytest.mark.slow
def test_a_deleted_mlflow_experiment_is_named_with_the_remedy(clone: Clone) -> None:
    client = store(clone)
    client.delete_experiment(client.get_experiment_by_name("lottery-tickets").experiment_id)
    (line,) = run_stage(clone, "plot", "plot")
    assert "the MLflow experiment 'lottery-tickets' was deleted; `mlflow experiments restore -x " in line


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a real MLflow server."""
    with serving(tmp_path) as (uri, _):
        yield uri


@pytest.mark.slow
def test_a_server_gets_all_networks_and_their_artifacts(clone: Clone, server: str) -> None:
    before = networks(store(clone))
    # the 2 s that a stage gives a request are tested elsewhere: here a slow machine loses nothing either
    uri = server.replace("http://", "http://someone:secret@")  # which MLflow would print for every run
    variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
    printed, errors = (told := stage(clone, "evaluate", "evaluate", **variables)).communicate(timeout=PATIENCE)
    assert (told.returncode, printed) == (0, "")
    assert [line for line in said(errors) if "are censored" not in line] == []  # which 4 epochs leave some
    client = MlflowClient(server)
    after = networks(client)
    assert after.keys() == before.keys()
    for key, run in after.items():
        assert run.data.metrics == before[key].data.metrics
        assert {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "mask")} == {
            "mask.png",
            "mask.safetensors",
        }
