"""Giving up on a computation that takes too long, by its CPU time: a busy machine changes nothing."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL = 0.2  # seconds


class OutOfTime(BaseException):
    """The computation was stopped. It is no Exception, so that what runs does not take it for a fault of its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in this thread once it has used so many seconds of CPU time in here."""
    thread = threading.get_ident()
    used = _clock(thread)
    end, done = used() + seconds, threading.Event()

    def watch() -> None:
        while not done.wait(POLL):
            if used() > end:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OutOfTime))
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _clock(thread: int) -> Callable[[], float]:
    """The CPU time of a thread in seconds; the time of day where the system keeps none."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)
