"""Plans whose encoders do what a broken file or a full machine would do to a worker."""

import os
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from demr.encoders import Encoder, EncoderIdentity, QueryFeatures, VideoFeatures
from demr.errors import ModelError, VideoError
from demr.extraction.parts import ExtractionPlan
from demr.extraction.videos import Found, VideoFile
from demr.video import watchdog

IDENTITY = EncoderIdentity("names", "1", 1.0, (("names", 2),), 2, "none")


class NameEncoder:
    """Does what a file's name says; nothing is decoded. Other files are one clip, their length."""

    identity = IDENTITY

    def encode_video(self, path: str | Path) -> VideoFeatures:
        name = Path(path).stem
        if "killer" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "once" in name:
            mark = Path(path).with_name("died")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in name:
            Path(path).with_name("pid").write_text(f"{os.getpid()}\n")
            time.sleep(60)
        if "hang" in name:
            with watchdog.decoder_call(Path(path)):
                time.sleep(60)
        if "bug" in name:
            raise RuntimeError("no kernel\nfor this")
        if "gpu" in name:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "weights" in name:
            raise ModelError("weights", expected="all", got="some", remedy="get the rest")
        if "bad" in name:
            raise VideoError(str(path), expected="a video", got="none", remedy="look")
        value = np.nan if "nan" in name else 1e6 if "huge" in name else len(name)
        return VideoFeatures(name, 1.0, 1.0, np.full((1, 2), value, np.float32))

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        raise NotImplementedError


@dataclass(frozen=True)
class NamePlan(ExtractionPlan):
    """Makes that encoder in workers."""

    def make_encoder(self) -> Encoder:
        return NameEncoder()


def name_plan(parts: Path, timeout_s: float = 60) -> NamePlan:
    return NamePlan("names", "cpu", IDENTITY.to_dict(), parts, timeout_s)


def named(folder: Path, *names: str) -> tuple[VideoFile, ...]:
    return tuple(VideoFile(name, folder / f"{name}.mp4", 10) for name in names)


def found(folder: Path, *names: str) -> Found:
    return Found(named(folder, *names))
