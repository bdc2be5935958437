"""What a search says: moments, an answer to each query, and the bundle that reports show."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demr.answers.judging import Verdict


# One object, so that records that hold it are equal although NaN is not.
UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class Moment:
    """One moment; times in seconds.

    Intervals and deviations are NaN where no model was trained (zero-shot), intervals also where
    the model cannot judge the video or the words, or too few labels were there to calibrate those
    of moments after the first.

    Attributes:
        start: Predicted start.
        end: Predicted end.
        score: What moments are ranked by.
        start_interval: Calibrated interval of the start.
        end_interval: Calibrated interval of the end.
        aleatoric: Standard deviations of start and end that more training would not lower.
        epistemic: Standard deviations of start and end from what the model has not learnt.
        confidence: Calibrated probability that this moment is a true one, that is, overlaps one
            with an IoU of at least 0.5; None where it is not known.
        verdict: ``found`` or ``uncertain``. What is less likely is not a moment of an answer.
    """

    start: float
    end: float
    score: float
    start_interval: tuple[float, float]
    end_interval: tuple[float, float]
    aleatoric: tuple[float, float]
    epistemic: tuple[float, float]
    confidence: float | None = None
    verdict: "Verdict" = "uncertain"

    def to_dict(self) -> dict[str, Any]:
        """Its JSON object; what is not known is None."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "score": round(self.score, 4),
            "start_interval": _known_pair(self.start_interval, 3),
            "end_interval": _known_pair(self.end_interval, 3),
            "aleatoric": _known_pair(self.aleatoric, 4),
            "epistemic": _known_pair(self.epistemic, 4),
            "confidence": _known(self.confidence, 4),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Answer:
    """What a search says about one query.

    Attributes:
        query: As it was asked.
        present: Calibrated probability that the moment is in the video, of a long one that of its
            surest stretch, lowered for the number of chances; None where it is not known: the
            video or a word is unlike what the model was trained on, presence could not be
            calibrated, or no model was trained. A note says which.
        verdict: ``found``, ``uncertain`` or ``not in this video``; always ``uncertain`` where
            ``present`` is None.
        moments: Best first; at least one where the verdict is ``found``, and none of ``not in
            this video``. All outputs show these, and no others.
        saliency: Relevance of every clip, cosine in -1..1.
        unknown_words: Words of the query that the model was never trained on.
        notes: What else limits the trust in this answer, in plain words.
    """

    query: str
    present: float | None
    verdict: "Verdict"
    moments: tuple[Moment, ...]
    saliency: tuple[float, ...]
    unknown_words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Its JSON object; what is not known is None."""
        return {
            "query": self.query,
            "present": _known(self.present, 4),
            "verdict": self.verdict,
            "moments": [moment.to_dict() for moment in self.moments],
            "saliency": [round(value, 4) for value in self.saliency],
            "unknown_words": list(self.unknown_words),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class SearchResult:
    """Answers to all queries about one video.

    Attributes:
        video: The file, as it was named.
        duration: In seconds.
        clip_s: Length of a clip in seconds.
        model: Name of the model.
        encoder: Name and version of the encoder.
        interval_level: Coverage that the intervals promise; NaN without a trained model.
        answers: One a query, in order.
    """

    video: str
    duration: float
    clip_s: float
    model: str
    encoder: str
    interval_level: float
    answers: tuple[Answer, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``demr search --json`` prints; what is not known is None."""
        return {
            "video": self.video,
            "duration": round(self.duration, 3),
            "model": self.model,
            "encoder": self.encoder,
            "interval_level": _known(self.interval_level),
            "answers": [answer.to_dict() for answer in self.answers],
        }


def _known(value: float | None, digits: int | None = None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return value if digits is None else round(value, digits)


def _known_pair(values: tuple[float, float], digits: int) -> list[float] | None:
    return None if any(map(math.isnan, values)) else [round(value, digits) for value in values]
