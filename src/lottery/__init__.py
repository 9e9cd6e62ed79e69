"""Lottery tickets, tracked: the lottery ticket experiment as a DVC pipeline with every network in MLflow."""

import sys
from importlib.util import find_spec

__version__ = "0.1.0"

# `python -m lottery...`, as stages are started: DVC may have been called without the environment active
if sys.argv[0] == "-m":
    for package in ("torch", "mlflow", "pydantic"):
        if find_spec(package) is None:
            print(
                f"{sys.executable}: has no {package}, so it is not this project's environment; "
                "`source .venv/bin/activate` first, or run `make repro`",
                file=sys.stderr,
            )
            sys.exit(2)


class LotteryError(Exception):
    """A mistake that a person can mend.

    Its text is one line that names the file, the key, the value and the remedy.
    Commands and stages print that line and exit with code 2.
    """
