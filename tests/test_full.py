"""What a person reads where a stage finds no room, or a Python that is not the project's."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clones import ROOT, Clone

# a dense level's weights: 2 seeds, 4 bytes, 3 states of 64-32-16-10
WEIGHTS = 2 * 4 * 3 * (65 * 32 + 33 * 16 + 17 * 10)
STAGES = [
    ("train", "models/dense"),
    ("prune@p50", "models/p50"),
    ("download", "data/digits.safetensors"),
    ("evaluate", "reports"),
    ("export", "tickets"),
    ("plot", "reports/figures"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]).returncode
    ):
        pytest.skip("no file system can be mounted here: root may")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def run(clone: Clone, name: str, limit: int | None = None) -> tuple[int, list[str]]:
    """The exit code of a stage as DVC starts it, and what it says on stderr."""
    names = {"DVC_STAGE": name, "DVC_ROOT": str(clone.folder), "PYTHONPATH": "src"}
    done = subprocess.run(
        [sys.executable, "-m", f"lottery.stages.{name.partition('@')[0]}"],
        cwd=clone.folder,
        env=clone.environment | names,
        capture_output=True,
        text=True,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), STAGES)
def test_a_full_disk_is_one_line_that_names_the_file_and_what_it_takes(
    finished: Clone, disk: Path, name: str, file: str
) -> None:
    clone = Clone(disk / "clone")
    shutil.copytree(finished.folder, clone.folder, ignore=shutil.ignore_patterns("cache"), symlinks=True)
    before = clone.files("models") | clone.files("data") | clone.files("reports")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    code, lines = run(clone, name)
    assert code == 2
    assert lines[-1].startswith(file)
    assert ": No space left on device: the stage needs about " in lines[-1]
    assert lines[-1].endswith(" MB are free; make room, then `dvc repro` goes on from here")
    assert not [line for line in lines if "Traceback" in line]
    assert clone.files("models") | clone.files("data") | clone.files("reports") == before


def test_a_file_that_may_not_be_so_large_is_one_line_too(clone: Clone) -> None:
    # MLflow's store is larger than what a file may be, so it is not to be had: a line before the one looked at
    code, lines = run(clone, "train", limit=20_000)
    assert code == 2
    assert lines[-1].startswith(f"models/dense: File too large: the stage needs about {WEIGHTS / 1e6:.1f} MB, and ")
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize("module", ["lottery.cli", "lottery.stages.train", "lottery.stages.evaluate"])
def test_a_python_that_is_not_the_projects_says_what_to_do(tmp_path: Path, module: str) -> None:
    """As where a `dvc` of the whole system runs a stage: there is a `python`, for which nothing is installed."""
    python = tmp_path / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([python, "-m", module, "check"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{python}: has no torch, so it is not this project's environment; `source .venv/bin/activate` first, or run "
        "`make repro`\n"
    )
