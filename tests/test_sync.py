"""MLflow tells the same story as DVC, whatever happened to it: on real stores, real servers and real DVC.

`test_recorder` has what can happen to the runs of one level, within a second each. The faults that a slow test alone
would find are those of real neighbours: DVC that restores outputs, reads other commits or runs a queue, MLflow servers
that die or never answer, two machines at once, and a stage that logs while it trains.
"""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clones import SMALL, Clone
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Run
from stores import (
    KEY,
    PARENT,
    PATIENCE,
    address,
    aliases,
    connect,
    keys,
    kill,
    lines_of,
    lose_the_store,
    name,
    networks,
    picture,
    refused_sync,
    run_stage,
    runs,
    serving,
    stage,
    store,
    sync,
    versions,
)

from lottery import LotteryError
from lottery.files.digests import digest
from lottery.tracking.outputs import recorded
from lottery.tracking.store import Store
from lottery.tracking.sync import Workspace

SERVE = "from lottery.tracking import serve; serve._serve = lambda port, told: print(told)\n"
NAMES = ["download", "dense", "p50", "p75", "p80-at-once", "evaluate", "export", "plot"]
NAMES = ["download", "dense", "p50", "p75", "p80-at-once", "evaluate", "export", "plot"]
RUNS = 28  # download, dense, 3 levels, evaluate, export, plot; 2 + 3 x 6 networks


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_digest_is_what_dvc_records(finished: Clone) -> None:
    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())
    outs = [out for entry in lock["stages"].values() for out in entry.get("outs", ())]
    assert len(outs) == 11
    for out in outs:
        assert digest(finished.folder / out["path"]) == out["md5"].removesuffix(".dir")


def test_dvc_lock_says_which_parameters_made_an_output(finished: Clone) -> None:
    from lottery.params import load

    params = load(finished.folder / "params.yaml")
    edited = params.model_copy(update={"train": params.train.model_copy(update={"learning_rate": 0.5})})
    entries = recorded((finished.folder / "dvc.lock").read_text(), edited)
    assert [entry.name for entry in entries] == NAMES
    for entry in entries:
        assert entry.params.train == params.train
        assert entry.params.levels == params.levels


def test_a_level_added_anew_is_left_out_where_dvc_lock_has_it_from_a_parent_that_was_removed(finished: Clone) -> None:
    from lottery.params import load

    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())
    read = lock["stages"]["evaluate"]["params"]["params.yaml"]["levels"]
    for level in ("p50", "p75"):
        del read[level]
    params = load(finished.folder / "params.yaml")
    levels = {"p75": params.levels["p75"].model_copy(update={"parent": "dense"})}
    entries = recorded(yaml.safe_dump(lock), params.model_copy(update={"levels": levels}))
    assert [entry.name for entry in entries] == ["download", "dense", "p80-at-once", "evaluate", "export", "plot"]


# --- the same picture ------------------------------------------------------------------------------------------------


def test_a_lost_store_is_redrawn_field_by_field(clone: Clone) -> None:
    before, order, registered = picture(store(clone)), _stages(clone), _registered(clone)
    assert len(before) == RUNS
    lose_the_store(clone)
    assert sync(clone) == [f"runs: {RUNS} made"]
    after = picture(store(clone))
    assert _registered(clone) == registered
    assert _stages(clone) == order
    assert after.keys() == before.keys()
    for key, fields in before.items():
        assert after[key] == fields
    assert sync(clone) == [f"runs: {RUNS} already complete"]
    assert picture(store(clone)) == after


def _registered(clone: Clone) -> tuple[dict[str, int], dict[int, tuple[dict[str, str], str]]]:
    """The aliases of the registered ticket, and the tags and descriptions of its versions."""
    client = store(clone)
    return aliases(client), {number: (each.tags, each.description) for number, each in versions(client).items()}


