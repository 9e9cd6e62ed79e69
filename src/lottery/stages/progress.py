"""The progress of a stage: a bar in a terminal, and elsewhere a line every few seconds."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

EVERY = 8.0  # seconds between lines
BAR = "{percentage:3.0f}%|{bar:20}| {desc}"  # tqdm puts a comma before a postfix


class Progress:
    """The progress of a stage."""

    def __init__(self, stage: str, expected: Mapping[str, float]) -> None:
        self.stage = stage
        self.expected = expected  # the seconds of each of the pipeline's stages, in their order; empty where unknown
        self.began = time.monotonic()
        self.done, self.total, self.text = 0, 0, ""
        self.bar: Any = None  # tqdm's, in a terminal

    def report(self, done: int, total: int, text: str) -> None:
        """Take note of how much of the work is done, and in words where that is."""
        self.done, self.total, self.text = done, total, text
        if sys.stderr.isatty():
            words = f"{self.stage}: {self}"
            if self.bar is None:  # at the end it goes: it would say what was reported last, as if that were all
                self.bar = tqdm(total=total, initial=done, desc=words, bar_format=BAR, leave=False)
            self.bar.set_description_str(words, refresh=False)
            self.bar.update(done - self.bar.n)

    def __str__(self) -> str:
        """Say where the stage is, and the time that is left for it and for the pipeline."""
        spent, planned = time.monotonic() - self.began, self.expected.get(self.stage, 0.0)
        left = spent * (self.total - self.done) / self.done if self.done else max(planned - spent, 0.0)
        words = [self.text or f"{duration(spent)} so far"]
        if self.done:
            words.append(f"{duration(left)} left")
        if planned:
            stages = list(self.expected)
            later = sum(self.expected[stage] for stage in stages[stages.index(self.stage) + 1 :])
            slower = (spent + left) / planned if self.done else 1.0  # than planned
            words.append(f"pipeline: {duration(left + slower * later)} left")
        return ", ".join(words)


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 6 min, 1 h 45 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


_current = Progress("", {})  # of the one stage that this process runs


def report(done: int, total: int, text: str) -> None:
    """Report on this process's stage; see `Progress.report`."""
    _current.report(done, total, text)


@contextmanager
def shown(stage: str) -> Iterator[None]:
    """Show the progress of this process's stage while the block runs."""
    global _current
    _current = progress = Progress(stage, expected())
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            os.write(2, f"{stage}: {progress}\n".encode())  # past Python's buffer: a worker would inherit its lock

    if not sys.stderr.isatty():
        threading.Thread(target=tell, name="progress", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if progress.bar is not None:
            progress.bar.close()


def expected() -> Mapping[str, float]:
    """Read the seconds that `lottery repro` expects of each stage, in their order, from the file that it names."""
    try:
        seconds: Mapping[str, float] = json.loads(Path(os.environ["LOTTERY_OUTLOOK"]).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return {}
    return seconds
