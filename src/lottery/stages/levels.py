"""The folders of levels that a stage reads."""

from pathlib import Path

from lottery import LotteryError
from lottery.core.layout import Layout
from lottery.files.artifacts import Contents, load_contents, load_history, made_from
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
        ("network", _network(held.layout), _network(p.layout)),
        ("last iteration", (load_history(folder)["iteration"].max(),), (p.iterations,)),
    ):
        if has != wants:
            raise LotteryError(
                f"{folder}: has {name} {_shown(has)}, but params.yaml asks for {_shown(wants)}; `dvc repro` makes it "
                "anew"
            )
    return held


def check_origin(p: Params, level: str) -> None:
    """Raise LotteryError unless a level was made from the data, the dense level and the parent that are here."""
    above = {} if level == "dense" else {"dense": MODELS / "dense", "parent": MODELS / p.levels[level].parent}
    held = load_contents(MODELS / level).made_from
    for source, seal in made_from(p.data_file, above).items():
        if held.get(source) != seal:
            what = above.get(source, p.data_file)
            raise LotteryError(f"{MODELS / level}: was not made from what {what} holds; `dvc repro` makes it anew")


def _network(layout: Layout) -> tuple[str, ...]:
    """What tells networks apart: of a person's own the arguments and the file too."""
    own = layout.own
    return (layout.shown,) if own is None else (f"{own.name}({own.arguments}) of {own.file} {own.code[:8]}",)


def _shown(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "empty"
