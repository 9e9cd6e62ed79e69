"""The exported ticket in MLflow's registry: one version per ticket, its aliases, and the champion's promotion."""

import json
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from clones import SMALL, Clone
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from stores import address, aliases, command, name, run_stage, runs, serving, store, sync, versions

import lottery.ticket
from lottery.files.data import load_test
from lottery.ticket.format import content
from lottery.ticket.graph import graph
from lottery.tracking import registry
from lottery.tracking.store import Store

NAME = "lottery-ticket"
GRAPH, TICKET, CARD = "artifacts/ticket.onnx", "artifacts/ticket.safetensors", "model_card.md"
FILES = {
    "MLmodel",
    "artifacts/ticket.onnx",
    "artifacts/ticket.safetensors",
    "conda.yaml",
    "input_example.json",
    "model_card.md",
    "python_env.yaml",
    "requirements.txt",
    "served.py",
    "serving_input_example.json",
}


def refusal(clone: Clone, *arguments: str, **variables: str) -> str:
    """The one line with which a command ends."""
    (line,) = command(clone, *arguments, code=2, **variables)
    return line


def levels(client: MlflowClient) -> dict[int, str]:
    """The levels of the registered tickets by the numbers of their versions."""
    return {number: each.tags["level"] for number, each in sorted(versions(client).items())}


def model_of(clone: Clone, number: int) -> Path:
    """The folder of a version's files."""
    return clone.folder / "mlartifacts" / versions(store(clone))[number].run_id / "artifacts" / "ticket"


def predictions(clone: Clone, alias: str) -> np.ndarray:
    """The classes that the model with an alias gives the test images, as a server loads it."""
    ticket = lottery.ticket.load(clone.folder / "tickets/ticket.safetensors")
    images = load_test(clone.folder / "data/digits.safetensors").pixels.reshape(-1, *ticket.facts.image).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address(clone))
        patch.chdir(clone.folder.parent)
        return mlflow.pyfunc.load_model(f"models:/{NAME}@{alias}").predict(images.astype(float))["class"]


def expected(clone: Clone, file: Path) -> np.ndarray:
    """The classes that a ticket's file gives the test images by numpy alone."""
    ticket = lottery.ticket.load(file)
    test = load_test(clone.folder / "data/digits.safetensors")
    return ticket.logits(test.pixels.reshape(-1, *ticket.facts.image).numpy()).argmax(1)


def relocated(clone: Clone, number: int) -> Path:
    """The folder of a version's files, once the store of a clone that was copied has its own addresses."""
    command(clone, "promote", "champion")
    return model_of(clone, number)


