"""The network of the paper: fusion, heads, losses, query reconstruction.

It imports :mod:`demr.batches` and :mod:`demr.evidential`. Begin with ``model.py``.
"""

from demr.network.fusion import ConcatFusion, ReflectiveFlippedFusion, RFFLayer
from demr.network.losses import LossBreakdown, LossWeights, giou, retrieval_loss, saliency_loss
from demr.network.model import DemrModel, ModelOutput
from demr.network.reconstruction import ReconstructionHead, reconstruction_loss

__all__ = [
    "ConcatFusion",
    "DemrModel",
    "LossBreakdown",
    "LossWeights",
    "ModelOutput",
    "RFFLayer",
    "ReconstructionHead",
    "ReflectiveFlippedFusion",
    "giou",
    "reconstruction_loss",
    "retrieval_loss",
    "saliency_loss",
]
