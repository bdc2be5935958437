"""Search: a video and a sentence in, moments with intervals and a verdict out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from demr.answers.answering import (
    Prediction,
    apply_calibration,
    load_calibration,
    presence_probability,
)
from demr.answers.calibration import Calibration
from demr.answers.domain import measure_strangeness
from demr.answers.inference import Progress, predict
from demr.answers.pretrained import DEFAULT_MODEL, Pretrained, find_model, load_pretrained
from demr.batches.batch import Item
from demr.encoders import Encoder, EncoderIdentity, VideoFeatures, get_encoder
from demr.encoders.frames import encode_noting_damage
from demr.errors import FeatureError, InputError, ModelError
from demr.features.prepare import prepare_query, prepare_video
from demr.machine.devices import resolve_device
from demr.machine.terminal import clock
from demr.search.queries import check_queries
from demr.search.result import Answer, Moment, SearchResult, Verdict
from demr.video.reading import watch_decoding

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
UNCALIBRATED_NOTE = "presence is not calibrated: no absent queries were available"
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


class MomentRetriever:
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
        InputError: If ``max_clips`` is below 1.
        ModelError: If the calibration has no intervals, or the encoder is another one. One
            without presence (no absent queries were there to fit it) still searches: ``present``
            is then the foreground probability of the best moment, the verdict ``uncertain``, and
            a note says so.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        calibration: Calibration,
        *,
        device: str = "auto",
        level: float = 0.9,
        max_clips: int | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        if max_clips is not None and max_clips < 1:
            raise InputError(
                "max_clips", expected="at least 1", got=str(max_clips), remedy="leave it out"
            )
        if calibration.interval is None:
            raise ModelError(
                pretrained.name,
                expected="a calibration with intervals",
                got="one without",
                remedy="run demr calibrate",
            )
        self.pretrained = pretrained
        self.calibration = calibration
        self.level = level
        self.max_clips = pretrained.max_clips if max_clips is None else max_clips
        self.device = resolve_device(device)
        self._model = pretrained.model.to(self.device).eval()
        self._interval = calibration.interval
        self._presence = calibration.presence
        self._encoder = None if encoder is None else self._check_encoder(encoder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        level: float = 0.9,
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
            InputError: If ``max_clips`` is below 1.
            ModelError: If there is no such model, it is damaged or of a newer format, or the
                encoder is not the one it was trained on.
        """
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
            made = get_encoder(self.pretrained.identity.request, device=str(self.device))
            self._encoder = self._check_encoder(made)
        return self._encoder

    def _check_encoder(self, encoder: Encoder) -> Encoder:
        if not encoder.identity.fits(self.pretrained.identity):
            raise ModelError(
                self.pretrained.name,
                expected=f"an encoder that is {self.pretrained.identity}",
                got=f"{encoder.identity}",
                remedy="name that encoder with --encoder, use the demr version it was trained "
                "with, or train it again",
            )
        return encoder

    def encode_video(
        self, path: str | Path, *, progress: Callable[[float], None] | None = None
    ) -> EncodedVideo:
        """Decode a video and describe its clips; do this once and search many times.

        Args:
            path: Any video file.
            progress: Called with the second of the video that was reached.

        Raises:
            VideoError: If the file cannot be decoded.
        """
        with watch_decoding(progress):
            features, notes = encode_noting_damage(self.encoder, path)
        identity = self.encoder.identity
        if identity.digest and not self.pretrained.identity.digest:
            # Features of two sets of weights look alike and mean nothing to each other.
            notes += (UNKNOWN_WEIGHTS_NOTE.format(model=identity.model),)
        return self.prepare(features, str(path), notes)

    def prepare(
        self, features: VideoFeatures, path: str, notes: tuple[str, ...] = ()
    ) -> EncodedVideo:
        """Make stored features searchable.

        Raises:
            FeatureError: If they do not fit the model's encoder.
        """
        identity = self.pretrained.identity
        inputs, span_norm = prepare_video(features, identity)
        strangeness = measure_strangeness(features.features, self.pretrained.domain)
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

    @overload
    def search(
        self,
        video: EncodedVideo | str | Path,
        query: str,
        *,
        top: int = 5,
        progress: Progress | None = None,
    ) -> Answer: ...

    @overload
    def search(
        self,
        video: EncodedVideo | str | Path,
        query: list[str] | tuple[str, ...],
        *,
        top: int = 5,
        progress: Progress | None = None,
    ) -> list[Answer]: ...

    def search(
        self,
        video: EncodedVideo | str | Path,
        query: str | list[str] | tuple[str, ...],
        *,
        top: int = 5,
        progress: Progress | None = None,
    ) -> Answer | list[Answer]:
        """Find the moments that a sentence, or each of several, describes.

        Args:
            video: Encoded, or a path (which is then decoded each time).
            query: One sentence or many; many are answered in batches.
            top: Most moments to return for a query.
            progress: Called now and then with the share of the search that is done.

        Returns:
            One answer for a sentence, a list for a list.

        Raises:
            InputError: If a query is empty, has no word or too many.
            VideoError: If the video cannot be decoded.
        """
        queries = [query] if isinstance(query, str) else list(query)
        check_queries(queries, top)
        if not isinstance(video, EncodedVideo):
            video = self.encode_video(video)
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
                if progress is not None:
                    progress((done + share * more) / len(queries))

            answers += self._answer(video, part, top, report)
        return answers[0] if isinstance(query, str) else answers

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

    def search_file(
        self,
        path: str | Path,
        queries: Sequence[str],
        *,
        top: int = 5,
        tell: Callable[[str], None] | None = None,
    ) -> SearchResult:
        """Encode a video, ask it all queries, and bundle the answers.

        Args:
            path: Any video file.
            queries: Sentences.
            top: Most moments to return for a query.
            tell: Called with what is being done, in words.

        Raises:
            InputError: As :meth:`search` does.
            VideoError: If the file cannot be decoded.
        """
        name = Path(path).name

        def reached(second: float) -> None:
            if tell is not None:
                tell(f"reading {name}: {clock(second)}")

        def searched(share: float) -> None:
            if tell is not None:
                tell(f"searching {name}: {share:.0%}")

        video = self.encode_video(path, progress=reached)
        answers = self.search(video, list(queries), top=top, progress=searched)
        return self.result(video, answers)

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
        known = self.pretrained.known_words
        return [
            self._describe(
                query,
                prediction,
                video,
                () if known is None else tuple(dict.fromkeys(w for w in words if w not in known)),
            )
            for query, prediction, words in zip(
                queries,
                apply_calibration(raw, self.calibration, top),
                [q.words for q in encoded],
                strict=True,
            )
        ]

    def _describe(
        self, query: str, prediction: Prediction, video: EncodedVideo, unknown: tuple[str, ...]
    ) -> Answer:
        notes = list(video.notes)
        probability = presence_probability(self.calibration, [prediction])
        if probability is None:
            present = float(prediction.moments.foreground[0])
            notes.append(UNCALIBRATED_NOTE)
        else:
            present = float(probability[0])
        if video.strangeness > 1:
            # Calibrated on videos like the training ones; the further from them, the less the
            # model's confidence says about this video.
            present /= video.strangeness
            notes.append(
                "this video looks unlike anything the model was trained on"
                f" ({video.strangeness:.1f} times beyond its edge)"
            )
        if unknown:
            notes.append(f"the model was never trained on: {', '.join(unknown)}")
        verdict = self._verdict(present)
        # A model that has never met an absent query knows neither what one looks like nor what
        # a present one does not.
        if self._presence is None or (verdict == "found" and unknown):
            verdict = "uncertain"
        moments = prediction.moments
        low, high = self._interval.interval(
            moments.window_s, moments.scale_s, prediction.dof, prediction.covariates, self.level
        )
        bounds = np.clip(np.stack([low, high], axis=-1), 0, video.duration_s)
        aleatoric, epistemic = np.sqrt(moments.aleatoric), np.sqrt(moments.epistemic)
        window = moments.window_s
        return Answer(
            query,
            present,
            verdict,
            tuple(
                Moment(
                    float(window[i, 0]),
                    float(window[i, 1]),
                    float(moments.score[i]),
                    _pair(bounds[i, 0]),
                    _pair(bounds[i, 1]),
                    _pair(aleatoric[i]),
                    _pair(epistemic[i]),
                )
                for i in range(len(moments))
            ),
            tuple(prediction.saliency.tolist()),
            unknown,
            tuple(notes),
        )

    def _verdict(self, present: float) -> Verdict:
        if present >= self.calibration.thresholds["found"]:
            return "found"
        return (
            "uncertain"
            if present > self.calibration.thresholds["absent"]
            else ("not in this video")
        )


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])
