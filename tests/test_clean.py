"""`make clean` and `make clean-all` in a clone whose pipeline has run: what goes, what stays, and what they say."""

import subprocess
from pathlib import Path

import pytest
from clones import Clone

from lottery.plan import DATA

# ignored by git, and no file that the project made
OWN = (".dvc/config.local", "data/mine.safetensors", "data/idx/images-idx3-ubyte", "models/notes.txt", "notes.txt")


@pytest.fixture
def used(clone: Clone) -> Clone:
    """A clone with what the commands and the tools leave, and with a person's own files."""
    clone.commit("Run")
    for folder in (".venv/bin", ".mypy_cache", "src/lottery.egg-info", "src/lottery/__pycache__", "dvc_plots"):
        (clone.folder / folder).mkdir(parents=True, exist_ok=True)
        (clone.folder / folder / "file").touch()
    for name in OWN:
        (clone.folder / name).parent.mkdir(exist_ok=True)
        (clone.folder / name).write_text("my own\n")
    return clone


def make(clone: Clone, *words: str, answer: str = "") -> tuple[int, str]:
    done = subprocess.run(
        ["make", *words], cwd=clone.folder, env=clone.environment, input=answer, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def untracked(clone: Clone) -> list[str]:
    """The files that git does not track, ignored ones too; tracked ones must be as they were committed."""
    assert clone.run("git", "status", "--porcelain", "--untracked-files=no") == ""
    return clone.run("git", "ls-files", "--others").splitlines()


def test_clean_removes_what_is_quickly_made_again_and_says_what_it_leaves(used: Clone) -> None:
    before = untracked(used)
    code, said = make(used, "clean")
    assert code == 0
    gone = {name.partition("/")[0] for name in set(before) - set(untracked(used))}
    assert gone == {".venv", ".mypy_cache", "src"}
    left = [line.split("\t")[1] for line in said.splitlines() if "\t" in line]
    assert {".dvc/cache", "mlflow.db", "mlartifacts", "models/dense", "models/p50", "data/digits.safetensors"} <= set(
        left
    )
    assert "Left, until `make clean-all`:" in said


@pytest.mark.parametrize(("answer", "code"), [("", 2), ("n\n", 0), ("\n", 0)])
def test_clean_all_removes_nothing_without_a_yes(used: Clone, answer: str, code: int) -> None:
    before = untracked(used)
    told, said = make(used, "clean-all", answer=answer)
    assert told == code
    assert "YES=1" in said if code else "Nothing is removed." in said
    assert untracked(used) == before


@pytest.mark.parametrize(("words", "answer"), [(["YES=1"], ""), ([], "yes\n")])
def test_clean_all_leaves_what_git_tracks_and_a_persons_own_files(used: Clone, words: list[str], answer: str) -> None:
    code, _ = make(used, "clean-all", *words, answer=answer)
    assert code == 0
    ignored_by_dvc = {".dvc/.gitignore"}
    assert set(untracked(used)) - ignored_by_dvc == set(OWN)
    assert not [path for path in used.folder.glob("models/*") if path.is_dir()]


def test_clean_all_leaves_a_cache_and_a_folder_that_links_lead_to(used: Clone, tmp_path: Path) -> None:
    for name in (".dvc/cache", "models/p50"):
        elsewhere = (used.folder / name).rename(tmp_path / Path(name).name)
        (used.folder / name).symlink_to(elsewhere)
    assert make(used, "clean-all", "YES=1")[0] == 0
    assert not (used.folder / ".dvc/cache").is_symlink()
    assert list((tmp_path / "cache").rglob("*.dir"))
    assert (tmp_path / "p50/history.csv").exists()


def test_a_result_that_git_tracks_stays(used: Clone) -> None:
    used.run("git", "add", "--force", "models/p50")
    used.commit("Keep a level in git")
    assert make(used, "clean-all", "YES=1")[0] == 0
    assert used.run("git", "status", "--porcelain", "--untracked-files=no") == ""


def test_clean_all_knows_every_data_set() -> None:
    script = (Path(__file__).parent.parent / "scripts/clean").read_text()
    assert [name for name in (*DATA, "own") if f"data/{name}.safetensors" not in script] == []
