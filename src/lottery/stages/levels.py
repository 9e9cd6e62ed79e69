"""The folders of levels that a stage reads."""

from pathlib import Path

from lottery import LotteryError
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
    return held


def _shown(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "empty"
