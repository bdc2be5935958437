"""The text tower of a CLIP, SigLIP, SigLIP 2 or X-CLIP: tokens and whole queries.

A query is described token by token by the tower's last hidden state after its final norm, with
the start and end tokens that the tokenizer adds, without padding.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import QueryFeatures
from demr.encoders.loaded_model import LoadedModel
from demr.encoders.tokens import Tokens, check_tokenizer, tokenize, unfit_tokenizer
from demr.errors import ModelError

# Queries that are read at once.
_QUERIES = 64
# The same tokens in another order, which mean something else to every text tower.
_ORDERS = ("two dogs run", "run dogs two")
# Number of the end token in the settings of the first CLIPs, which is not that of any tokenizer:
# their end token is the highest of a sentence.
_BY_RANK = 2


class TextTower:
    """Text side of a model; its weights are loaded when they are first needed.

    Args:
        loaded: The model.

    Raises:
        ModelError: If there is no tokenizer, it is damaged, or it is not the model's.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._settings = loaded.settings.text_config
        # CLIP looks only backwards, so that padding behind the text has no effect. SigLIP looks
        # both ways and was trained on queries padded to its limit, without a mask.
        self._is_causal = loaded.folder.model_type in ("clip", "xclip")
        self._tokenizer = loaded.folder.load_tokenizer()
        self._pad = self._padding()
        self._check_tokenizer()
        self._is_checked = False

    @property
    def dims(self) -> int:
        """Dimension of a token's features."""
        return int(self._settings.hidden_size)

    def encode(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None
    ) -> list[QueryFeatures]:
        """Features of each query's tokens.

        Args:
            queries: Sentences; what goes beyond the tower's limit (77 tokens in CLIP) is not read,
                which a :class:`~demr.encoders.tokens.QueryCutWarning` reports.
            hidden: For each query the indices of words to hide. Their tokens enter the tower as
                zero vectors, so that only their places are known; the family has no mask token.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        self._check_weights()
        tokens = self._tokenize(queries)
        states = []
        for low in range(0, len(tokens), _QUERIES):
            part = slice(low, low + _QUERIES)
            states += self._read(tokens[part], None if hidden is None else hidden[part])[0]
        return [
            QueryFeatures(query, state, row.words, row.token_word)
            for query, state, row in zip(queries, states, tokens, strict=True)
        ]

    def embed(self, queries: Sequence[str], dims: int) -> NDArray[np.float32]:
        """One projected embedding a query, ``(N, dims)``, not normalised.

        Raises:
            InputError: If a query holds no word.
            ModelError: If weights or tokenizer are damaged.
        """
        self._check_weights()
        tokens = self._tokenize(queries)
        rows = [np.zeros((0, dims), dtype=np.float32)]
        rows += [
            self._read(tokens[low : low + _QUERIES], None)[1]
            for low in range(0, len(tokens), _QUERIES)
        ]
        return np.concatenate(rows)

    def _padding(self) -> int:
        pad = self._tokenizer.pad_token_id
        if pad is None:
            pad = self._settings.eos_token_id if self._is_causal else self._settings.pad_token_id
        return pad if isinstance(pad, int) else -1  # refused with the tokenizer

    def _check_tokenizer(self) -> None:
        folder, size = self._loaded.folder.path, int(self._settings.vocab_size)
        check_tokenizer(self._tokenizer, size, folder)
        if not 0 <= self._pad < size:
            raise unfit_tokenizer(folder, f"a padding token below {size}", str(self._pad))
        if not self._is_causal:
            return
        end = self._settings.eos_token_id
        if not isinstance(end, int):
            raise unfit_tokenizer(folder, "an eos_token_id (config.json)", str(end)[:40])
        plain, ids = (
            self._tokenizer("a dog", add_special_tokens=special)["input_ids"]
            for special in (False, True)
        )
        # A causal tower has read the whole sentence at its end token alone: a sentence without it
        # is embedded as its first token, and so like any other.
        if self._loaded.folder.model_type == "xclip" or end == _BY_RANK:
            fits = max(*ids[:-1], self._pad) <= ids[-1] and ids.count(ids[-1]) == 1
        else:
            fits = ids[-1] == end and ids.count(end) == 1
        if ids[1:-1] != plain or not fits:
            raise unfit_tokenizer(
                folder,
                "a start token before each sentence, and the model's end token behind it",
                f"the tokens {ids} for 'a dog', whose own are {plain}",
            )

    def _check_weights(self) -> None:
        """Refuse weights that make the same of every sentence, when they are first needed.

        Raises:
            ModelError: If they do.
        """
        if self._is_checked:
            return
        one, other = self._read(self._tokenize(_ORDERS), None)[1]
        if np.allclose(one, other, rtol=0, atol=1e-6 * float(np.abs(one).max())):
            folder = self._loaded.folder
            raise ModelError(
                str(folder.path),
                expected="weights that tell sentences apart",
                got=f"the same features of {_ORDERS[0]!r} and {_ORDERS[1]!r}",
                remedy="copy the weights again from where the model came from",
            )
        self._is_checked = True

    def _tokenize(self, queries: Sequence[str]) -> list[Tokens]:
        return tokenize(self._tokenizer, queries, int(self._settings.max_position_embeddings))

    def _read(
        self, tokens: Sequence[Tokens], hidden: Sequence[Collection[int]] | None
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """Run the text tower: states of each query's tokens, and the projected embeddings."""
        lengths = [len(row.ids) for row in tokens]
        width = max(lengths) if self._is_causal else int(self._settings.max_position_embeddings)
        ids = torch.full((len(tokens), width), self._pad, dtype=torch.int64)
        for index, row in enumerate(tokens):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
        model, device = self._loaded.model, self._loaded.precision.device
        embedding = model.text_model.embeddings.token_embedding
        visible = visible_tokens(tokens, hidden, width).to(device)
        with (
            torch.inference_mode(),
            hidden_tokens(embedding, visible),
        ):
            output = model.text_model(input_ids=ids.to(device))
            pooled = output.pooler_output
            if self._is_causal:
                pooled = model.text_projection(pooled)
        states = self._loaded.to_numpy(output.last_hidden_state)
        cut = [state[:length].copy() for state, length in zip(states, lengths, strict=True)]
        return cut, self._loaded.to_numpy(pooled)


def visible_tokens(
    tokens: Sequence[Tokens], hidden: Sequence[Collection[int]] | None, width: int
) -> Tensor:
    """False where a token belongs to a hidden word, bool ``(B, width)``."""
    visible = torch.ones(len(tokens), width, dtype=torch.bool)
    if hidden is not None:
        for index, row in enumerate(tokens):
            is_hidden = np.isin(row.token_word, list(hidden[index]))
            visible[index, : len(row.ids)] = torch.from_numpy(~is_hidden)
    return visible


@contextmanager
def hidden_tokens(embedding: torch.nn.Module, visible: Tensor) -> Iterator[None]:
    """Within the block token embeddings are zero where ``visible`` ``(B, T)`` is False."""
    if bool(visible.all()):
        yield
        return

    def hide(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        return output * visible.unsqueeze(-1).to(output.dtype)

    handle = embedding.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()
