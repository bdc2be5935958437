"""Two-stage training on Lightning, whole runs, and ablations.

It imports :mod:`demr.runs` and what lies below. Begin with ``run.py``.
"""

from typing import TYPE_CHECKING

from demr.machine.lazy import import_on_use

if TYPE_CHECKING:
    from demr.training.ablation import Ablation, plan_ablation
    from demr.training.grids import Grid, load_grid
    from demr.training.run import train_run, train_stages
    from demr.training.stages import ReconstructionStage, RefitStage, RetrievalStage
    from demr.training.trials import Trial

__all__ = [
    "Ablation",
    "Grid",
    "ReconstructionStage",
    "RefitStage",
    "RetrievalStage",
    "Trial",
    "load_grid",
    "plan_ablation",
    "train_run",
    "train_stages",
]

__getattr__ = import_on_use(
    __name__,
    {
        "ablation": (
            "Ablation",
            "plan_ablation",
        ),
        "grids": (
            "Grid",
            "load_grid",
        ),
        "run": (
            "train_run",
            "train_stages",
        ),
        "stages": (
            "ReconstructionStage",
            "RefitStage",
            "RetrievalStage",
        ),
        "trials": ("Trial",),
    },
)