def _stages(clone: Clone) -> list[str]:
    """The names of the stages' runs, the earliest first."""
    return [name(run) for run in runs(store(clone)) if PARENT not in run.data.tags]


@pytest.mark.slow
def test_evaluate_makes_the_runs_of_levels_that_dvc_restored(clone: Clone) -> None:
    before = picture(store(clone))
    lose_the_store(clone)
    clone.repro("--force", "--single-item", "evaluate")
    after = picture(store(clone))
    assert after == {
        key: fields for key, fields in before.items() if not key.startswith(("download", "export", "plot"))
    }


@pytest.mark.slow
def test_a_repeated_stage_leaves_one_run_a_key(clone: Clone) -> None:
    before = picture(store(clone))
    clone.repro("--force")
    assert picture(store(clone)) == before
    assert not any(key.startswith("no key") for key in keys(store(clone)))


@pytest.mark.slow
def test_a_clone_that_pulled_has_the_same_picture(clone: Clone, tmp_path: Path) -> None:
    clone.run("dvc", "remote", "add", "-d", "folder", str(tmp_path / "remote"))
    clone.run("dvc", "push")
    clone.commit("With results")
    other = Clone(tmp_path / "other", clone.folder)
    missing = sync(other)
    assert missing[0] == "runs: 2 made"  # evaluate and plot, whose files are in git
    assert "models/p50 is not here; `dvc pull` or `dvc repro` brings it" in missing
    other.run("dvc", "pull")
    sync(other)
    assert picture(store(other)) == picture(store(clone))


@pytest.mark.slow
def test_an_output_that_is_not_what_dvc_records_is_named_and_left_out(clone: Clone) -> None:
    lose_the_store(clone)
    history = clone.folder / "models/p50/history.csv"
    content = history.read_text()
    history.unlink()
    history.write_text(content.replace("ticket", "reinit"))
    told = sync(clone)
    assert "models/p50 is not what dvc.lock records; `dvc repro` or `dvc checkout` mends that" in told
    assert not any(key.startswith("p50/") for key in keys(store(clone)))
    clone.run("dvc", "checkout", "--force")
    sync(clone)
    assert len(keys(store(clone))) == RUNS


@pytest.mark.slow
def test_edited_parameters_do_not_reach_the_runs_of_earlier_outputs(clone: Clone) -> None:
    before = picture(store(clone))
    lose_the_store(clone)
    clone.change(train=SMALL["train"] | {"learning_rate": 0.5})
    sync(clone)
    assert picture(store(clone)) == before


@pytest.mark.slow
def test_results_of_other_levels_are_not_given_to_those_that_are_here(clone: Clone) -> None:
    clone.change(levels=SMALL["levels"] | {"p50": {"sparsity": 0.45, "parent": "dense"}})
    clone.repro("prune@p50")
    told = sync(clone)
    assert "evaluate: read other levels than those here, whose runs get no test results from it" in told
    new = runs(store(clone), "params.level = 'p50' and params.sparsity = '0.45' and params.seed LIKE '%'")
    assert len(new) == 6
    assert not any("test_accuracy" in run.data.metrics for run in new)
    clone.repro()
    new = runs(store(clone), "params.level = 'p50' and params.sparsity = '0.45' and params.seed LIKE '%'")
    measured = pd.read_csv(clone.folder / "reports/tables/networks.csv").query("level == 'p50'")["test_accuracy"]
    assert sorted(run.data.metrics["test_accuracy"] for run in new) == pytest.approx(sorted(measured))


