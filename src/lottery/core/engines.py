"""The engine that trains groups of networks in processes of this machine; another needs no more than their states."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import TYPE_CHECKING, Protocol

import torch

from lottery.core.workers import FORKS, Workers, one_thread

if TYPE_CHECKING:
    from lottery.core.training import Group, State


class Engine(Protocol):
    """The way to advance groups to their ends."""

    def __call__(self, groups: list[Group], threads: int, advanced: Callable[[Group], None]) -> None:
        """Advance the groups' states to their ends, on up to ``threads`` processors at a time.

        It may put several groups in the place of one.

        ``advanced`` is called in this process and thread after each evaluation of a group, whose state nobody changes
        meanwhile. Raises DivergedError.
        """


@one_thread()  # what `advanced` copies takes no processor from the workers
def run(groups: Sequence[Group], threads: int, advanced: Callable[[Group], None]) -> None:
    """Advance all groups to their ends in up to ``threads`` processes; call ``advanced`` here after each evaluation.

    A process changes its group's state where this one reads it, and none changes it while ``advanced`` is called. Each
    group queues up again after an evaluation, which keeps all processes busy to the end. Raises DivergedError.
    """
    for group in groups:
        group.state = shared(group.state)
    waiting = [place for place, group in enumerate(groups) if not group.finished]
    if not waiting:
        return
    if not FORKS and any(group.lessons.is_random for group in groups):
        threads = 1  # threads share the generator that dropout draws from
    with Workers(min(threads, len(waiting)), groups) as workers:
        running = {workers.submit(_advance, place) for place in waiting}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                place = future.result()
                advanced(groups[place])
                if not groups[place].finished:
                    running.add(workers.submit(_advance, place))


def _advance(groups: Sequence[Group], place: int) -> int:
    """Advance one group, in whichever process; its state changes. Return its place."""
    groups[place].advance()
    return place


def shared(state: State) -> State:
    """A copy of a state in memory that forked processes share, outside /dev/shm, which is often limited to 64 MB."""
    tensors = state.tensors()
    for name, tensor in tensors.items():
        if tensor.nbytes:
            memory = torch.frombuffer(mmap.mmap(-1, tensor.nbytes), dtype=tensor.dtype)
            tensors[name] = memory.view(tensor.shape).copy_(tensor)
    return state.of(tensors, state.parameters.layout)
