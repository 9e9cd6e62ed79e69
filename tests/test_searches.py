"""The searches in README.md, as they stand there, on the store of a pipeline that ran on digits."""

import re

import pandas as pd
import pytest
from clones import ROOT, Clone
from mlflow import MlflowClient

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def search(name: str, **replacements: str) -> pd.DataFrame | pd.Series:
    """Run the README's snippet that assigns ``name``, with other values in its filters, and give what it assigns."""
    (snippet,) = [text for text in SNIPPETS if re.search(rf"^{name} = ", text, re.MULTILINE)]
    for old, new in replacements.items():
        assert old in snippet
        snippet = snippet.replace(old, new)
    names: dict[str, object] = {}
    exec(compile(snippet, f"README.md: {name}", "exec"), names)
    found = names[name]
    assert isinstance(found, pd.DataFrame | pd.Series)
    return found


@pytest.fixture
def networks(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The networks of a pipeline; the store knows three more, of another pipeline and better than all."""
    monkeypatch.chdir(clone.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("lottery-tickets").experiment_id
    for level, arm in (("p75", "ticket"), ("p75", "reinit"), ("p50", "ticket")):
        stranger = client.create_run(experiment, run_name=f"{level} {arm} 0", tags={"pipeline.1badcafe": "true"})
        for key, value in {"level": level, "arm": arm, "seed": "0"}.items():
            client.log_param(stranger.info.run_id, key, value)
        client.log_metric(stranger.info.run_id, "sparsity", 0.5)
        client.log_metric(stranger.info.run_id, "test_accuracy", 1.0)
    return pd.read_csv(clone.folder / "reports/tables/networks.csv")


def pipeline() -> str:
    """The eight digits of the pipeline, which its `evaluate` run shows as a tag too."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("lottery-tickets").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'evaluate'")
    (tag,) = (tag for tag in run.data.tags if tag.startswith("pipeline."))
    return tag.removeprefix("pipeline.")


def test_the_best_sparse_ticket(networks: pd.DataFrame) -> None:
    found = search("best", **{"metrics.sparsity >= 0.9": "metrics.sparsity >= 0.75"})
    tickets = networks.query("arm == 'ticket' and sparsity >= 0.75")
    assert set(tickets["level"]) == {"p75", "p80-at-once"}
    assert found["metrics.test_accuracy"].tolist() == [tickets["test_accuracy"].max()]
    assert (found["metrics.sparsity"] >= 0.75).all()


def test_all_networks_of_one_pipeline(networks: pd.DataFrame) -> None:
    found = search("networks", **{"1a2b3c4d": pipeline()})
    keys = list(zip(found["params.level"], found["params.arm"], found["params.seed"].astype(int), strict=True))
    assert sorted(keys) == sorted(zip(networks["level"], networks["arm"], networks["seed"], strict=True))


def test_ticket_against_reinit_at_a_level_is_paired_by_seed(networks: pd.DataFrame) -> None:
    found = search("difference", **{"1a2b3c4d": pipeline(), "'p90'": "'p75'"})
    level = networks[networks["level"] == "p75"].pivot(index="seed", columns="arm", values="test_accuracy")
    expected = level["ticket"] - level["reinit"]
    assert {int(seed): value for seed, value in found.items()} == pytest.approx(expected.to_dict())


def test_a_ticket_is_loaded(clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(clone.folder)
    (snippet,) = [text for text in SNIPPETS if "lottery.load" in text]
    exec(compile(snippet.replace('"p90"', '"p75"'), "README.md: load", "exec"), {})
    assert "Linear(in_features=64" in capsys.readouterr().out


def test_every_snippet_in_the_readme_is_run_here() -> None:
    assert len(SNIPPETS) == 4
