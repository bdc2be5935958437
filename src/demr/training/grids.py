"""Grids of an ablation: a question ("does the fusion matter?") and the variants that answer it.

A variant is a set of overrides of the recipe. Grids have names, or are YAML files of one's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from demr.errors import ConfigError
from demr.machine.typed import first_fault
from demr.runs.config import read_settings

Override = bool | int | float | str | list[str] | None
_CONCAT_DER: dict[str, Override] = {
    "model.fusion": "concat",
    "reconstruction.epochs": 0,
    "losses.regularizer": "der",
}
_NO_QR: dict[str, Override] = {"reconstruction.epochs": 0}


class Grid(BaseModel):
    """One question and the variants that answer it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    title: str
    """Heading of its table."""
    variants: dict[str, dict[str, Override]] = {}
    """Name of a variant -> ``a.b: value`` overrides of the recipe; none is the recipe itself."""
    sweep: str | None = None
    """A setting to try several values of, instead of variants; drawn as a curve."""
    values: list[Override] = []
    """The values of a sweep."""
    against: Literal["first", "previous"] = "first"
    """Which variant the paired differences of each are taken to."""

    @model_validator(mode="after")
    def _variants_or_sweep(self) -> "Grid":
        if bool(self.variants) == bool(self.sweep) or bool(self.sweep) != bool(self.values):
            raise ValueError("a grid of either variants, or a sweep with its values; got another")
        if self.sweep == "seed" or any("seed" in changes for changes in self.variants.values()):
            raise ValueError("settings other than seed, as each variant is trained with every seed")
        return self

    @property
    def settings(self) -> dict[str, dict[str, Override]]:
        """Variants with their overrides; those of a sweep are called by their values."""
        if self.sweep is None:
            return self.variants
        return {_value_label(value): {self.sweep: value} for value in self.values}


GRIDS: Mapping[str, Grid] = {
    "steps": Grid(
        title="From concat + DER to DEMR, step by step",
        variants={
            "concat + DER": _CONCAT_DER,
            "+ RFF": _NO_QR | {"losses.regularizer": "der"},
            "+ QR": {"losses.regularizer": "der"},
            "+ Geom (DEMR)": {},
        },
        against="previous",
    ),
    "fusion": Grid(title="Fusion", variants={"concat": {"model.fusion": "concat"}, "RFF": {}}),
    "reconstruction": Grid(title="Query reconstruction", variants={"off": _NO_QR, "on": {}}),
    "words": Grid(
        title="What query reconstruction masks",
        variants={
            "nouns": {},
            "verbs": {"reconstruction.pos": ["verb"]},
            "adjectives": {"reconstruction.pos": ["adjective"]},
            "nouns and verbs": {"reconstruction.pos": ["noun", "verb"]},
        },
    ),
    "reconstruction_epochs": Grid(
        title="Epochs of query reconstruction",
        sweep="reconstruction.epochs",
        values=[0, 5, 10, 20, 30],
    ),
    "reconstruction_lr": Grid(
        title="Learning rate of query reconstruction",
        sweep="reconstruction.lr",
        values=[1e-5, 1e-4, 1e-3],
    ),
    "regularizer": Grid(
        title="Regulariser of the evidence",
        variants={
            "none": {"losses.regularizer": "none"},
            "DER": {"losses.regularizer": "der"},
            "Geom": {"losses.regularizer": "geom"},
        },
    ),
    "lambda_geom": Grid(
        title="Weight of Geom", sweep="losses.lambda_geom", values=[1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    ),
    "lambda_der": Grid(
        title="Weight of the evidential loss",
        sweep="losses.lambda_der",
        values=[1e-4, 1e-3, 1e-2, 1e-1, 1.0],
    ),
    "location_gradient": Grid(
        title="Likelihood's gradient to the boundaries",
        variants={
            "reaches them": {"losses.location_gradient": True},
            "detached": {"losses.location_gradient": False},
        },
    ),
}


def load_grid(spec: str) -> tuple[str, Grid]:
    """A grid by name, or from a YAML file of one's own.

    Args:
        spec: The name, or the path.

    Raises:
        ConfigError: If there is neither, or the file does not hold a grid.
    """
    if spec in GRIDS:
        return spec, GRIDS[spec]
    path = Path(spec)
    subject = f"--grid {spec}"
    try:
        values = read_settings(
            path,
            Grid,
            subject=subject,
            remedy=f"a grid has title and variants, or one of these names: {', '.join(GRIDS)}",
        )
        return path.stem, Grid.model_validate(values)
    except ValidationError as error:
        fault = first_fault(error, Grid)
        raise ConfigError(
            f"{subject}: {fault.key or 'grid'}",
            expected=fault.expected,
            got=fault.got,
            remedy=fault.remedy,
        ) from error


def _value_label(value: Override) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
