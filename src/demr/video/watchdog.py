"""Calls into the decoder: one that never comes back ends the process, any error is a VideoError.

PyAV raises whatever its own code meets in a damaged file, and FFmpeg can turn in circles without an
end. No other thread can stop it, so the process ends: by a thread that says why, and should the
decoder hold the interpreter's lock, by an alarm of the kernel that nobody handles.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from av.error import FFmpegError

from demr.errors import DemrError, VideoError
from demr.video.opening import reason_of, video_error

DECODER_TIMEOUT_S = 300.0
"""How long one frame may take a decoder before its file is given up."""
TIMED_OUT = signal.SIGALRM
"""What a process dies of whose decoder did not come back."""


# An alarm rings later than the thread, which says more.
_GRACE_S = 5.0


@dataclass
class _Watch:
    """One watchdog, shared by the threads that decode within it.

    Attributes:
        limit_s: Seconds that a step may take.
        alarm_s: Seconds until the kernel ends the process.
        path: Of the file whose decoder is at work; None between its steps.
        until_s: When that step has to be over, by the monotonic clock.
    """

    limit_s: float
    alarm_s: float
    path: Path | None = None
    until_s: float = 0.0


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def decoder_watchdog(
    limit_s: float, give_up: Callable[[VideoError], None] | None = None
) -> Iterator[None]:
    """Within, the process ends by :data:`TIMED_OUT` where one frame takes the decoder too long.

    For processes of one's own that decode one video at a time. What happens between the frames,
    such as the work of a network, is not counted.

    Args:
        limit_s: Seconds from a frame to the next, or for opening the file; 0 for no limit.
        give_up: Called then in another thread, with the error to tell; it ends the process.
    """
    watch = _Watch(limit_s, limit_s + (_GRACE_S if give_up else 0.0)) if limit_s else None
    over = threading.Event()
    if watch is not None and give_up is not None:
        threading.Thread(target=_look, args=(watch, give_up, over), daemon=True).start()
    token = _watch.set(watch)
    try:
        yield
    finally:
        over.set()
        _watch.reset(token)


def _look(watch: _Watch, give_up: Callable[[VideoError], None], over: threading.Event) -> None:
    while not over.wait(min(1.0, watch.limit_s / 4)):
        path = watch.path
        if path is not None and time.monotonic() > watch.until_s:
            give_up(video_error(path, f"no frame out of it for {watch.limit_s:g} s"))


@contextmanager
def decoder_call(path: Path) -> Iterator[None]:
    """Around each step of the decoder.

    Raises:
        VideoError: In the place of any other error, but for a lack of memory.
    """
    watch = _watch.get()
    if watch is not None:
        watch.path = path
        decoder_gets_on()
    try:
        yield
    except DemrError:
        raise
    except Exception as error:
        # FFmpeg lacks memory, too, where a damaged file asks for gigabytes.
        if isinstance(error, MemoryError) and not isinstance(error, FFmpegError):
            raise
        raise video_error(path, f"damage that the decoder fails on ({reason_of(error)})") from error
    finally:
        if watch is not None:
            watch.path = None
            signal.setitimer(signal.ITIMER_REAL, 0)


def decoder_gets_on() -> None:
    """Within a step of many packets: it has not got stuck."""
    watch = _watch.get()
    if watch is not None and watch.path is not None:
        watch.until_s = time.monotonic() + watch.limit_s
        signal.setitimer(signal.ITIMER_REAL, watch.alarm_s)