@pytest.fixture(scope="module")
def two(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with two versions: 1 is p50's and the champion, 2 is p75's, the workspace's and so the candidate."""
    clone = Clone(tmp_path_factory.mktemp("registry") / "clone")
    shutil.copytree(finished.folder, clone.folder, symlinks=True)
    clone.commit("p50")
    command(clone, "promote", "1")
    clone.change(export=SMALL["export"] | {"level": "p75"})
    assert clone.repro("export") == ["export"]
    clone.commit("p75")
    return clone


@pytest.fixture
def changed(two: Clone, tmp_path: Path) -> Clone:
    """A copy of the clone with two versions, to change."""
    shutil.copytree(two.folder, tmp_path / "two", symlinks=True)
    return Clone(tmp_path / "two")


# --- what is registered ----------------------------------------------------------------------------------------------


def test_a_pipeline_leaves_one_version_that_is_the_candidate_with_its_facts_as_tags(finished: Clone) -> None:
    client, facts = store(finished), lottery.ticket.load(finished.folder / "tickets/ticket.safetensors").facts
    (only,) = versions(client).values()
    assert aliases(client) == {"candidate": 1}
    verdicts = (finished.folder / "reports/tables/verdicts.csv").read_text()
    assert f"{facts.level},undecided," in verdicts
    (lock,) = yaml.safe_load((finished.folder / "dvc.lock").read_text())["stages"]["export"]["outs"]
    assert only.tags == {
        "level": facts.level,
        "arm": facts.arm,
        "seed": str(facts.seed),
        "density": f"{lottery.ticket.load(finished.folder / 'tickets/ticket.safetensors').density:.6g}",
        "accuracy": f"{facts.accuracy:.6g}",
        "verdict": "undecided",
        "commit": finished.run("git", "rev-parse", "HEAD").strip(),
        "dvc": lock["md5"],
    }
    (run,) = runs(client, f"attributes.run_id = '{only.run_id}'")
    assert name(run) == "export"
    assert only.source == f"runs:/{run.info.run_id}/ticket"  # of no folder, so that the store can move
    assert only.description.startswith(f"Level {facts.level}, arm ticket, seed {facts.seed}: ")
    assert "`lottery promote VERSION`" in client.get_registered_model(NAME).description


def test_the_model_has_the_exported_files_and_no_second_copy_of_the_weights(finished: Clone) -> None:
    model = model_of(finished, 1)
    assert {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()} == FILES
    for file in ("ticket.safetensors", "ticket.onnx"):
        assert (model / "artifacts" / file).read_bytes() == (finished.folder / "tickets" / file).read_bytes()
    assert (model / "model_card.md").read_bytes() == (finished.folder / "tickets/model_card.md").read_bytes()
    others = FILES - {f"artifacts/{file}" for file in ("ticket.safetensors", "ticket.onnx")}
    assert sum((model / file).stat().st_size for file in others) < 10_000


def test_the_model_says_what_it_takes_and_gives_and_what_it_needs(finished: Clone) -> None:
    model = model_of(finished, 1)
    signature = yaml.safe_load((model / "MLmodel").read_text())["signature"]
    (images,) = json.loads(signature["inputs"])
    assert images["tensor-spec"]["shape"] == [-1, 8, 8]
    assert [each["name"] for each in json.loads(signature["outputs"])] == ["class", "softmax"]
    assert np.shape(json.loads((model / "serving_input_example.json").read_text())["inputs"]) == (1, 8, 8)
    needs = [f"{package}=={version(package)}" for package in ("mlflow", "numpy", "onnxruntime")]
    assert (model / "requirements.txt").read_text().split() == needs


def test_the_same_ticket_is_the_same_model_whenever_and_wherever_it_is_made(finished: Clone, tmp_path: Path) -> None:
    made = []
    for place in ("one", "two"):
        shutil.copytree(finished.folder / "tickets", tmp_path / place / "tickets")
        (tmp_path / place / "model").mkdir()
        registry.save(tmp_path / place / "tickets", tmp_path / place / "model")
        made.append(Clone(tmp_path / place).files("model"))
    assert made[0] == made[1]
    assert not any(str(tmp_path).encode() in content for content in made[0].values())


def test_the_registered_model_answers_as_the_exported_file_does(finished: Clone, clone: Clone) -> None:
    command(clone, "sync")  # a copy, whose store brings its addresses up to date
    assert (predictions(clone, "candidate") == expected(clone, finished.folder / "tickets/ticket.safetensors")).all()


# --- one ticket, one version -----------------------------------------------------------------------------------------


def test_another_ticket_is_a_second_version_and_the_candidate_while_the_champion_stays(two: Clone) -> None:
    assert levels(store(two)) == {1: "p50", 2: "p75"}
    assert aliases(store(two)) == {"candidate": 2, "champion": 1}


def test_a_sync_of_what_is_registered_registers_nothing(changed: Clone) -> None:
    before = {number: each.last_updated_timestamp for number, each in versions(store(changed)).items()}
    command(changed, "sync")
    assert {number: each.last_updated_timestamp for number, each in versions(store(changed)).items()} == before
    assert aliases(store(changed)) == {"candidate": 2, "champion": 1}


def test_an_earlier_ticket_put_back_is_the_candidate_again_and_no_third_version(changed: Clone) -> None:
    changed.run("git", "checkout", "-q", "HEAD~1", "--", "params.yaml", "dvc.lock")
    changed.run("dvc", "checkout", "--force", "tickets")
    command(changed, "sync")
    assert levels(store(changed)) == {1: "p50", 2: "p75"}
    assert aliases(store(changed)) == {"candidate": 1, "champion": 1}


def test_an_older_commits_ticket_gets_its_version_and_is_not_the_candidate(changed: Clone) -> None:
    client = store(changed)
    client.delete_model_version(NAME, "1")
    command(changed, "sync", "--rev", "HEAD~1")
    assert levels(client) == {2: "p75", 3: "p50"}
    assert aliases(client) == {"candidate": 2}


def test_a_verdict_that_comes_later_is_added_to_the_version(clone: Clone) -> None:
    client = store(clone)
    client.delete_model_version_tag(NAME, "1", "verdict")
    command(clone, "sync")
    (only,) = versions(client).values()
    assert only.tags["verdict"] == "undecided"


def test_a_version_stays_and_can_be_promoted_when_its_run_is_deleted(changed: Clone) -> None:
    client = store(changed)
    client.delete_run(versions(client)[2].run_id)
    told = command(changed, "sync")
    assert told[1] == "runs that were deleted in MLflow stay so: export; `lottery sync --restore` brings them back"
    assert levels(client) == {1: "p50", 2: "p75"}
    command(changed, "promote", "2")
    assert aliases(client) == {"candidate": 2, "champion": 2}


def test_a_ticket_whose_run_was_removed_for_good_is_registered_anew(changed: Clone) -> None:
    client = store(changed)
    remove_for_good(client, versions(client)[2].run_id)
    gone = "lottery-ticket version 2: its run is gone from MLflow; `lottery sync` registers the ticket that is here"
    assert refusal(changed, "promote", "candidate") == gone
    command(changed, "sync")
    assert levels(client) == {1: "p50", 2: "p75", 3: "p75"}
    assert aliases(client) == {"candidate": 3, "champion": 1}
    command(changed, "promote", "candidate")
    assert aliases(client) == {"candidate": 3, "champion": 3}


def remove_for_good(client: MlflowClient, run: str) -> None:
    """As `mlflow gc` does with a run that was deleted."""
    client.delete_run(run)
    client._tracking_client.store._hard_delete_run(run)


def test_a_registry_that_another_machine_makes_at_the_same_time_is_no_error(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store(clone)
    (run,) = runs(client, "attributes.run_name LIKE 'export · %'")
    monkeypatch.setattr(registry, "_aliases", lambda store: None)  # what it was told before the other made it
    monkeypatch.chdir(clone.folder)
    registry.register(Store("lottery-tickets"), run, "undecided", is_current=True)
    assert levels(client) == {1: "p50"}


@pytest.mark.slow
def test_a_stage_that_runs_again_makes_no_second_version(clone: Clone) -> None:
    before = versions(store(clone))[1]
    assert run_stage(clone, "export", "export") == []
    (after,) = versions(store(clone)).values()
    assert (after.run_id, after.tags) == (before.run_id, before.tags)
    assert aliases(store(clone)) == {"candidate": 1}


@pytest.mark.slow
def test_an_experiment_in_a_folder_of_its_own_has_a_version_and_is_not_the_candidate(clone: Clone) -> None:
    clone.commit("First")
    clone.run("dvc", "exp", "run", "--temp", "--name", "sparser", "-S", "export.level=p75", "export")
    assert levels(store(clone)) == {1: "p50", 2: "p75"}
    assert aliases(store(clone)) == {"candidate": 1}
    clone.run("dvc", "exp", "apply", "sparser")
    command(clone, "sync")
    assert aliases(store(clone)) == {"candidate": 2}


@pytest.mark.slow
def test_a_stage_whose_ticket_cannot_be_registered_leaves_its_files_and_says_so_in_a_line(clone: Clone) -> None:
    before = clone.files("tickets")
    shutil.rmtree(clone.folder / "tickets")
    store(clone).delete_registered_model(NAME)
    with closing(sqlite3.connect(clone.folder / "mlflow.db")) as broken:
        broken.execute("ALTER TABLE model_version_tags RENAME COLUMN value TO lost")
        broken.commit()
    (line,) = run_stage(clone, "export", "export")
    assert line.startswith(f"MLflow at {address(clone)} failed: (sqlite3.OperationalError) ")
    assert ": this stage goes on untracked; " in line
    assert clone.files("tickets") == before
    with closing(sqlite3.connect(clone.folder / "mlflow.db")) as mended:
        mended.execute("ALTER TABLE model_version_tags RENAME COLUMN lost TO value")
        mended.commit()
    command(clone, "sync")
    assert aliases(store(clone)) == {"candidate": 1}


@pytest.mark.slow
def test_a_server_has_the_registry_too_and_keeps_one_version_of_what_two_clones_sync(
    clone: Clone, tmp_path: Path
) -> None:
    shutil.copytree(clone.folder, tmp_path / "other", symlinks=True)
    with serving(tmp_path) as (uri, _):
        for folder in (clone.folder, tmp_path / "other"):
            sync(Clone(folder), MLFLOW_TRACKING_URI=uri)
        client = MlflowClient(uri)
        assert levels(client) == {1: "p50"}
        assert aliases(client) == {"candidate": 1}
        told = clone.run("env", f"MLFLOW_TRACKING_URI={uri}", "lottery", "promote", "candidate")
        assert told.startswith("lottery-ticket: version 1 is the champion: p50 ticket ")
        assert told.count("\n") == 1
        assert aliases(client) == {"candidate": 1, "champion": 1}


# --- the champion ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_terminal_shows_one_line_that_says_what_is_the_champion_and_what_was(changed: Clone) -> None:
    facts = lottery.ticket.load(changed.folder / "tickets/ticket.safetensors").facts
    assert changed.run("lottery", "promote", "candidate") == (
        f"lottery-ticket: version 2 is the champion: p75 ticket {facts.seed}, {100 * facts.accuracy:.2f} % of the test "
        "images, checked; before it was version 1\n"
    )
    assert aliases(store(changed)) == {"candidate": 2, "champion": 2}


def test_a_version_is_promoted_by_its_number_and_the_first_has_none_before_it(clone: Clone) -> None:
    (line,) = command(clone, "promote", "1")
    assert line.endswith("; no version was before it")
    assert aliases(store(clone)) == {"candidate": 1, "champion": 1}


@pytest.mark.parametrize("wanted", ["3", "0", "01", "-1", "٢", "9" * 30, "challenger", "latest", "v1", "", "a b"])
def test_what_is_no_version_and_no_alias_is_refused_with_the_choice(two: Clone, wanted: str) -> None:
    known = "choose from 1, 2, candidate, champion"
    line = f"lottery-ticket: no version has the number or the alias {wanted!r}; {known}"
    assert refusal(two, "promote", "--", wanted) == line
    assert aliases(store(two)) == {"candidate": 2, "champion": 1}


def test_where_nothing_is_registered_the_line_says_what_registers(clone: Clone) -> None:
    client = store(clone)
    none = "lottery-ticket: nothing is registered yet: `lottery sync` registers the ticket that is here"
    client.delete_model_version(NAME, "1")
    assert refusal(clone, "promote", "1") == none
    client.delete_registered_model(NAME)
    assert refusal(clone, "promote", "1") == none
    command(clone, "sync")
    assert aliases(client) == {"candidate": 1}


def negate(model: Path) -> None:
    """Put the graph of another network in the place of the ticket's: the classes that it found the least likely."""
    ticket = lottery.ticket.load(model / TICKET)
    last = ticket.facts.layout.weights[-1].layer
    values = {name: -value if name.startswith(f"{last}.") else value for name, value in ticket.values.items()}
    (model / GRAPH).write_bytes(graph(replace(ticket, values=values)))


def overstate(model: Path) -> None:
    """Have the ticket claim another accuracy than its own, in a file that is whole."""
    ticket = lottery.ticket.load(model / TICKET)
    claimed = replace(ticket.facts, accuracy=ticket.facts.accuracy + 0.02)
    (model / TICKET).write_bytes(content(replace(ticket, facts=claimed)))


def misstate(model: Path) -> None:
    """Have the card claim another accuracy."""
    card = (model / "model_card.md").read_text()
    changed = card.replace("| accuracy | ", "| accuracy | 1")
    assert changed != card
    (model / "model_card.md").write_text(changed)


def truncate(file: str) -> Callable[[Path], None]:
    return lambda model: os.truncate(model / file, 300)


def remove(file: str) -> Callable[[Path], None]:
    return lambda model: (model / file).unlink() if file else shutil.rmtree(model)


ALTERED = {
    "another graph": (negate, "gets "),
    "a ticket that claims more": (overstate, "gets "),
    "a card that claims more": (misstate, "gets "),
    "half a card": (truncate(CARD), "gets "),
    "half a graph": (truncate(GRAPH), "PLACE cannot be used ([ONNXRuntimeError] "),
    "half a ticket": (truncate(TICKET), f"PLACE cannot be used (ticket/{TICKET}: truncated or altered; "),
    "no graph": (remove(GRAPH), f"PLACE cannot be used ([Errno 2] No such file or directory: 'ticket/{GRAPH}'); "),
    "no ticket": (remove(TICKET), f"PLACE cannot be used (ticket/{TICKET}: cannot be read: No such file or directory"),
    "no card": (remove(CARD), f"PLACE cannot be used ([Errno 2] No such file or directory: 'ticket/{CARD}'); "),
    "no code": (
        remove("served.py"),
        "PLACE cannot be used ([Errno 2] No such file or directory: 'ticket/served.py'); ",
    ),
    "no files": (remove(""), "PLACE cannot be used (Failed to download artifacts from path 'ticket', please ensure "),
}


@pytest.mark.parametrize(("alter", "what"), ALTERED.values(), ids=ALTERED)
def test_a_version_whose_files_were_altered_is_refused(
    changed: Clone, alter: Callable[[Path], None], what: str
) -> None:
    model = relocated(changed, 2)
    alter(model)
    line = refusal(changed, "promote", "2")
    assert line.startswith(f"lottery-ticket version 2: {what.replace('PLACE', model.as_uri())}")
    assert ".lottery/tmp" not in line
    remedy = "remove that folder, and `lottery sync` makes it anew (of an older ticket, `lottery sync --rev COMMIT`)"
    assert line.endswith(f"; {remedy}")
    assert aliases(store(changed)) == {"candidate": 2, "champion": 1}


def test_a_version_that_is_no_ticket_is_refused(clone: Clone) -> None:
    client = store(clone)
    run = client.create_run("0").info.run_id
    client.create_model_version(NAME, f"runs:/{run}/model", run)
    line = "lottery-ticket version 2: it is no ticket that this project exported; choose another version"
    assert refusal(clone, "promote", "2") == line
    assert aliases(client) == {"candidate": 1}


@pytest.mark.parametrize(("number", "how"), [(2, ["sync"]), (1, ["sync", "--rev", "HEAD~1"])])
def test_files_that_were_removed_are_made_anew_as_the_refusal_says(changed: Clone, number: int, how: list[str]) -> None:
    shutil.rmtree(relocated(changed, number))
    assert "remove that folder" in refusal(changed, "promote", str(number))
    (line,) = command(changed, *how)
    assert "runs: 1 completed, " in line
    command(changed, "promote", str(number))
    assert aliases(store(changed)) == {"candidate": 2, "champion": number}


@pytest.mark.parametrize(
    "damage",
    [lambda data: data.unlink(), lambda data: (data.chmod(0o644), os.truncate(data, 1000))],
    ids=["missing", "truncated"],
)
def test_without_the_test_images_nothing_is_promoted(changed: Clone, damage: Callable[[Path], object]) -> None:
    damage(changed.folder / "data/digits.safetensors")
    assert refusal(changed, "promote", "2").startswith(f"{changed.folder}/data/digits.safetensors: ")
    assert aliases(store(changed)) == {"candidate": 2, "champion": 1}


def test_a_store_that_does_not_answer_is_one_line(two: Clone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # it accepts connections, and says nothing
        for port in (9, deaf.getsockname()[1]):
            uri = f"http://someone:secret@127.0.0.1:{port}"
            line = refusal(two, "promote", "1", MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
            assert line.startswith(f"MLflow at http://someone:***@127.0.0.1:{port} failed: ")


def test_a_store_that_fails_on_the_way_moves_no_alias(changed: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = MlflowException("the store is gone")
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", lambda *arguments: (_ for _ in ()).throw(failing))
    line = f"MLflow at {address(changed)} failed: the store is gone"
    assert refusal(changed, "promote", "2") == line
    assert aliases(store(changed)) == {"candidate": 2, "champion": 1}


def test_a_moved_folder_still_has_its_champion_to_serve(changed: Clone, tmp_path: Path) -> None:
    before = expected(changed, model_of(changed, 1) / "artifacts/ticket.safetensors")
    moved = Clone(tmp_path / "moved")
    changed.folder.rename(moved.folder)
    command(moved, "promote", "champion")
    run = store(moved).get_run(versions(store(moved))[1].run_id)
    assert run.info.artifact_uri.startswith(f"{moved.folder.as_uri()}/mlartifacts/")
    assert (predictions(moved, "champion") == before).all()


@pytest.mark.slow
def test_nothing_that_calls_home_is_set_up(finished: Clone) -> None:
    for module in ("lottery.tracking.sync", "lottery.tracking.registry", "lottery.tracking.runs"):
        script = f"import {module}, mlflow.telemetry.client as home; print(home._MLFLOW_TELEMETRY_CLIENT)"
        own = {name: value for name, value in finished.environment.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
        clone = Clone(finished.folder)
        assert clone.run("env", "-i", f"HOME={own.get('HOME', '/')}", sys.executable, "-c", script) == "None\n"
