"""An extraction on a Ray cluster: its machines decode and encode, files are written here.

Videos, weights and this package have to be at the same paths on all machines. Ray starts workers
anew where they die. A video that it gives up on is left to processes on this machine, which know
how to get past a file that kills its reader.
"""

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from demr.encoders.model_folder import brief
from demr.errors import DemrError, InputError
from demr.extraction.parts import (
    ExtractionPlan,
    Outcome,
    Tell,
    encode_video,
    has_part,
    write_part,
)
from demr.extraction.videos import VideoFile
from demr.extraction.workers import run_workers
from demr.machine.processes import late_interrupts

LOCAL = "local"
_PATIENCE_S = 10.0


def run_on_ray(
    videos: Sequence[VideoFile],
    plan: ExtractionPlan,
    tell: Tell,
    *,
    address: str = LOCAL,
    workers: int = 1,
) -> None:
    """Encode videos; each becomes a file among the plan's parts, written on this machine.

    Args:
        videos: What is to be done.
        plan: What workers need to know.
        tell: Told of each video that is done.
        address: Of a cluster, ``auto`` for the one this machine belongs to, or ``local`` to start
            one here for as long as it takes.
        workers: Processes on the cluster, at most as many as it has CPUs. They share its GPUs
            evenly if it has any.

    Raises:
        InputError: If there is no cluster at that address.
        DemrError: What no other video would do better with: damaged weights, a full disk.
    """
    # Read when ray is imported: nothing about this machine is sent to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        _connect(ray, address, workers)
        for video, outcome in _encode_all(ray, videos, plan, workers):
            write_part(plan.parts, video, outcome)
            tell(video, 1.0, outcome.error)
    except DemrError:
        raise
    except Exception as error:  # what Ray makes of a lost machine
        raise InputError(
            f"--ray {address}",
            expected="a cluster that stays until all videos are done",
            got=brief(error),
            remedy="run the same command again, it goes on where it was; or without --ray",
        ) from error
    finally:
        ray.shutdown()
    left = [video for video in videos if not has_part(plan.parts, video)]
    if left:
        run_workers(left, plan, tell)


def _connect(ray: Any, address: str, workers: int) -> None:
    try:
        if address == LOCAL:
            # Half started, it would leave some of its processes behind.
            with late_interrupts():
                ray.init(
                    num_cpus=max(os.cpu_count() or 1, workers),
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


def _encode_all(
    ray: Any, videos: Sequence[VideoFile], plan: ExtractionPlan, workers: int
) -> Iterator[tuple[VideoFile, Outcome]]:
    """Outcomes as they come; none of a video whose worker died, and died again."""
    from ray.util import ActorPool

    found = ray.cluster_resources()
    # One that does not fit would never start, and its first video never end.
    workers = max(1, min(workers, len(videos), int(found.get("CPU", 1))))
    gpus = int(found.get("GPU", 0))
    made = ray.remote(_Worker).options(
        num_cpus=1,
        num_gpus=1 / math.ceil(workers / gpus) if gpus else 0,
        max_restarts=-1,
        max_task_retries=1,
    )
    pool = ActorPool([made.remote(plan) for _ in range(workers)])
    for number, video in enumerate(videos):
        pool.submit(lambda worker, given: worker.encode.remote(*given), (number, video))
    while pool.has_next():
        try:
            number, outcome = pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DemrError):
                raise error.cause from error
            continue
        except ray.exceptions.RayActorError:
            continue
        yield videos[number], outcome


class _Worker:
    """Encodes videos one after the other; an actor that keeps its network loaded."""

    def __init__(self, plan: ExtractionPlan) -> None:
        self._plan = plan
        self._encoder: Any = None

    def encode(self, number: int, video: VideoFile) -> tuple[int, Outcome]:
        # Not in the constructor, whose errors Ray keeps to itself.
        if self._encoder is None:
            self._encoder = self._plan.make_encoder()
        return number, encode_video(self._encoder, video, self._plan)
