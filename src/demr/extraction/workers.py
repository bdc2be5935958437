"""Worker processes for an extraction; one that dies or hangs takes no other video with it.

A decoder can crash or go round in circles on a file that was made or damaged to do so, and memory
can run out. So videos are encoded in other processes, which pebble starts and watches. Each has a
pool to itself: workers of one pool share a lock, and one that is killed while it holds it would
keep the others waiting for minutes. A video whose worker died is tried once more, after the
others; if that fails too, it is skipped.
"""

import ctypes
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
    """What a worker is at.

    Attributes:
        video: Its video.
        tries: How many there were before.
        slot: Of the worker, and of the share that it tells.
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
    running: dict[Future[str], _Task] = {}
    fleet = _Fleet(plan, max(1, min(workers, len(videos))))
    try:
        while pending or running:
            for slot in fleet.idle(running.values()):
                if pending:
                    task = _Task(*pending.popleft(), slot)
                    running[fleet.give(task)] = task
            wait(running, _BAR_S, FIRST_COMPLETED)
            for future, task in list(running.items()):
                if not future.done() and fleet.is_alive(task.slot):
                    tell(task.video, fleet.shares[task.slot], "")
                    continue
                del running[future]
                if fleet.has_lost(task.slot, future):
                    pending.appendleft((task.video, task.tries))
                else:
                    pending.extend(_finish(task, future, plan, tell))
    finally:
        fleet.stop()


class _Fleet:
    """Workers, each a pool of one process that is replaced when it dies."""

    def __init__(self, plan: ExtractionPlan, workers: int) -> None:
        # Inherited by workers. Threads that spin while they wait for each other, layer by layer,
        # take the cores that they wait for: on a busy machine three times the work.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self._context = multiprocessing.get_context("spawn")
        self.shares: _Shares = self._context.RawArray(ctypes.c_double, workers)
        threads = max(1, (os.cpu_count() or 1) // workers)
        self._begin = plan, self.shares, threads
        self._pools: dict[int, ProcessPool] = {}
        self._workers = workers
        self._lost = 0

    def idle(self, tasks: Iterable[_Task]) -> list[int]:
        """Slots without a task."""
        busy = {task.slot for task in tasks}
        return [slot for slot in range(self._workers) if slot not in busy]

    def give(self, task: _Task) -> Future[str]:
        """Have a worker encode a video; start it where there is none."""
        self.shares[task.slot] = 0.0
        if not self.is_alive(task.slot):
            self._drop(task.slot)
            self._pools[task.slot] = ProcessPool(
                1, initializer=_start, initargs=self._begin, context=self._context
            )
        with ignored_interrupts():
            return self._pools[task.slot].schedule(_work, (task.video, task.slot))

    def is_alive(self, slot: int) -> bool:
        """Whether a slot has a worker, or will have it again."""
        return slot in self._pools and self._pools[slot].active

    def has_lost(self, slot: int, future: Future[str]) -> bool:
        """Whether a worker ended before it had begun with its video; see to it that it is replaced.

        Raises:
            ModelError: If one after the other does.
        """
        error = future.exception() if future.done() else BrokenProcessPool()
        if isinstance(error, ProcessExpired | BrokenProcessPool):
            self._drop(slot)
        is_lost = isinstance(error, BrokenProcessPool)
        self._lost = self._lost + 1 if is_lost else 0
        if self._lost > _TRIES * self._workers:
            raise ModelError(
                f"--workers {self._workers}",
                expected="processes that start",
                got="one after the other ended before it had a video",
                remedy="look for what ends them, such as a lack of memory, and run the same "
                "command again: it goes on where it was",
            )
        return is_lost

    def stop(self) -> None:
        """End all workers, whatever they are at."""
        for pool in self._pools.values():
            pool.stop()
        for slot in list(self._pools):
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        pool = self._pools.pop(slot, None)
        if pool is not None:
            pool.stop()
            pool.join()


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
