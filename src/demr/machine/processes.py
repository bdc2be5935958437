"""Ctrl-C and the processes that a program starts: ignored by them, or held back meanwhile."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Ctrl-C does not reach processes started within, from their first instruction on.

    It is sent to every process of a terminal, but only the parent is to answer it; what comes
    within is answered after the block. Threads started within pass this on to the processes that
    they start.
    """
    # Where it starts only within, it lets the signal through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def late_interrupts() -> Iterator[None]:
    """Ctrl-C within takes effect after the block, where all that was started can be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)
