"""Image and text towers of the CLIP family: CLIP, SigLIP and SigLIP 2 from Hugging Face.

A clip of a video is described by the image embedding of one frame, the one shown at the clip's
middle; the last, possibly shorter clip by the one at the middle of what there is of it. A query
is described token by token by the text tower's last hidden state after its final norm, with the
start and end tokens that the tokenizer adds, without padding.
"""

import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.devices import resolve_device
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures, clip_count
from demr.encoders.frames import FrameStream, encode_frames
from demr.encoders.model_folder import find_model_folder
from demr.encoders.pixels import Preprocessing, to_patches
from demr.encoders.words import locate_words, normalize_query, query_words
from demr.errors import FeatureError, InputError
from demr.video import VideoInfo

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
CLIP_S = 2.0
# Changes whenever the same file, sentence and weights give other numbers than before.
_VERSION = "1"
_FRAMES = 32
_QUERIES = 64


class QueryCutWarning(UserWarning):
    """A query has more tokens than the text tower reads; its last words count for nothing."""


@dataclass(frozen=True)
class _Tokens:
    """One query as the text tower reads it: ids and, for each, its word (-1 for none)."""

    words: tuple[str, ...]
    ids: list[int]
    owners: NDArray[np.int64]


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
        return self._encoder.pixels.crop_frame(rgb)

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Embeddings of prepared frames ``(N, 1, 3, H, W)``."""
        return self._encoder.embed_pictures(clips[:, 0])


class ClipEncoder:
    """A frozen model of the CLIP family; its weights are loaded when they are first needed.

    Half precision is used on CUDA, float32 elsewhere.

    Args:
        source: Id on the Hugging Face hub, or a folder.
        clip_s: Length of a clip in seconds.
        device: ``auto``, ``cpu``, or an accelerator.

    Attributes:
        clip_s: Length of a clip in seconds.
        pixels: How frames are prepared.

    Raises:
        InputError: If transformers is not installed, or the clip length is not positive.
        ModelError: If there is no such model or device, or it is no CLIP or SigLIP.
    """

    def __init__(
        self, source: str = DEFAULT_MODEL, *, clip_s: float = CLIP_S, device: str = "auto"
    ) -> None:
        if not 0.01 <= clip_s <= 3600:
            raise InputError(
                f"encoder clip, clip_s={clip_s:g}",
                expected="a clip length of 0.01 to 3600 seconds",
                got=f"{clip_s:g}",
                remedy="leave it out for 2 seconds",
            )
        self.clip_s = clip_s
        self._device = resolve_device(device)
        self._dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        self._folder = find_model_folder(source)
        self.pixels = Preprocessing.read(self._folder.path, self._folder.model_type)
        self._settings = self._folder.load_settings()

    @property
    def dims(self) -> int:
        """Of an embedding."""
        if self._folder.model_type == "clip":
            return int(self._settings.projection_dim)
        return int(self._settings.vision_config.hidden_size)

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What is stored beside the features; the weight files are read once for it."""
        digest = f"{self._folder.digest()} {self.pixels}"
        return EncoderIdentity(
            name="clip",
            version=_VERSION,
            clip_s=self.clip_s,
            streams=(("clip", self.dims),),
            text_dim=self._settings.text_config.hidden_size,
            normalization="l2",
            model=self._folder.source,
            digest=hashlib.sha256(digest.encode()).hexdigest()[:16],
            dtype=str(self._dtype).removeprefix("torch."),
        )

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Its only stream."""
        return (ClipStream(self),)

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """Embed the frame in the middle of each clip.

        Args:
            path: Any video file. Where a damaged one stops early, clips without a frame are zeros.

        Raises:
            VideoError: If it cannot be decoded.
            ModelError: If the weights are damaged.
            FeatureError: If an embedding is not finite.
        """
        return encode_frames(self, path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Last hidden state of the text tower for each token of each query.

        Args:
            queries: Sentences; what goes beyond the tower's limit (77 tokens in CLIP) is not read,
                and a :class:`QueryCutWarning` says so.
            hidden: For each query the indices of words to hide. Their tokens enter the tower as
                zero vectors, so that only their places are known; the family has no mask token.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        tokens = self._tokenize(queries)
        states = []
        for low in range(0, len(tokens), _QUERIES):
            part = slice(low, low + _QUERIES)
            states += self._read(tokens[part], None if hidden is None else hidden[part])[0]
        return [
            QueryFeatures(query, state, found.words, found.owners)
            for query, state, found in zip(queries, states, tokens, strict=True)
        ]

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
        tokens = self._tokenize(queries)
        rows = [np.zeros((0, self.identity.video_dim), dtype=np.float32)]
        rows += [
            self._read(tokens[low : low + _QUERIES], None)[1]
            for low in range(0, len(tokens), _QUERIES)
        ]
        return np.concatenate(rows)

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
        pixels = self.pixels.normalize(pictures.to(self._device), self._dtype)
        with torch.inference_mode():
            if self.pixels.patch:
                patches = to_patches(pixels, self.pixels.patch)
                count, length, _ = patches.shape
                rows = pictures.shape[-2] // self.pixels.patch
                shape = torch.tensor([[rows, length // rows]] * count, device=self._device)
                # All patches are the picture's own: frames of a video are of one size.
                mask = torch.ones(count, length, dtype=torch.int64, device=self._device)
                found = self._model.get_image_features(
                    pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shape
                )
            else:
                found = self._model.get_image_features(pixel_values=pixels)
        # A tensor up to version 4 of transformers.
        rows_found = found if isinstance(found, Tensor) else found.pooler_output
        return self._to_numpy(rows_found)

    @cached_property
    def _model(self) -> Any:
        return self._folder.load().to(device=self._device, dtype=self._dtype)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._folder.load_tokenizer()

    def _tokenize(self, queries: Sequence[str]) -> list[_Tokens]:
        limit = int(self._settings.text_config.max_position_embeddings)
        found = []
        for query in queries:
            words = query_words(query)
            # The tokenizers of the family drop capitals anyway, or ought to: SigLIP 2 was trained
            # on small letters, which not every copy of its tokenizer does by itself.
            text = " ".join(normalize_query(query).split())
            options: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
            row = self._tokenizer(text, **options)
            length = len(row["input_ids"])
            if length > limit:
                row = self._tokenizer(text, truncation=True, max_length=limit, **options)
            owners = token_words(row["offset_mapping"], text)
            if length > limit:
                _warn_of_cut(text, words, owners, length, limit)
            found.append(_Tokens(words, list(row["input_ids"]), owners))
        return found

    def _read(
        self, tokens: Sequence[_Tokens], hidden: Sequence[Collection[int]] | None
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """Run the text tower: states of each query's tokens, and the projected embeddings."""
        text = self._settings.text_config
        lengths = [len(row.ids) for row in tokens]
        is_clip = self._folder.model_type == "clip"
        # CLIP looks only backwards, so that padding behind the text is not seen. SigLIP looks both
        # ways and was trained on queries padded to its limit, without a mask.
        width = max(lengths) if is_clip else int(text.max_position_embeddings)
        pad = self._tokenizer.pad_token_id
        if pad is None:
            pad = text.eos_token_id if is_clip else text.pad_token_id
        ids = torch.full((len(tokens), width), int(pad), dtype=torch.int64)
        keep = torch.ones(len(tokens), width, dtype=torch.bool)
        for index, row in enumerate(tokens):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            if hidden is not None:
                gone = np.isin(row.owners, list(hidden[index]))
                keep[index, : len(row.ids)] = torch.from_numpy(~gone)
        with torch.inference_mode(), self._hiding(keep.to(self._device)):
            output = self._model.text_model(input_ids=ids.to(self._device))
            pooled = output.pooler_output
            if is_clip:
                pooled = self._model.text_projection(pooled)
        states = self._to_numpy(output.last_hidden_state)
        cut = [state[:length].copy() for state, length in zip(states, lengths, strict=True)]
        return cut, self._to_numpy(pooled)

    @contextmanager
    def _hiding(self, keep: Tensor) -> Iterator[None]:
        """While it lasts, token embeddings are zero where ``keep`` ``(B, T)`` is False."""
        if bool(keep.all()):
            yield
            return

        def hide(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
            del module, inputs
            return output * keep.unsqueeze(-1).to(output.dtype)

        embedding = self._model.text_model.embeddings.token_embedding
        handle = embedding.register_forward_hook(hide)
        try:
            yield
        finally:
            handle.remove()

    def _to_numpy(self, values: Tensor) -> NDArray[np.float32]:
        result: NDArray[np.float32] = values.float().cpu().numpy()
        if not np.isfinite(result).all():
            raise FeatureError(
                f"encoder clip ({self._folder.source})",
                expected="finite features",
                got=f"NaN or infinity in {self.identity.dtype}",
                remedy="use --device cpu, which computes in float32, or check the weights",
            )
        return result


def middle_times(duration_s: float, clip_s: float) -> NDArray[np.float64]:
    """Middle of each clip in seconds; the last clip ends with the video.

    >>> middle_times(5.0, 2.0).tolist()
    [1.0, 3.0, 4.5]
    """
    start = np.arange(clip_count(duration_s, clip_s)) * clip_s
    middle: NDArray[np.float64] = (start + np.minimum(start + clip_s, duration_s)) / 2
    return middle


def token_words(offsets: Sequence[tuple[int, int]], text: str) -> NDArray[np.int64]:
    """Word that each token belongs to, the one it shares most letters with; -1 for none.

    Args:
        offsets: Where each token begins and ends in the text; empty for special tokens.
        text: Normalised, as :func:`~demr.encoders.words.locate_words` reads it.

    >>> token_words([(0, 0), (0, 2), (2, 5), (5, 7), (7, 8), (0, 0)], "puppy's!").tolist()
    [-1, 0, 0, 0, -1, -1]
    """
    words = locate_words(text)
    owners = np.full(len(offsets), -1, dtype=np.int64)
    for index, (begin, end) in enumerate(offsets):
        shared = [min(end, high) - max(begin, low) for _, low, high in words]
        if shared and max(shared) > 0:
            owners[index] = int(np.argmax(shared))
    return owners


def _warn_of_cut(
    text: str, words: tuple[str, ...], owners: NDArray[np.int64], length: int, limit: int
) -> None:
    last = int(owners.max())
    after = f"what follows {words[last]!r} is not read" if last >= 0 else "nothing of it is read"
    begin = text if len(text) <= 40 else f"{text[:40]}..."
    warnings.warn(
        f"query '{begin}' has {length} tokens, the encoder reads {limit}: {after}",
        QueryCutWarning,
        stacklevel=4,
    )