# --- other revisions -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_revisions_are_synced_without_touching_the_workspace(clone: Clone) -> None:
    clone.commit("First")
    first = clone.run("git", "rev-parse", "HEAD").strip()
    clone.run("dvc", "exp", "run", "--temp", "--name", "wider", "-S", "prune.arms=[ticket]")
    clone.change(levels={"p50": SMALL["levels"]["p50"]})
    clone.repro()
    clone.commit("One level")
    everything = picture(store(clone))
    files, status = clone.files("."), clone.run("git", "status", "--porcelain")
    lose_the_store(clone)
    assert sync(clone, "--rev", first) == [f"{first[:7]}: runs: {RUNS} made"]
    (told,) = sync(clone, "--rev", "wider")
    assert told.startswith("wider: runs: ")
    wider = runs(store(clone), "tags.`lottery.experiment` != ''")
    assert {run.data.tags["lottery.experiment"] for run in wider} == {"wider"}
    assert {run.info.run_name.partition(" · ")[2] for run in wider} == {"wider"}
    sync(clone, "--all-commits")
    assert picture(store(clone)) == everything
    for path, content in files.items():
        if not path.startswith(("mlflow", "mlartifacts", ".lottery", ".dvc", ".git")):
            assert (clone.folder / path).read_bytes() == content
    assert clone.run("git", "status", "--porcelain") == status


@pytest.mark.slow
def test_a_commit_that_cannot_be_synced_costs_only_its_own_runs(clone: Clone) -> None:
    clone.commit("First")
    first, lock = clone.run("git", "rev-parse", "HEAD").strip(), (clone.folder / "dvc.lock").read_text()
    (clone.folder / "dvc.lock").write_text("schema: '2.0'\nstages:\n  train: {cmd: other}\n")
    clone.commit("Another version's")
    other = clone.run("git", "rev-parse", "HEAD").strip()
    (clone.folder / "dvc.lock").write_text(lock)
    shutil.rmtree(clone.folder / ".dvc/cache")
    lose_the_store(clone)
    told = sync(clone, "--all-commits")
    assert f"{first[:7]}: runs: 3 made" in told  # download shows none of its files, and git has the reports
    gone = f"{first[:7]}: prune@p75: its files are in no DVC cache or remote within reach: "
    assert sum(line.startswith(gone) for line in told) == 1
    unread = f"dvc.lock: this version cannot read it; the code of {other[:7]} can"
    assert f"{other[:7]}: {unread}" in told
    assert refused_sync(clone, "--rev", other) == f"--rev {other}: {unread}"


@pytest.mark.slow
def test_a_project_in_a_subfolder_of_a_repository_is_synced_and_clean(clone: Clone, tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", Clone(tmp_path / "outer" / "pro ject")
    outer.mkdir()
    clone.folder.rename(inner.folder)
    shutil.rmtree(inner.folder / ".git")
    (outer / "other.txt").write_text("one")
    inner.run("git", "init", "-q", "-b", "main", str(outer))
    (inner.folder / "dvc.lock").rename(tmp_path / "dvc.lock")
    inner.run("git", "add", "-A", "..")
    inner.commit("Without results")
    (tmp_path / "dvc.lock").rename(inner.folder / "dvc.lock")
    inner.commit("With results")
    (outer / "other.txt").write_text("two")  # no part of this project
    lose_the_store(inner)
    sync(inner)
    assert not any("lottery.dirty" in run.data.tags for run in runs(store(inner)))
    before = picture(store(inner))
    lose_the_store(inner)
    assert sync(inner, "--rev", "HEAD") == [f"HEAD: runs: {RUNS} made"]
    assert picture(store(inner)) == before
    (told,) = sync(inner, "--all-commits")
    assert told.endswith(f": runs: {RUNS} already complete")
    assert refused_sync(inner, "--rev", "HEAD~1") == "--rev HEAD~1: no dvc.lock is in this commit, and so no outputs"


@pytest.mark.slow
def test_a_checkout_of_another_user_is_gits_matter_and_not_mlflows(clone: Clone) -> None:
    if os.getuid():
        pytest.skip("only root may give a folder away")
    os.chown(clone.folder, 12345, 12345)
    os.chown(clone.folder / ".git", 12345, 12345)
    allows = f"`git config --global --add safe.directory {clone.folder}` allows it"
    for arguments in (["--rev", "HEAD"], ["--all-commits"]):
        line = f"git: detected dubious ownership in repository at '{clone.folder}'; {allows}"
        assert refused_sync(clone, *arguments) == line
    told, counts = sync(clone)
    assert told.startswith("the runs that are made now name no commit: git: detected dubious ownership")
    assert counts == f"runs: {RUNS} already complete"


@pytest.mark.slow
def test_without_git_revisions_are_refused_and_the_workspace_is_synced(clone: Clone, tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path)}
    assert refused_sync(clone, "--all-commits", **bare) == "git: no such program; install it"
    told, counts = sync(clone, **bare)
    assert told == "the runs that are made now name no commit: git: no such program; install it"
    assert counts == f"runs: {RUNS} already complete"


