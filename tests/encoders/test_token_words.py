"""Words of stored text against tokenizers of every kind, which know where each token stands."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from demr.encoders.tokens import CUTS, align_pieces, likeliest_cut, token_words, word_spans
from demr.encoders.words import normalize_query, split_words

Array = np.ndarray[Any, Any]
Cuts = list[tuple[str, list[str], Array]]
tokenizers = pytest.importorskip("tokenizers")

NOUNS = [
    "dog",
    "cat",
    "woman",
    "photographer",
    "skateboarder",
    "kitchen",
    "refrigerator",
    "1998",
    "door",
    "puppy's",
]
VERBS = [
    "opens",
    "closes",
    "doesn't",
    "see",
    "photographs",
    "re-arranges",
    "sits",
    "on",
    "washes",
    "3",
    "of",
]
SIGNS = (".", "", "!", " ...", ", slowly?", " (again)", ' "so"', "!?")
ODD = (
    "Le café de Zoë, naïvement.",
    "A dog – or a wolf? – runs_away!",
    "the 2nd T-shirt's #1 fan",
    "person 🦒 walks 東京 today",
    "He said: don’t... stop",
)


def sentences() -> list[str]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(150):
        one, verb, two = rng.choice(NOUNS), rng.choice(VERBS), rng.choice(NOUNS)
        made.append(f"The {one} {verb} the old {two}{rng.choice(SIGNS)}")
    return [*dict.fromkeys(made), *ODD]


def wordpiece(size: int) -> Any:
    t = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    t.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    t.train_from_iterator(
        sentences()[:100],
        tokenizers.trainers.WordPieceTrainer(vocab_size=size, special_tokens=special),
    )
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return t


def sentencepiece(size: int, begin: bool) -> Any:
    t = tokenizers.Tokenizer(tokenizers.models.Unigram())
    t.normalizer = tokenizers.normalizers.NFKC()
    t.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Metaspace(), tokenizers.pre_tokenizers.Punctuation()]
    )
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",  # noqa: S106
    )
    t.train_from_iterator([normalize_query(s) for s in sentences()[:100]], trainer)
    single = "</s> $A" if begin else "$A </s>"
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[("</s>", 1)]
    )
    return t


def byte_level(size: int) -> Any:
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    t.train_from_iterator(
        [normalize_query(s) for s in sentences()[:100]],
        tokenizers.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return t


KINDS = {
    "WordPiece": lambda: wordpiece(400),
    "WordPiece, small": lambda: wordpiece(120),
    "SentencePiece, end": lambda: sentencepiece(120, begin=False),
    "SentencePiece, start": lambda: sentencepiece(120, begin=True),
    "byte-level BPE": lambda: byte_level(450),
    "byte-level BPE, small": lambda: byte_level(300),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def cut_queries(
    request: pytest.FixtureRequest,
) -> Cuts:
    """Queries, tokens as spelled, and the truth by the tokenizer's own offsets."""
    tokenizer = KINDS[request.param]()
    made = []
    for query in sentences():
        text = normalize_query(query)
        row = tokenizer.encode(text)
        made.append((query, row.tokens, token_words(row.offsets, text)))
    return made


def test_spelled_tokens_find_their_words(
    cut_queries: Cuts,
) -> None:
    wrong = []
    for query, tokens, truth in cut_queries:
        found = align_pieces(tokens, query)
        if found is None or not _agree(found, truth, tokens):
            wrong.append((query, tokens, None if found is None else found.tolist(), truth.tolist()))
    assert len(wrong) <= len(cut_queries) // 50, wrong[:5]


def _agree(found: Array, truth: Array, tokens: list[str]) -> bool:
    """No word is another's; a lone word mark or an unknown piece may belong to none."""
    return all(
        a == b or (a == -1 and (token in ("▁", "Ġ", "<unk>", "[UNK]") or not token.isalnum()))
        for a, b, token in zip(found, truth, tokens, strict=True)
    )


