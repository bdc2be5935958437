"""Annotations and features -> items and batches; the same for training and evaluation."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from demr.annotations.annotations import Annotation
from demr.batches.batch import Item, Targets, make_targets
from demr.batches.masking import Masking, plan_mask, reached_words
from demr.batches.stretches import Stretch, holding, plan_stretches, windows_within
from demr.batches.videos import PreparedVideos, VideoChange
from demr.batches.words import maskable_words, normalized_sentence
from demr.encoders.base import Encoder, QueryFeatures, VideoFeatures
from demr.errors import FeatureError
from demr.features.pack import FeaturePack
from demr.features.prepare import ALIGN_ROWS, prepare_query, prepare_video

# Tells the draw of a stretch from the draws of masks and noise, which take the same numbers.
_STRETCH_DRAW = 1


@dataclass(frozen=True)
class NoisyFeatures:
    """Raw features of one item with noise.

    Attributes:
        video: Of the video; None if it stays as it is.
        query: Of the query; None if it stays as it is.
        noise: Share of noise in both, from 0 towards 1.
    """

    video: VideoFeatures | None
    query: QueryFeatures | None
    noise: float


# (raw video, raw query, epoch, item) -> both with noise.
Augmentation = Callable[[VideoFeatures, QueryFeatures, int, int], NoisyFeatures]


class MomentDataset(Dataset[Item]):
    """Queries, held in memory, with the features of their videos, prepared when asked for.

    Args:
        annotations: One item each.
        pack: Must hold every video.
        encoder: Encodes the queries; must be the encoder that made the pack.
        masking: Hide words for query reconstruction; None outside stage 1.
        max_clips: For training: of a longer video an item holds one stretch, drawn anew in every
            epoch among those that hold one of its moments, or among all if it has none. None, for
            evaluation, leaves videos whole.
        seed: With the epoch and the item, decides which stretch is drawn.

    Attributes:
        augment: Adds noise to raw features whenever an item is asked for; None outside training
            with noise. Items whose video it changes no longer share it with others.

    Raises:
        FeatureError: If the pack is another encoder's, a video is missing, or its duration is
            not the annotated one.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        pack: FeaturePack,
        encoder: Encoder,
        masking: Masking | None = None,
        max_clips: int | None = None,
        seed: int = 0,
    ) -> None:
        if not pack.identity.fits(encoder.identity):
            raise FeatureError(
                str(pack.path),
                expected=f"features of {encoder.identity}",
                got=f"features of {pack.identity}",
                remedy="set data.encoder to the encoder that made the features",
            )
        self.annotations = tuple(annotations)
        self.masking = masking
        self.max_clips = max_clips
        self.seed = seed
        self.augment: Augmentation | None = None
        self.epoch = 0
        self._pack = pack
        self._identity = pack.identity
        # Made when first asked for: a quarter of an alignment step went into making them anew.
        self._targets: dict[int, Targets] = {}
        vids = sorted({annotation.vid for annotation in annotations})
        self._videos = PreparedVideos(pack, vids)
        self._duration_s = {vid: pack[vid].duration_s for vid in vids}
        for annotation in annotations:
            self._check_duration(annotation)
        self._queries = encoder.encode_queries([a.query for a in annotations])
        self._texts = [prepare_query(query, pack.identity) for query in self._queries]
        self._vid_ids = _numbered(vids)
        self._event_ids = _numbered(sorted({a.event for a in annotations if a.event is not None}))
        self._shown = _shown_events(annotations, self._event_ids)
        sentences = [normalized_sentence(a.query) for a in annotations]
        sentence_ids = _numbered(sentences)
        self._sentence_ids = [sentence_ids[sentence] for sentence in sentences]

    def _check_duration(self, annotation: Annotation) -> None:
        duration = self._duration_s[annotation.vid]
        longer = annotation.duration_s - duration
        # A guess is the end of a window: no more than what the video must at least last.
        off = longer if annotation.duration_guessed else abs(longer)
        if off > ALIGN_ROWS * self._identity.clip_s:
            raise FeatureError(
                f"query {annotation.qid!r}",
                expected=f"a video {annotation.vid} of {duration:g} s, as in {self._pack.path}",
                got=f"{annotation.duration_s:g} s",
                remedy="are these the annotations of this video?",
            )

    def __len__(self) -> int:
        return len(self.annotations)

    def length(self, index: int) -> int:
        """Number of clips of an item."""
        clips = self._videos.clips[self.annotations[index].vid]
        return clips if self.max_clips is None else min(clips, self.max_clips)

    @property
    def longest(self) -> int:
        """Clips of the longest item."""
        return max(map(self.length, range(len(self))))

    @property
    def clip_s(self) -> float:
        """Length of a clip in seconds."""
        return self._identity.clip_s

    def __getitem__(self, index: int) -> Item:
        """One item; in training with freshly drawn stretch, noise and mask.

        Raises:
            FeatureError: If the features of its video are damaged.
        """
        stretch = self._draw_stretch(index)
        item = self._plain_item(index, stretch)
        if self.augment is not None:
            item = self._with_noise(item, index, stretch, self.augment)
        return item if self.masking is None else self._with_mask(item, index, self.masking)

    def _plain_item(self, index: int, stretch: Stretch | None) -> Item:
        annotation = self.annotations[index]
        vid = annotation.vid
        duration_s = self._duration_s[vid]
        if stretch is not None:
            duration_s = stretch.duration_s(duration_s, self._videos.clips[vid], self.clip_s)
        video = self._videos.prepared(vid, stretch)
        item = Item(
            video=video,
            text=self._texts[index],
            span_norm=video[:, self._identity.video_dim :],
            duration_s=duration_s,
            vid=self._vid_ids[vid],
            first_clip=0 if stretch is None else stretch.start,
            event=-1 if annotation.event is None else self._event_ids[annotation.event],
            sentence=self._sentence_ids[index],
            shown=self._shown.get(vid, frozenset()),
        )
        return replace(item, targets=self._targets_of(index, item, stretch))

    def _draw_stretch(self, index: int) -> Stretch | None:
        annotation = self.annotations[index]
        clips = self._videos.clips[annotation.vid]
        if self.max_clips is None or clips <= self.max_clips:
            return None
        options = list(plan_stretches(clips, self.max_clips))
        generator = np.random.default_rng((self.seed, self.epoch, index, _STRETCH_DRAW))
        if annotation.windows_s:
            window = annotation.windows_s[int(generator.integers(len(annotation.windows_s)))]
            options = holding(options, window, self.clip_s)
        return options[int(generator.integers(len(options)))]

    def _targets_of(self, index: int, item: Item, stretch: Stretch | None) -> Targets | None:
        if stretch is None and index in self._targets:
            return self._targets[index]
        annotation = self.annotations[index]
        if annotation.windows_s is None:
            return None
        if stretch is None:
            # Sources differ by seconds about how long a video is. Clips are fractions of what the
            # features say, and so must windows be, or the two would drift apart.
            windows = _fractions(annotation.windows_s, item.duration_s)
        else:
            start_s = stretch.start_s(self.clip_s)
            windows = windows_within(annotation.windows_s, start_s, item.duration_s, self.clip_s)
        saliency = _saliency(annotation, len(item.span_norm), item.first_clip)
        targets = make_targets(windows, item.span_norm, saliency)
        if stretch is None:
            self._targets[index] = targets
        return targets

    def _with_noise(
        self, item: Item, index: int, stretch: Stretch | None, augment: Augmentation
    ) -> Item:
        raw = self._videos.raw(self.annotations[index].vid, stretch)
        noisy = augment(raw, self._queries[index], self.epoch, index)
        video, text = item.video, item.text
        if noisy.video is not None:
            video = prepare_video(noisy.video, self._identity)[0]
        if noisy.query is not None:
            text = prepare_query(noisy.query, self._identity)
        return replace(item, video=video, text=text, noise=noisy.noise)

    def _with_mask(self, item: Item, index: int, masking: Masking) -> Item:
        query = self._queries[index]
        plan = plan_mask(
            query.words,
            query.token_word,
            maskable_words(query.query, query.words, masking.pos),
            masking.vocabulary,
            np.random.default_rng((masking.seed, self.epoch, index)),
            query.word_span,
        )
        text = item.text
        if masking.at_input and plan.masked.any():
            hidden = set(query.token_word[plan.masked.numpy()].tolist())
            encoded = masking.encoder.encode_queries([query.query], hidden=[hidden])[0]
            text = prepare_query(encoded, self._identity)
        return replace(item, text=text, masked=plan.masked, label=plan.label)

    def changed(
        self,
        video: VideoChange | None = None,
        query: Callable[[QueryFeatures], QueryFeatures] | None = None,
    ) -> Self:
        """Return the same items with other raw features, prepared as any are.

        Args:
            video: Applied to a video each time that it is prepared, so it must give the same for
                the same video; None leaves them alone.
            query: Applied to each query now, in order; None leaves them alone.

        Raises:
            FeatureError: If what ``query`` returns is not fit for the encoder.
        """
        other = copy(self)
        if video is not None:
            other._videos = PreparedVideos(self._pack, self._videos.clips, video)
        if query is not None:
            other._queries = [query(features) for features in self._queries]
            other._texts = [prepare_query(q, self._identity) for q in other._queries]
        return other

    def words_of(self, pos: Collection[str]) -> list[str]:
        """All maskable words of all queries, with repetitions."""
        return [
            query.words[index]
            for query in self._queries
            for index in maskable_words(query.query, query.words, pos)
        ]

    def never_masked(self, pos: Collection[str]) -> tuple[int, int]:
        """Queries without a word of some kinds, and those of whose words no token is known."""
        wordless = unplaced = 0
        for query in self._queries:
            words = maskable_words(query.query, query.words, pos)
            wordless += not words
            reached = reached_words(query.token_word, query.word_span)
            unplaced += bool(words) and not reached.intersection(words)
        return wordless, unplaced

    @property
    def queries(self) -> Sequence[QueryFeatures]:
        """Encoded queries, in the order of the annotations."""
        return self._queries


