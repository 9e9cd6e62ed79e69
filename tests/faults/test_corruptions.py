"""Altered files: each gives one line that names the file and what makes it again, and none gives a result.

Each corruption is found by whoever reads the file; the slow tests run real stages on some of them.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from clones import Clone
from safetensors import safe_open
from safetensors.torch import save_file
from stores import run_stage

from lottery import LotteryError, params
from lottery.files.artifacts import load_history, load_masks, load_parameters, load_rewound, load_twins
from lottery.files.data import load_split, load_test
from lottery.files.sealed import verify_folder
from lottery.stages.levels import check_level, check_origin

Corruption = Callable[[Path, random.Random], None]
LEVELS = ("dense", "p50", "p75", "p80-at-once")


def _header(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _flip(path: Path, place: int, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _flip_in_the_header(path: Path, draw: random.Random) -> None:
    _flip(path, draw.randrange(min(_header(path.read_bytes()), path.stat().st_size)), draw)


def _flip_in_the_payload(path: Path, draw: random.Random) -> None:
    begin = _header(path.read_bytes()) if path.suffix == ".safetensors" else 0
    _flip(path, draw.randrange(begin, path.stat().st_size), draw)


def _truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 100)))


def _zeros(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    place = draw.randrange(len(content))
    path.write_bytes(content[:place] + bytes(len(content[place : place + 512])) + content[place + 512 :])


def _rows_of_another_seed(path: Path, draw: random.Random) -> None:
    """The first two networks change places, in a file whose metadata stay."""
    if path.suffix == ".csv":
        first, *rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join([first, *rows[::-1]]))
        return
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({name: tensor[[1, 0, *range(2, len(tensor))]] for name, tensor in tensors.items()}, path, metadata)


def _of_another_level(path: Path, draw: random.Random) -> None:
    """The file of the same name of another level, whose networks are others or of another number."""
    level = draw.choice([level for level in LEVELS if level != path.parent.name])
    shutil.copy(path.parent.parent / level / path.name, path)


CORRUPTIONS: dict[str, Corruption] = {
    "a flipped bit in the header": _flip_in_the_header,
    "a flipped bit in the payload": _flip_in_the_payload,
    "a truncated file": _truncate,
    "appended bytes": _append,
    "zeros": _zeros,
    "rows of another seed": _rows_of_another_seed,
    "another level's file": _of_another_level,
    "a missing file": lambda path, draw: path.unlink(),
}
IN_LEVELS = ("masks.safetensors", "weights.safetensors", "history.csv")
OF_LEVELS = [f"models/{level}/{name}" for level in LEVELS for name in IN_LEVELS]
IN_TABLES = ("levels.csv", "networks.csv", "verdicts.csv", "claims.json", "SHA256SUMS")
OF_TABLES = [f"reports/tables/{name}" for name in IN_TABLES]
DATA = "data/digits.safetensors"
ALL_ALIKE = "models/dense/masks.safetensors"  # its networks' masks keep every weight


def _cases() -> Iterator[tuple[str, str]]:
    for how in CORRUPTIONS:
        for file in (DATA, *OF_LEVELS, *OF_TABLES):
            tensors, level = file.endswith(".safetensors"), file.startswith("models/")
            if how == "a flipped bit in the header" and not tensors:
                continue
            if how == "rows of another seed" and (not (level or file == DATA) or file == ALL_ALIKE):
                continue
            if how == "another level's file" and not level:
                continue
            yield how, file


def _read(file: str) -> None:
    """Read what stages read of a file and of those beside it, as they do."""
    p, folder = params.load(), Path(file).parent
    if folder.name == "tables":
        verify_folder(folder)
    elif folder.name == "data":
        load_split(p.data_file, p.validation_images, p.data.scale)
        load_test(p.data_file)
    else:
        check_level(p, folder.name)
        check_origin(p, folder.name)
        load_masks(folder)
        for state in ("initial", "final", "early_stopping"):
            load_parameters(folder, state)
        load_history(folder)
        load_twins(folder)
        load_rewound(folder)


@pytest.fixture(scope="module")
def pipeline(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a finished pipeline, no two of them links to one file."""
    folder = tmp_path_factory.mktemp("altered")
    for name in ("data", "models", "reports"):
        shutil.copytree(finished.folder / name, folder / name)
    shutil.copy(finished.folder / "params.yaml", folder)
    return folder


def _damage(folder: Path, file: str, how: str, number: int) -> None:
    """Damage a file; where a draw happens to change nothing, draw again."""
    path = folder / file
    before, draw = path.read_bytes(), random.Random(f"{how} {file} {number}")
    for _ in range(100):
        CORRUPTIONS[how](path, draw)
        if not path.exists() or path.read_bytes() != before:
            return
    pytest.fail(f"{how} changes nothing in {file}")


