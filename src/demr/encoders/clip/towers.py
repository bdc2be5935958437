"""Common to CLIP, SigLIP and X-CLIP: a text tower and one that looks at frames.

Each has one stream of clip features and is that stream itself
(:class:`demr.encoders.frames.FrameStream`).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import CLIP_S, EncoderIdentity, QueryFeatures
from demr.encoders.frames import FrameStream, ReadsFrames
from demr.encoders.loaded_model import LoadedModel, check_clip_length
from demr.encoders.model_folder import Family
from demr.encoders.preprocessing import Preprocessing
from demr.encoders.text_tower import TextTower
from demr.video import VideoInfo


class TwoTowerEncoder(ReadsFrames, ABC):
    """A frozen model of two towers; its weights are loaded when they are first needed.

    Half precision is used on CUDA, and for products of pictures on CPUs that are made for it.

    Args:
        source: Id on the Hugging Face hub, or a folder; None takes the family's example.
        clip_s: Length of a clip in seconds.
        device: ``auto``, ``cpu``, or an accelerator.
        exact: Compute in float32 everywhere.

    Attributes:
        family: Which models the encoder takes.
        version: Changes whenever the same file, sentence and weights give other numbers.
        batch: Clips that the network reads at once.
        name: Name of encoder and stream.
        dims: Dimension of an embedding.
        clip_s: Length of a clip in seconds.
        preprocessing: How frames are prepared.

    Raises:
        InputError: If transformers is not installed, or the clip length is not positive.
        ModelError: If there is no such model or device, it is not of the family, or its tokenizer
            or preprocessor is not its own.
    """

    family: ClassVar[Family]
    version: ClassVar[str]
    batch: int

    def __init__(
        self,
        source: str | None = None,
        *,
        clip_s: float = CLIP_S,
        device: str = "auto",
        exact: bool = False,
    ) -> None:
        self.name = self.family.encoder
        self.clip_s = check_clip_length(clip_s, self.name)
        source = source or self.family.example
        self._loaded = LoadedModel(source, self.family, device, torch.float16, exact=exact)
        folder, settings = self._loaded.folder, self._loaded.settings
        self.preprocessing = Preprocessing.read(folder.path, folder.model_type)
        self.preprocessing.check_size(settings.vision_config, folder.path)
        # SigLIP has no projection: its towers end in the common space.
        is_projected = folder.model_type in ("clip", "xclip")
        self.dims = int(
            settings.projection_dim if is_projected else settings.vision_config.hidden_size
        )
        self._text = TextTower(self._loaded)

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Stored beside the features; the weight files are read once for it."""
        return EncoderIdentity(
            name=self.name,
            version=self.version,
            clip_s=self.clip_s,
            streams=((self.name, self.dims),),
            text_dim=self._text.dims,
            normalization="l2",
            model=self._loaded.folder.source,
            digest=self._digest(),
            dtype=self._loaded.precision.name,
        )

    def _digest(self) -> str:
        return self._loaded.digest(self.preprocessing)

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Its only stream."""
        return (self,)

    @abstractmethod
    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """When the frames of each clip are shown, ``(L, K)`` seconds."""

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Resize and crop a frame as the model's own processor does."""
        return self.preprocessing.crop_frame(rgb)

    @abstractmethod
    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Embeddings of prepared clips, uint8 ``(N, K, 3, H, W)`` -> ``(N, dims)``.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If an embedding is not finite.
        """

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Last hidden state of the text tower for each token of each query.

        See :meth:`demr.encoders.text_tower.TextTower.encode`.
        """
        return self._text.encode(queries, hidden)

    def embed_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """One embedding a query, ``(N, dims)``, not normalised; comparable with clips by cosine.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        return self._text.embed(queries, self.dims)
