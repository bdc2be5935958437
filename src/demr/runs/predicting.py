"""Features of a split -> what a model predicts for its queries, once for all that needs it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from demr.annotations.annotations import Annotation
from demr.answers.calibration import Calibration
from demr.answers.domain import measure_strangeness
from demr.answers.inference import RawPrediction, predict_dataset
from demr.answers.judging import DEFAULT_LEVEL, Familiarity, judge
from demr.answers.predictions import rank_all
from demr.answers.pretrained import Pretrained
from demr.evaluation.measuring import is_scored
from demr.evaluation.predictions import PredictionRecord, to_records
from demr.runs.data import RunData


@dataclass(frozen=True)
class SplitPredictions:
    """Raw predictions of a split, from which it is calibrated, measured and written.

    Attributes:
        annotations: Queries that can be scored; those of the split, then absent ones that were
            made for it.
        raw: What the model says about each.
        familiarity: How far each video and query lies from the training data.
        made: How many of the queries, the last ones, are absent ones that were made.
        clip_s: Length of a clip in seconds.
    """

    annotations: tuple[Annotation, ...]
    raw: tuple[RawPrediction, ...]
    familiarity: tuple[Familiarity, ...]
    made: int
    clip_s: float

    def records(
        self, calibration: Calibration, *, level: float = DEFAULT_LEVEL
    ) -> list[PredictionRecord]:
        """What a search would say, one record a query, in order."""
        predictions = rank_all(self.raw, calibration)
        judgements = judge(predictions, calibration, self.familiarity, level=level)
        return to_records(predictions, judgements, self.annotations, self.clip_s)


def predict_split(
    pretrained: Pretrained,
    data: RunData,
    annotations: Sequence[Annotation],
    *,
    calibration: Calibration | None = None,
    device: torch.device | None = None,
) -> SplitPredictions:
    """Predict every query of a split that can be scored, and absent ones made for it.

    Args:
        pretrained: The model.
        data: Features of the split's videos.
        annotations: The whole split. Vague queries have no single moment, and are left out.
        calibration: Of the model, which may know videos and words that its training does not.
        device: Where to run.
    """
    queries = [annotation for annotation in annotations if is_scored(annotation)]
    made = data.absent_queries(annotations)
    also = calibration or Calibration()
    strangeness = {
        vid: measure_strangeness(data.pack[vid].features, pretrained.domain, also.domain)
        for vid in {annotation.vid for annotation in annotations}
    }
    raw: list[RawPrediction] = []
    familiarity: list[Familiarity] = []
    # Made queries by themselves: in batches of other sizes the last digits of predictions change.
    for part in (queries, made):
        if part:
            dataset = data.dataset(part)
            raw += predict_dataset(
                pretrained.model, dataset, device=device, max_clips=pretrained.max_clips
            )
            familiarity += [
                Familiarity(
                    strangeness[a.vid], pretrained.unknown_words(query.words, also.known_words)
                )
                for a, query in zip(part, dataset.queries, strict=True)
            ]
    return SplitPredictions(
        (*queries, *made), tuple(raw), tuple(familiarity), len(made), pretrained.identity.clip_s
    )
