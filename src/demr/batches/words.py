"""Parts of speech of a query's words: which of them query reconstruction may mask."""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from demr.encoders.words import split_words
from demr.errors import InputError

PartOfSpeech = Literal["noun", "verb", "adjective"]
PARTS_OF_SPEECH: frozenset[str] = frozenset(get_args(PartOfSpeech))

# Letters and digits, held together by hyphens and apostrophes; anything else stands alone.
_TOKEN = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")
_LONGEST = 40  # letters of a word that are looked at; the tagger's time grows with their square
_NOT = re.compile(r"^(\w+)(n't)$", re.IGNORECASE)
_CLITIC = re.compile(r"^(.+?)('(?:s|re|ve|ll|d|m))$", re.IGNORECASE)


def maskable_words(query: str, words: Sequence[str], pos: Collection[str]) -> tuple[int, ...]:
    """Find the words of a query that belong to the wanted parts of speech.

    Auxiliaries (be, have, do, can ...) are not counted as verbs: they say little about a video.

    Args:
        query: The sentence as written; case and punctuation help the tagger.
        words: The encoder's words of it, lower-cased and without punctuation. They may be fewer
            than the sentence has (encoders cut long ones) and split or join differently.
        pos: Any of ``noun``, ``verb``, ``adjective``.

    Returns:
        Increasing indices into ``words``.

    Raises:
        InputError: If a part of speech is unknown or the tagger is not installed.
    """
    wanted = frozenset(pos)
    if not wanted <= PARTS_OF_SPEECH:
        raise InputError(
            "parts of speech",
            expected=f"some of {', '.join(sorted(PARTS_OF_SPEECH))}",
            got=", ".join(sorted(wanted - PARTS_OF_SPEECH)),
            remedy="correct the setting",
        )
    if not wanted:
        return ()
    tags = _tags_of_words(query, tuple(words))
    return tuple(index for index, tag in enumerate(tags) if tag in wanted)


def normalized_sentence(query: str) -> str:
    """What is equal of two queries that differ in case, white space and punctuation alone.

    >>> normalized_sentence(" Person opens the  DOOR.")
    'person opens the door'
    """
    # A query of signs alone, such as "!?", is only itself.
    return " ".join(split_words(query)) or query


def has_tagger() -> bool:
    """Whether the package that tells parts of speech is installed."""
    return find_spec("HanTa") is not None


