"""Processes of this machine that work on what they share."""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

import torch

_worker = threading.local()


def workers(count: int, work: object) -> Executor:
    """Workers whose tasks find ``work`` by `shared`, each with one thread for torch.

    Forked processes, because threads wait for each other's hold of the interpreter between some 30 short operators an
    iteration; a process for a single worker too, because a thread that has multiplied matrices takes a lock of MKL's as
    it ends, and whoever is forked at that moment waits for it for ever. They are all forked at the first task, which
    no other thread of this process may spend on importing. Threads where forking is not safe.
    """
    if sys.platform == "linux":
        return ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin, (work,))
    return ThreadPoolExecutor(count, initializer=_begin, initargs=(work,))


def shared() -> Any:
    """What the worker that asks works on."""
    return _worker.work


def _begin(work: object) -> None:
    torch.set_num_threads(1)
    _worker.work = work
    parent = multiprocessing.parent_process()
    if parent:
        # ctrl-C reaches every process of the terminal; the parent ends its workers, and they end if it is killed
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
