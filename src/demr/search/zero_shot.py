"""Search without a trained model: how similar each clip is to the query, and nothing more."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from demr.answers.inference import Progress
from demr.answers.judging import LEAST_SHARE
from demr.encoders import AlignedEncoder, Encoder, VideoFeatures
from demr.errors import FeatureError, InputError
from demr.features.prepare import prepare_video
from demr.search.base import Retriever
from demr.search.queries import check_encoder
from demr.search.result import UNKNOWN, Answer, Moment, SearchResult
from demr.search.similarity import localise

MODEL_NAME = "zero-shot"
NOTE = (
    "zero-shot, uncalibrated: windows of high similarity between query and frames; "
    "no intervals, and no probability that the moment is in the video"
)


def untrained(encoder: str) -> InputError:
    """What to raise where an encoder alone answers nothing."""
    return InputError(
        f"encoder {encoder}",
        expected="a model trained on it, or an encoder that compares text and pictures",
        got="neither",
        remedy="give --model, or another encoder such as clip",
    )


class ZeroShotVideo:
    """A video that can be asked many questions without a trained model.

    Args:
        path: The file, as it was named.
        features: What the encoder made of it.
        clips: Unit embeddings of the clips that have a frame, ``(S, D)``, S up to L.
        notes: What went wrong while decoding.
    """

    def __init__(
        self,
        path: str,
        features: VideoFeatures,
        clips: NDArray[np.float32],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.duration_s = features.duration_s
        self.clip_s = features.clip_s
        self.count = len(features.features)
        self.clips = clips
        self.notes = notes


class ZeroShotRetriever(Retriever[ZeroShotVideo]):
    """Find moments with an encoder whose queries and clips lie in one space.

    Answers have the form of :class:`~demr.search.retriever.MomentRetriever`'s. What only a
    calibrated model can say is missing there: ``present`` and the confidence of moments are None,
    intervals and deviations NaN (``null`` in JSON), and the verdict is ``uncertain`` throughout.

    Args:
        encoder: Such as :class:`~demr.encoders.clip.clip.ClipEncoder`.

    Raises:
        InputError: If it is no encoder, or its queries and clips do not compare.
    """

    _kind = ZeroShotVideo

    def __init__(self, encoder: Encoder) -> None:
        check_encoder(encoder)
        if not isinstance(encoder, AlignedEncoder):
            raise untrained(encoder.identity.spec)
        self._encoder = encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder it was made with."""
        return self._encoder

    def prepare(
        self, features: VideoFeatures, path: str, notes: tuple[str, ...] = ()
    ) -> ZeroShotVideo:
        """Make stored features searchable.

        Raises:
            FeatureError: If they do not fit the encoder, or no clip has a frame.
        """
        dims = self.encoder.identity.video_dim
        unit = prepare_video(features, self.encoder.identity)[0].numpy()[:, :dims]
        # A file that stops early leaves zeros at the end, which are no pictures.
        seen = np.flatnonzero(unit.any(axis=1))
        if not len(seen):
            raise FeatureError(
                path,
                expected="at least one clip with a frame",
                got="none",
                remedy="encode the video again",
            )
        return ZeroShotVideo(path, features, unit[: seen[-1] + 1], notes)

    def result(self, video: ZeroShotVideo, answers: Sequence[Answer]) -> SearchResult:
        """Bundle answers with what they are about."""
        return SearchResult(
            video.path,
            video.duration_s,
            video.clip_s,
            MODEL_NAME,
            self.encoder.identity.spec,
            math.nan,
            tuple(answers),
        )

    def _answer_all(
        self, video: ZeroShotVideo, queries: Sequence[str], top: int, progress: Progress
    ) -> list[Answer]:
        rows = self._encoder.embed_queries(queries)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
        curves = rows.astype(np.float64) @ video.clips.T.astype(np.float64)
        progress(1.0)
        return [
            self._answer(video, text, curve, top)
            for text, curve in zip(queries, curves, strict=True)
        ]

    def _answer(
        self, video: ZeroShotVideo, query: str, curve: NDArray[np.float64], top: int
    ) -> Answer:
        # A damaged end was not seen, and no moment may reach into it.
        end_s = min(len(curve) * video.clip_s, video.duration_s)
        segments = localise(curve, video.clip_s, end_s, top=top)
        moments = tuple(
            Moment(found.start_s, found.end_s, found.score, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
            for found in segments
            # Of a curve in which nothing stands out the whole video is no moment.
            if found.score > 0 and found.score >= LEAST_SHARE * segments[0].score
        )
        unseen = (0.0,) * (video.count - len(curve))
        return Answer(
            query,
            None,
            "uncertain",
            moments,
            (*curve.tolist(), *unseen),
            notes=(*video.notes, NOTE),
        )
