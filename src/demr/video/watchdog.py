"""Calls into the decoder: one that never comes back ends the process, any error is a VideoError.

PyAV raises whatever its own code meets in a damaged file (an IndexError where a stream appears in
mid-file), and FFmpeg can turn in circles without an end, holding the interpreter's lock. No thread
of the same process could help then, so the clock is the kernel's: an alarm that nobody handles.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from demr.errors import DemrError
from demr.video.opening import video_error

TIMED_OUT = signal.SIGALRM
"""What a process dies of whose decoder did not come back."""
_limit_s: ContextVar[float] = ContextVar("limit_s", default=0.0)


@contextmanager
def decoder_watchdog(limit_s: float) -> Iterator[None]:
    """Within, the process ends by :data:`TIMED_OUT` where one frame takes the decoder too long.

    For processes of one's own that decode one video at a time. What happens between the frames,
    such as the work of a network, is not counted.

    Args:
        limit_s: Seconds from a frame to the next, or for opening the file; 0 for no limit.
    """
    token = _limit_s.set(limit_s)
    try:
        yield
    finally:
        _limit_s.reset(token)


@contextmanager
def decoder_call(path: Path) -> Iterator[None]:
    """Around each step of the decoder.

    Raises:
        VideoError: In the place of any other error, but for a lack of memory.
    """
    limit_s = _limit_s.get()
    if limit_s:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    except (DemrError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise video_error(
            path, f"damage that the decoder fails on ({type(error).__name__}: {reason})"
        ) from error
    finally:
        if limit_s:
            signal.setitimer(signal.ITIMER_REAL, 0)
