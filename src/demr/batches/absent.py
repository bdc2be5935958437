"""Absent queries: sentences of a split, asked about videos of it that do not show their moments.

Where a data set has none, ``present`` is calibrated and measured on these. Half are hard: they
share a noun or a verb with the queries of the video. Annotators describe a part of what a video
shows, so some of these moments may be in it all the same; sentences that say as much as a query of
the video, or more or less than it in the same words, are never taken.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from demr.annotations.annotations import Annotation
from demr.batches.words import has_tagger, maskable_words, normalized_sentence
from demr.encoders.words import split_words

_SHORTEST = 4  # letters of a content word, where no tagger tells nouns and verbs
_ENDINGS = ("ing", "ed", "es", "s")
# Who acts, that an action begins, and words that only join others: two sentences that share these
# alone have nothing in common.
_EMPTY_WORDS = (
    "person people man men woman women boy boys girl girls guy guys lady child children kid kids "
    "someone somebody something everyone other others another one start starts begin begins then "
    "after before while when with without into onto from over under around about across through "
    "this that these those there here their them they have been being does they're very some "
    "what which where near next back down again"
)


@dataclass(frozen=True)
class _Meaning:
    """What a sentence is about, in stems.

    Attributes:
        things: Nouns and verbs.
        content: These and adjectives.
    """

    things: frozenset[str]
    content: frozenset[str]


def make_absent(annotations: Sequence[Annotation], seed: int = 0) -> list[Annotation]:
    """Ask about the video of each present query what another video of the split shows.

    Args:
        annotations: A whole split, so that all queries of a video are known.
        seed: Of the draw; equal seeds give equal queries, with the tagger and without it.

    Returns:
        At most one a query with windows, vague ones left out; every other one, in a shuffled
        order, is hard where the split allows it. Fewer where no sentence is fit for a video, none
        where the split has absent queries already. ``qid`` is that of the sentence, ``-not-in-``
        and the video.
    """
    if any(annotation.windows_s == () for annotation in annotations):
        return []
    present = [a for a in annotations if a.windows_s and a.kind != "vague"]
    if not present:
        return []
    generator = np.random.default_rng(seed)
    draw = _Draw(annotations, present, generator)
    hard = generator.permutation(len(present)) < len(present) // 2
    made = []
    for target, is_hard in zip(present, hard, strict=True):
        donor = (draw.hard(target.vid) if is_hard else None) or draw.any(target.vid)
        if donor is not None:
            made.append(_asked_about(donor, target))
    return made


def text_qid(annotation: Annotation) -> str:
    """The qid that stored text features of a query are found under: that of its sentence."""
    if annotation.windows_s != ():
        return str(annotation.qid)
    return str(annotation.qid).removesuffix(_suffix(annotation.vid))


def _asked_about(donor: Annotation, target: Annotation) -> Annotation:
    qid = f"{donor.qid}{_suffix(target.vid)}"
    return Annotation(qid, donor.query, target.vid, target.duration_s, (), kind="absent")


def _suffix(vid: str) -> str:
    return f"-not-in-{vid}"


class _Draw:
    """Draws sentences for videos, none twice for one video.

    Args:
        annotations: All queries of the split.
        donors: Those whose sentences may be asked about other videos.
        generator: Source of the draw.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        donors: Sequence[Annotation],
        generator: np.random.Generator,
    ) -> None:
        self._generator = generator
        self._tagger = has_tagger()
        self._meanings = {a.query: self._meaning(a.query) for a in annotations}
        self._qids = {annotation.qid for annotation in annotations}
        # By video: nouns and verbs of its queries; sentences and contents that are taken.
        self._things: dict[str, set[str]] = defaultdict(set)
        self._sentences: dict[str, set[str]] = defaultdict(set)
        self._contents: dict[str, list[frozenset[str]]] = defaultdict(list)
        for annotation in annotations:
            self._things[annotation.vid] |= self._meanings[annotation.query].things
            self._take(annotation.vid, annotation.query)
        self._donors = [donors[index] for index in generator.permutation(len(donors))]
        self._about: dict[str, list[Annotation]] = defaultdict(list)
        for donor in self._donors:
            for thing in self._meanings[donor.query].things:
                self._about[thing].append(donor)

    def hard(self, vid: str) -> Annotation | None:
        """A fit sentence that shares a noun or a verb with a query of the video."""
        things = sorted(self._things[vid])
        for index in self._generator.permutation(len(things)):
            donor = self._first_fit(vid, self._about[things[index]])
            if donor is not None:
                return donor
        return None

    def any(self, vid: str) -> Annotation | None:
        """Any fit sentence."""
        return self._first_fit(vid, self._donors)

    def _first_fit(self, vid: str, donors: Sequence[Annotation]) -> Annotation | None:
        for donor in _from_anywhere(donors, self._generator):
            if self._is_fit(donor, vid):
                self._take(vid, donor.query)
                return donor
        return None

    def _take(self, vid: str, query: str) -> None:
        self._sentences[vid].add(normalized_sentence(query))
        self._contents[vid].append(self._meanings[query].content)

    def _is_fit(self, donor: Annotation, vid: str) -> bool:
        if donor.vid == vid or f"{donor.qid}{_suffix(vid)}" in self._qids:
            return False
        content = self._meanings[donor.query].content
        if not content or normalized_sentence(donor.query) in self._sentences[vid]:
            return False
        return not any(
            taken and (taken <= content or content <= taken) for taken in self._contents[vid]
        )

    def _meaning(self, query: str) -> _Meaning:
        words = split_words(query)
        if not self._tagger:
            content = _stems(word for word in words if len(word) >= _SHORTEST)
            return _Meaning(content, content)
        things = _stems(words[i] for i in maskable_words(query, words, ("noun", "verb")))
        qualities = _stems(words[i] for i in maskable_words(query, words, ("adjective",)))
        return _Meaning(things, things | qualities)


def _from_anywhere(
    donors: Sequence[Annotation], generator: np.random.Generator
) -> Iterator[Annotation]:
    """All of them in a circle from a random one; no new order, which would take n squared."""
    if donors:
        start = int(generator.integers(len(donors)))
        yield from donors[start:]
        yield from donors[:start]


def _stems(words: Iterator[str]) -> frozenset[str]:
    return frozenset(stem for word in words if (stem := _stem(word)) not in _EMPTY_STEMS)


def _stem(word: str) -> str:
    """Crude: what the forms of a regular noun or verb have in common.

    >>> [_stem(word) for word in ("closes", "closing", "close", "putting", "carries", "carry")]
    ['clos', 'clos', 'clos', 'put', 'carri', 'carri']
    """
    word = word.removesuffix("'s")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    if len(word) > 3:
        word = word.removesuffix("e")
    return f"{word[:-1]}i" if word.endswith("y") else word


_EMPTY_STEMS = frozenset(map(_stem, _EMPTY_WORDS.split()))
