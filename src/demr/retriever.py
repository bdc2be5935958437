"""Search: a video and a sentence in, moments with intervals and a verdict out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.answers import Answer, Moment, SearchResult, Verdict
from demr.batch import Item, collate
from demr.calibration import Calibration
from demr.devices import resolve_device
from demr.domain import measure_strangeness
from demr.encoders import Encoder, EncoderIdentity, VideoFeatures, get_encoder
from demr.errors import FeatureError, InputError, ModelError
from demr.evaluation import Prediction, RawPrediction, apply_calibration, load_calibration
from demr.features import prepare_query, prepare_video
from demr.pretrained import Pretrained, load_pretrained
from demr.proposals import decode
from demr.video import DamagedVideoWarning

__all__ = [
    "Answer",
    "EncodedVideo",
    "Moment",
    "MomentRetriever",
    "SearchResult",
    "Verdict",
    "check_query",
    "encode_noting_damage",
    "find_model",
]

DEFAULT_MODEL = "shapes"
LONGEST_QUERY_WORDS = 77
UNCALIBRATED_NOTE = "presence is not calibrated: no absent queries were available"
_BATCH = 64


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
        encoder: The encoder it was trained on; made from what the model says about it if not given.

    Raises:
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
        encoder: Encoder | None = None,
    ) -> None:
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
        encoder: Encoder | None = None,
    ) -> Self:
        """Load a model with its calibration.

        Args:
            source: A run folder, a Hugging Face model id (``owner/name``), or ``shapes`` for
                the model that comes with the package.
            device: ``auto``, ``cpu``, or an accelerator.
            level: Coverage of the intervals.
            encoder: The encoder it was trained on, where its weights lie elsewhere than they did
                then.

        Raises:
            ModelError: If there is no such model, it is damaged or of a newer format, or the
                encoder is not the one it was trained on.
        """
        folder = find_model(source)
        return cls(
            load_pretrained(folder),
            load_calibration(folder / "calibration.json"),
            device=device,
            level=level,
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
        if encoder.identity != self.pretrained.identity:
            raise ModelError(
                self.pretrained.name,
                expected=f"an encoder that is {self.pretrained.identity}",
                got=f"{encoder.identity}",
                remedy="name that encoder with --encoder, use the demr version it was trained "
                "with, or train it again",
            )
        return encoder

    def encode_video(self, path: str | Path) -> EncodedVideo:
        """Decode a video and describe its clips; do this once and search many times.

        Raises:
            VideoError: If the file cannot be decoded.
        """
        features, notes = encode_noting_damage(self.encoder, path)
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
    def search(self, video: EncodedVideo | str | Path, query: str, *, top: int = 5) -> Answer: ...

    @overload
    def search(
        self, video: EncodedVideo | str | Path, query: list[str] | tuple[str, ...], *, top: int = 5
    ) -> list[Answer]: ...

    def search(
        self,
        video: EncodedVideo | str | Path,
        query: str | list[str] | tuple[str, ...],
        *,
        top: int = 5,
    ) -> Answer | list[Answer]:
        """Find the moments that a sentence, or each of several, describes.

        Args:
            video: Encoded, or a path (which is then decoded each time).
            query: One sentence or many; many are answered in batches.
            top: Most moments to return for a query.

        Returns:
            One answer for a sentence, a list for a list.

        Raises:
            InputError: If a query is empty, has no word or too many.
            VideoError: If the video cannot be decoded.
        """
        if top < 1:
            raise InputError("--top", expected="at least 1", got=str(top), remedy="raise it")
        queries = [query] if isinstance(query, str) else list(query)
        for text in queries:
            check_query(text)
        if not queries:
            raise InputError(
                "queries", expected="at least one", got="an empty list", remedy="ask something"
            )
        if not isinstance(video, EncodedVideo):
            video = self.encode_video(video)
        if video.identity != self.pretrained.identity:
            raise FeatureError(
                video.path,
                expected=f"features of {self.pretrained.identity}",
                got=f"features of {video.identity}",
                remedy="encode the video with this model's retriever",
            )
        answers = []
        for low in range(0, len(queries), _BATCH):
            answers += self._answer(video, queries[low : low + _BATCH], top)
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
        self, path: str | Path, queries: Sequence[str], *, top: int = 5
    ) -> SearchResult:
        """Encode a video, ask it all queries, and bundle the answers.

        Raises:
            InputError: As :meth:`search` does.
            VideoError: If the file cannot be decoded.
        """
        video = self.encode_video(path)
        return self.result(video, self.search(video, list(queries), top=top))

    def _answer(self, video: EncodedVideo, queries: Sequence[str], top: int) -> list[Answer]:
        encoded = self.encoder.encode_queries(queries)
        texts = [prepare_query(query, self.pretrained.identity) for query in encoded]
        batch = collate(
            [Item(video.inputs, text, video.span_norm, video.duration_s) for text in texts]
        )
        with torch.inference_mode():
            output = self._model(batch.to(self.device))
        records = decode(output, batch.video_mask, batch.duration_s)
        saliency = output.saliency.double().cpu().numpy()
        raw = [
            RawPrediction(record, saliency[row, : len(record)])
            for row, record in enumerate(records)
        ]
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
        if self._presence is None:
            present = float(prediction.moments.foreground[0])
            notes.append(UNCALIBRATED_NOTE)
        else:
            present = float(self._presence.probability(prediction.presence[None])[0])
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


def encode_noting_damage(
    encoder: Encoder, path: str | Path
) -> tuple[VideoFeatures, tuple[str, ...]]:
    """Encode a video; warnings about damage in the file come back as notes.

    Raises:
        VideoError: If the file cannot be decoded.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamagedVideoWarning)
        features = encoder.encode_video(path)
    damage = [str(w.message) for w in caught if issubclass(w.category, DamagedVideoWarning)]
    for warning in caught:
        if not issubclass(warning.category, DamagedVideoWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return features, tuple(damage)


def check_query(query: str) -> None:
    """Reject what cannot be asked.

    Raises:
        InputError: If the query holds no word or is longer than encoders read.
    """
    words = query.split()
    if not any(map(str.isalnum, query)):
        raise InputError(
            "query",
            expected="a sentence",
            got=f"no word in {query[:20]!r}" if words else "an empty one",
            remedy="describe the moment",
        )
    if len(words) > LONGEST_QUERY_WORDS:
        raise InputError(
            f"query '{' '.join(words[:6])} ...'",
            expected=f"at most {LONGEST_QUERY_WORDS} words",
            got=f"{len(words)}",
            remedy="describe one moment in one sentence",
        )


def find_model(source: str | Path) -> Path:
    """Folder of a model given by path, by the name of a bundled one, or by Hugging Face id.

    Raises:
        ModelError: If there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    bundled = Path(str(files("demr"))) / "models" / str(source)
    if str(source).isidentifier() and bundled.is_dir():
        return bundled
    if str(source).count("/") == 1 and not folder.suffix and not folder.is_absolute():
        return _download(str(source))
    raise ModelError(
        str(source),
        expected="a model folder, a Hugging Face id, or 'shapes'",
        got="no such model",
        remedy="name the run folder that `demr train` wrote",
    )


def _download(identifier: str) -> Path:
    try:
        snapshot_download = import_module("huggingface_hub").snapshot_download
    except ImportError as error:
        raise ModelError(
            identifier,
            expected="a local folder, or the package huggingface_hub to fetch a model",
            got="neither",
            remedy="pip install huggingface_hub, or check the path",
        ) from error
    wanted = ["config.json", "model.safetensors", "calibration.json"]
    try:
        return Path(snapshot_download(identifier, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ModelError(
            identifier,
            expected="a local folder or a model on the Hugging Face hub",
            got=f"{type(error).__name__}",
            remedy="check the id and the network",
        ) from error


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])
