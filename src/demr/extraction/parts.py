"""One video of an extraction: encode it, store its features in a file of its own, read it again."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from demr.encoders import Encoder, EncoderIdentity
from demr.encoders.frames import encode_noting_damage
from demr.encoders.model_folder import brief
from demr.errors import FeatureError, ModelError, VideoError
from demr.extraction.videos import VideoFile
from demr.features.prepare import check_storable
from demr.features.shards import TENSOR
from demr.machine.files import atomic_path
from demr.video.watchdog import DECODER_TIMEOUT_S, decoder_watchdog


@dataclass(frozen=True)
class ExtractionPlan:
    """What a worker needs to know; it travels to other processes and machines.

    Attributes:
        encoder: What to ask :func:`demr.encoders.get_encoder` for.
        device: Where networks run.
        identity: What that encoder has to be, as a plain dictionary.
        parts: Folder of the finished videos.
        timeout_s: Longest wait for a frame of a decoder, in seconds.
    """

    encoder: str
    device: str
    identity: Mapping[str, Any]
    parts: Path
    timeout_s: float = DECODER_TIMEOUT_S

    def make_encoder(self) -> Encoder:
        """The encoder, on this machine.

        Raises:
            ModelError: If weights or versions here are not those of the machine that asked.
        """
        from demr.encoders import get_encoder

        encoder = get_encoder(self.encoder, device=self.device)
        wanted = EncoderIdentity.from_dict(self.identity)
        if encoder.identity != wanted:
            raise ModelError(
                f"encoder {self.encoder} of a worker",
                expected=f"{wanted}",
                got=f"{encoder.identity}",
                remedy="put the same weights and the same demr on all machines",
            )
        return encoder


@dataclass(frozen=True)
class Outcome:
    """One video's features, or why there are none.

    Attributes:
        features: float16 ``(L, D)``; None where the video was skipped.
        duration_s: In seconds; 0 where it was skipped.
        error: Why it was skipped, on one line; empty if it was not.
        notes: What was damaged in it.
        dtype: What it was computed in; empty where it was skipped.
    """

    features: NDArray[np.float16] | None = None
    duration_s: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()
    dtype: str = ""


Tell = Callable[[VideoFile, float, str], None]
"""Called with a video, the share of it that is done, and why it was skipped, if it was."""


def encode_video(encoder: Encoder, video: VideoFile, plan: ExtractionPlan) -> Outcome:
    """Encode a video; of one that cannot be used, the outcome is the error.

    Raises:
        ModelError: What no other video would do better with: weights are damaged, or the
            accelerator is full or lost.
    """
    try:
        with decoder_watchdog(plan.timeout_s):
            features, notes = encode_noting_damage(encoder, video.path)
        check_storable(replace(features, vid=video.vid), encoder.identity)
    except (VideoError, FeatureError) as error:
        return Outcome(error=str(error))
    except _device_errors() as error:
        raise ModelError(
            f"--device {plan.device}",
            expected="one that works, with room for the networks of all workers",
            got=brief(error),
            remedy="free its memory or use fewer --workers, and run the same command again: "
            "it goes on where it was",
        ) from error
    half = features.features.astype(np.float16)
    return Outcome(half, features.duration_s, "", notes, encoder.identity.dtype)


def has_part(parts: Path, video: VideoFile) -> bool:
    """Whether a video is finished."""
    return _part(parts, video).exists()


def write_part(parts: Path, video: VideoFile, outcome: Outcome) -> None:
    """Store a finished video.

    Raises:
        FeatureError: If the disk is full.
    """
    described = {
        "duration_s": outcome.duration_s,
        "error": outcome.error,
        "notes": outcome.notes,
        "dtype": outcome.dtype,
    }
    tensors = {} if outcome.features is None else {TENSOR: outcome.features}
    with disk_errors(parts), atomic_path(_part(parts, video)) as temporary:
        save_file(tensors, temporary, metadata={"video": json.dumps(described)})


def read_part(parts: Path, video: VideoFile) -> Outcome:
    """Read a finished video.

    Raises:
        FeatureError: If its file is damaged.
    """
    path = _part(parts, video)
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()["video"])
            features = None if described["error"] else file.get_tensor(TENSOR)
        return Outcome(
            features,
            float(described["duration_s"]),
            str(described["error"]),
            tuple(map(str, described["notes"])),
            str(described["dtype"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            str(path),
            expected="a finished part of this extraction",
            got=f"{type(error).__name__}: {error}",
            remedy="remove this file and run the same command again",
        ) from error


@contextmanager
def disk_errors(parts: Path) -> Iterator[None]:
    """What the disk refuses, as one line that names what is kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FeatureError(
            str(parts),
            expected="a folder with room for the features",
            got=f"{type(error).__name__}: {error}",
            remedy="free disk space or choose another --out; what is finished is kept there, "
            "and the same command goes on",
        ) from error


def _part(parts: Path, video: VideoFile) -> Path:
    return parts / f"video-{video.key}.safetensors"


def _device_errors() -> tuple[type[Exception], ...]:
    """What PyTorch raises where an accelerator is full or lost."""
    # The second has come with PyTorch 2.8.
    lost = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    return (torch.OutOfMemoryError, lost)
