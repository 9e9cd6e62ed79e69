"""Lottery tickets, tracked: the lottery ticket experiment as a DVC pipeline with every network in MLflow."""


class LotteryError(Exception):
    """A mistake that a person can mend.

    Its text is one line that names the file, the key, the value and the remedy.
    Commands and stages print that line and exit with code 2.
    """
