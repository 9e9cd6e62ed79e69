"""`lottery measure`: what it measures, where it leaves the numbers, and that nothing else is touched."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from clones import ROOT, Clone
from mlflow.entities import ViewType
from stores import KEY, name, runs, store, sync
from test_ticket import make

from lottery import params
from lottery.cli import main
from lottery.core.layout import published
from lottery.files.data import load_test
from lottery.speed import page
from lottery.speed.measure import BATCHES, forms, load, machine
from lottery.tracking.store import PROCESS

LEVELS = ("p50", "p75", "p80-at-once")
SHORT = ("measure", "--seconds", "0.01")  # the fewest rounds


@pytest.fixture
def here(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.chdir(clone.folder)
    return clone


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def table(**ratios: float) -> pd.DataFrame:
    """A table of a dense network and a ticket p90, in which ratios are by the ticket's form and batch: csr_256."""
    rows = []
    for batch in BATCHES:
        for level, form in (("dense", "dense"), ("dense", "onnx"), ("p90", "masked"), ("p90", "csr"), ("p90", "onnx")):
            ratio = ratios.get(f"{form}_{batch}", 1.0) if level == "p90" else 1.0
            density = 0.1 if level == "p90" else 1.0
            between = {"ratio": ratio, "ratio_low": 0.99 * ratio, "ratio_high": 1.01 * ratio}
            rows.append({"level": level, "density": density, "form": form, "batch": batch, "rounds": 3} | between)
    return pd.DataFrame(rows).assign(latency_ms=1.0, images_per_second=1000.0)


def test_all_forms_give_the_classes_of_the_masked_network(here: Clone) -> None:
    p = params.load()
    test, tickets = load_test(p.data_file), load(p)
    assert list(tickets) == ["dense", *LEVELS]
    for level, ticket in tickets.items():
        images = test.pixels.reshape(-1, *ticket.facts.image)
        with torch.inference_mode():
            classes = {form: call(images).argmax(1) for form, call in forms(ticket).items()}
        assert list(classes) == (["dense", "onnx"] if level == "dense" else ["masked", "csr", "compact", "onnx"])
        assert all(torch.equal(each, classes["onnx"]) for each in classes.values())


@pytest.mark.slow
def test_a_measurement_leaves_a_table_a_page_and_a_run_and_no_output_changes(here: Clone) -> None:
    client, before = store(here), {folder: here.files(folder) for folder in ("models", "reports", "tickets")}
    known = {run.info.run_id for run in runs(client)}
    told = here.run("lottery", *SHORT).splitlines()
    assert told[0].startswith("measuring dense, p50, p75, p80-at-once with 1, 32, 256 images at once")
    found = pd.read_csv(".lottery/speed.csv")
    expected = [("dense", form) for form in ("dense", "onnx")]
    expected += [(level, form) for level in LEVELS for form in ("masked", "csr", "compact", "onnx")]
    rows = found.groupby("batch").apply(lambda each: list(zip(each["level"], each["form"], strict=True)))
    assert rows.to_dict() == dict.fromkeys(BATCHES, expected)
    numbers = found[["latency_ms", "images_per_second", "ratio_low", "ratio", "ratio_high"]].to_numpy()
    assert np.isfinite(numbers).all()
    assert (numbers > 0).all()
    assert (np.diff(numbers[:, 2:]) >= 0).all()
    assert found["processor"].notna().all()
    html = Path(".lottery/speed.html").read_text(encoding="utf-8")
    for sentence in page.answer(found):
        assert sentence in told
        assert sentence in html
    assert "http" not in html
    assert {folder: here.files(folder) for folder in before} == before
    assert here.run("dvc", "status").strip().endswith("up to date.")

    (run,) = [run for run in runs(client) if run.info.run_id not in known]
    assert (name(run), run.info.status) == ("speed", "FINISHED")
    assert not {KEY, PROCESS} & run.data.tags.keys()
    assert len([tag for tag in run.data.tags if tag.startswith("lottery.pipeline.")]) == 1
    assert run.data.tags["machine.torch"] == torch.__version__
    p75 = found.query("level == 'p75' and form == 'csr' and batch == 256")
    assert run.data.metrics["speed/csr_256.p75"] == pytest.approx(p75["ratio"].item())
    assert len(run.data.metrics) == 2 * len(found)
    assert {item.path for item in client.list_artifacts(run.info.run_id, "speed")} == {
        "speed/speed.csv", "speed/speed.html",
    }  # fmt: skip

    assert sync(here) == [f"runs: {len(known)} already complete"]
    assert client.get_run(run.info.run_id).to_dictionary() == run.to_dictionary()
    client.delete_run(run.info.run_id)
    sync(here, "--restore")
    assert run.info.run_id in {each.info.run_id for each in runs(client, view=ViewType.DELETED_ONLY)}


@pytest.mark.slow
def test_a_store_that_does_not_answer_costs_a_line_and_no_result(
    here: Clone, silent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    assert main([*SHORT, "--level", "p75"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"MLflow at {silent} failed: ")
    assert set(pd.read_csv(".lottery/speed.csv")["level"]) == {"dense", "p75"}
    assert Path(".lottery/speed.html").exists()


@pytest.mark.parametrize(
    ("more", "missing", "line"),
    [
        (("--level", "p99"), None, "--level p99: has no tickets; the levels that do are p50, p75, p80-at-once"),
        (("--seconds", "0"), None, "--seconds 0: give a number of seconds above 0"),
        (("--seconds", "nan"), None, "--seconds nan: give a number of seconds above 0"),
        ((), "models/p75", "models/p75/masks.safetensors: missing; "),
        ((), "data/digits.safetensors", "data/digits.safetensors: missing; "),
    ],
)
def test_bad_input_is_one_line(
    here: Clone, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], missing: str | None, line: str
) -> None:
    if missing and Path(missing).is_dir():
        shutil.rmtree(missing)
    elif missing:
        Path(missing).unlink()
    assert main([*SHORT, *more]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    assert not missing or "dvc repro" in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert not Path(".lottery/speed.csv").exists()


def test_the_answer_names_where_sparsity_pays_and_where_it_costs() -> None:
    first, second, *_ = page.answer(table(csr_256=2.5, csr_32=1.5, csr_1=0.5))
    assert first == (
        "Sparsity pays, as csr, with 256 images at once at p90 (2.50 times as fast as dense); with 32 images at once "
        "at p90 (1.50); with 1 at no level."
    )
    assert "with 1 image at once, csr at p90, which keeps 10 %, takes 2.0 times as long as dense" in second


def test_what_a_runtime_gains_is_not_said_to_be_sparsitys() -> None:
    first, *_, last = page.answer(table(onnx_1=2.0, onnx_32=2.0, onnx_256=2.0))
    assert first == "Sparsity pays at none of these levels, with 256, 32 and 1 images at once."
    assert "and 2.00, 2.00 and 2.00 times on tickets" in last


def test_a_dense_network_alone_says_nothing_of_sparsity() -> None:
    rows = table()
    (sentence,) = page.answer(rows[rows["level"] == "dense"])
    assert "Only the dense network" in sentence


def test_lenet_5_has_no_sparse_or_compact_form_and_the_page_says_so() -> None:
    assert list(forms(make(published("lenet-5", (28, 28), 10), 0.1))) == ["masked", "onnx"]
    rows = table()
    rows = rows[rows["form"] != "csr"]
    html = page.render(rows, machine(), params.load(ROOT / "presets/lenet-5.yaml"))
    assert "Only perceptrons have the forms csr and compact" in html
    assert '<th scope="col" class="number">csr</th>' not in html
