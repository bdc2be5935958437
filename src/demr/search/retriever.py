"""Search: a video and a sentence in, moments with intervals and a verdict out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.answers.calibration import Calibration
from demr.answers.domain import check_domain, measure_strangeness
from demr.answers.fitting import load_calibration
from demr.answers.inference import Progress, predict
from demr.answers.judging import DEFAULT_LEVEL, Familiarity, Judgement, Verdict, judge
from demr.answers.predictions import RANKED, rank_all
from demr.answers.pretrained import DEFAULT_MODEL, Pretrained, find_model, load_pretrained
from demr.answers.proposals import Proposals
from demr.batches.batch import Item
from demr.encoders import Encoder, EncoderIdentity, VideoFeatures
from demr.errors import FeatureError, ModelError
from demr.features.prepare import prepare_query, prepare_video
from demr.machine.devices import resolve_device
from demr.search.base import Retriever
from demr.search.queries import (
    check_count,
    check_encoder,
    check_level,
    check_path,
    wrong_value,
)
from demr.search.result import UNKNOWN, Answer, Moment, SearchResult

__all__ = [
    "Answer",
    "EncodedVideo",
    "Moment",
    "MomentRetriever",
    "SearchResult",
    "Verdict",
]

UNKNOWN_WEIGHTS_NOTE = (
    "the model was trained on features that do not say which weights made them; "
    "the answer is worth something only if they were those of {model}"
)
_BATCH = 64
# What a model says of a clip takes 100 bytes a query, twice as much where it is read twice: of so
# many clips of all queries together it is held at once.
_CLIPS_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class EncodedVideo:
    """A video that can be asked many questions.

    Attributes:
        path: The file, as it was named.
        duration_s: In seconds.
        clip_s: Length of a clip.
        inputs: Prepared features, ``(L, Dv + 2)``.
        span_norm: Clips as fractions of the duration, ``(L, 2)``.
        identity: The encoder that described it.
        notes: What went wrong while decoding.
        strangeness: How far the video lies outside what the model was trained on; 1 is the
            edge of the training data.
    """

    path: str
    duration_s: float
    clip_s: float
    inputs: Tensor
    span_norm: Tensor
    identity: EncoderIdentity
    notes: tuple[str, ...] = ()
    strangeness: float = 0.0

    @property
    def encoder(self) -> str:
        """Name and version of the encoder."""
        return self.identity.spec


class MomentRetriever(Retriever[EncodedVideo]):
    """Find moments in videos.

    Args:
        pretrained: A loaded model.
        calibration: Its calibration.
        device: Where to run.
        level: Coverage of the intervals.
        max_clips: Clips of a video to read at once, by default as many as the longest video had
            that the model was trained on. Longer videos are searched stretch by stretch.
        encoder: The encoder it was trained on; made from what the model says about it if not given.

    Raises:
        InputError: If an argument is of another kind, ``max_clips`` is below 1, or intervals were
            not fitted for ``level``.
        ModelError: If the calibration has no intervals, or the encoder is another one. One
            without presence (no absent queries were there to fit it) still searches: ``present``
            is then None, the verdict ``uncertain``, and a note says so.
    """

    _kind = EncodedVideo

    def __init__(
        self,
        pretrained: Pretrained,
        calibration: Calibration,
        *,
        device: str = "auto",
        level: float = DEFAULT_LEVEL,
        max_clips: int | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        _check_options(device, level, max_clips, encoder)
        if calibration.interval is None:
            raise ModelError(
                pretrained.name,
                expected="a calibration with intervals",
                got="one without",
                remedy="run demr calibrate",
            )
        try:
            check_domain(calibration.domain, pretrained.identity.video_dim)
        except ValueError as error:
            raise ModelError(
                pretrained.name,
                expected="a calibration of this model",
                got=f"that of another one: {error}",
                remedy="run demr calibrate",
            ) from error
        if level != DEFAULT_LEVEL:
            calibration.interval.check_level(level)
        self.pretrained = pretrained
        self.calibration = calibration
        self.level = level
        self.max_clips = pretrained.max_clips if max_clips is None else max_clips
        self.device = resolve_device(device)
        self._model = pretrained.model.to(self.device).eval()
        self._encoder = None if encoder is None else pretrained.check_encoder(encoder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        level: float = DEFAULT_LEVEL,
        max_clips: int | None = None,
        encoder: Encoder | None = None,
    ) -> Self:
        """Load a model with its calibration.

        Args:
            source: A run folder, a Hugging Face model id (``owner/name``), or ``shapes`` for
                the model that comes with the package.
            device: ``auto``, ``cpu``, or an accelerator.
            level: Coverage of the intervals.
            max_clips: Clips of a video to read at once; by default the model's.
            encoder: The encoder it was trained on, where its weights lie elsewhere than they did
                then.

        Raises:
            InputError: If an argument is of another kind, ``level`` is not between 0 and 1, or
                ``max_clips`` is below 1; before anything is read.
            ModelError: If there is no such model, it is damaged or of a newer format, or the
                encoder is not the one it was trained on.
        """
        check_path(source, "model", "runs/mine")
        _check_options(device, level, max_clips, encoder)
        folder = find_model(source)
        return cls(
            load_pretrained(folder),
            load_calibration(folder / "calibration.json"),
            device=device,
            level=level,
            max_clips=max_clips,
            encoder=encoder,
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder this model was trained on.

        Raises:
            ModelError: If this installation has another version of it, or other weights.
        """
        if self._encoder is None:
            self._encoder = self.pretrained.load_encoder(str(self.device))
        return self._encoder

    def _notes(self) -> tuple[str, ...]:
        identity = self.encoder.identity
        if identity.digest and not self.pretrained.identity.digest:
            # Features of two sets of weights look alike and mean nothing to each other.
            return (UNKNOWN_WEIGHTS_NOTE.format(model=identity.model),)
        return ()

    def prepare(
        self, features: VideoFeatures, path: str, notes: tuple[str, ...] = ()
    ) -> EncodedVideo:
        """Make stored features searchable.

        Raises:
            FeatureError: If they do not fit the model's encoder.
        """
        identity = self.pretrained.identity
        inputs, span_norm = prepare_video(features, identity)
        strangeness = measure_strangeness(
            features.features, self.pretrained.domain, self.calibration.domain
        )
        return EncodedVideo(
            path,
            features.duration_s,
            features.clip_s,
            inputs,
            span_norm,
            identity,
            notes,
            strangeness,
        )

    def result(self, video: EncodedVideo, answers: Sequence[Answer]) -> SearchResult:
        """Bundle answers with what they are about."""
        return SearchResult(
            video.path,
            video.duration_s,
            video.clip_s,
            self.pretrained.name,
            video.encoder,
            self.level,
            tuple(answers),
        )

    def _answer_all(
        self, video: EncodedVideo, queries: Sequence[str], top: int, progress: Progress
    ) -> list[Answer]:
        if not video.identity.fits(self.pretrained.identity):
            raise FeatureError(
                video.path,
                expected=f"features of {self.pretrained.identity}",
                got=f"features of {video.identity}",
                remedy="encode the video with this model's retriever",
            )
        answers: list[Answer] = []
        size = min(_BATCH, max(_CLIPS_AT_ONCE // len(video.inputs), 1))
        for low in range(0, len(queries), size):
            part = queries[low : low + size]

            def report(share: float, done: int = low, more: int = len(part)) -> None:
                progress((done + share * more) / len(queries))

            answers += self._answer(video, part, top, report)
        return answers

    def _answer(
        self, video: EncodedVideo, queries: Sequence[str], top: int, progress: Progress | None
    ) -> list[Answer]:
        encoded = self.encoder.encode_queries(queries)
        texts = [prepare_query(query, self.pretrained.identity) for query in encoded]
        raw = predict(
            self._model,
            [Item(video.inputs, text, video.span_norm, video.duration_s) for text in texts],
            video.clip_s,
            max_clips=self.max_clips,
            device=self.device,
            progress=progress,
        )
        # What is told is chosen from as many as were ranked when confidence was fitted.
        predictions = rank_all(raw, self.calibration, max(top, RANKED))
        also = self.calibration.known_words
        familiarity = [
            Familiarity(video.strangeness, self.pretrained.unknown_words(q.words, also))
            for q in encoded
        ]
        judgements = judge(predictions, self.calibration, familiarity, level=self.level)
        return [
            Answer(
                query,
                judgement.present,
                judgement.verdict,
                _moments(prediction.moments, judgement, top),
                tuple(prediction.saliency.tolist()),
                known.unknown_words,
                video.notes + judgement.notes,
            )
            for query, prediction, judgement, known in zip(
                queries, predictions, judgements, familiarity, strict=True
            )
        ]


def _check_options(
    device: str, level: float, max_clips: int | None, encoder: Encoder | None
) -> None:
    if not isinstance(device, str | torch.device):
        raise wrong_value("device", "auto, cpu, or an accelerator", device, "try 'auto'")
    check_level(level)
    if max_clips is not None:
        check_count("max_clips", max_clips)
    if encoder is not None:
        check_encoder(encoder)


def _moments(proposals: Proposals, judgement: Judgement, top: int) -> tuple[Moment, ...]:
    window, intervals = proposals.window_s, judgement.intervals
    aleatoric, epistemic = np.sqrt(proposals.aleatoric), np.sqrt(proposals.epistemic)
    rows = judgement.listed.tolist()[:top]
    return tuple(
        Moment(
            float(window[i, 0]),
            float(window[i, 1]),
            float(proposals.score[i]),
            _pair(intervals[i, 0]),
            _pair(intervals[i, 1]),
            _pair(aleatoric[i]),
            _pair(epistemic[i]),
            None if np.isnan(judgement.confidence[i]) else float(judgement.confidence[i]),
            verdict,
        )
        for i, verdict in zip(rows, judgement.moment_verdicts[:top], strict=True)
    )


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    if np.isnan(values).any():
        return UNKNOWN
    return float(values[0]), float(values[1])
