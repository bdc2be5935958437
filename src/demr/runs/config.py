"""Training configs: typed, documented, and strict about unknown keys."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from demr.errors import ConfigError
from demr.network.settings import Architecture, Count, LossWeights, PositiveInt, Rate, Weight

# An impossible date is a ValueError of its own, a thousand brackets a RecursionError.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(_Strict):
    """Where annotations and features are, relative to the working directory."""

    root: Path
    """Folder that the other paths start from."""
    train: Path = Path("train.jsonl")
    """Annotations to train on."""
    val: Path | float = Path("val.jsonl")
    """Annotations for every choice and for calibration, never a test split; or, for data sets
    without such a split, the share of the training videos to hold out for it."""
    tests: dict[str, Path] = {}
    """Name of a test split -> its annotations."""
    features: Path = Path("features")
    """Feature pack with the videos of all splits."""
    encoder: str = "builtin"
    """Encoder of the queries; must be the one that made the features. Unused with ``text``."""
    text: Path | None = None
    """Stored features of the queries: a folder with one .npz a qid, or an .npz of word vectors
    (``words`` and ``vectors``); may lie outside ``root``."""
    absent_queries: bool = True
    """Make absent queries for validation and test splits that have none, out of their own
    sentences and videos, to calibrate and measure ``present`` by; nothing is trained on them."""
    shapes: dict[Literal["train", "val", "iid", "ood"], PositiveInt] | None = None
    """Split -> videos of the embedded world to render into ``root`` if that is not there yet."""

    @field_validator("val", mode="plain")
    @classmethod
    def _path_or_share(cls, value: object) -> Path | float:
        # By hand: a union would name both of its parts in two errors.
        if isinstance(value, str | Path):
            return Path(value)
        if isinstance(value, float) and 0 < value < 1:
            return value
        raise ValueError("a path, or a share of the training videos between 0 and 1")

    @model_validator(mode="after")
    def _val_is_no_test(self) -> Self:
        if self.val in self.tests.values():
            raise ValueError("the validation split is also listed as a test split")
        return self


class _StageConfig(_Strict):
    """What both stages share."""

    batch_size: PositiveInt
    """Queries per step."""
    queries_per_video: PositiveInt = 1
    """Queries of one video that go into a batch together; 1 is the paper's. They share the
    projection of the video, and each is a hard negative to the others. A batch holds
    ``batch_size / queries_per_video`` such groups: fewer queries where videos have fewer."""
    queries_per_epoch: Count = 0
    """Queries drawn anew for each epoch (alignment always takes all); 0 takes all, the paper's."""

    @model_validator(mode="after")
    def _batches_hold_whole_groups(self) -> Self:
        if self.batch_size % self.queries_per_video:
            raise ValueError(f"queries_per_video must divide batch_size ({self.batch_size})")
        return self


class ReconstructionConfig(_StageConfig):
    """Stage 1: reconstruct one masked word of each query."""

    epochs: Count = 30
    """0 leaves the reconstruction out."""
    align_epochs: Count = 0
    """Epochs of the saliency losses (and the matching's) alone, before anything else. Not in the
    paper: they need no fusion, so an epoch costs a tenth of a full one, and the fusion starts on
    aligned inputs."""
    batch_size: PositiveInt = 128
    """Queries per step."""
    lr: Weight = 1e-5
    """Learning rate; the paper's text says 1e-5, its ablation and release 1e-4."""
    pos: tuple[Literal["noun", "verb", "adjective"], ...] = ("noun",)
    """Parts of speech that may be masked."""
    masking: Literal["feature", "input"] = "feature"
    """Zero the token's feature, or hide the word before a contextual encoder runs."""


class RetrievalConfig(_StageConfig):
    """Stage 2: moment retrieval and evidential regression."""

    epochs: PositiveInt = 180
    """Passes over the training queries."""
    batch_size: PositiveInt = 32
    """Queries per step."""
    lr: Weight = 1e-4
    """Peak learning rate."""
    warmup_epochs: Weight = 10
    """Epochs of linear warm-up; may be a fraction."""
    schedule: int | Literal["cosine"] = 160
    """Epoch at which the rate is divided by ten, as in the paper, or ``cosine``, which lets it
    decay to zero over the whole run."""
    noise: dict[Literal["video", "text"], Rate] = {}
    """Modality -> share of the training items that get Gaussian noise on its features, the
    refit's too; Geom asks for less evidence there. Of items with noise on both there is the
    product of the shares. Not in the paper, which never says what worse features deserve."""
    refit_epochs: Count = 0
    """Epochs in which a fresh evidential head is fitted to the finished network; not in the
    paper, see ``demr.training.stages``."""
    refit_share: Rate = 0.0
    """Share of the training videos that both stages leave out, to refit on: there the residuals
    are those of videos never seen, which are larger. 0 refits on the training videos."""

    @field_validator("schedule", mode="plain")
    @classmethod
    def _cosine_or_an_epoch(cls, value: object) -> object:
        # By hand: a union would name both of its parts in two errors.
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value != "cosine" and not whole:
            raise ValueError("cosine, or the epoch above 0 at which the rate is divided by ten")
        return value