@pytest.mark.slow
def test_a_revision_that_does_not_exist_is_one_line(clone: Clone) -> None:
    line = "--rev no-such-thing: neither a commit nor a DVC experiment; `dvc exp show` lists these"
    assert refused_sync(clone, "--rev", "no-such-thing") == line


def test_a_dvc_lock_that_is_not_utf_8_is_no_fault_of_mlflows(workspace: Path) -> None:
    (workspace / "dvc.lock").write_bytes(b"\xff")
    with pytest.raises(LotteryError, match=r"^dvc\.lock: not UTF-8; `git checkout dvc\.lock` mends it$"):
        Workspace().lock()


# --- a store that was moved, copied or purged ------------------------------------------------------------------------


def _relocate(clone: Clone, folder: Path) -> Clone:
    clone.folder.rename(folder)
    return Clone(folder)


@pytest.mark.slow
def test_a_copied_folder_has_its_artifacts_and_leaves_the_originals_alone(finished: Clone, clone: Clone) -> None:
    before, original = picture(store(finished)), finished.files("mlartifacts")
    assert sync(clone) == [f"runs: {RUNS} already complete"]
    assert picture(store(clone)) == before
    places = {run.info.artifact_uri.partition("/mlartifacts/")[0] for run in runs(store(clone))}
    assert places == {clone.folder.as_uri()}
    assert finished.files("mlartifacts") == original


@pytest.mark.slow
def test_a_moved_folder_has_its_artifacts_and_the_old_one_is_not_made_anew(clone: Clone, tmp_path: Path) -> None:
    sync(clone)
    before = picture(store(clone))
    moved = _relocate(clone, tmp_path / "50% moved")
    assert sync(moved) == [f"runs: {RUNS} already complete"]
    client = connect(f"sqlite:///{moved.folder}/mlflow.db".replace("%", "%25"))
    for run in runs(client):
        shown = before[run.data.tags[KEY]]["artifacts"]
        assert run.info.artifact_uri.startswith(f"{moved.folder.as_uri()}/mlartifacts/")
        here = moved.folder / "mlartifacts" / run.info.run_id / "artifacts"
        assert {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()} == set(shown)
        assert bool(client.list_artifacts(run.info.run_id)) == bool(shown)
    assert not clone.folder.exists()


@pytest.mark.slow
def test_artifacts_that_were_deleted_are_made_anew(clone: Clone) -> None:
    sync(clone)
    before = picture(store(clone))
    shutil.rmtree(clone.folder / "mlartifacts")
    assert sync(clone) == ["runs: 23 completed, 5 already complete"]  # download and levels have none
    assert picture(store(clone)) == before
    assert sync(clone) == [f"runs: {RUNS} already complete"]


@pytest.mark.slow
def test_networks_whose_level_was_purged_get_its_new_run_as_parent(clone: Clone) -> None:
    sync(clone)
    before, client = picture(store(clone)), store(clone)
    purged = run_of(client, "p50").info.run_id
    client.delete_run(purged)
    clone.run(
        "mlflow", "gc", "--tracking-uri", address(clone), "--backend-store-uri", address(clone), "--run-ids", purged
    )
    assert sync(clone) == [f"runs: 1 made, {RUNS - 1} already complete"]
    assert picture(store(clone)) == before


