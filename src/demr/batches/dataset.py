"""Annotations and features -> items and batches; the same for training and evaluation."""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from demr.annotations.annotations import Annotation
from demr.batches.batch import Item, Targets, make_targets
from demr.batches.masking import Masking, plan_mask
from demr.batches.stretches import (
    Stretch,
    cut_features,
    cut_item,
    cut_video,
    holding,
    plan_stretches,
    windows_within,
)
from demr.batches.words import maskable_words
from demr.encoders.base import Encoder, QueryFeatures, VideoFeatures
from demr.errors import FeatureError
from demr.features.pack import FeaturePack
from demr.features.prepare import ALIGN_ROWS, prepare_query, prepare_video


@dataclass(frozen=True)
class Disturbed:
    """What noise made of an item.

    Attributes:
        video: Raw features with noise; None if they stay as they are.
        query: Likewise.
        noise: How much of both is noise, from 0 towards 1.
    """

    video: VideoFeatures | None
    query: QueryFeatures | None
    noise: float


# (raw video, raw query, epoch, item) -> what they become.
Disturbance = Callable[[VideoFeatures, QueryFeatures, int, int], Disturbed]


class MomentDataset(Dataset[Item]):
    """Queries with the features of their videos, held in memory.

    Args:
        annotations: One item each.
        pack: Must hold every video.
        encoder: Encodes the queries; must be the encoder that made the pack.
        masking: Hide words for query reconstruction; None outside stage 1.
        max_clips: For training: of a longer video an item holds one stretch, drawn anew in every
            epoch among those that hold one of its moments, or among all if it has none. None, for
            evaluation, leaves videos whole.

    Attributes:
        disturb: Changes raw features whenever an item is asked for; None outside training with
            noise. Items whose video it changes no longer share it with others.

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
        self.disturb: Disturbance | None = None
        self.epoch = 0
        self._videos: dict[str, tuple[Tensor, Tensor]] = {}
        self._duration_s: dict[str, float] = {}
        # Made when first asked for: a quarter of an alignment step went into making them anew.
        self._targets: dict[int, Targets | None] = {}
        # Items of one stretch share its tensor for as long as a batch holds it.
        self._cut: WeakValueDictionary[tuple[str, int], Tensor] = WeakValueDictionary()
        for vid in sorted({annotation.vid for annotation in annotations}):
            video = pack[vid]
            self._videos[vid] = prepare_video(video, pack.identity)
            self._duration_s[vid] = video.duration_s
        for annotation in annotations:
            self._check_duration(annotation, pack)
        self._pack = pack
        self._identity = pack.identity
        self._queries = encoder.encode_queries([a.query for a in annotations])
        self._texts = [prepare_query(query, pack.identity) for query in self._queries]
        names = sorted({a.event for a in annotations if a.event is not None})
        self._event_ids = {name: index for index, name in enumerate(names)}

    def _check_duration(self, annotation: Annotation, pack: FeaturePack) -> None:
        duration = self._duration_s[annotation.vid]
        if abs(annotation.duration_s - duration) > ALIGN_ROWS * pack.identity.clip_s:
            raise FeatureError(
                f"query {annotation.qid!r}",
                expected=f"a video {annotation.vid} of {duration:g} s, as in {pack.path}",
                got=f"{annotation.duration_s:g} s",
                remedy="are these the annotations of this video?",
            )

    def __len__(self) -> int:
        return len(self.annotations)

    def length(self, index: int) -> int:
        """Number of clips of an item."""
        clips = len(self._videos[self.annotations[index].vid][0])
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
        """One item; in stage 1 with a freshly drawn mask."""
        annotation = self.annotations[index]
        vid = annotation.vid
        video, span_norm = self._videos[vid]
        item = Item(
            video=video,
            text=self._texts[index],
            span_norm=span_norm,
            duration_s=self._duration_s[vid],
            event=-1 if annotation.event is None else self._event_ids[annotation.event],
        )
        stretch = self._draw_stretch(index)
        if stretch is None:
            if index not in self._targets:
                self._targets[index] = self._make_targets(annotation, item)
            item = replace(item, targets=self._targets[index])
        else:
            part = self._cut.get((vid, stretch.start))
            if part is None:
                part = cut_video(item, stretch, self.clip_s)
                self._cut[vid, stretch.start] = part
            item = cut_item(item, stretch, self.clip_s, part)
            item = replace(item, targets=self._make_targets(annotation, item, stretch))
        if self.disturb is not None:
            raw = self._pack[vid]
            if stretch is not None:
                raw = cut_features(raw, stretch, len(video))
            noisy = self.disturb(raw, self._queries[index], self.epoch, index)
            item = replace(item, noise=noisy.noise)
            if noisy.video is not None:
                item = replace(item, video=prepare_video(noisy.video, self._identity)[0])
            if noisy.query is not None:
                item = replace(item, text=prepare_query(noisy.query, self._identity))
        return item if self.masking is None else self._mask(item, index, self.masking)

    def _draw_stretch(self, index: int) -> Stretch | None:
        annotation = self.annotations[index]
        clips = len(self._videos[annotation.vid][0])
        if self.max_clips is None or clips <= self.max_clips:
            return None
        options = list(plan_stretches(clips, self.max_clips))
        generator = np.random.default_rng((self.epoch, index))
        if annotation.windows_s:
            window = annotation.windows_s[int(generator.integers(len(annotation.windows_s)))]
            options = holding(options, window, self.clip_s)
        return options[int(generator.integers(len(options)))]

    def _make_targets(
        self, annotation: Annotation, item: Item, stretch: Stretch | None = None
    ) -> Targets | None:
        if annotation.windows_s is None:
            return None
        if stretch is not None:
            start_s = stretch.start_s(self.clip_s)
            return make_targets(
                windows_within(annotation.windows_s, start_s, item.duration_s, self.clip_s),
                item.span_norm,
                _saliency(annotation, len(item.span_norm), stretch.start),
            )
        # Sources differ by seconds about how long a video is. Clips are fractions of what the
        # features say, and so must windows be, or the two would drift apart.
        duration = self._duration_s[annotation.vid]
        windows = [
            (_inside(start, duration), _inside(end, duration))
            for start, end in annotation.windows_s
        ]
        return make_targets(windows, item.span_norm, _saliency(annotation, len(item.span_norm)))

    def _mask(self, item: Item, index: int, masking: Masking) -> Item:
        query = self._queries[index]
        plan = plan_mask(
            query.words,
            query.token_word,
            maskable_words(query.query, query.words, masking.pos),
            masking.vocabulary,
            masking.words,
            np.random.default_rng((masking.seed, self.epoch, index)),
        )
        text = item.text
        if masking.at_input and plan.masked.any():
            hidden = set(query.token_word[plan.masked.numpy()].tolist())
            encoded = masking.encoder.encode_queries([query.query], hidden=[hidden])[0]
            text = prepare_query(encoded, self._identity)
        return replace(item, text=text, masked=plan.masked, label=plan.label)

    def changed(
        self,
        video: Callable[[VideoFeatures], VideoFeatures] | None = None,
        query: Callable[[QueryFeatures], QueryFeatures] | None = None,
    ) -> Self:
        """Return the same items with other raw features, prepared as any are.

        Args:
            video: Applied to each video, in the order of their names; None leaves them alone.
            query: Applied to each query, in order; None leaves them alone.

        Raises:
            FeatureError: If what it returns is not fit for the encoder.
        """
        other = copy(self)
        other._targets, other._cut = {}, WeakValueDictionary()
        if video is not None:
            other._videos = {
                vid: prepare_video(video(self._pack[vid]), self._identity) for vid in self._videos
            }
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

    @property
    def queries(self) -> Sequence[QueryFeatures]:
        """Encoded queries, in the order of the annotations."""
        return self._queries


def _inside(time_s: float, duration_s: float) -> float:
    return min(time_s / duration_s, 1.0)


def _saliency(annotation: Annotation, length: int, first: int = 0) -> Tensor | None:
    if annotation.saliency is None:
        return None
    saliency = torch.zeros(length)
    for clip, value in annotation.saliency.items():
        if 0 <= clip - first < length:
            saliency[clip - first] = value
    return saliency
