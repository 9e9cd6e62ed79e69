"""What `benchmarks.same` says of two folders of models."""

import sys
from pathlib import Path

import pytest
import torch
from clones import ROOT
from safetensors.torch import save_file

sys.path.append(str(ROOT))
from benchmarks.same import differences, main

LEVELS = ("dense", "p50")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same files: two tensors and a history in each of two levels."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one / level for level in LEVELS):
        folder.mkdir(parents=True)
        _save(folder)
        (folder / "history.csv").write_text("arm,seed\n")
    for level in LEVELS:
        (other / level).mkdir(parents=True)
        for file in (one / level).iterdir():
            (other / level / file.name).write_bytes(file.read_bytes())
    return one, other


def _save(folder: Path, **changed: torch.Tensor) -> None:
    tensors = {"final": torch.tensor([0.0, 1.0, torch.nan]), "initial": torch.tensor([[1.0, 2.0]])}
    save_file({name: tensor for name, tensor in (tensors | changed).items() if len(tensor)}, folder / "w.safetensors")


def test_of_equal_folders_nothing_differs(folders: tuple[Path, Path]) -> None:
    assert differences(*folders) == (4, [])


@pytest.mark.parametrize(
    "changed",
    [
        torch.tensor([0.0, 1.0000001, torch.nan]),
        torch.tensor([-0.0, 1.0, torch.nan]),
        torch.tensor([0.0, 1.0, torch.nan]).double(),
        torch.tensor([[0.0, 1.0, torch.nan]]),
        torch.tensor([]),
    ],
    ids=["another last bit", "another sign of zero", "another type", "another shape", "not there"],
)
def test_a_tensor_that_differs_is_named_and_its_file_too(folders: tuple[Path, Path], changed: torch.Tensor) -> None:
    one, other = folders
    _save(other / "p50", final=changed)
    for pair in ((one, other), (other, one)):
        assert differences(*pair)[1] == ["p50/w.safetensors: final", "p50/w.safetensors"]


def test_another_file_that_differs_is_named(folders: tuple[Path, Path]) -> None:
    (folders[1] / "dense/history.csv").write_text("arm,seed,iteration\n")
    assert differences(*folders) == (4, ["dense/history.csv"])


@pytest.mark.parametrize("name", ["dense/history.csv", "p50/w.safetensors"])
def test_a_file_that_one_side_lacks_is_named(folders: tuple[Path, Path], name: str) -> None:
    one, other = folders
    (other / name).unlink()
    for pair in ((one, other), (other, one)):
        assert differences(*pair)[1] == [name]


def test_the_exit_code_says_whether_anything_differs(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["same", *map(str, folders)])
    assert main() == 0
    assert capsys.readouterr().out == "4 tensors compared\n"
    (folders[1] / "p50/history.csv").unlink()
    assert main() == 1
    assert capsys.readouterr().out == "4 tensors compared\ndiffers: p50/history.csv\n"
