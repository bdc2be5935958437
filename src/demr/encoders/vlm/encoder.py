"""Hidden states of a small multimodal language model: SmolVLM, SmolVLM 2 and Idefics 3.

A clip is described by the frame at its middle. The language model reads a fixed prompt and the
frame as a square of image tokens; the hidden states of those tokens, averaged, are the clip's row.
The prompt stands before the image, as a causal model shows a token nothing that comes after it;
nothing after the image is computed at all.

A query is described by the hidden states of its tokens, read without an image behind the
beginning of a user's turn, and by that of the token that ends the turn: only there has the whole
sentence been read. The beginning takes up the huge activations that first tokens have, whatever
they are (Sun et al. 2024, arXiv:2402.17762), and is dropped.

Layer k is what transformers calls ``hidden_states[k]``: after k of the L layers, before the final
norm unless k = L. The default is the middle, L // 2. The last layers turn to the next word;
representations for other tasks are best around the middle (Skean et al. 2025, arXiv:2502.02013),
and SmolVLA (arXiv:2506.01844) reads this very model there. Layers above are not loaded.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import CLIP_S, EncoderIdentity, QueryFeatures
from demr.encoders.clip import middle_times
from demr.encoders.frames import FrameStream, ReadsFrames
from demr.encoders.loaded_model import LoadedModel, check_clip_length
from demr.encoders.model_folder import Family
from demr.encoders.text_tower import hidden_tokens, visible_tokens
from demr.encoders.tokens import Tokens, check_tokenizer, tokenize, unfit_tokenizer
from demr.encoders.vlm.preprocessing import SquarePictures
from demr.errors import InputError, ModelError
from demr.video import VideoInfo

FAMILY = Family(
    "vlm",
    "a SmolVLM or Idefics 3",
    {"smolvlm": "SmolVLMModel", "idefics3": "Idefics3Model"},
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
)
# Changes whenever the same file, sentence and weights give other numbers than before.
_VERSION = "1"
# Part of the digest, as is all that decides the numbers.
_PROMPT = "User: What is happening in this moment of a video?"
_ASK = "User:"
_IMAGE, _BEGIN, _WHOLE, _END = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
# Queries that are read at once.
_QUERIES = 32
# More than the 77 words that count have in any language with spaces.
_TOKENS = 256


class VlmEncoder(ReadsFrames):
    """A frozen multimodal language model; its weights are loaded when they are first needed.

    bfloat16 is used on CUDA, and for products of pictures on CPUs that are made for it.

    Args:
        source: Id on the Hugging Face hub, or a folder; None takes the family's example.
        layer: Whose hidden states to take, 1 to the model's number of layers; None takes the
            middle.
        clip_s: Length of a clip in seconds.
        device: ``auto``, ``cpu``, or an accelerator.
        exact: Compute in float32 everywhere.

    Attributes:
        name: Name of encoder and stream.
        batch: Clips that the network reads at once.
        dims: Dimension of a hidden state.
        clip_s: Length of a clip in seconds.
        layer: Whose hidden states are taken.
        preprocessing: How frames are prepared.

    Raises:
        InputError: If transformers is not installed, the clip length is not positive, or there is
            no such layer.
        ModelError: If there is no such model or device, or it is none of these.
    """

    name = FAMILY.encoder
    # A square of 512 pixels is a thousand patches: four of them keep the activations of the
    # default model under a quarter of a gigabyte.
    batch = 4

    def __init__(
        self,
        source: str | None = None,
        *,
        layer: int | None = None,
        clip_s: float = CLIP_S,
        device: str = "auto",
        exact: bool = False,
    ) -> None:
        self.clip_s = check_clip_length(clip_s, FAMILY.encoder)
        source = source or FAMILY.example
        # Activations of language models leave float16's range.
        self._loaded = LoadedModel(source, FAMILY, device, torch.bfloat16, exact=exact)
        folder, settings = self._loaded.folder, self._loaded.settings
        self.preprocessing = SquarePictures.read(folder.path)
        self.preprocessing.check_size(settings.vision_config, folder.path)
        text = settings.text_config
        layers = int(text.num_hidden_layers)
        self.layer = max(1, layers // 2) if layer is None else layer
        if not 1 <= self.layer <= layers:
            raise InputError(
                f"encoder {FAMILY.encoder} ({source})",
                expected=f"layer=1 to layer={layers}",
                got=f"layer={layer}",
                remedy=f"leave it out for the middle, {max(1, layers // 2)}",
            )
        text.num_hidden_layers = self.layer
        self._is_whole = self.layer == layers
        self.dims = int(text.hidden_size)
        self._tokenizer = folder.load_tokenizer()
        check_tokenizer(self._tokenizer, int(text.vocab_size), folder.path)
        self._prompt = self._read_prompt()

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Stored beside the features; the weight files are read once for it."""
        return EncoderIdentity(
            name=self.name,
            version=_VERSION,
            clip_s=self.clip_s,
            streams=((self.name, self.dims),),
            text_dim=self.dims,
            normalization="l2",
            model=f"{self._loaded.folder.source},layer={self.layer}",
            digest=self._loaded.digest(self.preprocessing, self.layer, _PROMPT, _ASK),
            dtype=self._loaded.precision.name,
        )

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Its only stream."""
        return (self,)

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """The middle of each clip, ``(L, 1)`` seconds."""
        return middle_times(video.duration_s, self.clip_s)[:, None]

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Resize a frame to a square as the model's own processor does."""
        return self.preprocessing.squeeze(rgb)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Hidden states of each query's tokens, and of the end of the turn.

        Args:
            queries: Sentences; what goes beyond 256 tokens is not read, and a
                :class:`~demr.encoders.tokens.QueryCutWarning` reports it.
            hidden: For each query the indices of words to hide. Their tokens enter the model as
                zero vectors, so that only their places are known. Words before them never saw
                them anyway.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        # A word in the middle of a text has a space before it, and so other tokens than at its
        # very beginning.
        tokenized = tokenize(self._tokenizer, queries, _TOKENS, before=" ", special=False)
        begin, end = self._ids(self._start + _ASK), self._ids(_END)
        turns = [_turn(tokens, begin, end) for tokens in tokenized]
        states: list[NDArray[np.float32]] = []
        for low in range(0, len(turns), _QUERIES):
            part = slice(low, low + _QUERIES)
            states += self._read(turns[part], None if hidden is None else hidden[part])
        return [
            QueryFeatures(query, state[len(begin) :], turn.words, turn.token_word[len(begin) :])
            for query, state, turn in zip(queries, states, turns, strict=True)
        ]

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Mean hidden state of the image tokens of prepared frames.

        Args:
            clips: uint8 RGB ``(N, 1, 3, H, W)``, of the size that the model reads.

        Returns:
            ``(N, dims)``, not normalised.

        Raises:
            ModelError: If weights or tokenizer are damaged.
            FeatureError: If a hidden state is not finite.
        """
        precision = self._loaded.precision
        pixels = self.preprocessing.normalize(clips[:, 0].to(precision.device), precision.dtype)
        ids = self._prompt.to(precision.device)
        with torch.inference_mode(), precision.fast_products():
            states = self._model(
                input_ids=ids.expand(len(clips), -1),
                pixel_values=pixels.unsqueeze(1),
                use_cache=False,
            ).last_hidden_state
            rows = states[:, ids == self._image_id].float().mean(dim=1)
        return self._loaded.to_numpy(rows)

    @cached_property
    def _model(self) -> Any:
        model = self._loaded.model
        if not self._is_whole:
            # It belongs behind the last layer, which is not here.
            model.text_model.norm = torch.nn.Identity()
        return model

    @property
    def _start(self) -> str:
        return self._tokenizer.bos_token or ""

    @property
    def _image_id(self) -> int:
        return int(self._loaded.settings.image_token_id)

    def _read_prompt(self) -> Tensor:
        """Ids of the prompt and of the image's places behind it."""
        for name in (_IMAGE, _BEGIN, _WHOLE, _END):
            known = self._ids(name)
            if len(known) != 1 or known[0] == self._tokenizer.unk_token_id:
                raise unfit_tokenizer(
                    self._loaded.folder.path,
                    f"a tokenizer that knows {name} as one token",
                    f"the tokens {known}",
                )
        settings = self._loaded.settings
        step = int(settings.vision_config.patch_size) * int(settings.scale_factor)
        side = self.preprocessing.side
        across, left = divmod(side, step)
        text = f"{self._start}{_PROMPT}{_BEGIN}{_WHOLE}{_IMAGE * across**2}"
        ids = torch.tensor(self._ids(text))
        count = int((ids == self._image_id).sum())
        if left or count != across**2:
            raise ModelError(
                str(self._loaded.folder.path),
                expected=f"a tokenizer that knows {_IMAGE} as token {self._image_id}, and squares "
                f"of whole steps of {step} pixels",
                got=f"{count} of {across**2} image tokens, squares of {side} pixels",
                remedy="copy the files again from where the model came from",
            )
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _read(
        self, turns: Sequence[Tokens], hidden: Sequence[Collection[int]] | None
    ) -> list[NDArray[np.float32]]:
        lengths = [len(turn.ids) for turn in turns]
        # A causal model's token does not see those behind it: any id pads.
        ids = torch.zeros(len(turns), max(lengths), dtype=torch.int64)
        for index, turn in enumerate(turns):
            ids[index, : len(turn.ids)] = torch.tensor(turn.ids)
        device, text = self._loaded.precision.device, self._model.text_model
        visible = visible_tokens(turns, hidden, max(lengths)).to(device)
        with torch.inference_mode(), hidden_tokens(text.get_input_embeddings(), visible):
            output = text(input_ids=ids.to(device), use_cache=False)
        states = self._loaded.to_numpy(output.last_hidden_state)
        return [state[:length].copy() for state, length in zip(states, lengths, strict=True)]


def _turn(tokens: Tokens, begin: list[int], end: list[int]) -> Tokens:
    """A query between the beginning and the end of a user's turn, which belong to no word."""
    edges = [np.full(len(edge), -1, dtype=np.int64) for edge in (begin, end)]
    token_word = np.concatenate([edges[0], tokens.token_word, edges[1]])
    return Tokens(tokens.words, [*begin, *tokens.ids, *end], token_word)
