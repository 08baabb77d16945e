"""Steps that are done whole or not at all, whenever Ctrl-C or SIGTERM comes, and to whichever of the ranks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from slimkit.core.training.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal that comes while the block runs take effect when it ends."""
    came: list[int] = []
    handlers = _hold(came)
    try:
        yield
    finally:
        _let_go(handlers)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def interrupted_together(ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Let a signal that comes to any rank take effect in all of them, where each next calls what the context gives.

    A process by itself is interrupted at once.
    """
    if ranks.count == 1:
        yield lambda: None
        return
    came: list[int] = []
    handlers = _hold(came)

    def obey() -> None:
        if number := ranks.highest(max(came, default=0)):
            _let_go(handlers)
            signal.raise_signal(number)

    try:
        yield obey
        obey()
    finally:
        _let_go(handlers)


def _hold(came: list[int]) -> dict[signal.Signals, Any]:
    """Let signals do no more than be listed in `came`; gives what they did before."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        return {}
    return {number: signal.signal(number, lambda number, frame: came.append(number)) for number in SIGNALS}


def _let_go(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
