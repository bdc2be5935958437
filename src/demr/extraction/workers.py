"""Worker processes for an extraction; one that dies or hangs takes no other video with it.

A decoder can crash or go round in circles on a file that was made or damaged to do so, and memory
can run out. So videos are encoded in processes of a pool (pebble: of the well-kept ones, it alone
outlives the death of a worker and knows whose task it was). A video whose worker died is tried
once more, behind the others; if that fails too, it is skipped.
"""

import ctypes
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool

from demr.encoders.model_folder import brief
from demr.errors import DemrError, ModelError
from demr.extraction.parts import ExtractionPlan, Outcome, Tell, encode_video, write_part
from demr.extraction.videos import VideoFile
from demr.machine.processes import ignored_interrupts
from demr.video import decoder_watchdog, probe_video, watch_decoding
from demr.video.watchdog import TIMED_OUT

_TRIES = 2
_BAR_S = 0.2
# The bar counts bytes. Within smaller files it would not be seen to move, and looking up how long
# a file lasts takes a tenth of the work on short ones.
_SHOWN_WITHIN = 20_000_000
_Shares = Any  # an array of float64 in memory that the workers share; ctypes has no name for it


@dataclass(frozen=True)
class _Task:
    """A video that a worker has, or will have next.

    Attributes:
        video: Which.
        tries: How many there were before.
        slot: Where its worker writes how far it is.
    """

    video: VideoFile
    tries: int
    slot: int


def run_workers(
    videos: Sequence[VideoFile], plan: ExtractionPlan, tell: Tell, *, workers: int = 1
) -> None:
    """Encode videos; each becomes a file among the plan's parts.

    Args:
        videos: What is to be done.
        plan: What workers need to know.
        tell: Told how far each video is.
        workers: Processes; they share the cores.

    Raises:
        DemrError: What no other video would do better with: damaged weights, a full disk.
    """
    pending = deque((video, 0) for video in videos)
    broken = 0
    while pending:
        before = len(pending)
        _run_pool(pending, plan, tell, max(1, min(workers, before)))
        broken = broken + 1 if len(pending) == before else 0
        if broken == _TRIES:
            raise ModelError(
                f"--workers {workers}",
                expected="processes that start",
                got="all of them ended before they had a video",
                remedy="look for what ends them, such as a lack of memory, and run the same "
                "command again: it goes on where it was",
            )


def _run_pool(
    pending: deque[tuple[VideoFile, int]], plan: ExtractionPlan, tell: Tell, workers: int
) -> None:
    """Encode what is pending, until all is done or workers died that had no video.

    The pool cannot go on then: what is left is pending again.
    """
    context = multiprocessing.get_context("spawn")
    # One more a worker, so that none has to wait for the next.
    free = deque(range(2 * workers))
    shares: _Shares = context.RawArray(ctypes.c_double, len(free))
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPool(
        workers, initializer=_start, initargs=(plan, shares, threads), context=context
    )
    running: dict[Future[str], _Task] = {}
    try:
        with ignored_interrupts():
            is_alive = pool.active  # asking starts it
        while is_alive and (pending or running):
            while pending and free and pool.active:
                task = _Task(*pending.popleft(), free.popleft())
                shares[task.slot] = 0.0
                running[pool.schedule(_work, (task.video, task.slot))] = task
            done = wait(running, _BAR_S, FIRST_COMPLETED).done
            is_alive = pool.active
            for future in done:
                if not isinstance(future.exception(), BrokenProcessPool):
                    task = running.pop(future)
                    free.append(task.slot)
                    pending.extend(_finish(task, future, plan, tell))
            for task in running.values():
                tell(task.video, shares[task.slot], "")
    finally:
        pool.stop()
        pool.join()
        pending.extend((task.video, task.tries) for task in running.values())


def _finish(
    task: _Task, future: Future[str], plan: ExtractionPlan, tell: Tell
) -> list[tuple[VideoFile, int]]:
    """Tell of a finished video; what is to be tried again."""
    error = future.exception()
    if error is None:
        tell(task.video, 1.0, future.result())
        return []
    if isinstance(error, DemrError):
        raise error
    if task.tries + 1 < _TRIES:
        tell(task.video, 0.0, "")
        return [(task.video, task.tries + 1)]
    reason = f"the process that read it {_cause(error, plan.timeout_s)}"
    write_part(plan.parts, task.video, Outcome(error=reason))
    tell(task.video, 1.0, reason)
    return []


def _cause(error: BaseException, timeout_s: float) -> str:
    if not isinstance(error, ProcessExpired):
        return f"failed: {brief(error)}"
    if error.exitcode == -TIMED_OUT:
        return f"got no frame out of it for {timeout_s:g} s"
    if error.exitcode < 0:
        return f"was killed by signal {-error.exitcode}"
    return f"ended with code {error.exitcode}"


class _Worker:
    """What a worker process holds: its plan, its encoder once there is one, the bar's shares."""

    here: "_Worker"

    def __init__(self, plan: ExtractionPlan, shares: _Shares) -> None:
        self.plan = plan
        self.shares = shares
        self._encoder: Any = None

    def encode(self, video: VideoFile, slot: int) -> str:
        """Encode and store a video; why it was skipped, if it was."""
        if self._encoder is None:
            self._encoder = self.plan.make_encoder()
        with watch_decoding(self._watcher(video, slot)):
            outcome = encode_video(self._encoder, video, self.plan)
        write_part(self.plan.parts, video, outcome)
        return outcome.error

    def _watcher(self, video: VideoFile, slot: int) -> Callable[[float], None] | None:
        if video.size < _SHOWN_WITHIN:
            return None
        try:
            with decoder_watchdog(self.plan.timeout_s):
                duration_s = probe_video(video.path).duration_s
        except DemrError:  # as encoding it will say
            return None

        def reached(second: float) -> None:
            self.shares[slot] = min(second / duration_s, 0.99)

        return reached


def _start(plan: ExtractionPlan, shares: _Shares, threads: int) -> None:
    """What a worker begins with."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _Worker.here = _Worker(plan, shares)


def _work(video: VideoFile, slot: int) -> str:
    return _Worker.here.encode(video, slot)


def _end_with_parent() -> None:
    """Leave nothing running where the command was killed: it may have been started again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
