"""An extraction on a Ray cluster: decoding in CPU tasks, networks in actors, files written here.

Videos, weights and this package have to be at the same paths on all machines. Ray starts tasks
and actors anew where one dies, and since what stands in a block is fixed by the list of files,
a part that comes twice is the same. A unit that Ray gives up on is left to processes on this
machine, which know how to get past a file that kills its reader.
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demr.encoders import EncoderIdentity
from demr.encoders.frames import Block, Closed, FrameEncoder, Rows, read_blocks
from demr.encoders.model_folder import brief
from demr.errors import DemrError, InputError
from demr.extraction.units import Gathering, Job, Tell, embed, encode_unit, has_part, write_part
from demr.extraction.videos import Unit
from demr.extraction.workers import run_workers
from demr.machine.processes import late_interrupts

LOCAL = "local"
_RETRIES = 2
_PATIENCE_S = 10.0
_Batch = dict[str, NDArray[Any]]
# Whose part it is, its place among the parts of that unit, and the part.
_COLUMNS = "unit", "number", "part"


@dataclass(frozen=True)
class _Made:
    """What became of a block, and what it was computed in."""

    parts: tuple[Rows | Closed, ...]
    dtype: str


@dataclass(frozen=True)
class _End:
    """Behind all parts of a unit: how many there are."""

    parts: int


def run_on_ray(
    units: Sequence[Unit], job: Job, tell: Tell, *, address: str = LOCAL, workers: int = 1
) -> None:
    """Work on all units; each becomes a file among the job's parts, written on this machine.

    Args:
        units: What is to be done.
        job: What workers need to know.
        tell: Told how far each unit is.
        address: Of a cluster, ``auto`` for the one this machine belongs to, or ``local`` to start
            one here for as long as it takes.
        workers: Actors that run networks; each takes a GPU if the cluster has any. Decoding takes
            the CPUs that are left.

    Raises:
        InputError: If there is no cluster at that address.
        DemrError: What no other unit would do better with: damaged weights, a full disk.
    """
    # Read when ray is imported: nothing about this machine is sent to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An error of the core, printed for every pool of actors, that is none.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)

    try:
        _connect(ray, address, workers)
        with warnings.catch_warnings():
            # Nothing else carries max_retries yet.
            warnings.filterwarnings("ignore", ".*ray_remote_args_fn.* is deprecated")
            _run(ray, units, job, tell, workers)
    except DemrError:
        raise
    except Exception as error:  # what Ray makes of a lost machine, or of errors in its workers
        raise InputError(
            f"--ray {address}",
            expected="a cluster that stays until all videos are done",
            got=brief(error),
            remedy="run the same command again, it goes on where it was; or without --ray",
        ) from error
    finally:
        ray.shutdown()
    left = [unit for unit in units if not has_part(job.parts, unit)]
    if left:
        run_workers(left, job, tell)


def _connect(ray: Any, address: str, workers: int) -> None:
    try:
        if address == LOCAL:
            # Half started, it would leave some of its processes behind.
            with late_interrupts():
                ray.init(
                    num_cpus=max(os.cpu_count() or 1, 2 * workers),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            return
        host, _, port = address.rpartition(":")
        if host:
            # Ray itself would try for minutes.
            socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # OSError, ValueError and errors of ray's own
        raise InputError(
            f"--ray {address}",
            expected="the address of a running cluster (HOST:PORT or auto), or local",
            got=brief(error),
            remedy="check the address, or start one with ray start --head; where it wants a token, "
            "set RAY_AUTH_MODE=token",
        ) from error


def _run(ray: Any, units: Sequence[Unit], job: Job, tell: Tell, workers: int) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What fails for good is left out here, and done on this machine afterwards.
    context.max_errored_blocks = -1
    asked = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
    if isinstance(job.make_encoder(), FrameEncoder):
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        decoded = asked.map_batches(
            _decode, batch_size=1, fn_args=(job,), num_cpus=1, ray_remote_args_fn=_reading
        )
        made = decoded.map_batches(
            _Embed,
            batch_size=1,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=gpus,
            num_cpus=0 if gpus else 1,
        )
    else:
        made = asked.map_batches(
            _encode_whole, batch_size=1, fn_args=(job,), num_cpus=1, ray_remote_args_fn=_reading
        )
    sink = _Sink(units, job, tell)
    for row in made.iter_rows():
        sink.take(row["unit"], row["number"], row["part"])


class _Sink:
    """Takes parts of units in any order, and stores each unit when it is whole."""

    def __init__(self, units: Sequence[Unit], job: Job, tell: Tell) -> None:
        self._units = {unit.key: unit for unit in units}
        self._job = job
        self._tell = tell
        self._identity = EncoderIdentity.from_dict(job.identity)
        self._gathering: dict[str, Gathering] = {}
        # Numbers of the parts that have come, and how many there are to be.
        self._come: dict[str, set[int]] = {}
        self._wanted: dict[str, int] = {}

    def take(self, key: str, number: int, part: Any) -> None:
        unit = self._units[key]
        if has_part(self._job.parts, unit):
            return
        if isinstance(part, list):  # the outcomes of a unit, from an encoder that cannot be parted
            self._tell(unit, 1.0, write_part(self._job.parts, unit, part))
            return
        if key not in self._gathering:
            self._gathering[key] = Gathering(unit, self._identity, partial(self._reached, unit))
            self._come[key] = set()
        if isinstance(part, _End):
            self._wanted[key] = part.parts
        elif number not in self._come[key]:
            self._come[key].add(number)
            if isinstance(part, _Made):
                self._gathering[key].dtype = part.dtype
            for made in part.parts if isinstance(part, _Made) else (part,):
                self._gathering[key].add(made)
        if len(self._come[key]) == self._wanted.get(key):
            outcomes = self._gathering.pop(key).outcomes()
            del self._come[key], self._wanted[key]
            self._tell(unit, 1.0, write_part(self._job.parts, unit, outcomes))

    def _reached(self, unit: Unit, share: float) -> None:
        self._tell(unit, min(share, 0.99), None)


def _reading() -> dict[str, Any]:
    """How tasks that read files are run: one that kills its reader would do so for ever.

    Ray does not know what this will say, and so never fuses decoding with what follows, which
    would have a GPU's actor decode.
    """
    return {"max_retries": _RETRIES}


def _decode(batch: _Batch, job: Job) -> Iterator[_Batch]:
    """Units -> what :func:`read_blocks` says of them, and their ends; a task for a CPU."""
    encoder = _encoder_of(job)
    for unit in batch["unit"]:
        number = 0
        paths = [video.path for video in unit.videos]
        for part in read_blocks(paths, encoder.streams, encoder.identity.clip_s):
            yield _row(unit.key, number, part)
            number += 1
        yield _row(unit.key, number, _End(number))


class _Embed:
    """Blocks -> what became of them; an actor that keeps its network loaded."""

    def __init__(self, job: Job) -> None:
        encoder = _encoder_of(job)
        self._streams = encoder.streams
        self._dtype = encoder.identity.dtype

    def __call__(self, batch: _Batch) -> Iterator[_Batch]:
        for key, number, part in zip(*(batch[name] for name in _COLUMNS), strict=True):
            made = part
            if isinstance(part, Block):
                made = _Made(tuple(embed(part, self._streams)), self._dtype)
            yield _row(key, number, made)


def _encode_whole(batch: _Batch, job: Job) -> Iterator[_Batch]:
    """Units -> their outcomes, with an encoder that decodes and encodes in one."""
    for unit in batch["unit"]:
        yield _row(unit.key, 0, encode_unit(_encoder_of(job), unit, _untold))


def _untold(share: float) -> None:
    """Nobody to tell: a task has no way back but its result."""


def _row(key: str, number: int, part: Any) -> _Batch:
    column = np.empty(1, dtype=object)
    column[0] = part
    return {"unit": np.array([key], dtype=object), "number": np.array([number]), "part": column}


_encoders: dict[str, Any] = {}


def _encoder_of(job: Job) -> Any:
    """The job's encoder, made once a process."""
    if job.encoder not in _encoders:
        _encoders[job.encoder] = job.make_encoder()
    return _encoders[job.encoder]
