"""What a project has that others take as a model: the workflow, the dev container, a checkout with other line ends."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from clones import IDENTITY, ROOT, Clone


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, str]]:
    """The workflow's steps by name; YAML 1.1 reads its key `on` as true."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    return {step["name"]: step for step in workflow["jobs"]["test"]["steps"] if "run" in step}


def _ready(clone: Clone) -> None:
    """Have `make` find an environment: the tests' own."""
    script = clone.folder / "scripts/environment"
    script.write_text("#!/bin/sh\n")


def test_the_workflow_and_the_dev_container_call_targets_that_are_there(steps: dict[str, dict[str, str]]) -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert steps["Test"]["run"] == "make test"
    for command in (steps["Test"]["run"], container["postCreateCommand"]):
        subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_workflows_summary_has_metrics_and_verdicts(clone: Clone, steps: dict[str, dict[str, str]]) -> None:
    _ready(clone)
    clone.commit("Run")
    clone.run("git", "update-ref", "refs/remotes/origin/main", "HEAD")
    clone.change(verdict={"margin": 0.01, "speed_margin": 1.01})
    metrics = clone.folder / "reports/metrics.json"
    metrics.write_text(metrics.read_text().replace('"dense": 9', '"dense": 8'))
    step, summary = steps["Summary"], clone.folder / "summary.md"
    names = {"BASE": step["env"]["BASE"].replace("${{ github.base_ref }}", "main"), "GITHUB_STEP_SUMMARY": str(summary)}
    subprocess.run(
        ["bash", "-e", "-c", step["run"]], cwd=clone.folder, env=clone.environment | names, check=True, timeout=300
    )
    lines = summary.read_text().splitlines()
    assert lines[0] == "## Metrics against origin/main"
    assert [line for line in lines if line.startswith("| reports/metrics.json | dense ")]
    assert "| level | verdict | survives_holm | why |" in lines
    assert [line.split(" | ")[0] for line in lines[-3:]] == ["| p50", "| p75", "| p80-at-once"]


def test_a_summary_against_nothing_known_is_one_line(clone: Clone) -> None:
    _ready(clone)
    command = ["scripts/summary", "no-such-branch"]
    done = subprocess.run(command, cwd=clone.folder, env=clone.environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "no-such-branch" in done.stderr


def test_a_checkout_for_other_line_ends_has_the_same_bytes(origin: Path, tmp_path: Path) -> None:
    command = ["git", "clone", "-q", "-c", "core.autocrlf=true", origin, tmp_path / "clone"]
    subprocess.run(command, check=True)
    clone = Clone(tmp_path / "clone")
    names = clone.run("git", "ls-files").splitlines()
    assert names
    assert [name for name in names if (clone.folder / name).read_bytes() != (origin / name).read_bytes()] == []
    (clone.folder / "README.md").touch()
    assert clone.run("git", *IDENTITY, "status", "--porcelain") == ""