@pytest.mark.parametrize(("how", "file"), list(_cases()))
def test_no_altered_file_gives_a_result(pipeline: Path, monkeypatch: pytest.MonkeyPatch, how: str, file: str) -> None:
    monkeypatch.chdir(pipeline)
    monkeypatch.setenv("DVC_ROOT", str(pipeline))
    path, before = pipeline / file, (pipeline / file).read_bytes()
    path.chmod(0o644)
    _read(file)
    for number in range(1 if how == "a missing file" else 6):
        _damage(pipeline, file, how, number)
        try:
            with pytest.raises(LotteryError) as caught:
                _read(file)
        finally:
            path.write_bytes(before)
        line = str(caught.value)
        assert "\n" not in line
        if how == "another level's file":  # what masks hold is said of their folder
            assert line.startswith((f"{file}: ", f"{Path(file).parent}"))
        elif file.endswith("SHA256SUMS"):  # a file that it names speaks against it
            assert line.startswith("reports/tables/")
        else:
            assert line.startswith(f"{file}: ")
        assert "`dvc repro" in line


def test_the_cases_are_five_hundred() -> None:
    assert sum(1 if how == "a missing file" else 6 for how, _ in _cases()) >= 500


def test_a_level_of_another_run_is_told_from_its_own(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files of p75 are whole, and of the same path, arms and seeds; their parent is not the p50 that is here."""
    shutil.copytree(pipeline, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "models/p50")
    shutil.copytree(tmp_path / "models/p80-at-once", tmp_path / "models/p50")
    monkeypatch.chdir(tmp_path)
    p = params.load()
    with pytest.raises(LotteryError, match=r"^models/p75: was not made from what models/p50 holds; `dvc repro`"):
        check_origin(p, "p75")


STAGES = [
    ("train", "train", DATA),
    ("prune", "prune@p50", DATA),
    ("prune", "prune@p50", "models/dense/masks.safetensors"),
    ("prune", "prune@p50", "models/dense/weights.safetensors"),
    ("prune", "prune@p75", "models/p50/weights.safetensors"),
    ("prune", "prune@p75", "models/p50/history.csv"),
    ("evaluate", "evaluate", DATA),
    ("evaluate", "evaluate", "models/p75/weights.safetensors"),
    ("evaluate", "evaluate", "models/p80-at-once/masks.safetensors"),
    ("export", "export", "reports/tables/networks.csv"),
    ("plot", "plot", "reports/tables/networks.csv"),
]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a flipped bit in the payload", "a truncated file"])
@pytest.mark.parametrize(("module", "stage", "file"), STAGES)
def test_a_stage_stops_at_an_altered_file(clone: Clone, module: str, stage: str, file: str, how: str) -> None:
    path = clone.folder / file
    content = path.read_bytes()
    path.unlink()  # which the cache may share
    path.write_bytes(content)
    for number in range(40 if "flipped" in how else 1):  # no stage reads all tensors of a file
        _damage(clone.folder, file, how, number)
    before = clone.files("models") | clone.files("reports")
    (line,) = run_stage(clone, module, stage, 2)
    assert line.startswith(f"{file}: ")
    assert clone.files("models") | clone.files("reports") == before


@pytest.mark.slow
def test_what_is_damaged_in_the_cache_too_is_mended(clone: Clone) -> None:
    """Of a linked cache a file and its copy are one: DVC takes both for whole, and doctor does not."""
    clone.run("dvc", "config", "cache.type", "hardlink")
    clone.run("dvc", "checkout", "--relink")
    clone.commit("Link")
    path, before = clone.folder / "models/p50/weights.safetensors", clone.files("models")
    assert path.stat().st_nlink == 2
    path.chmod(0o644)
    _damage(clone.folder, "models/p50/weights.safetensors", "a flipped bit in the payload", 0)
    path.chmod(0o444)
    told = clone.run("dvc", "repro", "--force", "--single-item", "prune@p75", check=False)
    assert "models/p50/weights.safetensors: " in told
    assert "`lottery doctor --mend`" in told
    mended = clone.run("lottery", "doctor", "--mend", check=False)
    assert mended.count("removed ") >= 2  # the file in the cache, and the output
    clone.repro()
    assert clone.files("models") == before
    lock = yaml.safe_load((clone.folder / "dvc.lock").read_text())
    assert "prune@p50" in lock["stages"]
    assert "contents" in clone.run("lottery", "doctor", "--deep")