# --- deleted, interrupted, twice -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_was_deleted_stays_deleted_until_it_is_asked_back(clone: Clone) -> None:
    client = store(clone)
    before = picture(client)
    gone = networks(client)["p75", "ticket", 1]
    client.delete_run(gone.info.run_id)
    told = sync(clone)
    assert told == [
        f"runs: {RUNS - 1} already complete",
        "runs that were deleted in MLflow stay so: p75 ticket 1; `lottery sync --restore` brings them back",
    ]
    clone.repro("--force", "--single-item", "evaluate")
    assert len(keys(store(clone))) == RUNS - 1
    assert sync(clone, "--restore")[0] == f"runs: 1 restored, {RUNS - 1} already complete"
    assert picture(store(clone)) == before


@pytest.mark.slow
def test_the_runs_of_a_killed_process_are_marked_killed(clone: Clone) -> None:
    before = keys(store(clone))
    clone.change(train=SMALL["train"] | {"epochs": 100_000})
    running = stage(clone, "train", "train")
    _wait_for_a_run(clone, "attributes.status = 'RUNNING' and params.arm = 'dense'")
    # live, while it trains: the means of the networks' histories
    _wait_for_a_run(clone, "attributes.status = 'RUNNING' and metrics.`curves/validation_loss.dense` > 0")
    assert sync(clone) == [f"runs: {RUNS} already complete"]  # it is alive
    assert runs(store(clone), "attributes.status = 'RUNNING'")
    running.kill()
    running.wait()
    assert sync(clone) == ["the process of run dense is dead: marked KILLED", f"runs: {RUNS} already complete"]
    assert [name(run) for run in runs(store(clone), "attributes.status = 'KILLED'")] == [
        "dense",
        "dense dense 0",
        "dense dense 1",
    ]
    assert not runs(store(clone), "attributes.status = 'RUNNING'")
    assert [key for key in keys(store(clone)) if not key.startswith("no key")] == before


