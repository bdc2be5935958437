"""Search without a trained model: how similar each clip is to the query, and nothing more."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from demr.encoders import AlignedEncoder, Encoder, VideoFeatures
from demr.encoders.frames import encode_noting_damage
from demr.errors import FeatureError, InputError
from demr.features.prepare import prepare_video
from demr.machine.terminal import clock
from demr.search.queries import check_queries
from demr.search.result import UNKNOWN, Answer, Moment, SearchResult
from demr.search.similarity import localise
from demr.video.reading import watch_decoding

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


class ZeroShotRetriever:
    """Find moments with an encoder whose queries and clips lie in one space.

    Answers have the form of :class:`~demr.search.retriever.MomentRetriever`'s. What only a
    calibrated model can say is not a number there: ``present``, intervals and deviations are NaN
    (``null`` in JSON), and the verdict is ``uncertain`` throughout.

    Args:
        encoder: Such as :class:`~demr.encoders.clip.clip.ClipEncoder`.

    Raises:
        InputError: If its queries and clips do not compare.
    """

    def __init__(self, encoder: Encoder) -> None:
        if not isinstance(encoder, AlignedEncoder):
            raise untrained(encoder.identity.spec)
        self.encoder = encoder

    def encode_video(
        self, path: str | Path, *, progress: Callable[[float], None] | None = None
    ) -> ZeroShotVideo:
        """Decode a video and embed its clips; do this once and search many times.

        Args:
            path: Any video file.
            progress: Called with the second of the video that was reached.

        Raises:
            VideoError: If the file cannot be decoded.
        """
        with watch_decoding(progress):
            features, notes = encode_noting_damage(self.encoder, path)
        return self.prepare(features, str(path), notes)

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

    @overload
    def search(self, video: ZeroShotVideo | str | Path, query: str, *, top: int = 5) -> Answer: ...

    @overload
    def search(
        self, video: ZeroShotVideo | str | Path, query: list[str] | tuple[str, ...], *, top: int = 5
    ) -> list[Answer]: ...

    def search(
        self,
        video: ZeroShotVideo | str | Path,
        query: str | list[str] | tuple[str, ...],
        *,
        top: int = 5,
    ) -> Answer | list[Answer]:
        """Find the stretches most similar to a sentence, or to each of several.

        Args:
            video: Encoded, or a path (which is then decoded each time).
            query: One sentence or many.
            top: Most moments to return for a query.

        Returns:
            One answer for a sentence, a list for a list.

        Raises:
            InputError: If a query is empty, has no word or too many.
            VideoError: If the video cannot be decoded.
        """
        queries = [query] if isinstance(query, str) else list(query)
        check_queries(queries, top)
        if not isinstance(video, ZeroShotVideo):
            video = self.encode_video(video)
        rows = self.encoder.embed_queries(queries)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
        curves = rows.astype(np.float64) @ video.clips.T.astype(np.float64)
        answers = [
            self._answer(video, text, curve, top)
            for text, curve in zip(queries, curves, strict=True)
        ]
        return answers[0] if isinstance(query, str) else answers

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

        def reached(second: float) -> None:
            if tell is not None:
                tell(f"reading {Path(path).name}: {clock(second)}")

        video = self.encode_video(path, progress=reached)
        return self.result(video, self.search(video, list(queries), top=top))

    def _answer(
        self, video: ZeroShotVideo, query: str, curve: NDArray[np.float64], top: int
    ) -> Answer:
        # A damaged end was not seen, and no moment may reach into it.
        end_s = min(len(curve) * video.clip_s, video.duration_s)
        moments = tuple(
            Moment(found.start_s, found.end_s, found.score, *[UNKNOWN] * 4)
            for found in localise(curve, video.clip_s, end_s, top=top)
        )
        unseen = (0.0,) * (video.count - len(curve))
        return Answer(
            query,
            math.nan,
            "uncertain",
            moments,
            (*curve.tolist(), *unseen),
            notes=(*video.notes, NOTE),
        )
