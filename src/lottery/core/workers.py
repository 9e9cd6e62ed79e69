"""Processes of this machine that work on what they inherit."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Self, TypeVar, TypeVarTuple

import torch

Work = TypeVar("Work")
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

FORKS = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe

_worker = threading.local()


class Workers(Generic[Work]):
    """``count`` workers that call functions with ``work``, which they inherit, each with one thread for torch.

    Forked processes, because threads wait for each other's hold of the interpreter between some 30 short operators an
    iteration; a process for a single worker too, because a thread that has multiplied matrices takes a lock of MKL's as
    it ends, and whoever is forked at that moment waits for it for ever. They are all forked at the first task, which
    no other thread of this process may spend on importing. Threads where forking is not safe.
    """

    def __init__(self, count: int, work: Work) -> None:
        self._pool: Executor
        if FORKS:
            self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin, (work,))
        else:
            self._pool = ThreadPoolExecutor(count, initializer=_begin, initargs=(work,))

    def submit(self, function: Callable[[Work, *Arguments], Result], *arguments: *Arguments) -> Future[Result]:
        """Have a worker call ``function`` with the work and these arguments."""
        return self._pool.submit(_call, function, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:  # nobody waits for what they are at
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread here: sums of several may depend on their number, and they wait for processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(_worker.work, *arguments)


def _begin(work: object) -> None:
    torch.set_num_threads(1)
    _worker.work = work
    parent = multiprocessing.parent_process()
    if parent:
        # ctrl-C and a closed terminal reach every process; the parent ends its workers, and they end if it is killed
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
