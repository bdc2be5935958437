"""The network of the paper: fusion, heads, losses, query reconstruction.

It imports :mod:`demr.batches` and :mod:`demr.evidential`. Begin with ``model.py``; what can be set
of it, and of its losses, stands in ``settings.py``.
"""

from typing import TYPE_CHECKING

from demr.machine.lazy import import_on_use

if TYPE_CHECKING:
    from demr.network.fusion import ConcatFusion, ReflectiveFlippedFusion, RFFLayer
    from demr.network.losses import LossBreakdown, giou, retrieval_loss, saliency_loss
    from demr.network.model import DemrModel, ModelOutput
    from demr.network.reconstruction import ReconstructionHead, reconstruction_loss
    from demr.network.settings import Architecture, LossWeights

__all__ = [
    "Architecture",
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

__getattr__ = import_on_use(
    __name__,
    {
        "fusion": (
            "ConcatFusion",
            "RFFLayer",
            "ReflectiveFlippedFusion",
        ),
        "losses": (
            "LossBreakdown",
            "giou",
            "retrieval_loss",
            "saliency_loss",
        ),
        "model": (
            "DemrModel",
            "ModelOutput",
        ),
        "reconstruction": (
            "ReconstructionHead",
            "reconstruction_loss",
        ),
        "settings": (
            "Architecture",
            "LossWeights",
        ),
    },
)
