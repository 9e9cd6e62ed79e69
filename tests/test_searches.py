"""The searches in README.md, as they stand there and in their order, on the store of a pipeline that ran on digits."""

import re
import shutil
from typing import Any

import pandas as pd
import pytest
from clones import ROOT, Clone
from mlflow import MlflowClient

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
SEARCHES = [text for text in SNIPPETS if "lottery" not in text.partition("\n")[0]]
LEVELS = {"p90": {"sparsity": 0.9, "parent": "dense"}, "p95": {"sparsity": 0.95, "parent": "p90"}}


@pytest.fixture(scope="module")
def evaluated(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose store has two pipelines, and networks of a third that are better than all, but of no pipeline here.

    The later pipeline has levels of the default one.
    """
    folder = tmp_path_factory.mktemp("searches") / "clone"
    shutil.copytree(finished.folder, folder, symlinks=True)
    clone = Clone(folder)
    clone.change(levels=LEVELS)
    clone.repro("evaluate")
    client = MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lottery-tickets").experiment_id
    for arm in ("ticket", "reinit"):
        stranger = client.create_run(experiment, tags={"lottery.pipeline.1badcafe": "true"})
        for key, value in {"level": "p90", "arm": arm, "seed": "0"}.items():
            client.log_param(stranger.info.run_id, key, value)
        for key, value in {"sparsity": 0.9, "test_accuracy": 1.0, "early_stopping/validation_loss": 0.0}.items():
            client.log_metric(stranger.info.run_id, key, value)
    return clone


@pytest.fixture
def found(evaluated: Clone, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the snippets assign, run as a person types them."""
    monkeypatch.chdir(evaluated.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, Any] = {}
    for snippet in SEARCHES:
        exec(compile(snippet, "README.md", "exec"), names)
    return names


@pytest.fixture
def networks(evaluated: Clone) -> pd.DataFrame:
    return pd.read_csv(evaluated.folder / "reports/tables/networks.csv")


def test_all_networks_of_the_pipeline_that_was_evaluated_last(found: dict[str, Any], networks: pd.DataFrame) -> None:
    runs = found["networks"]
    keys = list(zip(runs["params.level"], runs["params.arm"], runs["params.seed"].astype(int), strict=True))
    assert sorted(keys) == sorted(zip(networks["level"], networks["arm"], networks["seed"], strict=True))
    assert set(networks["level"]) == {"dense", *LEVELS}


def test_the_best_sparse_ticket_is_the_one_with_the_lowest_validation_loss(
    found: dict[str, Any], evaluated: Clone
) -> None:
    histories = [pd.read_csv(evaluated.folder / f"models/{level}/history.csv").assign(level=level) for level in LEVELS]
    tickets = pd.concat(histories).query("arm == 'ticket' and iteration > 0")
    best = tickets.sort_values("validation_loss").iloc[0]
    run = found["best"].iloc[0]
    assert (run["params.level"], int(run["params.seed"])) == (best["level"], best["seed"])
    assert run["metrics.early_stopping/validation_loss"] == round(best["validation_loss"], 6)


def test_ticket_against_reinit_at_a_level_is_paired_by_seed(found: dict[str, Any], networks: pd.DataFrame) -> None:
    level = networks[networks["level"] == "p90"].pivot(index="seed", columns="arm", values="test_accuracy")
    expected = level["ticket"] - level["reinit"]
    assert {int(seed): value for seed, value in found["difference"].items()} == pytest.approx(expected.to_dict())


def test_a_ticket_is_loaded(
    evaluated: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(evaluated.folder)
    (snippet,) = [text for text in SNIPPETS if "lottery.load" in text]
    exec(compile(snippet, "README.md: load", "exec"), {})
    assert "Linear(in_features=64" in capsys.readouterr().out


def test_every_snippet_in_the_readme_is_run_here() -> None:
    assert (len(SNIPPETS), len(SEARCHES)) == (6, 3)