class CalibrationConfig(_Strict):
    """What is fitted on the validation split after training."""

    ranking: Literal["auto", "score", "uncertainty", "fusion", "voting"] = "auto"
    """``auto`` takes the ranking with the best validation mean IoU."""
    disagreement: Weight | None = 1.0
    """How much the voters' spread counts in the epistemic variance where the ranking is
    ``voting``; 1 is the law of total variance, null takes the one with the best validation
    likelihood, as voters share their mistakes."""


class TrainConfig(_Strict):
    """A whole training run."""

    name: str
    """Name of the model, stored with it."""
    seed: Count = 0
    """Seed of weights, order, dropout and masks."""
    gradient_clip: Weight = 0.1
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """``auto`` takes bfloat16 where the hardware multiplies it faster: accelerators that have it,
    CPUs with AVX512-BF16 or AMX. What is saved, and every prediction, is float32."""
    devices: PositiveInt = 1
    """Processes or accelerators for Lightning's Trainer."""
    data: DataConfig
    """Annotations and features."""
    model: Architecture = Architecture()
    """Size and wiring of the network."""
    losses: LossWeights = LossWeights()
    """Weights of the losses."""
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """Stage 1."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Stage 2."""
    calibration: CalibrationConfig = CalibrationConfig()
    """After training."""

    def to_yaml(self) -> str:
        """The resolved config as YAML that :func:`load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config and apply ``a.b=value`` overrides.

    Raises:
        ConfigError: If the file is missing or no YAML mapping, a key is unknown, or a value has
            the wrong type.
    """
    values = _read(path)
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def _read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            str(path),
            expected="a readable YAML file",
            got=type(error).__name__,
            remedy="check the path; recipes are in configs/",
        ) from error
    except _NO_YAML as error:
        raise ConfigError(
            str(path), expected="valid YAML", got=str(error), remedy="mend the file"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            str(path),
            expected="a mapping of settings",
            got=type(values).__name__,
            remedy="start from a recipe in configs/",
        )
    return values


def load_stored_config(path: Path) -> TrainConfig:
    """Read the config of a finished run, which an older demr may have written.

    Training settings that went since do not matter to what is done with a finished run, and are
    left out; where its data are is read as it was written.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    values = _read(path)
    data, stage = values.get("data"), values.get("retrieval")
    if isinstance(data, dict):
        if share := data.pop("val_share", 0):
            data["val"] = share
        # Rendered when it was trained, with another seed perhaps.
        data.pop("shapes", None)
    if isinstance(stage, dict) and stage.get("schedule") == "step":
        stage["schedule"] = stage.get("drop_epoch", 160)
    return parse_config(_known_part(values, TrainConfig), str(path))


def _known_part(values: Mapping[str, Any], kind: object) -> dict[str, Any]:
    """What of some values are settings of a part of a config."""
    known = fields_of(kind) or {}
    return {
        name: _known_part(value, known[name])
        if isinstance(value, dict) and fields_of(known[name])
        else value
        for name, value in values.items()
        if name in known
    }


def parse_config(values: Mapping[str, Any], source: str) -> TrainConfig:
    """Validate a mapping of settings.

    Raises:
        ConfigError: Naming the first setting that does not fit.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        expected = first["msg"].removeprefix("Value error, ")
        remedy = "mend it"
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            expected = "a known key"
            remedy = f"known keys here: {', '.join(_siblings(first['loc']))}"
        more = error.error_count() - 1
        raise ConfigError(
            f"{source}: {key}",
            expected=expected,
            got=got,
            remedy=remedy + (f" ({more} more like it)" if more else ""),
        ) from error


def fields_of(kind: object) -> dict[str, Any] | None:
    """Names and types of the settings that a part of a config consists of; None for a setting."""
    for part in (kind, *getattr(kind, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return {name: field.annotation for name, field in part.model_fields.items()}
        if isinstance(part, type) and is_dataclass(part):
            return {field.name: field.type for field in fields(part)}
    return None


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    known = fields_of(TrainConfig) or {}
    for part in loc[:-1]:
        known = fields_of(known.get(str(part))) or known
    return list(known)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override}",
            expected="a.b=value",
            got="no key and value",
            remedy="write for example --set retrieval.lr=0.0002",
        )
    *parents, last = key.strip().split(".")
    target = values
    for parent in parents:
        nested = target.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise ConfigError(
                f"--set {override}",
                expected="a key inside a mapping",
                got=f"{parent} is {nested!r}",
                remedy="check the key",
            )
        target = nested
    try:
        target[last] = yaml.safe_load(text)
    except _NO_YAML as error:
        raise ConfigError(
            f"--set {override}", expected="a YAML value", got=text, remedy="quote it"
        ) from error
