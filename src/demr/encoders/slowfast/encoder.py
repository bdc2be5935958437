"""SlowFast R50 8x8: how a clip moves, as the features of QVHighlights were made.

A clip is described by 32 of its frames at once. Which frames, and how large, follows the
extractor that the published features were made with, peculiarities included: a model trained on
them reads nothing else. ``docs/encoders.md`` has what is known of it, with sources.
"""

import math
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from demr.encoders.base import CLIP_S, EncoderIdentity, QueryFeatures, clip_count
from demr.encoders.frames import FrameStream, ReadsFrames
from demr.encoders.loaded_model import Precision, short_digest
from demr.encoders.preprocessing import Preprocessing
from demr.encoders.slowfast.network import DIMS, FAST_FRAMES
from demr.encoders.slowfast.weights import PUBLISHED, find_weights
from demr.errors import InputError
from demr.video import VideoInfo

# As in the published features; 256 is what PyTorchVideo's example has.
SHORT_SIDE = 224
# Changes whenever the same file and weights give other numbers than before.
_VERSION = "1"
# Frames a second that a clip is cut into before 32 of them are chosen.
_GRID_FPS = 30
# Frames of the video that the network was trained to see at once: every other one of 64.
_SPAN = 2 * FAST_FRAMES
# Less than a frame lasts, more than rounding of a container's clock.
_BEFORE_S = 1e-4


class SlowFastEncoder(ReadsFrames):
    """A frozen SlowFast; its weights are loaded when they are first needed.

    Half precision is used on CUDA, and for products on CPUs that are made for it. It reads no
    queries: combine it with a CLIP (:class:`~demr.encoders.combined.CombinedEncoder`).

    Args:
        source: A file of weights; None takes the published ones.
        clip_s: Length of a clip in seconds.
        short_side: Pixels of the shorter side after resizing; a square of so many is kept.
        device: ``auto``, ``cpu``, or an accelerator.
        exact: Compute in float32 everywhere.

    Attributes:
        name: Name of encoder and stream.
        batch: Clips that the network reads at once.
        dims: Dimension of a pooled feature.
        clip_s: Length of a clip in seconds.
        preprocessing: How frames are prepared.

    Raises:
        InputError: If the clip length or the size is out of range.
        ModelError: If there are no such weights or no such device.
    """

    name = "slowfast"
    batch = 4
    dims = DIMS

    def __init__(
        self,
        source: str | None = None,
        *,
        clip_s: float = CLIP_S,
        short_side: int = SHORT_SIDE,
        device: str = "auto",
        exact: bool = False,
    ) -> None:
        if not 0.1 <= clip_s <= 60 or not 32 <= short_side <= 1024:
            raise InputError(
                f"encoder slowfast, clip_s={clip_s:g}, short_side={short_side}",
                expected="clips of 0.1 to 60 seconds and 32 to 1024 pixels",
                got=f"{clip_s:g} seconds and {short_side} pixels",
                remedy=f"leave them out for {CLIP_S:g} seconds and {SHORT_SIDE} pixels",
            )
        self.clip_s = clip_s
        self._precision = Precision.choose(device, torch.float16, exact=exact)
        self._weights = find_weights(source or PUBLISHED)
        # Mean and deviation are those of the network's training on Kinetics.
        self.preprocessing = Preprocessing(
            shortest=short_side,
            size=None,
            crop=(short_side, short_side),
            filter="bicubic",
            scale=1 / 255,
            mean=(0.45, 0.45, 0.45),
            std=(0.225, 0.225, 0.225),
        )

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Stored beside the features; the file of weights is read once for it."""
        size = self.preprocessing.shortest
        return EncoderIdentity(
            name=self.name,
            version=_VERSION,
            clip_s=self.clip_s,
            streams=((self.name, self.dims),),
            text_dim=0,
            normalization="l2",
            model=self._weights.source + ("" if size == SHORT_SIDE else f",short_side={size}"),
            digest=short_digest(self._weights.digest(), self.preprocessing),
            dtype=self._precision.name,
        )

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Its only stream."""
        return (self,)

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """The frames of each clip, ``(L, 32)`` seconds."""
        return window_times(video.duration_s, video.fps, self.clip_s)

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Resize a frame to the short side and crop the middle."""
        return self.preprocessing.crop_frame(rgb)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Refuse: the network has never seen a word.

        Raises:
            InputError: Always.
        """
        del queries, hidden
        raise InputError(
            "encoder slowfast",
            expected="an encoder that reads text",
            got="one of motion alone",
            remedy="use clip+slowfast, whose queries are CLIP's",
        )

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Pooled features of prepared clips.

        Args:
            clips: uint8 RGB ``(N, 32, 3, H, W)``.

        Returns:
            ``(N, 2304)``: the slow pathway's 2048 channels, then the fast one's 256, each the
            mean over time and place; not normalised.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If a feature is not finite.
        """
        precision = self._precision
        count, frames, *picture = clips.shape
        pictures = clips.to(precision.device).reshape(count * frames, *picture)
        pixels = self.preprocessing.normalize(pictures, precision.dtype)
        volume = pixels.reshape(count, frames, *picture).transpose(1, 2)
        with torch.inference_mode(), precision.fast_products():
            pooled = self._network(volume.contiguous())
        return precision.to_numpy(pooled, f"{self.name} ({self._weights.source})")

    @cached_property
    def _network(self) -> nn.Module:
        network = self._weights.load()
        _fold_norms(network)
        return network.to(device=self._precision.device, dtype=self._precision.dtype)


def window_times(duration_s: float, fps: float, clip_s: float) -> NDArray[np.float64]:
    """When the 32 frames of each clip are shown.

    A clip is cut into 30 frames a second. From its beginning on, the network's 64 frames of the
    video (as many seconds as they last at the video's own whole frames a second) are divided
    evenly by 32 places, rounded down; places behind the clip's end show its last frame again. Of
    the last clip, what is missing is the video's last frame.

    Args:
        duration_s: Of the video.
        fps: Of the video, on average.
        clip_s: Length of a clip in seconds.

    Returns:
        Seconds, ``(L, 32)``, each row in order.

    >>> (window_times(2.0, 30.0, 2.0)[0, [0, 1, 15, 28, 29, 30, 31]] * 30).astype(int).tolist()
    [0, 2, 30, 56, 58, 59, 59]
    """
    length = max(1, int(clip_s * _GRID_FPS))
    last = _SPAN * math.floor(fps) / _GRID_FPS - 1
    places = np.clip(np.linspace(0, last, FAST_FRAMES), 0, length - 1).astype(np.int64)
    # A place of the grid shows what the video shows until half a place behind it.
    within = (places + 0.5) / _GRID_FPS - _BEFORE_S
    starts = np.arange(clip_count(duration_s, clip_s)) * clip_s
    end = max(0.0, duration_s - 0.5 / fps)
    return np.minimum(starts[:, None] + within, end)


def _fold_norms(module: nn.Module) -> None:
    """Multiply each norm, fixed in evaluation, into the convolution before it.

    It saves a tenth of the time. The layout channels_last_3d, which should help too, makes the
    network slower on CPUs (1.3 to 1.6 CPU seconds a clip against 1.25).
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv3d):
            norm = "norm" if name in ("conv", "conv_fast_to_slow") else name.replace("conv", "norm")
            setattr(module, name, fuse_conv_bn_eval(child, getattr(module, norm)))
            setattr(module, norm, nn.Identity())
        else:
            _fold_norms(child)
