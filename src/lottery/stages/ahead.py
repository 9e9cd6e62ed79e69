"""Levels that come later, trained while a level of fewer networks than processors leaves some of them idle.

DVC runs one stage after another. What is trained ahead waits as `checkpoints` of the later stage, under that stage's
own key, and the stage goes on from there as from any other checkpoint.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from threading import Thread

import torch

from lottery.params import Params
from lottery.stages import BEGAN_WITH, STAGE, device, signals, threads
from lottery.stages.progress import expected

PATIENCE = 5.0  # seconds in which one that is told to end saves


@contextmanager
def training(params: Params, level: str, train: Callable[[str], object]) -> Iterator[None]:
    """While the block runs, call ``train`` with later levels of the same parent, in a process per idle processor.

    Those levels are the ones that `lottery repro` expects DVC to run; where nobody knows, there are none.
    """
    local = params.run.engine == "local" and device(params) == "cpu" and sys.platform == "linux"
    idle = threads(params) - params.networks(level) if BEGAN_WITH and local else 0
    later = _later(params, level)
    shares = [later[first::idle] for first in range(idle) if later[first:]]
    if not shares:
        yield
        return
    context = multiprocessing.get_context("fork")
    helpers = [context.Process(target=_train, args=(share, train), daemon=False) for share in shares]
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # until a helper is ready for them
    for helper in helpers:
        helper.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()  # it saves
        for helper in helpers:
            helper.join(PATIENCE)
            helper.kill()
            helper.join()


def _later(params: Params, level: str) -> list[str]:
    """The levels of the same parent whose stages come after this one."""
    stages = list(expected())
    after = stages[stages.index(STAGE) + 1 :] if STAGE in stages else []
    names = [stage.removeprefix("prune@") for stage in after]
    return [
        name for name in names if name in params.levels and params.levels[name].parent == params.levels[level].parent
    ]


def _train(levels: Sequence[str], train: Callable[[str], object]) -> None:
    torch.set_num_threads(1)  # those of the process that was forked are not here
    signals.interrupt()
    stage = multiprocessing.parent_process()
    if stage:
        Thread(target=_end_with, args=(stage,), daemon=True).start()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for each in (1, 2):  # what is to be said, the later stage says
        os.dup2(nowhere, each)
    with suppress(KeyboardInterrupt):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
        for level in levels:
            with suppress(Exception):  # the later stage meets it too
                train(level)


def _end_with(stage: BaseProcess) -> None:
    stage.join()
    os.kill(os.getpid(), signal.SIGTERM)
