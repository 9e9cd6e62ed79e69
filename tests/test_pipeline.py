"""What re-runs and what comes out, with real DVC in a temporary clone, on digits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import SMALL, Clone, said


def levels(**changes: object) -> dict[str, object]:
    """The levels with some of them changed; None removes one."""
    merged = SMALL["levels"] | {name.replace("_", "-"): level for name, level in changes.items()}
    return {name: level for name, level in merged.items() if level is not None}


def test_nothing_runs_twice(clone: Clone) -> None:
    assert "up to date" in clone.run("dvc", "repro")


@pytest.mark.slow
def test_changing_a_level_runs_it_and_its_descendants_alone(clone: Clone) -> None:
    clone.change(levels=levels(p50={"sparsity": 0.4, "parent": "dense"}))
    assert clone.repro() == ["prune@p50", "prune@p75", "evaluate", "export", "plot"]


@pytest.mark.slow
def test_changing_the_arms_runs_the_levels_but_not_train(clone: Clone) -> None:
    clone.change(prune=SMALL["prune"] | {"arms": ["ticket"]})
    assert clone.repro() == ["prune@p50", "prune@p75", "prune@p80-at-once", "evaluate", "export", "plot"]


@pytest.mark.slow
def test_changing_a_figures_code_runs_plot_alone(clone: Clone) -> None:
    with (clone.folder / "src/lottery/report/figures.py").open("a") as code:
        code.write("\n# another colour\n")
    assert clone.repro() == ["plot"]


def test_how_to_run_and_where_to_track_run_nothing(clone: Clone) -> None:
    clone.change(run={"threads": 1}, tracking={"mlflow_experiment": "another"})
    assert clone.repro() == []


def test_renaming_a_level_changes_no_network(clone: Clone) -> None:
    before = clone.files("models/p75")
    clone.change(levels=levels(p75=None, sparse={"sparsity": 0.75, "parent": "p50"}))
    clone.repro("prune@sparse")
    assert clone.files("models/sparse") == before


@pytest.mark.slow
def test_threads_change_no_byte(clone: Clone) -> None:
    lock = (clone.folder / "dvc.lock").read_bytes()
    clone.change(run={"threads": 1})
    clone.repro("--force", "--single-item", "train", "prune@p50")
    assert (clone.folder / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
def test_a_removed_level_leaves_no_trace_and_comes_back_from_the_cache(
    clone: Clone, origin: Path, tmp_path: Path
) -> None:
    """Removed: the reports of a fresh clone. Pushed and pulled: clean elsewhere too. Put back: nothing is trained."""
    before = clone.files("reports")
    clone.change(levels=levels(p75=None))
    assert clone.repro() == ["evaluate", "export", "plot"]
    assert not (clone.folder / "models/p75").exists()
    assert "up to date" in clone.run("dvc", "status")

    fresh = Clone(tmp_path / "fresh", origin)
    fresh.change(levels=levels(p75=None))
    fresh.repro()
    assert fresh.files("reports") == clone.files("reports")

    clone.run("dvc", "remote", "add", "--default", "folder", str(tmp_path / "remote"))
    clone.commit("Without p75")
    clone.run("dvc", "push")
    elsewhere = Clone(tmp_path / "elsewhere", clone.folder)
    elsewhere.run("dvc", "pull")
    assert "up to date" in elsewhere.run("dvc", "status")

    clone.change(levels=SMALL["levels"])
    output = clone.run("dvc", "repro")
    assert "Stage 'prune@p75' is cached - skipping run, checking out outputs" in output
    assert "Running stage 'prune@" not in output
    assert clone.files("reports") == before


@pytest.mark.slow
def test_two_fresh_clones_give_the_same_lock(finished: Clone, origin: Path, tmp_path: Path) -> None:
    fresh = Clone(tmp_path / "a longer path" / "fresh", origin)
    fresh.repro()
    assert (fresh.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()
    assert fresh.files("reports") == finished.files("reports")


@pytest.mark.slow
def test_dvc_shows_and_compares_metrics_params_and_plots(clone: Clone) -> None:
    clone.commit("Run")
    shown = json.loads(clone.run("dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["reports/metrics.json"]["data"]
    assert set(metrics["p75"]) == {"density", "verdict"} | {
        f"{arm}{difference}" for arm in ("ticket", "reinit", "random") for difference in ("", "-dense")
    }
    clone.change(levels=levels(p75={"sparsity": 0.7, "parent": "p50"}))
    assert "levels.p75.sparsity" in clone.run("dvc", "params", "diff")
    clone.repro()
    assert "p75.ticket" in clone.run("dvc", "metrics", "diff")
    assert "p75.ticket" in clone.run("dvc", "exp", "show", "--no-pager", "--md")
    page = Path(clone.run("dvc", "plots", "show").strip().removeprefix("file://")).read_text()
    assert "accuracy_vs_pruning.png" in page
    for column in ("test_accuracy_mean", "early_stopping_iteration_mean"):
        assert f'"filename": "reports/tables/levels.csv", "field": "{column}"' in page


@pytest.mark.parametrize(
    ("level", "line"),
    [
        ({"sparsity": 0.5, "parent": "dnese"}, 'levels.p50.parent: no level is called "dnese" (did you mean "dense"?)'),
        ({"sparsity": 0.5, "parent": "dense", "arm": ["ticket"]}, 'levels.p50.arm: unknown key (did you mean "arms"?)'),
    ],
)
def test_plain_dvc_tells_a_mistake_before_any_stage_runs(clone: Clone, level: dict[str, object], line: str) -> None:
    before = clone.files("models") | clone.files("reports")
    clone.change(levels=levels(p50=level))
    output = clone.run("dvc", "repro", check=False)
    assert f"params.yaml: {line}" in output
    assert "failed to reproduce 'check'" in output
    assert output.count("Running stage") == 1
    assert clone.files("models") | clone.files("reports") == before


def test_a_mistake_in_params_stops_a_stage_with_one_line(clone: Clone) -> None:
    lock = (clone.folder / "dvc.lock").read_bytes()
    clone.change(train=SMALL["train"] | {"batch_size": 0})
    output = clone.run("dvc", "repro", check=False)
    assert "params.yaml: train.batch_size: 0 is not a whole number of 1 or more" in output
    assert "Traceback" not in output
    assert (clone.folder / "dvc.lock").read_bytes() == lock
    clone.change(train=SMALL["train"])
    clone.run("dvc", "checkout")  # DVC removes a stage's outputs before it runs; its cache still has them
    assert clone.repro() == []


@pytest.mark.parametrize(
    ("file", "stage"),
    [("data/digits.safetensors", "train"), ("models/dense/weights.safetensors", "prune"), ("models/p50", "evaluate")],
)
def test_a_damaged_input_stops_a_stage_with_one_line(clone: Clone, file: str, stage: str) -> None:
    damaged = clone.folder / file
    if damaged.is_dir():
        shutil.rmtree(damaged)
    else:
        content = damaged.read_bytes()
        damaged.unlink()  # a link to DVC's cache, perhaps
        damaged.write_bytes(content[: len(content) // 2])
    before = clone.files("models/p75") | clone.files("reports")
    done = subprocess.run(
        [sys.executable, "-m", f"lottery.stages.{stage}"],
        cwd=clone.folder,
        env=clone.environment | {"PYTHONPATH": "src", "DVC_STAGE": f"{stage}@p75", "DVC_ROOT": str(clone.folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert file in done.stderr
    assert len(said(done.stderr)) == 1
    assert clone.files("models/p75") | clone.files("reports") == before


@pytest.mark.slow
def test_an_ascii_locale_takes_umlauts(clone: Clone) -> None:
    with (clone.folder / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("# für später\n")
    clone.run("git", "checkout", "-qb", "größer")
    clone.commit("Für später")
    before = clone.files("reports")
    for command in (
        "dvc repro -fs prune@p50 evaluate export plot",
        "lottery sync --rev größer",
        "lottery check",
        "lottery preset quick",
    ):
        # as Latin-1 does, ASCII has no UTF-8; unlike it, every machine has it
        output = clone.run("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0", *command.split())
        assert "Traceback" not in output
        assert "untracked" not in output
    assert clone.files("reports") == before
