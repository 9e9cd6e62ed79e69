"""The signals that end a stage: Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends."""

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN = 10.0  # seconds within which a second signal is the first one's echo, and does not disturb the saving
MOMENT = 0.01  # seconds

_last = -AGAIN


def interrupt() -> None:
    """Raise KeyboardInterrupt at a signal; where that would be lost or leave a lock taken, a moment later."""
    signal.signal(signal.SIGALRM, _raise)
    sys.unraisablehook = _not_lost

    def raise_once(number: int, frame: FrameType | None) -> Any:
        global _last
        if time.monotonic() - _last > AGAIN:
            _last = time.monotonic()
            _raise(number, frame)

    _at_each(raise_once)


def _raise(number: int, frame: FrameType | None) -> Any:
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):  # it may hold the import lock
        signal.setitimer(signal.ITIMER_REAL, MOMENT)
    else:
        raise KeyboardInterrupt


def _not_lost(ignored: "sys.UnraisableHookArgs") -> Any:
    """Interrupt again where Python drops the exception: in a destructor, or in what a weak reference calls."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, MOMENT)
    else:
        sys.__unraisablehook__(ignored)


def _exit(number: int, frame: FrameType | None) -> Any:
    os.write(2, b"interrupted; `dvc repro` starts this stage anew\n")
    os._exit(130)


def _at_each(handler: Any) -> None:
    for each in SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup and shells in the background ask to ignore some
            signal.signal(each, handler)


if os.environ.get("DVC_STAGE"):
    _at_each(_exit)  # until the stage's imports are done, which takes seconds
