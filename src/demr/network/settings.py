"""What can be set about the network and its losses: the one place of their names and defaults.

A training config holds these classes as they are, and validates them by their annotations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Lt

PositiveInt = Annotated[int, Gt(0)]
Count = Annotated[int, Ge(0)]
# Less than infinity, which is also false of NaN.
Weight = Annotated[float, Ge(0), Lt(float("inf"))]
Rate = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Size and wiring of the network.

    Raises:
        ValueError: If ``dim`` is odd or not divisible by ``heads``.
    """

    dim: PositiveInt = 256
    """Hidden size D; even, and divisible by ``heads``."""
    heads: PositiveInt = 8
    """Attention heads."""
    layers: PositiveInt = 4
    """Fusion layers."""
    hidden: PositiveInt = 512
    """Width of the feed-forward in RFF."""
    input_dropout: Rate = 0.5
    """Dropout in the projections."""
    fusion: Literal["rff", "concat"] = "rff"
    """Reflective Flipped Fusion, or ``concat``, its ablation partner with as many parameters."""
    matching: bool = False
    """Compare clips and query feature by feature before the fusion, see ``network.model.Matching``.

    The fusion reads the result, and it is added to the foreground logit. Not in the paper: it
    learns in alignment epochs, at a small part of the fusion's cost.
    """
    text_layers: Count = 0
    """Self-attention layers over the projected tokens, before anything else.

    Not in the paper, whose tokens come from a contextual encoder. Word vectors carry no context:
    pooled, "red" and "bounces" are a sum, which cannot ask whether it is the red one that bounces.
    """

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim must be even and divisible by heads ({self.heads})")

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Self:
        """Architecture of a stored model.

        Older models say two things beyond it: ``saliency_hint``, a part that the network no
        longer has and that must be off, and ``dropout``, which works in training alone.

        Raises:
            TypeError: For other keys that are not known.
            ValueError: If a value does not fit.
        """
        if values.get("saliency_hint"):
            raise ValueError("saliency_hint, which the network no longer has")
        return cls(**{k: v for k, v in values.items() if k not in ("saliency_hint", "dropout")})


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses that are varied; what never was is a constant in ``network.losses``."""

    saliency: Weight = 0.2
    """Saliency of a moment's clips, within a video and across the batch."""
    clip_contrast: Weight = 0.5
    """Clips against clips, without the text; 0.5 for QVHighlights, 0.2 for Charades-STA."""
    absent_negatives: bool = False
    """Learn from training queries whose moment is not in their video, as much as from others.

    Not in the paper, whose data has none: there they would enter the cross-entropy alone. With
    this clips keep away from them too, as they are often made to resemble what their video shows,
    and a background clip weighs as much as a foreground one, as it is all they have.
    """
    lambda_der: Weight = 1e-3
    """Weight of the evidential loss."""
    lambda_geom: Weight = 1e-2
    """Weight of the Geom-regulariser within the evidential loss, beside a likelihood of 1."""
    regularizer: Literal["none", "der", "geom"] = "geom"
    """Which regulariser shapes the evidence."""
    error_scale: Literal["min-max", "rank"] = "min-max"
    """How Geom scales errors to 0..1: the paper's ``min-max``, or ``rank``, which no outlier moves.

    See ``demr.evidential.geom_regularizer``.
    """
    location_gradient: bool = True
    """Whether the likelihood's gradient reaches the predicted boundary."""

    @property
    def background_weight(self) -> float:
        """Weight of a background clip in the cross-entropy, where a foreground clip weighs 1."""
        return 1.0 if self.absent_negatives else 0.1
