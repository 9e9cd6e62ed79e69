"""All that an experiment can vary, at once, with real DVC on digits: it runs, and each part is in the outputs."""

import re

import pandas as pd
import pytest
from clones import SMALL, Clone
from mlflow import MlflowClient

from lottery.core.arms import Rows
from lottery.files.artifacts import load_contents, load_history, load_masks, load_parameters, load_rewound, load_twins

pytestmark = pytest.mark.slow

ARMS = ["ticket", "reinit", "random", "random-inputs", "small-dense", "finetune", "lr-rewind"]
AT_START = {"parent": "dense", "scope": "global", "arms": ["ticket", "reinit", "random"]}


@pytest.fixture(scope="module")
def varied(origin: object, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with all arms, learning rates and weights rewound, twins, and two criteria; its pipeline has run."""
    clone = Clone(tmp_path_factory.mktemp("varied") / "clone", origin)  # type: ignore[arg-type]
    clone.change(
        train=SMALL["train"] | {"schedule": "cosine", "twins": True, "seeds": [0, 1, 2]},
        prune=SMALL["prune"] | {"arms": ARMS, "criterion": "movement", "rewind": 30, "from": "lr-rewind"},
        levels={
            "p50": {"sparsity": 0.5, "parent": "dense"},
            "p75": {"sparsity": 0.75, "parent": "p50", "criterion": "magnitude-increase"},
            "p60": {"sparsity": 0.6, "parent": "dense", "criterion": "random", "scope": "global", "arms": ["ticket"]},
        },
    )
    assert clone.repro() == ["download", "train", "prune@p50", "prune@p75", "prune@p60", "evaluate", "export", "plot"]
    return clone


def test_a_childs_mask_is_of_the_source_that_it_prunes(varied: Clone) -> None:
    parent, child = varied.folder / "models/p50", varied.folder / "models/p75"
    source, ticket = load_contents(parent).rows.of("lr-rewind"), load_contents(child).rows.of("ticket")
    for of_parent, of_child in zip(load_masks(parent).weights, load_masks(child).weights, strict=True):
        assert (of_parent[source] | ~of_child[ticket]).all()
    finetune = load_contents(child).rows.of("finetune")
    start, final = load_parameters(child, "initial"), load_parameters(parent, "final")
    for weight, trained, mask in zip(start.weights, final.weights, load_masks(child).weights, strict=True):
        kept = mask[finetune]
        assert (weight[finetune][kept] == trained[source][kept]).all()


def test_a_ticket_starts_where_the_dense_run_was_at_the_iteration_rewound_to(varied: Clone) -> None:
    level = varied.folder / "models/p50"
    rows = load_contents(level).rows.of("ticket")
    dense, start = load_rewound(varied.folder / "models/dense"), load_parameters(level, "initial")
    for weight, at_30, mask in zip(start.weights, dense.weights, load_masks(level).weights, strict=True):
        assert (weight[rows] == at_30 * mask[rows]).all()
    history = load_history(level).groupby("arm")["iteration"]
    assert history.min().to_dict() == {arm: 0 if arm in ("reinit", "small-dense") else 30 for arm in ARMS}
    assert history.max().nunique() == 1


def test_twins_have_barriers_in_the_reports(varied: Clone) -> None:
    twins = load_twins(varied.folder / "models/p50")
    assert twins is not None
    assert twins[0] == Rows(("ticket", "reinit"), (0, 1, 2))
    barriers = pd.read_csv(varied.folder / "reports/tables/connectivity.csv")
    assert barriers.groupby(["level", "arm"]).size().to_dict() == {
        ("dense", "dense"): 3,
        ("p50", "reinit"): 3,
        ("p50", "ticket"): 3,
        ("p60", "ticket"): 3,
        ("p75", "reinit"): 3,
        ("p75", "ticket"): 3,
    }
    assert (varied.folder / "reports/figures/connectivity.png").exists()
    page = (varied.folder / "reports/report.html").read_text()
    assert "Linear mode connectivity" in page
    mean = 100 * barriers.query("level == 'p75' and arm == 'reinit'")["barrier_test"].mean()  # in points
    assert re.search(rf'<th scope="row">p75</th><td>reinit</td><td[^>]*><div>{mean:.2f}</div></td>', page)


def test_every_network_is_in_mlflow_with_what_it_varied(varied: Clone) -> None:
    client = MlflowClient(f"sqlite:///{varied.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lottery-tickets")
    networks = client.search_runs([experiment.experiment_id], "params.seed LIKE '%'", max_results=1000)
    assert len(networks) == 3 * (1 + 7 + 7 + 1)
    assert all("test_accuracy" in run.data.metrics for run in networks)
    (one,) = client.search_runs(
        [experiment.experiment_id], "params.level = 'p75' and params.arm = 'lr-rewind' and params.seed = '1'"
    )
    shown = {key: one.data.params[key] for key in ("criterion", "schedule", "rewind", "from")}
    assert shown == {"criterion": "magnitude-increase", "schedule": "cosine", "rewind": "30", "from": "lr-rewind"}


def test_criteria_before_training_cost_one_training(varied: Clone) -> None:
    """In a pipeline of their own, because they prune iteration 0."""
    varied.change(
        prune=SMALL["prune"] | {"rewind": 0},
        levels={
            "snip": AT_START | {"sparsity": 0.8, "criterion": "snip"},
            "synflow": AT_START | {"sparsity": 0.9, "criterion": "synflow"},
        },
    )
    assert varied.repro() == ["train", "prune@snip", "prune@synflow", "evaluate", "export", "plot"]
    levels = pd.read_csv(varied.folder / "reports/tables/levels.csv")
    assert set(levels["trainings"]) == {1}
    weights = 64 * 32 + 32 * 16 + 16 * 10
    kept = levels[levels["arm"] == "ticket"].set_index("level")["weights_kept"]
    assert kept.to_dict() == {"snip": round(0.2 * weights), "synflow": round(0.1 * weights)}
