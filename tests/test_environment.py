"""`make` and its environment: scripts/environment, with real virtual environments and real pip, without a registry."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import ROOT

# a project of the same name without requirements, which brings its own way to be built
PYPROJECT = """
[build-system]
requires = []
build-backend = "build_backend"
backend-path = ["."]

[project]
name = "lottery"
version = "0"
optional-dependencies = {team = [], demo = [], dev = []}
scripts = {lottery = "lottery:main"}
"""
BUILD_BACKEND = """
from pathlib import Path
from zipfile import ZipFile


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name, info = "lottery-0-py3-none-any.whl", "lottery-0.dist-info"
    with ZipFile(Path(wheel_directory, name), "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: lottery\\nVersion: 0\\n"
            "Provides-Extra: team\\nProvides-Extra: demo\\nProvides-Extra: dev\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nlottery = lottery:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
ANEW = ".venv: of another Python or of another folder; it is made anew"
INSTALLING = "Installing into .venv, which takes minutes the first time"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the Makefile, the script and what pip installs there."""
    folder = tmp_path / "a folder"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "scripts/environment", folder / "scripts")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "build_backend.py").write_text(BUILD_BACKEND)
    (folder / "constraints.txt").touch()
    return folder


def python_that(folder: Path, before: str, says: str = "") -> Path:
    """A Python that runs a line before what ``-c`` gives it, and may call itself something else."""
    path = folder.parent / "python"
    path.write_text(
        f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "{says}"; exit; }}\n'
        f'[ "$1" != -c ] || exec "{sys.executable}" -c "import sys; {before}; $2"\nexec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str | Path, command: str = "scripts/environment") -> tuple[int, list[str]]:
    """The exit code of the script, or of another command, and its lines."""
    foreign = ("PYTHON", "PYTHONPATH", "MAKEFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    chosen = {"PYTHON": str(arguments[0])} if arguments and isinstance(arguments[0], Path) else {}
    words = [command, *map(str, arguments[len(chosen) :])]
    done = subprocess.run(words, cwd=folder, env=environment | chosen, capture_output=True, text=True)
    noise = ("WARNING: ", "[notice] ")  # pip's
    return done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(noise)]


@pytest.mark.parametrize("version", ["3.10", "3.15"])
def test_a_python_too_old_or_too_new_is_one_line_and_leaves_nothing(folder: Path, version: str) -> None:
    major, minor = version.split(".")
    python = python_that(folder, f"sys.version_info = ({major}, {minor}, 1)", f"Python {version}.1")
    code, lines = make(folder, "repro", f"PYTHON={python}", command="make")
    assert code == 2
    assert lines[0] == (
        f"{python} is Python {version}.1, which the project cannot use; install Python 3.11, 3.12, 3.13 or 3.14 and "
        "name it: `make repro PYTHON=python3.12`"
    )
    assert [line for line in lines[1:] if not line.startswith("make: ***")] == []
    assert not (folder / ".venv").exists()


def test_a_python_that_is_not_there_is_one_line(folder: Path) -> None:
    code, lines = make(folder, Path("python9.9"))
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("python9.9: no such program; install Python 3.11")


def test_a_python_without_venv_is_one_line_and_leaves_nothing(folder: Path) -> None:
    code, lines = make(folder, python_that(folder, "sys.modules['ensurepip'] = None"))
    assert (code, len(lines)) == (2, 1)
    assert "apt install python3-venv" in lines[0]
    assert not (folder / ".venv").exists()


@pytest.mark.slow
def test_an_environment_is_set_up_once_and_again_where_its_folder_was_moved(folder: Path) -> None:
    assert make(folder, Path(sys.executable)) == (0, [INSTALLING])
    assert make(folder) == (0, [])
    moved = folder.rename(folder.parent / "moved")
    assert make(moved) == (0, [ANEW, INSTALLING])
    assert str(moved) in (moved / ".venv/bin/lottery").read_text()
    assert make(moved) == (0, [])


@pytest.mark.slow
def test_an_environment_of_another_python_is_made_anew(folder: Path) -> None:
    assert make(folder, Path(sys.executable)) == (0, [INSTALLING])
    other = 11 if sys.version_info.minor != 11 else 12
    assert make(folder, python_that(folder, f"sys.version_info = (3, {other}, 1)")) == (0, [ANEW, INSTALLING])
    (folder / ".venv/bin/python").unlink()  # as where the system's Python goes
    (folder / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert make(folder, Path(sys.executable)) == (0, [ANEW, INSTALLING])


@pytest.mark.slow
def test_the_tools_for_tests_come_with_the_tests(folder: Path) -> None:
    ready = folder / ".venv/ready"
    assert make(folder, Path(sys.executable)) == (0, [INSTALLING])
    assert sorted(path.name for path in ready.parent.glob("ready*")) == ["ready"]
    assert make(folder, "dev") == (0, [INSTALLING])
    assert make(folder, "dev") == make(folder, "team") == make(folder, "demo") == make(folder) == (0, [])
    later = ready.stat().st_mtime + 5
    os.utime(folder / "constraints.txt", (later, later))
    assert make(folder) == (0, [INSTALLING])


@pytest.mark.parametrize(
    ("target", "extra"),
    [("repro", ""), ("ui", ""), ("demo", " demo"), ("test", " dev"), ("test-all", " dev"), ("server", " team")],
)
def test_each_target_asks_for_what_it_needs(target: str, extra: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"scripts/environment{extra}"
