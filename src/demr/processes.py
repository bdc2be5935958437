"""Processes of one's own that a terminal's Ctrl-C does not reach."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Processes started within inherit that they ignore Ctrl-C, from their first instruction on.

    Ctrl-C reaches every process of a terminal, but only the parent has something to say.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
