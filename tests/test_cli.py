"""What a person types beside `dvc`."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from clones import ROOT

from lottery.cli import main

DEFAULT = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_default_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(DEFAULT, encoding="utf-8")


def test_check_says_how_much_the_file_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out == (
        "params.yaml: 5 levels, 15 arms in all, 5 seeds: 80 networks of 784-300-100-10, 4580 iterations each\n"
    )


def test_check_knows_that_digits_are_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        DEFAULT.replace("name: mnist", "name: digits").replace("[300, 100]", "[20]").replace("[0, 1, 2, 3, 4]", "[7]")
    )
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert main(["check"]) == 0
    assert capsys.readouterr().out == (
        "params.yaml: 5 levels, 15 arms in all, 1 seed: 16 networks of 64-20-10, 105 iterations each\n"
    )


def test_check_prints_each_mistake_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    text = DEFAULT.replace("validation: 5000", "validation: 0").replace("0.80, parent: p60", "0.80, parent: p06")
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert main(["check"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "params.yaml: data.validation: 0 is not a whole number of 1 or more",
        'params.yaml: levels.p80.parent: no level is called "p06" (did you mean "p60"?)',
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("networks/example.py", "networks/mine.py", "network.file: networks/mine.py: no such file; write it, or name "),
        ("data/example.npz", "data/mine.npz", "data.file: data/mine.npz: no such file; write it, or name data/example"),
        ("data/example.npz", "data/mnist.safetensors", "data.file: data/mnist.safetensors is what the stage download"),
        pytest.param(
            *("device: auto ", "device: cuda ", "run.device: cuda: torch sees no GPU here; make it auto or cpu"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here"),
        ),
    ],
)
def test_check_finds_what_dvc_would_miss(old: str, new: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("dvc.yaml", "networks/example.py", "data/example.npz"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes((ROOT / file).read_bytes())
    assert main(["check"]) == 0
    capsys.readouterr()
    Path("params.yaml").write_text(DEFAULT.replace(old, new), encoding="utf-8")
    assert main(["check"]) == 2
    assert capsys.readouterr().err.startswith(f"params.yaml: {line}")


@pytest.mark.parametrize(("text", "code"), [(DEFAULT, 0), ("data: 5\n", 2), ("a: [\n", 2), (None, 2)])
def test_check_needs_none_of_the_heavy_packages(text: str | None, code: int) -> None:
    if text is None:
        Path("params.yaml").unlink()
    else:
        Path("params.yaml").write_text(text, encoding="utf-8")
    blocked = "sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'mlflow', 'dvc', 'numpy', 'pandas']))"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}; from lottery.cli import main; sys.exit(main(['check']))"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    assert bool(ran.stderr) == bool(code)


@pytest.mark.parametrize(("every", "warned"), [(4579, False), (4580, True), (5000, True)])
def test_check_warns_where_every_network_would_be_censored(
    every: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(DEFAULT.replace("evaluate_every: 250", f"evaluate_every: {every}"), encoding="utf-8")
    assert main(["check"]) == 0
    line = (
        f"params.yaml: train.evaluate_every: {every} is not below the 4580 iterations, so early stopping has one "
        "evaluation to choose from, and every network counts as censored; give less\n"
    )
    assert capsys.readouterr().err == (line if warned else "")


def test_the_module_runs_as_a_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "lottery.cli", "check"], capture_output=True, text=True, env=os.environ)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("words", [[], ["chekc"], ["ui", "--port", "http"]])
def test_a_command_that_does_not_exist_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: lottery" in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    assert "validate params.yaml" in help_text
    assert "serve the MLflow UI" in help_text


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"lottery {version('lottery')}\n"


def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    Path("lottery.bash").write_text(capsys.readouterr().out, encoding="utf-8")
    for words, expected in (("lottery se", ["server"]), ("lottery ui --po", ["--port"])):
        last = len(words.split()) - 1
        typed = f"COMP_WORDS=({words}); COMP_CWORD={last}; COMP_LINE='{words}'; COMP_POINT={len(words)}"
        script = f"source ./lottery.bash; {typed}; _shtab_lottery; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected
