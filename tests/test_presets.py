"""Presets: valid, described, and written without losing anybody's changes."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from clones import IDENTITY, ROOT

from lottery.cli import main
from lottery.core.arms import ARMS
from lottery.core.layout import perceptron, published
from lottery.params import load
from lottery.presets import levels

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the presets and a committed params.yaml, as the current folder."""
    (tmp_path / "presets").mkdir()
    for name in PRESETS:
        (tmp_path / "presets" / f"{name}.yaml").write_bytes((ROOT / "presets" / f"{name}.yaml").read_bytes())
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for command in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "Begin"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_presets_are_those_that_the_readme_names() -> None:
    assert [
        *("conv-2", "conv-2-short", "conv-4", "conv-6", "default", "digits", "lenet-5"),
        *("one-shot", "paper", "paper-short", "quick", "rewind"),
    ] == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    load(ROOT / "presets" / f"{name}.yaml")


def test_params_yaml_is_the_default_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/default.yaml").read_text()


@pytest.mark.parametrize(("name", "rounds", "iterations"), [("paper", 20, 50_000), ("paper-short", 16, 20_000)])
def test_the_papers_presets_are_the_papers(name: str, rounds: int, iterations: int) -> None:
    """Frankle & Carbin (2019), section 2 and figure 2, LeNet on MNIST."""
    p = load(ROOT / "presets" / f"{name}.yaml")
    assert (p.training_images, p.validation_images, p.data.scale) == (55_000, 5_000, "unit")
    assert (p.network.hidden, p.network.initialization) == ((300, 100), "glorot-normal")
    assert (p.train.optimizer, p.train.learning_rate, p.train.batch_size) == ("adam", 0.0012, 60)
    assert (p.iterations, p.train.evaluate_every, len(p.train.seeds)) == (iterations, 100, 5)
    chain = [name for name in p.order if not name.startswith("one-shot")]
    assert len(chain) == rounds
    kept = [1.0, *(1 - p.levels[name].sparsity for name in chain)]
    assert [after / before for before, after in pairwise(kept)] == pytest.approx([0.8] * rounds, abs=1e-3)
    assert p.prune.output_rate == 0.5
    assert all(p.arms(name) == ("ticket", "reinit", "random") for name in chain)
    at_once = {p.levels[name].sparsity: p.arms(name) for name in p.order if name not in chain}
    assert at_once == dict.fromkeys((0.05, 0.325, 0.5, 0.7, 0.825, 0.95), ("ticket", "reinit"))


def test_the_one_shot_preset_is_the_widely_copied_experiment() -> None:
    p = load(ROOT / "presets/one-shot.yaml")
    assert (p.layout, p.network.initialization) == (perceptron((784, 300, 100, 10)), "kaiming-uniform")
    assert (p.train.optimizer, p.train.learning_rate, p.train.batch_size) == ("adam", 0.001, 64)
    assert (p.train.epochs, p.train.seeds, p.every_arm) == (5, (0,), ("ticket",))
    assert {level.parent for level in p.levels.values()} == {"dense"}
    assert [p.levels[name].sparsity for name in p.order] == [0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95]
    assert p.prune.output_rate == 1.0  # all layers at the same rate


def test_the_rewind_preset_uses_what_no_other_does() -> None:
    """Frankle et al. (2020): iteration 500 of the dense run, twins and barriers."""
    p = load(ROOT / "presets/rewind.yaml")
    assert (p.prune.rewind, p.train.twins, p.train.schedule) == (500, True, "step")
    assert set(p.every_arm) == set(ARMS)
    assert {p.scope(name) for name in p.order} == {"layer", "global"}
    assert {p.criterion(name) for name in p.order} == {"magnitude", "movement"}


# Frankle & Carbin (2019), figure 2
@pytest.mark.parametrize(
    ("name", "weights", "rate", "iterations", "conv_rate"),
    [
        ("conv-2", 4_300_992, 2e-4, 20_000, 0.5),
        ("conv-4", 2_425_024, 3e-4, 25_000, 0.5),
        ("conv-6", 2_261_184, 3e-4, 30_000, 0.75),
    ],
)
def test_the_convolutional_presets_are_the_papers(
    name: str, weights: int, rate: float, iterations: int, conv_rate: float
) -> None:
    p = load(ROOT / f"presets/{name}.yaml")
    assert (p.network.name, p.layout.prunable, p.data.name) == (name, weights, "cifar-10")
    assert (p.train.learning_rate, p.train.batch_size, p.iterations) == (rate, 60, iterations)
    assert (p.training_images, p.validation_images) == (45_000, 5_000)
    # of a round's 20 %: of convolutions 10 or 15 %, of the output layer 10 %
    assert p.levels["r01"].sparsity == 0.2
    assert p.slower == {"convolution": conv_rate, "output": 0.5}


def test_the_short_convolutional_preset_is_conv_2_for_two_epochs() -> None:
    p, whole = load(ROOT / "presets/conv-2-short.yaml"), load(ROOT / "presets/conv-2.yaml")
    assert (p.layout, p.iterations) == (whole.layout, 1_500)
    assert sum(map(p.networks, ("dense", *p.order))) == 9


def test_the_lenet_5_preset_is_a_lenet_5() -> None:
    p = load(ROOT / "presets/lenet-5.yaml")
    assert p.layout == published("lenet-5", (28, 28), 10)
    assert p.every_arm == ("ticket", "reinit", "random")
    assert len(p.train.seeds) == 5
    assert len(p.levels) in (2, 3)


@pytest.mark.parametrize("name", ["digits", "quick"])
def test_the_presets_for_a_first_look_have_enough_for_a_verdict(name: str) -> None:
    p = load(ROOT / f"presets/{name}.yaml")
    assert p.every_arm == ("ticket", "reinit", "random")
    assert len(p.train.seeds) >= 3


