"""Lottery tickets, tracked: the lottery ticket experiment as a DVC pipeline with every network in MLflow.

`lottery.load("p90", arm="ticket", seed=0)` gives a trained network; see `lottery.trained.load`.
"""

from importlib import import_module
from typing import Any


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
