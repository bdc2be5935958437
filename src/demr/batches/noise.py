"""Gaussian noise on raw features: to measure how uncertainty answers to it, and to train with."""

import math
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from demr.batches.dataset import MomentDataset, NoisyFeatures
from demr.encoders.base import QueryFeatures, VideoFeatures
from demr.features.pack import FeaturePack
from demr.features.prepare import as_float32, feature_statistics

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
# Training draws levels down to this part of the largest one.
_WEAKEST = 1 / 16


@dataclass(frozen=True)
class FeatureDeviation:
    """Standard deviation of every raw feature over the training data, the unit of noise.

    Attributes:
        video: Over the clips of all videos, ``(Dv,)``.
        text: Over the tokens of all queries, ``(Dt,)``.
    """

    video: Floats
    text: Floats

    @classmethod
    def of(cls, train: MomentDataset, pack: FeaturePack) -> "FeatureDeviation":
        """Measure it.

        Args:
            train: The training queries.
            pack: Holds their videos.
        """
        vids = sorted({annotation.vid for annotation in train.annotations})
        tokens = np.concatenate([query.features for query in train.queries])
        return cls(
            feature_statistics(pack[vid] for vid in vids)[1].astype(np.float64), tokens.std(axis=0)
        )


@dataclass(frozen=True)
class FeatureNoise:
    """Gaussian noise on the raw features of one modality or both, before any normalisation.

    Equal seeds give equal noise, scaled by the level: curves over levels are smooth.

    Attributes:
        video: Standard deviation of each video dimension, ``(Dv,)``; None leaves video alone.
        text: Standard deviation of each token dimension, ``(Dt,)``; None leaves text alone.
        level: Factor on both.
        seed: Of the noise.
    """

    video: Floats | None
    text: Floats | None
    level: float
    seed: int = 0

    def apply(self, dataset: MomentDataset) -> MomentDataset:
        """Return the items with noise: the same on a video whichever query asks about it."""
        words = np.random.default_rng(self.seed)

        def on_video(video: VideoFeatures) -> VideoFeatures:
            # By the name, as videos are prepared in any order and more than once.
            clips = np.random.default_rng((self.seed, crc32(video.vid.encode())))
            features = as_float32(video.features)
            return replace(video, features=add_noise(features, self.level, self.video, clips))

        def on_query(query: QueryFeatures) -> QueryFeatures:
            return replace(query, features=add_noise(query.features, self.level, self.text, words))

        return dataset.changed(
            None if self.video is None else on_video, None if self.text is None else on_query
        )


@dataclass(frozen=True)
class TrainingNoise:
    """Noise augmentation: on a share of the training items, drawn anew in every epoch.

    Video and text get noise independently, so that items with noise on one modality, on both and
    on none all occur.

    Attributes:
        deviation: The unit of noise.
        video_share: Of the items whose video gets noise.
        text_share: Of those whose text does.
        level: Largest factor on the deviation; an item's is drawn log-uniformly between a
            sixteenth of it and all of it.
        seed: With the epoch and the item, decides everything.
    """

    deviation: FeatureDeviation
    video_share: float
    text_share: float
    level: float
    seed: int

    def augment(
        self, video: VideoFeatures, query: QueryFeatures, epoch: int, index: int
    ) -> NoisyFeatures:
        """Draw an item's noise, which comes before any normalisation.

        Noise of deviation ``level`` leaves ``1 / (1 + level)`` of a modality: ``noise`` is 1 less
        the product of what is left of both, so that it weighs the same on either.
        """
        generator = np.random.default_rng((self.seed, epoch, index))
        levels = self.level * np.exp(generator.uniform(math.log(_WEAKEST), 0.0, 2))
        levels *= generator.random(2) < (self.video_share, self.text_share)
        on_video, on_text = levels
        noisy_video = noisy_query = None
        if on_video:
            features = as_float32(video.features)
            features = add_noise(features, on_video, self.deviation.video, generator)
            noisy_video = replace(video, features=features)
        if on_text:
            features = add_noise(query.features, on_text, self.deviation.text, generator)
            noisy_query = replace(query, features=features)
        return NoisyFeatures(noisy_video, noisy_query, float(1 - 1 / np.prod(1 + levels)))


def add_noise(
    features: Features, level: float, deviation: Floats | None, generator: np.random.Generator
) -> Features:
    """Features plus Gaussian noise of ``level`` deviations; themselves without a deviation."""
    if deviation is None:
        return features
    noise = generator.standard_normal(features.shape, dtype=np.float32)
    return features + noise * (level * deviation).astype(np.float32)