def _shown_events(
    annotations: Sequence[Annotation], event_ids: Mapping[str, int]
) -> dict[str, frozenset[int]]:
    """Ids of the events that each video is known to hold.

    They are those of its queries with windows, and all that are named with a part of the words of
    one of these: where a red circle bounces there is a red circle, and something that bounces.
    """
    named_with: dict[str, set[int]] = defaultdict(set)
    for name, number in event_ids.items():
        for word in name.split() or [name]:
            named_with[word].add(number)
    parts: dict[int, list[int]] = defaultdict(list)
    for name, number in event_ids.items():
        words = name.split() or [name]
        for longer in set.intersection(*(named_with[word] for word in words)):
            parts[longer].append(number)
    shown: dict[str, set[int]] = defaultdict(set)
    for annotation in annotations:
        if annotation.event is not None and annotation.windows_s:
            shown[annotation.vid].update(parts[event_ids[annotation.event]])
    return {vid: frozenset(events) for vid, events in shown.items()}


def _fractions(
    windows_s: Sequence[tuple[float, float]], duration_s: float
) -> list[tuple[float, float]]:
    return [(min(start / duration_s, 1.0), min(end / duration_s, 1.0)) for start, end in windows_s]


def _saliency(annotation: Annotation, length: int, first: int) -> Tensor | None:
    if annotation.saliency is None:
        return None
    saliency = torch.zeros(length)
    for clip, value in annotation.saliency.items():
        if 0 <= clip - first < length:
            saliency[clip - first] = value
    return saliency


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}
