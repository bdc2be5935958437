"""Annotations and features -> items -> padded batches with masks and targets.

It imports :mod:`demr.features`, :mod:`demr.encoders`, :mod:`demr.annotations` and what lies below.
Begin with ``batch.py`` for what a batch is, then :class:`MomentDataset` in ``dataset.py``;
``absent.py`` makes the queries that ``present`` is calibrated on.
"""

from demr.batches.absent import make_absent
from demr.batches.batch import Batch, Item, Targets, collate, make_targets
from demr.batches.dataset import MomentDataset
from demr.batches.masking import Masking, Vocabulary
from demr.batches.noise import FeatureDeviation, FeatureNoise, TrainingNoise
from demr.batches.sampling import LengthBatches, sequential_batches
from demr.batches.stretches import Stretch, plan_stretches

__all__ = [
    "Batch",
    "FeatureDeviation",
    "FeatureNoise",
    "Item",
    "LengthBatches",
    "Masking",
    "MomentDataset",
    "Stretch",
    "Targets",
    "TrainingNoise",
    "Vocabulary",
    "collate",
    "make_absent",
    "make_targets",
    "plan_stretches",
    "sequential_batches",
]