def _wait_for_a_run(clone: Clone, condition: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not runs(store(clone), condition):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_concurrent_syncs_make_each_run_once(clone: Clone) -> None:
    before = picture(store(clone))
    lose_the_store(clone)
    started = [
        subprocess.Popen([sys.executable, "-m", "lottery.cli", "sync"], cwd=clone.folder, env=clone.environment)
        for _ in range(3)
    ]
    assert [process.wait(PATIENCE) for process in started] == [0, 0, 0]
    assert picture(store(clone)) == before
    assert len(keys(store(clone))) == RUNS


def run_of(client: MlflowClient, level: str) -> Run:
    """The run of a level's stage."""
    stages = [run for run in runs(client) if PARENT not in run.data.tags]
    return next(run for run in stages if run.data.tags[KEY].startswith(f"{level}/"))


@pytest.mark.slow
def test_machines_that_write_the_same_for_the_first_time_at_once_all_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks for an entry and then makes it: of two that do so together, one is refused."""
    machines, tries = 4, 25
    with serving(tmp_path) as (uri, _), ThreadPoolExecutor(machines) as pool:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        stores = [Store("lottery") for _ in range(machines)]
        ids = [each.create("run", {}, 0) for each in stores]
        client = connect(uri)
        client.create_registered_model("ticket")
        client.create_model_version("ticket", f"runs:/{ids[0]}/ticket", ids[0])
        for number in range(tries):
            data = [DatasetInput(Dataset("mnist", str(number), "local", "{}"))]
            for method, *arguments in (
                ("set_registered_model_alias", "ticket", f"alias{number}", "1"),
                ("set_model_version_tag", "ticket", "1", f"tag{number}", "value"),
            ):
                list(pool.map(lambda each, what=(method, *arguments): each.find_or_make(*what), stores))
            list(pool.map(lambda each, run, data=data: each.find_or_make("log_inputs", run, data), stores, ids))
        for each, run in zip(stores, ids, strict=True):
            assert len(each.call("get_run", run).inputs.dataset_inputs) == tries
        assert len(client.get_registered_model("ticket").aliases) == tries
        assert len(client.get_model_version("ticket", "1").tags) == tries


@pytest.mark.slow
@pytest.mark.parametrize("apart", ["two machines", "two names of the server"])
def test_two_clones_fill_one_server_and_the_next_sync_keeps_one_run_a_key(
    clone: Clone, tmp_path: Path, apart: str
) -> None:
    before = picture(store(clone))
    shutil.copytree(clone.folder, tmp_path / "other", symlinks=True)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with serving(tmp_path) as (uri, _):
        started = []
        for number, folder in enumerate((clone.folder, tmp_path / "other")):
            own = clone.environment | {"MLFLOW_TRACKING_URI": uri, "TMPDIR": str(temporary)}
            if apart == "two machines":  # without a folder for temporary files, and so without a lock, in common
                (temporary / str(number)).mkdir()
                own |= {"TMPDIR": str(temporary / str(number))}
            elif number:
                own |= {"MLFLOW_TRACKING_URI": uri.replace("127.0.0.1", "localhost")}
            own |= {"PYTHONPATH": str(folder / "src")}
            command = [sys.executable, "-m", "lottery.cli", "sync"]
            started.append(subprocess.Popen(command, cwd=folder, env=own))
        assert [process.wait(PATIENCE) for process in started] == [0, 0]
        sync(clone, MLFLOW_TRACKING_URI=uri)
        assert picture(connect(uri)) == before
        assert len(keys(connect(uri))) == RUNS
        assert not runs(connect(uri), "attributes.status = 'RUNNING'")


# --- servers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_killed_while_a_stage_runs_costs_a_line(clone: Clone, tmp_path: Path) -> None:
    before = clone.files("models/p75")
    shown = picture(store(clone))
    draws = random.Random(0)
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with serving(folder) as (uri, server):
            sync(clone, MLFLOW_TRACKING_URI=uri)
            client = connect(uri)
            for run in runs(client):  # so that the stage has something to log
                if run.data.tags[KEY].startswith("p75/"):
                    client.delete_tag(run.info.run_id, KEY)
                    client.delete_run(run.info.run_id)
            running = stage(clone, "prune", "prune@p75", MLFLOW_TRACKING_URI=uri)
            time.sleep(draws.uniform(4, 9))
            kill(server)
            assert len(lines_of(running)) <= 1  # none, where the stage was done before
            assert clone.files("models/p75") == before
            port = int(uri.rpartition(":")[2])
        with serving(folder, port) as (uri, _):
            sync(clone, MLFLOW_TRACKING_URI=uri)
            assert picture(connect(uri)) == shown
            assert not runs(connect(uri), "attributes.status = 'RUNNING'")


def test_where_tracking_is_required_a_stage_stops_before_it_trains(clone: Clone) -> None:
    before = clone.files("models/dense")
    clone.change(tracking={"mlflow_experiment": "lottery-tickets", "required": True})
    (line,) = run_stage(clone, "train", "train", 2, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert line.startswith("MLflow at http://127.0.0.1:9 failed: ")
    assert line.endswith("tracking.required is true, so the stage stops before it begins")
    assert clone.files("models/dense") == before


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_address_that_nobody_serves_costs_at_most_ten_seconds(clone: Clone, scheme: str) -> None:
    if scheme == "postgresql":
        pytest.importorskip("psycopg", reason="the driver comes with the extra `team`")
    dead = {"MLFLOW_TRACKING_URI": f"{scheme}://someone:secret@127.0.0.1:9/store"}
    took, told = [], []
    for variables in ({}, dead, {}):  # before and after, as the machine may have other work meanwhile
        started = time.monotonic()
        told.append(run_stage(clone, "prune", "prune@p50", **variables))
        took.append(time.monotonic() - started)
    assert [len(lines) for lines in told] == [0, 1, 0]
    assert "secret" not in told[1][0]
    assert took[1] < max(took[0], took[2]) + 10


# --- stores that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_relative_address_is_refused_with_the_remedy(clone: Clone) -> None:
    (line,) = run_stage(clone, "plot", "plot", MLFLOW_TRACKING_URI="sqlite:///here.db")
    assert "names no absolute address" in line
    assert not (clone.folder / "here.db").exists()


@pytest.mark.slow
def test_a_store_that_was_left_half_made_is_named_with_the_remedy(clone: Clone) -> None:
    lose_the_store(clone)
    with closing(sqlite3.connect(clone.folder / "mlflow.db")) as half:
        half.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        half.commit()
    remedy = f"{clone.folder}/mlflow.db is no whole MLflow store; move it away and run `lottery sync`"
    assert refused_sync(clone) == f"MLflow at {address(clone)} failed: {remedy}"


@pytest.mark.slow
def test_a_store_that_is_damaged_is_named_with_the_remedy(clone: Clone) -> None:
    lose_the_store(clone)
    (clone.folder / "mlflow.db").write_bytes(b"no database" * 1000)
    remedy = f"{clone.folder}/mlflow.db is damaged (file is not a database); move it away and run `lottery sync`"
    assert refused_sync(clone) == f"MLflow at {address(clone)} failed: {remedy}"
    (line,) = run_stage(clone, "plot", "plot")
    assert line.startswith(f"MLflow at {address(clone)} failed: {remedy}: this stage goes on untracked; then ")


@pytest.mark.slow
def test_a_store_of_a_newer_mlflow_is_said_to_be_one(clone: Clone) -> None:
    with closing(sqlite3.connect(clone.folder / "mlflow.db")) as new:
        new.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
        new.commit()
    assert "failed: the store is of a newer MLflow than " in refused_sync(clone)
    (line,) = run_stage(clone, "plot", "plot")
    assert "; install that one: this stage goes on untracked; then `lottery sync` " in line


@pytest.mark.slow
def test_an_error_of_sqlites_costs_a_stage_one_line(clone: Clone) -> None:
    """As on a full or read-only disk: MLflow logs an OperationalError with its traceback."""
    with closing(sqlite3.connect(clone.folder / "mlflow.db")) as broken:
        broken.execute("ALTER TABLE tags RENAME COLUMN value TO lost")
    (line,) = run_stage(clone, "plot", "plot")
    assert "(sqlite3.OperationalError) " in line
    assert ": this stage goes on untracked; see to it that it can be written" in line


# --- a fresh clone ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_make_repro_on_a_fresh_clone_completes_the_store(clone: Clone, tmp_path: Path) -> None:
    """Its reports are those that are committed, so DVC skips `evaluate` and `plot`."""
    expected = keys(store(clone))
    clone.commit("With results")
    fresh = Clone(tmp_path / "fresh", clone.folder)
    told = fresh.run("dvc", "repro", "train")
    line = "MLflow's store is new: once all is done, `make ui` or `lottery sync` completes it"
    assert told.count(line) == 1
    for path in fresh.folder.glob("mlflow.db*"):
        path.unlink()
    recipe = subprocess.run(["make", "-n", "repro"], cwd=fresh.folder, capture_output=True, text=True).stdout
    output = fresh.run(*recipe.splitlines()[-1].split())
    assert line not in output
    assert "Stage 'evaluate' didn't change, skipping" in output
    assert keys(store(fresh)) == expected
    assert any("test_accuracy" in run.data.metrics for run in runs(store(fresh)))


@pytest.mark.slow
def test_the_ui_begins_with_what_the_store_lacks(clone: Clone) -> None:
    sync(clone)
    expected = picture(store(clone))
    lose_the_store(clone)
    served = f"{SERVE}serve.serve_ui(0); serve.serve_ui(0)"
    lines = clone.run(sys.executable, "-c", served).splitlines()
    assert f"runs: {RUNS} made" in lines
    (pipeline,) = {
        run.data.params["pipeline"] for run in runs(store(clone)) if name(run) in ("evaluate", "export", "plot")
    }
    assert (
        sum(line.startswith("MLflow UI: ") and line.endswith(f"&viewStateShareKey={pipeline}") for line in lines) == 2
    )
    assert sum(line.startswith(f"pipeline {pipeline}; all runs: http") for line in lines) == 2
    assert len(lines) == 5
    assert picture(store(clone)) == expected


@pytest.mark.slow
def test_the_view_of_a_pipeline_of_more_runs_than_a_page_shows_has_its_stages(clone: Clone) -> None:
    told = clone.run(sys.executable, "-c", f"{SERVE}serve.FIRST_PAGE = 10; serve.serve_ui(0)")
    assert "stages alone: the page shows 10 runs, and this pipeline has 28; `lottery.pipeline." in told
    client = store(clone)
    tags = client.get_experiment_by_name("lottery-tickets").tags
    view = tags["mlflow.sharedViewState." + told.strip().rpartition("=")[2]]
    found = runs(client, json.loads(json.loads(view)["state"])["searchFilter"])
    assert [name(run) for run in found] == NAMES


@pytest.mark.slow
def test_a_folder_without_a_pipeline_of_its_own_opens_all_runs(clone: Clone) -> None:
    (clone.folder / "dvc.lock").unlink()
    (line,) = clone.run(sys.executable, "-c", f"{SERVE}serve.serve_ui(0)").splitlines()
    assert line.startswith("MLflow UI: http")
    assert line.endswith("&viewStateShareKey=all")


@pytest.mark.slow
def test_a_store_of_an_older_mlflow_is_named_with_the_remedy(clone: Clone) -> None:
    with closing(sqlite3.connect(clone.folder / "mlflow.db")) as old:
        old.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        old.commit()
    assert "mlflow db upgrade" in refused_sync(clone)


def test_a_folder_where_the_store_cannot_be_made_is_one_line(clone: Clone) -> None:
    lose_the_store(clone)
    (clone.folder / "file").write_text("")
    uri = f"sqlite:///{clone.folder}/file/mlflow.db"
    assert refused_sync(clone, MLFLOW_TRACKING_URI=uri).startswith(f"MLflow at {uri} failed: ")


# --- DVC experiments -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_queued_experiments_log_into_the_store_they_were_started_from(clone: Clone) -> None:
    clone.commit("First")
    for rate in (0.02, 0.03):
        clone.run(
            "dvc", "exp", "run", "--queue", "--name", f"rate-{str(rate)[2:]}", "-S", f"train.learning_rate={rate}"
        )
    clone.run("dvc", "queue", "start", "-j", "2")
    deadline = time.monotonic() + 3 * PATIENCE
    while "Running" in (status := clone.run("dvc", "queue", "status")) or "Queued" in status:
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert "Failed" not in status
    client = store(clone)
    commit = clone.run("git", "rev-parse", "HEAD").strip()
    for experiment in ("rate-02", "rate-03"):
        found = runs(client, f"tags.`lottery.experiment` = '{experiment}'")
        assert len([run for run in found if PARENT in run.data.tags]) == 20
        assert {run.data.tags["mlflow.source.git.commit"] for run in found} == {commit}
        (evaluate,) = (run for run in found if run.info.run_name == f"evaluate · {experiment}")
        tag = f"lottery.pipeline.{evaluate.data.params['pipeline']}"
        read = runs(client, f"tags.`{tag}` = 'true' and params.seed = '0'")
        assert len(read) == 10
    assert len(set(keys(client))) == len(keys(client)) == 3 * RUNS - 2  # the data are one; the figures are three
    assert not any(key.startswith("no key") for key in keys(client))
