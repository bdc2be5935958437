"""Training configs: typed, documented, and strict about unknown keys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from demr.errors import ConfigError

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]

# An impossible date is a ValueError of its own, a thousand brackets a RecursionError.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ShapesConfig(_Strict):
    """How to render the embedded world when its folder does not exist yet."""

    seed: Count = 0
    """Seed of every video; another seed is another world."""
    train: PositiveInt = 700
    """Videos to train on."""
    val: PositiveInt = 250
    """Videos for choices and calibration."""
    iid: PositiveInt = 260
    """Test videos drawn like the training videos."""
    ood: PositiveInt = 260
    """Test videos with unseen combinations at other times."""
    workers: Count = 0
    """Processes that render and encode; 0 takes one per core."""


class DataConfig(_Strict):
    """Where annotations and features are, relative to the working directory."""

    root: Path
    """Folder that the other paths start from."""
    train: Path = Path("train.jsonl")
    """Annotations to train on."""
    val: Path = Path("val.jsonl")
    """Annotations for every choice and for calibration; never a test split."""
    tests: dict[str, Path] = {}
    """Name of a test split -> its annotations."""
    features: Path = Path("features")
    """Feature pack with the videos of all splits."""
    encoder: str = "builtin"
    """Encoder of the queries; must be the one that made the features. Unused with ``text``."""
    text: Path | None = None
    """Stored features of the queries: a folder with one .npz a qid, or an .npz of word vectors
    (``words`` and ``vectors``); may lie outside ``root``."""
    val_share: Rate = 0.0
    """Share of the training videos to hold out as validation, for data sets that have none;
    ``val`` is then not read."""
    absent_queries: bool = True
    """Make absent queries for validation and test splits that have none, out of their own
    sentences and videos, to calibrate and measure ``present`` by; nothing is trained on them."""
    standardize: bool = False
    """Standardise clip features by their training mean and deviation; stored in the model."""
    max_clips: PositiveInt = 1000
    """Clips of a video to read at once: training sees one such stretch of a longer video at a
    time, and the model is stored with the longest it saw."""
    shapes: ShapesConfig | None = None
    """Render the embedded world into ``root`` if that folder does not exist."""

    @model_validator(mode="after")
    def _val_is_no_test(self) -> Self:
        if self.val in self.tests.values():
            raise ValueError("the validation split is also listed as a test split")
        return self


class ModelConfig(_Strict):
    """Size of the network."""

    dim: PositiveInt = 256
    """Hidden size D; even, and divisible by ``heads``."""
    heads: PositiveInt = 8
    """Attention heads."""
    layers: PositiveInt = 4
    """Fusion layers."""
    hidden: PositiveInt = 512
    """Width of the feed-forward in the fusion."""
    dropout: Rate = 0.1
    """Dropout inside the fusion."""
    input_dropout: Rate = 0.5
    """Dropout in the projections."""
    fusion: Literal["rff", "concat"] = "rff"
    """``concat`` is the ablation partner with as many parameters."""
    saliency_hint: bool = False
    """Let the fusion read the saliency; not in the paper, see ``demr.network.model``."""
    matching: bool = False
    """Compare clips and query feature by feature before the fusion; not in the paper, see
    ``demr.network.model``."""
    text_layers: Count = 0
    """Self-attention over the tokens before the fusion, for text features without context such
    as word vectors; not in the paper, see ``demr.network.model``."""

    @model_validator(mode="after")
    def _dim_fits_heads(self) -> Self:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim must be even and divisible by heads ({self.heads})")
        return self


class LossConfig(_Strict):
    """Weights of the losses; see ``demr.network.losses.LossWeights``."""

    smooth_l1: Weight = 10.0
    """Boundary distance on foreground clips."""
    giou: Weight = 4.0
    """Generalised IoU on foreground clips."""
    foreground: Weight = 4.0
    """Cross-entropy of foreground against background."""
    background_weight: Weight = 0.1
    """Weight of a background clip in that cross-entropy."""
    intra: Weight = 0.2
    """Saliency within a video."""
    inter: Weight = 0.2
    """Saliency across the batch."""
    clip_contrast: Weight = 0.5
    """Clips against clips, without the text; 0.5 for QVHighlights, 0.2 for Charades-STA."""
    absent_negatives: bool = False
    """Keep clips away from absent queries too; not in the paper, see ``demr.network.losses``."""
    lambda_der: Weight = 1e-3
    """Weight of the evidential loss."""
    lambda_nll: Weight = 1.0
    """Likelihood within the evidential loss."""
    lambda_geom: Weight = 1e-2
    """Geom-regulariser within the evidential loss."""
    lambda_reg: Weight = 1e-2
    """Vanilla DER regulariser within the evidential loss."""
    regularizer: Literal["none", "der", "geom"] = "geom"
    """What shapes the evidence."""
    error_scale: Literal["min-max", "rank"] = "min-max"
    """How Geom scales errors to 0..1. ``min-max`` is the paper's; ``rank`` is not moved by
    outliers, see ``demr.evidential.geom_regularizer``."""
    error_unit: Literal["fraction", "seconds"] = "fraction"
    """What Geom compares errors in. ``fraction`` (of the duration) is the paper's; in ``seconds``
    a long video's error weighs as much as a user feels it."""
    background_evidence: bool = False
    """Teach the evidential head about background clips too, as often as each would be proposed by
    mistake; not in the paper, see ``demr.network.losses.evidential_terms``."""
    noise_doubt: bool = False
    """Let Geom ask for less evidence the more an item was disturbed (``retrieval.video_noise``,
    ``retrieval.text_noise``); not in the paper, see ``demr.evidential.geom_regularizer``."""
    location_gradient: bool = True
    """Whether the likelihood's gradient reaches the predicted boundary."""


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
    """Stage 1: reconstruct a masked word of the query."""

    epochs: Count = 30
    """0 leaves the reconstruction out."""
    align_epochs: Count = 0
    """Epochs of the saliency losses (and the matching's) alone, before anything else. Not in the
    paper: they need no fusion, so an epoch costs a tenth of a full one, and the fusion starts on
    aligned inputs."""
    align_lr: Weight = 1e-3
    """Learning rate of the alignment."""
    batch_size: PositiveInt = 128
    """Queries per step."""
    lr: Weight = 1e-5
    """Learning rate; the paper's text says 1e-5, its ablation and release 1e-4."""
    pos: tuple[Literal["noun", "verb", "adjective"], ...] = ("noun",)
    """Parts of speech that may be masked."""
    words: PositiveInt = 1
    """Words masked in a query."""
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
    drop_epoch: Count = 160
    """Epoch at which a ``step`` schedule divides the rate by ten."""
    schedule: Literal["step", "cosine"] = "step"
    """``step`` is the paper's; ``cosine`` decays to zero over the whole run."""
    video_noise: Rate = 0.0
    """Share of the training items whose video features are disturbed by Gaussian noise, the
    refit's too. Not in the paper: without it no loss says that uncertainty has to grow where the
    features are worse than ever seen."""
    text_noise: Rate = 0.0
    """Likewise of the items whose text features are disturbed; drawn independently."""
    noise_level: Weight = 4.0
    """Largest noise, in standard deviations of each feature over the training data. An item's
    level is drawn log-uniformly between a sixteenth of it and all of it."""
    refit_epochs: Count = 0
    """Epochs in which a fresh evidential head is fitted to the finished network; not in the
    paper, see ``demr.training.stages``."""
    refit_lr: Weight = 3e-3
    """Peak learning rate of that fit."""
    refit_share: Rate = 0.0
    """Share of the training videos that both stages leave out, to refit on: there the residuals
    are those of videos never seen, which are larger. 0 refits on the training videos."""
    validate_every: PositiveInt = 1
    """Epochs between validations."""
    validate_queries: Count = 0
    """Validation queries used to choose a checkpoint; 0 takes all."""


