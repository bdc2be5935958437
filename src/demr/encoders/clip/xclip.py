"""X-CLIP from Hugging Face: a CLIP whose frames exchange messages, as a stream that sees motion.

Ni et al. 2022, arXiv:2208.02816. A clip is described by the embedding of eight frames (as many as
the model was trained with), each from the middle of an eighth of the clip: the sampling of the
published evaluation, which takes the middle frames of equal parts of a video.

The model's own score of a video and a sentence changes the sentence's embedding by what the video
shows, times a learned factor that starts at 0.1. Here a query is embedded once, without that
change: an embedding of a query cannot depend on each clip that it is compared with.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import (
    CLIP_S,
    EncoderIdentity,
    QueryFeatures,
    clip_count,
)
from demr.encoders.frames import FrameStream, ReadsFrames
from demr.encoders.loaded_model import LoadedModel, check_clip_length
from demr.encoders.model_folder import Family
from demr.encoders.preprocessing import Preprocessing
from demr.encoders.text_tower import TextTower
from demr.video.reading import VideoInfo

DEFAULT_MODEL = "microsoft/xclip-base-patch32"
FAMILY = Family("xclip", "an X-CLIP", {"xclip": "XCLIPModel"}, DEFAULT_MODEL)
# Changes whenever the same file, sentence and weights give other numbers than before.
_VERSION = "1"
# Eight frames each: as many pictures at once as the encoder clip reads.
_CLIPS = 4


class XClipStream:
    """Some frames of each clip, embedded together.

    Args:
        encoder: Whose network it is.
    """

    name = "xclip"
    batch = _CLIPS

    def __init__(self, encoder: "XClipEncoder") -> None:
        self._encoder = encoder
        self.dims = encoder.dims

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """The middles of equal parts of each clip, ``(L, K)``."""
        return part_times(video.duration_s, self._encoder.clip_s, self._encoder.frames)

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Resize and crop as the model's own processor does."""
        return self._encoder.preprocessing.crop_frame(rgb)

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Embeddings of prepared clips ``(N, K, 3, H, W)``."""
        return self._encoder.embed_clips(clips)


class XClipEncoder(ReadsFrames):
    """A frozen X-CLIP; its weights are loaded when they are first needed.

    Half precision is used on CUDA, and for products of pictures on CPUs that are made for it.

    Args:
        source: Id on the Hugging Face hub, or a folder.
        clip_s: Length of a clip in seconds.
        device: ``auto``, ``cpu``, or an accelerator.
        exact: Compute in float32 everywhere.

    Attributes:
        clip_s: Length of a clip in seconds.
        preprocessing: How frames are prepared.

    Raises:
        InputError: If transformers is not installed, or the clip length is not positive.
        ModelError: If there is no such model or device, or it is no X-CLIP.
    """

    def __init__(
        self,
        source: str = DEFAULT_MODEL,
        *,
        clip_s: float = CLIP_S,
        device: str = "auto",
        exact: bool = False,
    ) -> None:
        self.clip_s = check_clip_length(clip_s, FAMILY.encoder)
        self._loaded = LoadedModel(source, FAMILY, device, torch.float16, exact=exact)
        self.preprocessing = Preprocessing.read(
            self._loaded.folder.path, self._loaded.folder.model_type
        )
        self._text = TextTower(self._loaded)

    @property
    def dims(self) -> int:
        """Of an embedding."""
        return int(self._loaded.settings.projection_dim)

    @property
    def frames(self) -> int:
        """Of a clip."""
        return int(self._loaded.settings.vision_config.num_frames)

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What is stored beside the features; the weight files are read once for it."""
        return EncoderIdentity(
            name=FAMILY.encoder,
            version=_VERSION,
            clip_s=self.clip_s,
            streams=((XClipStream.name, self.dims),),
            text_dim=self._text.dims,
            normalization="l2",
            model=self._loaded.folder.source,
            digest=self._loaded.digest(self.preprocessing, self.frames),
            dtype=self._loaded.dtype_name,
        )

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Its only stream."""
        return (XClipStream(self),)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """As a CLIP does; see :meth:`demr.encoders.clip.clip.ClipEncoder.encode_queries`."""
        return self._text.encode(queries, hidden)

    def embed_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """One embedding a query, ``(N, video_dim)``, not normalised, without the model's prompts.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        return self._text.embed(queries, self.dims)

    def embed_clips(self, clips: Tensor) -> NDArray[np.float32]:
        """Embeddings of resized and cropped frames.

        Args:
            clips: uint8 RGB ``(N, K, 3, H, W)``, of the size that the model reads.

        Returns:
            ``(N, video_dim)``, not normalised.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If an embedding is not finite.
        """
        pictures = clips.flatten(0, 1).to(self._loaded.device)
        pixels = self.preprocessing.normalize(pictures, self._loaded.dtype).unflatten(
            0, clips.shape[:2]
        )
        with torch.inference_mode(), self._loaded.on_pictures():
            found = self._loaded.model.get_video_features(pixel_values=pixels)
        # A tensor up to version 4 of transformers.
        return self._loaded.to_numpy(found if isinstance(found, Tensor) else found.pooler_output)


def part_times(duration_s: float, clip_s: float, parts: int) -> NDArray[np.float64]:
    """Middles of equal parts of each clip in seconds, ``(L, parts)``; the last ends with the video.

    >>> part_times(3.0, 2.0, 2).tolist()
    [[0.5, 1.5], [2.25, 2.75]]
    """
    start = np.arange(clip_count(duration_s, clip_s)) * clip_s
    length = np.minimum(clip_s, duration_s - start)
    times: NDArray[np.float64] = start[:, None] + length[:, None] * (np.arange(parts) + 0.5) / parts
    return times
