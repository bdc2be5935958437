"""Worker processes for an extraction; one that dies takes nothing with it.

A decoder can crash on a file that was made or damaged to do so, and memory can run out. So files
are read in processes of their own. A unit whose worker died is tried again; if that fails too,
its videos are tried one by one, and the one that kills its worker twice is skipped.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

from demr.encoders import EncoderIdentity
from demr.encoders.model_folder import brief
from demr.errors import DemrError, ModelError
from demr.extraction.units import (
    Done,
    Job,
    Outcome,
    Tell,
    encode_unit,
    has_part,
    read_part,
    skipped_video,
    write_part,
)
from demr.extraction.videos import Unit
from demr.machine.processes import ignored_interrupts

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_TRIES = 2
# Of a progress message to the next, as a share of the unit.
_STEP = 0.01


def run_workers(units: Sequence[Unit], job: Job, tell: Tell, *, workers: int = 1) -> None:
    """Work on all units; each becomes a file among the job's parts.

    Args:
        units: What is to be done.
        job: What workers need to know.
        tell: Told how far each unit is.
        workers: Processes; they share the cores.

    Raises:
        DemrError: What no other unit would do better with: damaged weights, a full disk.
    """
    pool = _Pool(job, max(1, min(workers, len(units))))
    pending = deque(_Task(unit) for unit in units)
    split: list[_Split] = []
    try:
        while pending or pool.busy:
            pool.give(pending)
            for task, message in pool.listen():
                if isinstance(message, float):
                    tell(task.unit, message, None)
                elif isinstance(message, Done):
                    tell(task.unit, 1.0, message)
                elif isinstance(message, DemrError):
                    raise message
                else:
                    pending.extend(_once_more(task, str(message), job, split, tell))
            split = [whole for whole in split if not whole.finish(job, tell)]
    finally:
        pool.stop()


@dataclass(frozen=True)
class _Task:
    """A unit, and how often it has cost a worker."""

    unit: Unit
    deaths: int = 0


@dataclass(frozen=True)
class _Split:
    """A unit whose videos are tried one by one."""

    unit: Unit
    singles: tuple[Unit, ...]

    def finish(self, job: Job, tell: Tell) -> bool:
        """Put the unit together once all its videos have been tried."""
        if not all(has_part(job.parts, single) for single in self.singles):
            return False
        outcomes: list[Outcome] = []
        for single in self.singles:
            outcomes += read_part(job.parts, single)
        tell(self.unit, 1.0, write_part(job.parts, self.unit, outcomes))
        return True


def _once_more(task: _Task, cause: str, job: Job, split: list[_Split], tell: Tell) -> list[_Task]:
    """What to do about a unit whose worker died."""
    if task.deaths + 1 < _TRIES:
        return [_Task(task.unit, task.deaths + 1)]
    if len(task.unit.videos) > 1:
        singles = tuple(Unit((video,)) for video in task.unit.videos)
        split.append(_Split(task.unit, singles))
        return [_Task(single) for single in singles if not has_part(job.parts, single)]
    (video,) = task.unit.videos
    identity = EncoderIdentity.from_dict(job.identity)
    outcome = skipped_video(video, f"the process that read it {cause}", identity)
    tell(task.unit, 1.0, write_part(job.parts, task.unit, [outcome]))
    return []


class _Pool:
    """Processes, each with a pipe, and what each is at."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._workers = workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, SpawnProcess] = {}
        self.busy: dict[Connection, _Task] = {}

    def give(self, pending: deque[_Task]) -> None:
        """Give every idle worker something to do; start more if there is more."""
        while pending:
            idle = next((pipe for pipe in self._processes if pipe not in self.busy), None)
            if idle is None and len(self._processes) < self._workers:
                idle = self._start()
            if idle is None:
                return
            task = pending.popleft()
            self.busy[idle] = task
            # Where it died idle, listening finds out.
            with suppress(OSError):
                idle.send(task.unit)

    def listen(self) -> list[tuple[_Task, Any]]:
        """What busy workers have to say; in words, how one died."""
        heard: list[tuple[_Task, Any]] = []
        for pipe in cast("list[Connection]", wait(list(self.busy))):
            task = self.busy[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                message = ""
            if isinstance(message, str):
                message = self._bury(pipe, message)
            if not isinstance(message, float):
                self.busy.pop(pipe)
            heard.append((task, message))
        return heard

    def stop(self) -> None:
        """End all workers, whatever they are at."""
        for pipe, process in self._processes.items():
            pipe.close()
            process.terminate()
        for process in self._processes.values():
            process.join()

    def _start(self) -> Connection:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(there, self._job, self._threads), daemon=True
        )
        with ignored_interrupts():
            process.start()
        there.close()
        self._processes[here] = process
        return here

    def _bury(self, pipe: Connection, last_words: str) -> str:
        process = self._processes.pop(pipe)
        process.join()
        pipe.close()
        code = process.exitcode or 0
        return last_words or (
            f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        )


def _work(pipe: Connection, job: Job, threads: int) -> None:
    """What a worker does: encode units until the pipe closes."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        encoder = job.make_encoder()
        while True:
            unit = pipe.recv()
            told = 0.0

            def tell(share: float) -> None:
                nonlocal told
                if share >= told + _STEP:
                    told = share
                    pipe.send(share)

            done = write_part(job.parts, unit, encode_unit(encoder, unit, tell))
            pipe.send(done)
    except DemrError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except _device_errors() as error:
        # Pictures of all files are of one size there: the next file would be skipped as well,
        # and so would all others.
        pipe.send(
            ModelError(
                f"--device {job.device}",
                expected="one that works, with room for the networks of all workers",
                got=brief(error),
                remedy="free its memory or use fewer --workers, and run the same command again: "
                "it goes on where it was",
            )
        )
    except Exception as error:  # noqa: BLE001  (whatever it is, the unit and not the run has failed)
        pipe.send(f"failed: {brief(error)}")


def _device_errors() -> tuple[type[Exception], ...]:
    """What PyTorch raises where an accelerator is full or lost."""
    import torch

    # The second has come with PyTorch 2.8.
    lost = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    return (torch.OutOfMemoryError, lost)


def _end_with_parent() -> None:
    """Leave nothing running where the command was killed: it may have been started again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
