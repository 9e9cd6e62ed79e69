"""Learning rates over training: a schedule gives the fraction of the learning rate at a position.

Positions count from 0 on the dense run's axis of T iterations, so a network rewound to iteration k begins at position
k. Adding a schedule is one class here. Schedules are plain data, so that a `training.Task` has a stable key.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """All of it, always."""

    def __call__(self, position: int, iterations: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Falls along half a cosine towards 0 at the end, without restarts (Loshchilov & Hutter 2017, equation 5)."""

    def __call__(self, position: int, iterations: int) -> float:
        return (1 + math.cos(math.pi * position / iterations)) / 2


@dataclass(frozen=True)
class WarmUp:
    """Rises by equal parts, of which the first iteration has one, and stays (Goyal et al. 2017, section 2.2)."""

    rise: int  # iterations

    def __call__(self, position: int, iterations: int) -> float:
        return min(1.0, (position + 1) / self.rise)


@dataclass(frozen=True)
class Step:
    """Falls to ``factor`` of what it was at each of the positions ``drops`` (He et al. 2016, section 4.2)."""

    drops: tuple[int, ...]
    factor: float = 0.1

    def __call__(self, position: int, iterations: int) -> float:
        return self.factor ** sum(drop <= position for drop in self.drops)


Schedule = Constant | Cosine | WarmUp | Step
"""Gives the fraction of the learning rate by which iteration ``position`` + 1 of ``iterations`` is made."""