def split_query(query: str) -> list[str]:
    """Split a sentence as the tagger was trained to see it.

    >>> split_query("He doesn't open the dog's T-shirt box.")
    ['He', 'does', "n't", 'open', 'the', 'dog', "'s", 'T-shirt', 'box', '.']
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(query.replace("\u2019", "'")):  # a typographer's apostrophe
        match = _NOT.match(token) or _CLITIC.match(token)
        tokens.extend(match.groups() if match else (token,))
    return tokens


@lru_cache(maxsize=65536)
def _tags_of_words(query: str, words: tuple[str, ...]) -> tuple[PartOfSpeech | None, ...]:
    tokens = split_query(query)
    # Both lists come from one text, so their letters run in parallel however each was split.
    owner = [index for index, token in enumerate(tokens) for _ in _letters(token)]
    spelled = "".join(_letters(token) for token in tokens)
    if not spelled.startswith("".join(_letters(word) for word in words)):
        # The encoder rewrote the text (unknown-word marks, say): only the encoder's words are left.
        tokens = list(words)
        owner = [index for index, token in enumerate(tokens) for _ in _letters(token)]
    tags = tag_tokens(tuple(tokens))
    found: list[PartOfSpeech | None] = []
    position = 0
    for word in words:
        length = len(_letters(word))
        # A word that joins several tokens (doesn't, dog's) is what its first one is.
        found.append(tags[owner[position]] if length else None)
        position += length
    return tuple(found)


def _letters(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum())


def tag_tokens(tokens: tuple[str, ...]) -> tuple[PartOfSpeech | None, ...]:
    """Tag the tokens of one sentence; the one place that knows which tagger is used.

    Args:
        tokens: As :func:`split_query` gives them; punctuation among them.

    Returns:
        One tag a token, ``None`` for everything that is no noun, main verb or adjective.

    Raises:
        InputError: If the tagger is not installed.
    """
    if not tokens:
        return ()
    tag_sentence, known_tags = _tagger()
    # Queries are written in any case. A capital makes the tagger see a name, and "Find" is none.
    lowered = [token[:_LONGEST].lower() for token in tokens]
    tags = tag_sentence(lowered)
    return tuple(_coarse(tag) for tag in _with_verb(lowered, tags, known_tags))


_Tagger = tuple[Callable[[list[str]], list[str]], Callable[[str], frozenset[str]]]


@lru_cache(maxsize=1)
def _tagger() -> _Tagger:
    try:
        from HanTa import HanoverTagger
    except ImportError as error:
        raise InputError(
            "part-of-speech tagger",
            expected="the package HanTa",
            got="no such package",
            remedy="pip install -c constraints.txt 'demr[train]'",
        ) from error
    # The whole path: given the bare name, HanTa would first look in the current folder, and what
    # it finds it unpickles.
    model = Path(HanoverTagger.__file__).with_name("morphmodel_en.pgz")
    tagger = HanoverTagger.HanoverTagger(str(model))

    def tag_sentence(tokens: list[str]) -> list[str]:
        tags: list[str] = tagger.tag_sent(tokens, taglevel=0, casesensitive=False)
        return tags

    @lru_cache(maxsize=4096)
    def known_tags(token: str) -> frozenset[str]:
        return frozenset(tag for tag, _ in tagger.tag_word(token, casesensitive=False))

    return tag_sentence, known_tags


def _with_verb(
    tokens: list[str], tags: list[str], known_tags: Callable[[str], frozenset[str]]
) -> list[str]:
    """Mend two habits of the tagger, which learned from newspapers and novels.

    Tags are those of the British National Corpus (C5). There, a noun before a word like "jumps"
    is mostly part of a plural ("high jumps"), and an -ing after "is" often describes. In queries
    about videos somebody does something: a clause without a main verb gets the likeliest one.
    """
    mended: list[str] = []
    start = 0
    for index, tag in enumerate([*tags, "PUN"]):
        if tag.startswith(("CJ", "PU")):  # conjunctions and punctuation end a clause
            mended += _mend_clause(tokens[start:index], tags[start:index], known_tags)
            mended += tags[index : index + 1]
            start = index + 1
    return mended


def _mend_clause(
    tokens: list[str], tags: list[str], known_tags: Callable[[str], frozenset[str]]
) -> list[str]:
    mended = list(tags)
    for index, tag in enumerate(tags):
        before = tags[index - 1] if index else ""
        if tag == "AJ0" and before.startswith("VB") and "VVG" in known_tags(tokens[index]):
            mended[index] = "VVG"  # "is growing"
    if not tags or any(tag.startswith("VV") for tag in mended):
        return mended
    asks = tags[0].startswith("VD") or tags[0] == "AVQ"  # "does it ...", "when does it ..."
    forms = {"VVI", "VVB"} if asks else {"VVZ", "VVG"}
    for index in range(len(tokens) - 1, 0, -1):
        follows_subject = mended[index - 1].startswith(("N", "PN"))
        if mended[index].startswith(("NN", "AJ0")) and follows_subject:
            verb = sorted(forms & known_tags(tokens[index]))
            if verb:
                mended[index] = verb[0]
                break
    return mended


def _coarse(tag: str) -> PartOfSpeech | None:
    if tag.startswith("N"):
        return "noun"
    if tag.startswith("VV"):
        return "verb"
    return "adjective" if tag.startswith("AJ") else None
