"""One epoch, two seeds, two levels on real MNIST, from the download to the figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from clones import ROOT, Clone
from mlflow import MlflowClient

import lottery.ticket
from lottery.demo.page import Demo
from lottery.files.data import load_test
from lottery.params import load
from lottery.ticket.graph import run
from lottery.ticket.modules import masked

pytestmark = pytest.mark.slow

FIGURES = {
    "accuracy_difference.png",
    "accuracy_vs_pruning.png",
    "combined_metrics.png",
    "compression.png",
    "early_stopping.png",
    "kept_weights.png",
    "learning_curves.png",
    "mask_inputs.png",
    "mask_overlap.png",
    "mask_structure.png",
    "parameter_reduction.png",
    "results_table.png",
}


@pytest.fixture(scope="module")
def short(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with the default params.yaml made short, whose pipeline has run."""
    clone = Clone(tmp_path_factory.mktemp("mnist") / "clone", origin)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    clone.change(
        data=params["data"],
        network=params["network"],
        train=params["train"] | {"epochs": 1, "seeds": [0, 1]},
        levels={"p60": {"sparsity": 0.6, "parent": "dense"}, "p90": {"sparsity": 0.9, "parent": "p60"}},
    )
    clone.run("lottery", "check")
    assert clone.repro() == ["download", "train", "prune@p60", "prune@p90", "evaluate", "export", "plot"]
    return clone


def test_one_epoch_already_learns_and_a_ticket_holds_at_ninety_percent(short: Clone) -> None:
    levels = pd.read_csv(short.folder / "reports/tables/levels.csv").set_index(["level", "arm"])
    accuracy = levels["test_accuracy_mean"]
    assert 0.95 < accuracy["dense", "dense"] < 0.99
    assert accuracy["p90", "ticket"] > accuracy["dense", "dense"] - 0.005
    assert accuracy["p90", "ticket"] > max(accuracy["p90", "reinit"], accuracy["p90", "random"])
    # a ticket's mask alone is worth much before any training (Zhou et al. 2019); everything else starts at chance
    start = levels["test_accuracy_start_mean"]
    assert (start.drop(index="ticket", level="arm") < 0.2).all()
    assert (start.xs("ticket", level="arm") > 0.3).all()


def test_every_level_keeps_what_the_settings_say(short: Clone) -> None:
    networks = pd.read_csv(short.folder / "reports/tables/networks.csv")
    assert len(networks) == 2 + 2 * 3 * 2
    kept = networks.groupby("level")[["weights_kept_layer0", "weights_kept_layer1", "weights_kept_layer2"]]
    assert kept.nunique().max().max() == 1
    assert kept.first().loc["dense"].tolist() == [235_200, 30_000, 1_000]
    assert kept.first().loc["p60"].tolist() == [94_080, 12_000, 700]
    assert kept.first().loc["p90"].tolist() == [23_520, 3_000, round((1 - 0.5 * (1 - 0.1 / 0.4)) * 700)]


def test_the_reports_agree(short: Clone) -> None:
    levels = pd.read_csv(short.folder / "reports/tables/levels.csv").set_index(["level", "arm"])
    metrics = json.loads((short.folder / "reports/metrics.json").read_text())
    ticket = 100 * levels.loc[("p90", "ticket"), "test_accuracy_mean"]
    assert metrics["p90"]["ticket"] == pytest.approx(ticket, abs=1e-3)


def test_every_figure_is_there(short: Clone) -> None:
    assert {path.name for path in (short.folder / "reports/figures").iterdir()} == FIGURES


def test_every_network_is_in_mlflow(short: Clone) -> None:
    client = MlflowClient(f"sqlite:///{short.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lottery-tickets")
    runs = client.search_runs([experiment.experiment_id], "metrics.test_accuracy > 0.9 and params.dataset = 'mnist'")
    assert len(runs) == 14


def test_the_compact_network_gives_the_masked_ones_classes_on_all_test_images(short: Clone) -> None:
    ticket = lottery.ticket.load(short.folder / "tickets/ticket.safetensors")
    images = load_test(short.folder / "data/mnist.safetensors").pixels.reshape(-1, 28, 28)
    with torch.no_grad():
        expected = masked(ticket)(images).numpy()
    assert len(expected) == 10_000
    for logits in (
        ticket.logits(images.numpy()),
        run((short.folder / "tickets/ticket.onnx").read_bytes(), images.numpy()),
    ):
        assert (logits.argmax(1) == expected.argmax(1)).all()
        assert np.abs(logits - expected).max() < 1e-4
    card = (short.folder / "tickets/model_card.md").read_text()
    assert "On all 10,000 test images `ticket.onnx` gives the classes of the masked network" in card


def test_running_again_runs_nothing(short: Clone) -> None:
    assert "up to date" in short.run("dvc", "repro")


