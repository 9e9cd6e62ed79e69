"""The folders of levels that a stage reads."""

from pathlib import Path

from lottery import LotteryError
from lottery.artifacts import Contents, load_contents, load_history
from lottery.params import Params

MODELS = Path("models")


def check_level(p: Params, level: str) -> Contents:
    """Load what a level's folder holds. Raises LotteryError unless it is what params.yaml asks for."""
    folder = MODELS / level
    held = load_contents(folder)
    asked = Contents(p.sizes, p.path(level), ("dense",) if level == "dense" else p.arms(level), p.train.seeds)
    facts = [(name, getattr(held, name), getattr(asked, name)) for name in ("path", "seeds", "arms", "sizes")]
    facts.append(("last iteration", (load_history(folder)["iteration"].max(),), (p.iterations,)))
    for name, has, wants in facts:
        if has != wants:
            raise LotteryError(
                f"{folder}: has {name} {_shown(has)}, but params.yaml asks for {_shown(wants)}; `dvc repro` makes it "
                "anew"
            )
    return held


def _shown(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "empty"
