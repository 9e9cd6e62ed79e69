"""params.yaml files for published experiments, and the `levels` block of iterative and one-shot pruning."""

import re
import subprocess
from pathlib import Path

from lottery import LotteryError
from lottery.params import read

PARAMS, FOLDER = Path("params.yaml"), Path("presets")


def listed() -> dict[str, str]:
    """Each preset's name and what its first line says of it. Raises LotteryError where there are none."""
    paths = sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)
    if not paths:
        raise LotteryError(f"{FOLDER}: no presets are here; run this in the folder that holds dvc.yaml")
    first_lines = (path.read_text(encoding="utf-8").partition("\n")[0] for path in paths)
    return {path.stem: line.removeprefix("#").strip() for path, line in zip(paths, first_lines, strict=True)}


def write(name: str, force: bool = False) -> None:
    """Write a preset to params.yaml. Raises LotteryError where there is none, or where changes would be lost."""
    if name not in listed():
        raise LotteryError(f"{FOLDER}: no preset is called {name!r}; choose from {', '.join(listed())}")
    _replace((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), force)


def write_levels(rate: float, rounds: int, one_shot: bool, force: bool = False) -> None:
    """Put a `levels` block in the place of params.yaml's.

    Round r keeps (1 - rate)^r of each hidden layer. Raises LotteryError where the rate or the number of rounds makes no
    levels, where changes would be lost, or where params.yaml would have mistakes.
    """
    if not 0 < rate < 1:
        raise LotteryError(f"--rate {rate}: not a number above 0 and below 1; the paper prunes 0.2 a round")
    if rounds < 1:
        raise LotteryError(f"--rounds {rounds}: not a whole number of 1 or more; the paper prunes 20 rounds")
    try:
        text = PARAMS.read_text(encoding="utf-8")
    except OSError as error:
        raise LotteryError(f"{PARAMS}: cannot be read: {error.strerror}; `lottery preset NAME` writes one") from None
    except UnicodeDecodeError:
        raise LotteryError(f"{PARAMS}: not UTF-8; save the file as UTF-8") from None
    # to the last indented line, with the comments and empty lines on the way there
    block = re.compile(r"^levels:.*(?:\n(?:[ \t]*(?:#.*)?\n)*[ \t]+[^\s].*)*\n?", re.MULTILINE)
    if not block.search(text):
        raise LotteryError(f"{PARAMS}: has no levels block to replace; `lottery preset NAME` writes a whole file")
    text = block.sub(lambda _: levels(rate, rounds, one_shot), text)
    read(text, PARAMS)
    _replace(text, force)


def levels(rate: float, rounds: int, one_shot: bool = False) -> str:
    """A `levels` block: rounds of iterative pruning, each level the next one's parent, or one-shot from dense."""
    width = len(str(rounds))
    names = [f"r{r:0{width}}" for r in range(1, rounds + 1)]
    parents = ["dense"] * rounds if one_shot else ["dense", *names]
    lines = [
        f"  {name}: {{sparsity: {round(1 - (1 - rate) ** r, 6)}, parent: {parent}}}\n"
        for r, (name, parent) in enumerate(zip(names, parents, strict=False), start=1)
    ]
    return "levels:\n" + "".join(lines)


def _replace(text: str, force: bool) -> None:
    if PARAMS.exists() and not force and not _is_kept_elsewhere(PARAMS):
        raise LotteryError(f"{PARAMS}: has changes that are not committed; commit them, or give --force to lose them")
    PARAMS.write_text(text, encoding="utf-8")


def _is_kept_elsewhere(path: Path) -> bool:
    """Whether a file is the committed params.yaml or a preset, so that overwriting it loses nothing."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    if text in (path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")):
        return True
    command = ["git", "show", f"HEAD:./{PARAMS}"]
    try:
        committed = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:  # git is not installed
        return False
    return committed.returncode == 0 and committed.stdout == text
