"""Processes that a program starts: they end with it, and Ctrl-C is for the program to answer."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import IO

# Where a process that was started by `tied_process` finds its end of the pipe.
_LIFELINE = "DEMR_LIFELINE"


@contextmanager
def tied_process(
    command: Sequence[str], output: IO[bytes], defaults: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run demr in a process that ends when this one does, be it by ``kill -9``.

    The two hold the ends of a pipe, which the system closes with its process;
    :func:`end_with_parent` waits for that on the other side. Linux could send a signal instead,
    but it does so when the starting *thread* ends.

    Args:
        command: Arguments of ``demr``.
        output: Takes standard output and error.
        defaults: Variables of its environment where this one does not have them.
    """
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "demr", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**defaults, **os.environ, _LIFELINE: str(theirs)},
            pass_fds=(theirs,),
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        yield process
    finally:
        os.close(ours)


def end_with_parent() -> None:
    """End this process as soon as the one that started it ends, however that ended.

    For processes of :func:`tied_process` and of multiprocessing, whose idle workers would wait
    for ever for a parent that was killed; in others nothing happens.
    """
    lifeline = os.environ.pop(_LIFELINE, "")
    parent = multiprocessing.parent_process()
    if parent is not None:
        _watch(parent.join)
    elif lifeline.isdecimal() and _is_pipe(lifeline):
        _watch(lambda: os.read(int(lifeline), 1))


def _is_pipe(handle: str) -> bool:
    """Whether a handle is the end of a pipe, and no stream that every process has."""
    with suppress(OSError, OverflowError):
        return int(handle) > 2 and stat.S_ISFIFO(os.fstat(int(handle)).st_mode)
    return False


def _watch(wait: Callable[[], object]) -> None:
    def watch() -> None:
        with suppress(OSError):
            wait()
            # Nothing has to be put in order that a kill of this process itself would not leave.
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


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