class CalibrationConfig(_Strict):
    """What is fitted on the validation split after training."""

    ranking: Literal["auto", "score", "uncertainty", "fusion", "voting"] = "auto"
    """``auto`` takes the ranking with the best validation mean IoU."""
    disagreement: Weight | None = 1.0
    """How much the voters' spread counts in the epistemic variance where the ranking is
    ``voting``; 1 is the law of total variance, null takes the one with the best validation
    likelihood, as voters share their mistakes."""
    interval_level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Coverage of the intervals that a search prints."""


class TrainConfig(_Strict):
    """A whole training run."""

    name: str
    """Name of the model, stored with it."""
    seed: Count = 0
    """Seed of weights, order, dropout and masks."""
    weight_decay: Weight = 1e-4
    """AdamW weight decay, in both stages."""
    gradient_clip: Weight = 0.1
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """``auto`` takes bfloat16 where the hardware multiplies it faster."""
    devices: PositiveInt = 1
    """Processes or accelerators for Lightning's Trainer."""
    data: DataConfig
    """Annotations and features."""
    model: ModelConfig = ModelConfig()
    """Size of the network."""
    losses: LossConfig = LossConfig()
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
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


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
        remedy = "mend it"
        if first["type"] == "extra_forbidden":
            remedy = f"known keys here: {', '.join(_siblings(first['loc']))}"
        more = error.error_count() - 1
        raise ConfigError(
            f"{source}: {key}",
            expected=first["msg"].removeprefix("Value error, "),
            got=got,
            remedy=remedy + (f" ({more} more like it)" if more else ""),
        ) from error


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = TrainConfig
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        kinds = [field.annotation] if field else []
        kinds += list(getattr(kinds[0], "__args__", ())) if kinds else []
        nested = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not nested:
            break
        model = nested[0]
    return list(model.model_fields)


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
