"""Signals that end a command, raised until they are heard.

Python drops what a signal's handler raises where C code has called back: in a finaliser, a weak reference's call, an
attribute that a library asks for and does not find. An interrupted command would then go on to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

_AGAIN = 0.2  # seconds until what was raised is taken for lost
_CODES = {128 + number for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))}


def listen() -> None:
    """Let SIGINT raise KeyboardInterrupt, SIGTERM and SIGHUP SystemExit: a polite kill unwinds like an error."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, _raise)
    sys.unraisablehook = _dropped


def heard() -> None:
    """For those who catch an interrupt and go on: it is not to be raised again."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def end() -> None:
    """The command is over: from here on a signal has nothing left to unwind, and ends the process at once."""
    heard()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _raise:
            signal.signal(number, lambda number, _: os._exit(128 + number))


def _raise(number: int, _: FrameType | None) -> None:
    error = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
    if hasattr(signal, "setitimer"):

        def again(_: int, frame: FrameType | None) -> None:
            if not _unwinding(sys.exc_info()[1]):
                _raise(number, frame)

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
    raise error


def _unwinding(error: BaseException | None) -> bool:
    """Whether an interrupt is being handled now: half-written folders are removed on the way out."""
    while error is not None:
        if _ours(error):
            return True
        error = error.__context__
    return False


def _ours(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in _CODES)


def _dropped(lost: Any) -> None:
    """Nothing is said of an interrupt that comes again."""
    if not _ours(lost.exc_value):
        sys.__unraisablehook__(lost)