def test_a_preset_is_written_and_checked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preset", "quick"]) == 0
    assert "12 networks" in capsys.readouterr().out
    assert (repository / "params.yaml").read_text() == (ROOT / "presets/quick.yaml").read_text()


def test_a_preset_can_follow_another(repository: Path) -> None:
    """A preset as it stands can be had again, so nothing is lost."""
    assert main(["preset", "quick"]) == 0
    assert main(["preset", "paper"]) == 0


def test_presets_are_listed_with_a_line_and_the_time_to_expect(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preset"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == PRESETS
    assert all("on 2 cores" in line or "for a GPU" in line for line in lines)


@pytest.mark.parametrize("command", [["preset", "quick"], ["levels", "--rate", "0.2", "--rounds", "3"]])
def test_uncommitted_changes_are_not_overwritten_without_force(
    repository: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = (repository / "params.yaml").read_text().replace("0.0012", "0.0013")
    (repository / "params.yaml").write_text(changed)
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "params.yaml: has changes that are not committed; commit them, or give --force to lose them\n"
    )
    assert (repository / "params.yaml").read_text() == changed
    assert main([*command, "--force"]) == 0
    assert (repository / "params.yaml").read_text() != changed


def test_a_committed_file_with_umlauts_is_known_in_an_ascii_locale(repository: Path) -> None:
    with (repository / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("# für später\n")
    subprocess.run(["git", *IDENTITY, "commit", "-qam", "Umlauts"], cwd=repository, check=True)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "lottery.cli", "preset", "quick"]
    ran = subprocess.run(command, env=os.environ | locale, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_levels_are_not_written_into_a_file_that_is_not_utf_8(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "params.yaml").write_bytes(b"# f\xfcr\nlevels:\n")
    assert main(["levels", "--rate", "0.2", "--rounds", "3"]) == 2
    assert capsys.readouterr().err == "params.yaml: not UTF-8; save the file as UTF-8\n"
    assert main(["preset", "quick"]) == 2
    assert "not committed" in capsys.readouterr().err


def test_a_preset_that_does_not_exist_is_one_line(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preset", "papper"]) == 2
    assert capsys.readouterr().err == (
        "presets: no preset is called 'papper'; choose from " + ", ".join(PRESETS) + "\n"
    )


def test_outside_the_repository_there_are_no_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["preset"]) == 2
    assert capsys.readouterr().err == "presets: no presets are here; run this in the folder that holds dvc.yaml\n"


def test_levels_replace_the_block_and_nothing_else(repository: Path) -> None:
    before = (repository / "params.yaml").read_text()
    assert main(["levels", "--rate", "0.2", "--rounds", "12"]) == 0
    after = (repository / "params.yaml").read_text()
    start, end = before.index("levels:"), before.index("verdict:")
    assert after.startswith(before[:start])
    assert after.endswith(before[end:])
    p = load()
    assert list(p.levels) == [f"r{r:02}" for r in range(1, 13)]
    assert p.path("r03") == pytest.approx((0.2, 0.36, 0.488))


def test_levels_are_replaced_with_their_comments_and_without_those_of_the_next_section(repository: Path) -> None:
    text = (repository / "params.yaml").read_text().replace("  p90:", "# sparse ones\n\n  p90:")
    tail = "levels:" + text.partition("levels:")[2].partition("verdict:")[0]
    for there in (text.replace("verdict:", "# of levels\nverdict:"), text.replace(tail, "") + tail.rstrip("\n")):
        (repository / "params.yaml").write_text(there)
        assert main(["levels", "--rate", "0.5", "--rounds", "2", "--force"]) == 0
        assert list(load().levels) == ["r1", "r2"]
        after = (repository / "params.yaml").read_text()
        assert "sparse ones" not in after
        assert ("# of levels" in after) == ("# of levels" in there)


def test_levels_that_cannot_be_leave_params_yaml_as_it_was(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (repository / "params.yaml").read_text()
    assert main(["levels", "--rate", "0.9", "--rounds", "8"]) == 2
    assert "params.yaml: levels.r7.sparsity: 1.0 is not" in capsys.readouterr().err
    assert (repository / "params.yaml").read_text() == before
    assert main(["levels", "--rate", "0.0001", "--rounds", "5000"]) == 2
    assert "bytes; give 180000 at most" in capsys.readouterr().err
    assert (repository / "params.yaml").read_text() == before


def test_one_shot_levels_have_dense_for_parent() -> None:
    assert levels(0.5, 2, one_shot=True) == (
        "levels:\n  r1: {sparsity: 0.5, parent: dense}\n  r2: {sparsity: 0.75, parent: dense}\n"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--rate", "1", "--rounds", "3"], "--rate 1.0: not a number above 0 and below 1"),
        (["--rate", "0.2", "--rounds", "0"], "--rounds 0: not a whole number of 1 or more"),
    ],
)
def test_a_rate_and_rounds_that_make_no_levels_are_one_line(
    repository: Path, options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (repository / "params.yaml").read_text()
    assert main(["levels", *options]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert (repository / "params.yaml").read_text() == before


def test_without_git_everything_is_uncommitted(repository: Path) -> None:
    (repository / ".git").rename(repository / "no-git")
    (repository / "params.yaml").write_text("a: 1\n")
    assert main(["preset", "quick"]) == 2


def test_where_git_is_not_installed_everything_but_presets_is_uncommitted(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert main(["preset", "quick"]) == 0
    (repository / "params.yaml").write_text("a: 1\n")
    assert main(["preset", "quick"]) == 2
    assert "not committed" in capsys.readouterr().err
