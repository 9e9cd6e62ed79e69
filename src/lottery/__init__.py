"""Lottery tickets, tracked: the lottery ticket experiment as a DVC pipeline with every network in MLflow.

`lottery.load("p90", arm="ticket", seed=0)` gives a trained network; see `lottery.trained.load`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


class LotteryError(Exception):
    """A mistake that a person can mend.

    Its text is one line that names the file, the key, the value and the remedy.
    Commands and stages print that line and exit with code 2.
    """


def __getattr__(name: str) -> Any:
    """`load`, whose module imports torch: commands and stages begin with this package, and need to be fast."""
    if name == "load":
        return import_module("lottery.trained").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check_python() -> None:
    """End with one line where DVC was called without the environment active, and `python` is another one."""
    missing = next((name for name in ("torch", "mlflow", "pydantic") if find_spec(name) is None), None)
    if missing:
        print(
            f"{sys.executable}: has no {missing}, so it is not this project's environment; "
            "`source .venv/bin/activate` first, or run `make repro`",
            file=sys.stderr,
        )
        sys.exit(2)


if sys.argv[0] == "-m":  # `python -m lottery.stages.train`, as stages are started
    _check_python()
