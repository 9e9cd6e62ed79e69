"""`lottery.load`: a trained network as a torch module."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from clones import SMALL, Clone

import lottery
from lottery import LotteryError
from lottery.files.data import load_test


def _accuracy(network: torch.nn.Module, folder: Path) -> float:
    test = load_test(folder / "data/digits.safetensors")
    return float((network(test.pixels).argmax(1) == test.labels).double().mean())


@pytest.fixture
def here(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.chdir(clone.folder)
    return clone


def test_every_network_has_the_accuracy_that_the_table_has(here: Clone) -> None:
    for row in pd.read_csv("reports/tables/networks.csv").to_dict("records"):
        network = lottery.load(row["level"], row["arm"], row["seed"])
        assert network.test_accuracy == pytest.approx(row["test_accuracy"], abs=5e-7)  # six decimals
        assert network.test_accuracy == pytest.approx(_accuracy(network, here.folder), abs=1e-12)
        kept = sum(int(mask.sum()) for name, mask in network.named_buffers() if name.startswith("mask"))
        assert kept == row["weights_kept"]


def test_a_notebook_in_a_subfolder_finds_the_network(here: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here.folder / "docs")
    assert lottery.load("dense", "dense", 1).mask0.all()


def test_pruned_weights_are_zero_and_images_keep_their_shape_or_not(here: Clone) -> None:
    network = lottery.load("p75")
    first = network.layers[0]
    assert torch.equal(first.weight != 0, network.mask0)
    images = torch.randint(17, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(network(images), network(images.flatten(1)))


@pytest.mark.slow
def test_a_level_that_was_trained_since_the_last_evaluation_has_its_own_accuracy(here: Clone) -> None:
    here.change(levels={"p50": {"sparsity": 0.45, "parent": "dense"}})
    here.repro("prune@p50")
    network = lottery.load("p50")
    assert network.test_accuracy == pytest.approx(_accuracy(network, here.folder), abs=1e-12)


def test_parameters_that_were_edited_since_change_nothing(here: Clone) -> None:
    expected = lottery.load("p50").test_accuracy
    here.change(data=SMALL["data"] | {"name": "mnist", "validation": 5000, "scale": "unit"})
    network = lottery.load("p50")
    assert _accuracy(network, here.folder) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("level", ["../../outside", "/etc", "..", "p50/../../x"])
def test_no_name_leads_out_of_the_repository(here: Clone, level: str) -> None:
    for rev in (None, "HEAD"):
        with pytest.raises(LotteryError, match=rf"^level {re.escape(level)}: no such level; "):
            lottery.load(level, rev=rev)


@pytest.mark.slow
def test_another_revision_or_experiment_is_read_from_dvcs_cache(here: Clone) -> None:
    here.commit("Results")
    before = lottery.load("p75", "reinit", 1).state_dict()
    here.run("dvc", "exp", "run", "-n", "other", "-S", "levels.p75.sparsity=0.7")
    here.run("git", "restore", ".")
    here.run("dvc", "checkout")
    other = lottery.load("p75", "reinit", 1, rev="other")
    assert not torch.equal(other.mask0, before["mask0"])
    assert _accuracy(other, here.folder) == pytest.approx(other.test_accuracy, abs=1e-12)
    same = lottery.load("p75", "reinit", 1, rev="HEAD").state_dict()
    assert all(torch.equal(same[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("p99",), "level p99: no such level; the levels are dense, p50, p75, p80-at-once"),
        (
            ("dense",),
            "level dense, ticket, seed 0: no such network; dense has dense 0, dense 1",
        ),
        (("p50", "ticket", 7), "level p50, ticket, seed 7: no such network; p50 has ticket 0, ticket 1, reinit 0"),
        (("p50", "ticket", 0, "nowhere"), "nowhere: "),
        (("p50", "ticket", 0, "HEAD"), "HEAD: has no dvc.lock"),
        (("p99", "ticket", 0, "HEAD"), "HEAD: has no dvc.lock"),
    ],
)
def test_a_network_that_is_not_there_is_one_line(here: Clone, arguments: tuple[object, ...], line: str) -> None:
    with pytest.raises(LotteryError, match=f"^{line}") as error:
        lottery.load(*arguments)
    assert len(str(error.value).splitlines()) == 1