def test_test_images_that_are_drawn_are_classified_as_before(short: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_demo import agreement  # which is skipped without gradio

    monkeypatch.chdir(short.folder)
    demo = Demo.of(load())
    assert (demo.frame.side, demo.frame.fit) == (28, 20)
    assert demo.frame.centre == pytest.approx((14, 14), abs=0.02)  # as LeCun et al. placed them
    assert min(agreement(demo, Path("data/mnist.safetensors"), largest=15)) > 0.97


@pytest.fixture(scope="module")
def lenet(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with two short LeNet-5 and their tickets, whose pipeline has run."""
    clone = Clone(tmp_path_factory.mktemp("lenet") / "clone", origin)
    params = yaml.safe_load((ROOT / "presets/lenet-5.yaml").read_text())
    params["train"] = {key: value for key, value in params["train"].items() if key != "epochs"}
    clone.change(
        data=params["data"],
        network=params["network"],
        train=params["train"] | {"iterations": 100, "evaluate_every": 50, "seeds": [0, 1]},
        prune=params["prune"] | {"arms": ["ticket"]},
        levels={
            "p80": {"sparsity": 0.8, "parent": "dense", "arms": ["ticket", "random"]},
            "snip": {"sparsity": 0.8, "parent": "dense", "criterion": "snip", "scope": "global"},
        },
    )
    assert clone.repro() == ["download", "train", "prune@p80", "prune@snip", "evaluate", "export", "plot"]
    return clone


def test_a_lenet_5_goes_all_the_way_and_learns(lenet: Clone) -> None:
    networks = pd.read_csv(lenet.folder / "reports/tables/networks.csv").query("arm != 'random'")
    networks = networks.set_index(["level", "seed"])
    assert (networks["test_accuracy"] > 0.85).all()
    assert (networks.loc["snip", "weights_kept"] == 86_100).all()
    kept = networks[[f"weights_kept_layer{layer}" for layer in range(4)]]
    assert kept.loc["dense"].drop_duplicates().values.tolist() == [[500, 25_000, 400_000, 5_000]]
    assert kept.loc["p80"].drop_duplicates().values.tolist() == [[300, 15_000, 80_000, 3_000]]
    assert networks.loc[("dense", 0), ["connected_inputs", "connected_hidden1", "connected_hidden3"]].tolist() == [
        1,
        20,
        500,
    ]
    structure = pd.read_csv(lenet.folder / "reports/tables/structure.csv")
    assert structure["chance_by_input"].isna().all()
    assert {path.name for path in (lenet.folder / "reports/figures").iterdir()} == FIGURES
    page = (lenet.folder / "reports/report.html").read_text()
    assert "lenet-5, 430,500 weights" in page
    assert "given pixels" not in page
    assert "Channels of the images" in page or "channels of the images" in page


def test_a_lenet_5_is_exported_and_predicts_as_it_was_measured(lenet: Clone) -> None:
    ticket = lottery.ticket.load(lenet.folder / "tickets/ticket.safetensors")
    test = load_test(lenet.folder / "data/mnist.safetensors")
    graph = (lenet.folder / "tickets/ticket.onnx").read_bytes()
    classes = run(graph, test.pixels.reshape(-1, 28, 28).numpy()).argmax(1)
    networks = pd.read_csv(lenet.folder / "reports/tables/networks.csv").set_index(["level", "arm", "seed"])
    row = networks.loc[(ticket.facts.level, "ticket", ticket.facts.seed)]
    assert (classes == test.labels.numpy()).mean() == pytest.approx(row["test_accuracy"], abs=5e-7)
    assert ticket.facts.accuracy == pytest.approx(row["test_accuracy"], abs=5e-7)
    assert ticket.kept == row["weights_kept"]


def test_a_lenet_5_is_in_mlflow_and_can_be_loaded(lenet: Clone) -> None:
    client = MlflowClient(f"sqlite:///{lenet.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lottery-tickets")
    runs = client.search_runs([experiment.experiment_id], "params.network = 'lenet-5' and metrics.test_accuracy > 0")
    assert len(runs) == 8
    masks = {artifact.path for artifact in client.list_artifacts(runs[0].info.run_id, "mask")}
    assert masks == {"mask/mask.safetensors", "mask/mask.png"}
    code = "import lottery; print(lottery.load('p80', seed=1).test_accuracy)"
    networks = pd.read_csv(lenet.folder / "reports/tables/networks.csv").query("arm == 'ticket'")
    networks = networks.set_index(["level", "seed"])
    told = lenet.run("env", "PYTHONPATH=src", "python", "-c", code).splitlines()[-1]
    assert float(told) == pytest.approx(networks.loc[("p80", 1), "test_accuracy"], abs=1e-6)


def test_no_ticket_of_the_preset_for_a_first_look_is_censored(origin: Path, tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", origin)
    (clone.folder / "params.yaml").write_bytes((ROOT / "presets/digits.yaml").read_bytes())
    output = clone.run("lottery", "repro")
    networks = pd.read_csv(clone.folder / "reports/tables/networks.csv").query("arm == 'ticket'")
    assert not networks.empty
    assert not networks["censored"].any()
    assert "nan" not in output
    assert "inf" not in output.partition("In brackets")[2]
