"""A network of one's own and data of one's own, through the whole pipeline by real DVC."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clones import SMALL, Clone

import lottery
import lottery.ticket
from lottery.files.data import load_test
from lottery.ticket.graph import run

TRAINING = ["train", "prune@p50", "evaluate", "export", "plot"]
NETWORK = {name: value for name, value in SMALL["network"].items() if name != "hidden"} | {"name": "own"}
SHORT = {"levels": {"p50": SMALL["levels"]["p50"]}, "prune": SMALL["prune"] | {"arms": ["ticket", "reinit"]}}
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "images": {"network": NETWORK | {"arguments": {"filters": 4, "dropout": 0.1}}},
    "table": {
        "data": SMALL["data"] | {"name": "own", "validation": 20},
        "network": NETWORK | {"class": "Table"},
        "train": SMALL["train"] | {"epochs": 20, "batch_size": 30},
    },
}


@pytest.fixture(scope="module")
def clones(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """A function that gives a clone whose pipeline has run in one of the forms."""
    made: dict[str, Clone] = {}

    def make(form: str) -> Clone:
        if form not in made:
            made[form] = Clone(tmp_path_factory.mktemp(form) / "clone", origin)
            made[form].change(**SHORT, **FORMS[form])
            assert made[form].repro() == ["download", *TRAINING]
        return made[form]

    return make


@pytest.fixture(params=FORMS)
def here(request: pytest.FixtureRequest, clones: Callable[[str], Clone], monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The clone of each form, as the current folder."""
    clone = clones(request.param)
    monkeypatch.chdir(clone.folder)
    return clone


def test_nothing_runs_twice(here: Clone) -> None:
    assert "up to date" in here.run("dvc", "repro")


def test_its_networks_learn_and_are_as_sparse_as_their_levels(here: Clone) -> None:
    networks = pd.read_csv("reports/tables/networks.csv")
    assert len(networks) == 2 + 2 * 2
    assert networks.query("arm == 'dense'")["test_accuracy"].min() > 0.6
    assert networks["effective_density"].isna().all()
    assert not [column for column in networks if column.startswith("connected_")]
    shares = networks.groupby("level")["density"].unique()
    assert shares["dense"].tolist() == [1]
    assert len(shares["p50"]) == 1
    assert 0.5 < shares["p50"][0] < 0.75  # the output layer and convolutions are pruned at half the rate


def test_all_forms_of_a_ticket_give_the_same_logits(here: Clone) -> None:
    ticket = lottery.ticket.load("tickets/ticket.safetensors")
    facts = ticket.facts
    test = load_test(Path(f"data/{facts.data}.safetensors"))
    images = test.pixels.view(-1, *facts.image)
    network = lottery.load(facts.level, facts.arm, facts.seed)
    with torch.no_grad():
        logits = network(images).numpy()
    found = run(Path("tickets/ticket.onnx").read_bytes(), images.numpy())
    assert np.abs(found - logits).max() < 1e-4
    assert ticket.dtype == str(images.numpy().dtype)
    assert facts.accuracy == pytest.approx((logits.argmax(1) == test.labels.numpy()).mean(), abs=1e-6)
    assert ticket.kept == sum(int(getattr(network, f"mask{place}").sum()) for place in range(len(ticket.masks)))


def test_the_command_exports_the_bytes_of_the_stage(clones: Callable[[str], Clone], tmp_path: Path) -> None:
    clone = clones("images")
    facts = lottery.ticket.load(clone.folder / "tickets/ticket.safetensors").facts
    told = clone.run("lottery", "export", facts.level, "--best", "--to", str(tmp_path / "best"))
    assert told.startswith(f"<Ticket {facts.level} ticket {facts.seed}: Net on digits, ")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    assert exported == clone.files("tickets")


def test_a_folder_of_the_repository_reads_it_too(here: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lottery.load("p50").test_accuracy
    monkeypatch.chdir("src")
    assert lottery.load("p50").test_accuracy == expected


def test_networks_that_were_made_with_other_arguments_are_not_evaluated(
    clones: Callable[[str], Clone], tmp_path: Path
) -> None:
    shutil.copytree(clones("images").folder, tmp_path / "clone", symlinks=True)
    clone = Clone(tmp_path / "clone")
    clone.change(network=NETWORK | {"arguments": {"filters": 8}})
    told = clone.run("dvc", "repro", "--single-item", "evaluate", check=False)
    assert 'models/dense: has network Net({"dropout": 0.1, "filters": 4}) of networks/example.py ' in told
    assert ', but params.yaml asks for Net({"filters": 8}) of networks/example.py ' in told


def test_a_comment_in_the_networks_file_trains_anew_and_downloads_nothing(here: Clone) -> None:
    with Path("networks/example.py").open("a") as file:
        file.write("\n# nothing new\n")
    assert here.repro("--dry") == TRAINING
