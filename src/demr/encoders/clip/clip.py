"""Image and text towers of the CLIP family: CLIP, SigLIP and SigLIP 2 from Hugging Face.

A clip of a video is described by the image embedding of one frame, the one shown at the clip's
middle; the last, possibly shorter clip by the one at the middle of what there is of it. Queries
are the text tower's: :mod:`demr.encoders.text_tower`.
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
from demr.encoders.preprocessing import Preprocessing, to_patches
from demr.encoders.text_tower import TextTower
from demr.video.reading import VideoInfo

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
FAMILY = Family(
    "clip",
    "a CLIP, SigLIP or SigLIP 2",
    {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"},
    DEFAULT_MODEL,
)
# Changes whenever the same file, sentence and weights give other numbers than before.
_VERSION = "1"
_FRAMES = 32


class ClipStream:
    """The frame in the middle of each clip, embedded by the image tower.

    Args:
        encoder: Whose tower it is.
    """

    name = "clip"
    batch = _FRAMES

    def __init__(self, encoder: "ClipEncoder") -> None:
        self._encoder = encoder
        self.dims = encoder.dims

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """One frame a clip, ``(L, 1)``."""
        return middle_times(video.duration_s, self._encoder.clip_s)[:, None]

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Resize and crop as the model's own processor does."""
        return self._encoder.preprocessing.crop_frame(rgb)

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Embeddings of prepared frames ``(N, 1, 3, H, W)``."""
        return self._encoder.embed_pictures(clips[:, 0])


class ClipEncoder(ReadsFrames):
    """A frozen model of the CLIP family; its weights are loaded when they are first needed.

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
        ModelError: If there is no such model or device, or it is no CLIP or SigLIP.
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
        settings = self._loaded.settings
        if self._loaded.folder.model_type == "clip":
            return int(settings.projection_dim)
        return int(settings.vision_config.hidden_size)

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What is stored beside the features; the weight files are read once for it."""
        return EncoderIdentity(
            name=FAMILY.encoder,
            version=_VERSION,
            clip_s=self.clip_s,
            streams=((ClipStream.name, self.dims),),
            text_dim=self._text.dims,
            normalization="l2",
            model=self._loaded.folder.source,
            digest=self._loaded.digest(self.preprocessing),
            dtype=self._loaded.dtype_name,
        )

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Its only stream."""
        return (ClipStream(self),)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Last hidden state of the text tower for each token of each query.

        Args:
            queries: Sentences; what goes beyond the tower's limit (77 tokens in CLIP) is not read,
                and a :class:`~demr.encoders.tokens.QueryCutWarning` says so.
            hidden: For each query the indices of words to hide. Their tokens enter the tower as
                zero vectors, so that only their places are known; the family has no mask token.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        return self._text.encode(queries, hidden)

    def embed_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """One embedding a query, comparable by cosine with the clips' features.

        Args:
            queries: Sentences, cut as in :meth:`encode_queries`.

        Returns:
            ``(N, video_dim)``, not normalised.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        return self._text.embed(queries, self.dims)

    def embed_pictures(self, pictures: Tensor) -> NDArray[np.float32]:
        """Image embeddings of resized and cropped frames.

        Args:
            pictures: uint8 RGB ``(N, 3, H, W)``, of the size that the model reads.

        Returns:
            ``(N, video_dim)``, not normalised.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If an embedding is not finite.
        """
        device = self._loaded.device
        pixels = self.preprocessing.normalize(pictures.to(device), self._loaded.dtype)
        with torch.inference_mode(), self._loaded.on_pictures():
            if self.preprocessing.patch:
                patches = to_patches(pixels, self.preprocessing.patch)
                count, length, _ = patches.shape
                rows = pictures.shape[-2] // self.preprocessing.patch
                shape = torch.tensor([[rows, length // rows]] * count, device=device)
                # All patches are the picture's own: frames of a video are of one size.
                mask = torch.ones(count, length, dtype=torch.int64, device=device)
                found = self._loaded.model.get_image_features(
                    pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shape
                )
            else:
                found = self._loaded.model.get_image_features(pixel_values=pixels)
        # A tensor up to version 4 of transformers.
        rows_found = found if isinstance(found, Tensor) else found.pooler_output
        return self._loaded.to_numpy(rows_found)


def middle_times(duration_s: float, clip_s: float) -> NDArray[np.float64]:
    """Middle of each clip in seconds; the last clip ends with the video.

    >>> middle_times(5.0, 2.0).tolist()
    [1.0, 3.0, 4.5]
    """
    start = np.arange(clip_count(duration_s, clip_s)) * clip_s
    middle: NDArray[np.float64] = (start + np.minimum(start + clip_s, duration_s)) / 2
    return middle
