"""Clones of this repository with small settings on digits, in which real DVC runs the real pipeline."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from lottery.stages import warm

ROOT = Path(__file__).parent.parent

IDENTITY = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
SMALL = {
    "data": {"name": "digits", "file": "data/example.npz", "validation": 143, "scale": "standard"},
    "network": {
        "hidden": [32, 16],
        "file": "networks/example.py",
        "class": "Net",
        "arguments": {},
        "initialization": "glorot-normal",
    },
    "train": {
        "seeds": [0, 1],
        "epochs": 4,
        "batch_size": 60,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "evaluate_every": 20,
    },
    "prune": {
        "arms": ["ticket", "reinit", "random"],
        "criterion": "magnitude",
        "scope": "layer",
        "output_rate": 0.5,
        "rewind": 0,
    },
    "levels": {
        "p50": {"sparsity": 0.5, "parent": "dense"},
        "p75": {"sparsity": 0.75, "parent": "p50"},
        "p80-at-once": {"sparsity": 0.8, "parent": "dense"},
    },
    "verdict": {"margin": 0.2, "speed_margin": 1.25},
    "export": {"level": "auto", "seed": "best", "values": "float32"},
    "tracking": {"mlflow_experiment": "lottery-tickets"},
    "run": {"threads": "auto"},
}


def said(output: str) -> list[str]:
    """The lines of a stage's output but those of its progress, which a slow machine has more of."""
    return [
        line for line in output.splitlines() if not re.match(r"[\w@-]+: (\d+ (s|min) so far|iteration|level)", line)
    ]


class Clone:
    """A git clone with its own DVC cache and MLflow store."""

    kept: ClassVar[dict[str, str]] = {}  # by which stages that `run` starts are copies of a process that has imported

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        self.folder = folder
        if source:
            subprocess.run(["git", "clone", "-q", source, folder], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a person's shell has with the virtual environment active, in which another checkout is installed."""
        foreign = ("DVC_", "MLFLOW_", "GIT_", "PYTHONPATH")
        names = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return names | {"PATH": path}

    def run(self, *command: str, check: bool = True) -> str:
        environment = self.environment | self.kept
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *more: str) -> list[str]:
        """`dvc repro`: the stages that ran, but for `check`, which leaves nothing."""
        output = self.run("dvc", "repro", *more)
        ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
        return [stage for stage in ran if stage != "check"]

    def change(self, **sections: object) -> None:
        params = yaml.safe_load((self.folder / "params.yaml").read_text()) | sections
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", *IDENTITY, "commit", "-qm", message)

    def files(self, folder: str) -> dict[str, bytes]:
        """The files under a folder by their paths in it."""
        return {
            str(path.relative_to(self.folder / folder)): path.read_bytes()
            for path in sorted((self.folder / folder).rglob("*"))
            if path.is_file()
        }


def make_origin(folder: Path) -> Path:
    """A git repository of what git tracks here, as it stands, with the small params.yaml and no results."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        result = name == "dvc.lock" or (name.startswith("reports/") and name != "reports/README.md")
        if not result and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "Begin"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repository that the tests clone, and while it lives the process that has imported for their stages."""
    with warm.kept() as Clone.kept:
        yield make_origin(tmp_path_factory.mktemp("origin") / "lottery")
    Clone.kept = {}


@pytest.fixture(scope="session")
def finished(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose pipeline has run."""
    clone = Clone(tmp_path_factory.mktemp("finished") / "clone", origin)
    stages = clone.repro()
    assert stages == ["download", "train", "prune@p50", "prune@p75", "prune@p80-at-once", "evaluate", "export", "plot"]
    return clone


@pytest.fixture
def clone(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished clone to change, with its outputs, its cache and its MLflow store."""
    shutil.copytree(finished.folder, tmp_path / "clone", symlinks=True)
    return Clone(tmp_path / "clone")
