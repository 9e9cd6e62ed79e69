"""The folders of levels that a stage reads."""

from pathlib import Path

from lottery import LotteryError
from lottery.files import data
from lottery.files.artifacts import Contents, load_contents, load_history
from lottery.params import Params

MODELS = Path("models")


def check_level(p: Params, level: str) -> Contents:
    """Load what a level's folder holds. Raises LotteryError unless it is what params.yaml asks for."""
    folder = MODELS / level
    held = load_contents(folder)
    rows = p.rows(level)
    for name, has, wants in (
        ("path", held.path, p.path(level)),
        ("seeds", held.rows.seeds, rows.seeds),
        ("arms", held.rows.arms, rows.arms),
        ("network", (held.layout.shown,), (p.layout.shown,)),
        ("last iteration", (load_history(folder)["iteration"].max(),), (p.iterations,)),
    ):
        if has != wants:
            raise LotteryError(
                f"{folder}: has {name} {_shown(has)}, but params.yaml asks for {_shown(wants)}; `dvc repro` makes it "
                "anew"
            )
    for source, seal in made_from(p, level).items():
        if held.made_from.get(source) != seal:
            other = p.data_file if source == "data" else MODELS / _levels_above(p, level)[source]
            raise LotteryError(f"{folder}: was not made from what {other} holds; `dvc repro` makes it anew")
    return held


def made_from(p: Params, level: str) -> dict[str, str]:
    """The seals of the files that decide a level's networks, by what they are to it."""
    seals = {source: load_contents(MODELS / name).seal for source, name in _levels_above(p, level).items()}
    return {"data": data.seal(p.data_file)} | seals


def _levels_above(p: Params, level: str) -> dict[str, str]:
    return {} if level == "dense" else {"dense": "dense", "parent": p.levels[level].parent}


def _shown(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "empty"
