"""Linear mode connectivity: whether two networks lie in one valley of the loss.

Frankle, Dziugaite, Roy & Carbin 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 2. A
network and its twin start from the same weights and mask and train on two batch orders. On the straight line between
the two, a network's error rises above that of its ends by the barrier; where it does not, training was stable: the
valley was settled before the batch orders could decide it.
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from lottery.core.arms import Rows
from lottery.core.stack import Stack

POINTS = 31  # evenly spaced on the line, both ends among them
STABLE = 0.02  # barriers below are within the noise (section 2)
BARRIERS = {"barrier_test": "test images", "barrier_train": "training images"}  # fractions, by where they are measured
COLUMNS = ("level", "arm", "seed", *BARRIERS)  # of reports/tables/connectivity.csv


Accuracy = Callable[[Stack], Tensor]  # of R networks on some images, float64 [R]


def errors_between(first: Stack, second: Stack, accuracy: Accuracy) -> Tensor:
    """Error (1 - accuracy) at each point from ``first`` to ``second``, float64 [R, POINTS].

    Both hold R networks.
    """
    errors = []
    for point in range(POINTS):
        place = point / (POINTS - 1)  # weighted so that the ends are the two networks to the bit
        between = Stack((1 - place) * first.flat + place * second.flat, first.layout)
        errors.append(1 - accuracy(between))
    return torch.stack(errors, dim=1)


def barrier(first: Stack, second: Stack, accuracy: Accuracy) -> Tensor:
    """The highest error on the line between two networks minus the mean of its two ends, a fraction, float64 [R]."""
    errors = errors_between(first, second, accuracy)
    return errors.amax(dim=1) - errors[:, [0, -1]].mean(dim=1)


def table(rows: Rows, first: Stack, second: Stack, test: Accuracy, train: Accuracy) -> pd.DataFrame:
    """A level's rows of reports/tables/connectivity.csv, one per network with a twin."""
    barriers = {column: barrier(first, second, on) for column, on in zip(BARRIERS, (test, train), strict=True)}
    return pd.DataFrame([*rows], columns=["arm", "seed"]).assign(**barriers)


def summarize(levels: pd.DataFrame, barriers: pd.DataFrame) -> pd.DataFrame:
    """The table of levels with each arm's mean barriers and how many of its networks are stable on the test images.

    ``barriers``: the rows of reports/tables/connectivity.csv; an arm without twins has none of the three.
    """
    groups = barriers.assign(stable=barriers["barrier_test"] < STABLE).groupby(["level", "arm"])
    summary = groups[list(BARRIERS)].mean().add_suffix("_mean")
    summary["stable"] = groups["stable"].sum().astype("Int64")
    return levels.join(summary, on=["level", "arm"])
