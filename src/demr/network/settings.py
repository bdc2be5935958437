"""What can be set about the network and its losses: the one place of their names and defaults.

A training config and the config of a stored model hold these classes as they are, and validate
them by their annotations. What can be set at all is bounded here, far beyond what anyone trains:
a slip of the keyboard or a damaged file must not ask for more than a machine has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le, Lt
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from demr.machine.typed import describe, fields_of, first_fault


def _no_truth(value: object) -> object:
    """Refuse true and false as numbers; pydantic takes them for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "a number")
    return value


_Number = BeforeValidator(_no_truth)
PositiveInt = Annotated[int, Ge(1), Le(1_000_000), _Number]
Count = Annotated[int, Ge(0), Le(1_000_000), _Number]
# As far as NumPy and Lightning take them.
Seed = Annotated[int, Ge(0), Le(2**32 - 1), _Number]
# Less than infinity, which is also false of NaN.
Weight = Annotated[float, Ge(0), Lt(float("inf")), _Number]
Rate = Annotated[float, Ge(0), Lt(1), _Number]
_Width = Annotated[int, Ge(1), Le(65_536), _Number]
_Layers = Annotated[int, Ge(0), Le(256), _Number]
_MOST_PARAMETERS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Size and wiring of the network.

    Raises:
        ValueError: If ``dim`` is odd or not divisible by ``heads``.
    """

    dim: _Width = 256
    """Hidden size D; even, and divisible by ``heads``."""
    heads: Annotated[int, Ge(1), Le(1024), _Number] = 8
    """Attention heads."""
    layers: Annotated[int, Ge(1), Le(256), _Number] = 4
    """Fusion layers."""
    hidden: _Width = 512
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
    text_layers: _Layers = 0
    """Self-attention layers over the projected tokens, before anything else.

    Not in the paper, whose tokens come from a contextual encoder. Word vectors carry no context:
    pooled, "red" and "bounces" are a sum, which cannot ask whether it is the red one that bounces.
    """

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(
                f"a dim that is even and divisible by heads ({self.heads}); got {self.dim}"
            )
        # Projections, attention and feed-forward; what else there is does not count beside them.
        size = (self.layers + self.text_layers + 1) * self.dim * (8 * self.dim + 2 * self.hidden)
        if size > _MOST_PARAMETERS:
            raise ValueError(
                f"dim, hidden and layers of less than {_MOST_PARAMETERS:,} parameters; got "
                f"{self.dim}, {self.hidden} and {self.layers + self.text_layers}: {size:,}"
            )

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Self:
        """Architecture of a stored model.

        Older models say two things beyond it: ``saliency_hint``, a part that the network no
        longer has and that must be off, and ``dropout``, which works in training alone.

        Raises:
            TypeError: If it is no mapping.
            ValueError: If a key is not known, or a value does not fit.
        """
        if not isinstance(values, dict):
            raise TypeError("architecture must be an object")
        if values.get("saliency_hint"):
            raise ValueError("saliency_hint, which the network no longer has")
        known = {k: v for k, v in values.items() if k not in ("saliency_hint", "dropout")}
        kinds = fields_of(cls) or {}
        for name, value in known.items():
            if name not in kinds:
                raise ValueError(f"architecture {name[:40]!r}, which the network does not have")
            # A recipe may write numbers as texts, a stored model does not.
            if isinstance(value, str) and not isinstance(getattr(cls, name), str):
                expected = describe(kinds[name])
                raise ValueError(f"architecture {name}: expected {expected}, got {value[:40]!r}")
        try:
            return TypeAdapter(cls).validate_python(known)
        except ValidationError as error:
            fault = first_fault(error, cls)
            place = f"architecture {fault.key}".strip()
            raise ValueError(f"{place}: expected {fault.expected}, got {fault.got}") from error


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
    error_scale: Literal["min-max", "rank", "anchored"] = "min-max"
    """How Geom scales errors to 0..1: the paper's ``min-max``, or ``rank``, which no outlier moves.

    Both are of one batch, and leave the level of the evidence to chance: see
    ``demr.evidential.geom_regularizer``. ``anchored`` ranks among the last 4,096 errors and scales
    evidence too: ``demr.evidential.AnchoredGeom``; its ``lambda_geom`` is 1 rather than 0.01.
    """
    location_gradient: bool = True
    """Whether the likelihood's gradient reaches the predicted boundary."""

    @property
    def background_weight(self) -> float:
        """Weight of a background clip in the cross-entropy, where a foreground clip weighs 1."""
        return 1.0 if self.absent_negatives else 0.1