def test_counts_bound_where_words_lie(
    cut_queries: Cuts,
) -> None:
    """What is hidden holds all of a word, and nearly every query has a word that can be hidden."""
    queries = [query for query, _, _ in cut_queries]
    counts = [len(tokens) for _, tokens, _ in cut_queries]
    starts = all(tokens[0] == cut_queries[0][1][0] for _, tokens, _ in cut_queries)
    alike = starts and cut_queries[0][1][0].startswith(("[", "<"))
    cut = likeliest_cut(queries, counts, starts_alike=alike)
    if cut is None:  # nearly every word is in parts: then only the tokens themselves would tell
        for cut in CUTS:
            whole = sum(len(cut.token_word(q)) == n for q, n in zip(queries, counts, strict=True))
            assert whole < len(queries) / 4
        return
    placed = outside = total = 0
    for query, tokens, truth in cut_queries:
        exact = cut.token_word(query)
        places = dict(_places(query, exact, cut, len(tokens)))
        placed += bool(places)
        for word, (first, behind) in places.items():
            mine = np.flatnonzero(truth == word)
            total += 1
            outside += bool(len(mine) and (mine[0] < first or mine[-1] >= behind))
    assert placed >= 0.8 * len(queries), (placed, len(queries), cut)
    assert outside <= 0.05 * total, (outside, total, cut)


def _places(
    query: str, exact: Array, cut: Any, count: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    if len(exact) == count:
        for word in range(len(split_words(query))):
            mine = np.flatnonzero(exact == word)
            if len(mine):
                yield word, (int(mine[0]), int(mine[-1]) + 1)
        return
    spans = word_spans(query, cut, count)
    for word, (first, behind) in enumerate([] if spans is None else spans.tolist()):
        if first < behind:
            yield word, (first, behind)


@pytest.mark.parametrize(
    ("tokens", "query", "words"),
    [
        (["[CLS]", "un", "##lock", "it", "[SEP]"], "Unlock it", [-1, 0, 0, 1, -1]),
        (["▁the", "▁caf", "é", ".", "</s>"], "The café.", [0, 1, 1, -1, -1]),
        (["▁caf", "<0xC3>", "<0xA9>", "</s>"], "café", [0, 0, 0, -1]),
        (["Ġcaf", "Ã", "©", "Ġbar"], "café bar", [0, 0, 0, 1]),
        (
            ["<|startoftext|>", "pu", "ppy</w>", "'s</w>", "<|endoftext|>"],
            "Puppy's",
            [-1, 0, 0, 0, -1],
        ),
        (["[CLS]", "[UNK]", "runs", "[SEP]"], "Xylograph runs", [-1, 0, 1, -1]),
        (["[CLS]", "a", "[UNK]", "[UNK]", "[SEP]"], "a bc de", [-1, 0, 1, 2, -1]),
        (["[CLS]", "[UNK]", "c", "[SEP]"], "a b c", [-1, -1, 2, -1]),
        (["cafe", "##teria"], "Cafétéria", [0, 0]),
        (["other", "words"], "a dog", None),
        (["[CLS]", "a", "[SEP]"], "a dog", None),
    ],
)
def test_tokens_by_hand(tokens: list[str], query: str, words: list[int] | None) -> None:
    found = align_pieces(tokens, query)
    assert (None if found is None else found.tolist()) == words


def test_spans_by_hand() -> None:
    """Nine letters in three tokens, behind a start and before "runs" and the end."""
    query = "a zzzzzzzzz runs"
    cut = likeliest_cut(["a dog runs"], [5])
    assert cut is not None
    spans = word_spans(query, cut, 7)
    assert spans is not None
    # One more for "runs", or two more for the long word, or one for each.
    assert spans.tolist() == [[1, 2], [2, 5], [3, 6]]
    assert word_spans(query, cut, 4) is None
    assert word_spans(query, cut, 40) is None
