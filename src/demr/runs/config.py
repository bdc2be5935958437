"""Training configs: typed, documented, and strict about unknown keys."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)

from demr.errors import ConfigError
from demr.machine.documents import YamlReader
from demr.machine.reading import read_text
from demr.machine.typed import build, fields_of, first_fault, kind_at
from demr.network.settings import (
    Architecture,
    Count,
    LossWeights,
    PositiveInt,
    Rate,
    Seed,
    Weight,
)

_LONGEST_NAME = 100


def _file_name(value: str) -> str:
    """Check that a name is one folder's, and leads nowhere else."""
    fits = re.fullmatch(r"[^\W.][\w .+=,@-]*", value) and value[-1] not in ". "
    if not fits or len(value.encode()) > _LONGEST_NAME:
        raise ValueError(
            "a name of letters, digits and . _ + - that is no path, as a folder is called by it, "
            f"of at most {_LONGEST_NAME} bytes"
        )
    return value


def _real_path(value: Path) -> Path:
    """Check that a path is one that a file can have."""
    if not value.name.isprintable() or "\0" in str(value) or len(str(value)) > 4096:
        raise ValueError("a path that a file can have")
    return value


_Name = Annotated[str, AfterValidator(_file_name)]
_FilePath = Annotated[Path, AfterValidator(_real_path)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(_Strict):
    """Where annotations and features are, relative to the working directory."""

    root: _FilePath
    """Folder that the other paths start from."""
    train: _FilePath = Path("train.jsonl")
    """Annotations to train on."""
    val: _FilePath | float = Path("val.jsonl")
    """Annotations for every choice and for calibration, never a test split; or, for data sets
    without such a split, the share of the training videos to hold out for it."""
    tests: dict[str, _FilePath] = {}
    """Name of a test split -> its annotations."""
    features: _FilePath = Path("features")
    """Feature pack with the videos of all splits."""
    encoder: str = "builtin"
    """Encoder of the queries; must be the one that made the features. Unused with ``text``."""
    text: _FilePath | None = None
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
            return _real_path(Path(value))
        if isinstance(value, float) and 0 < value < 1:
            return value
        raise ValueError("a path, or a share of the training videos between 0 and 1")

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.val in self.tests.values():
            raise ValueError(f"a validation split that is no test split; got {self.val} as both")
        # A run's metrics and predictions have these places already.
        for taken in ("train", "val", "gap"):
            if taken in self.tests:
                raise ValueError(f"tests called otherwise than train, val or gap; got {taken!r}")
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
            raise ValueError(
                f"queries_per_video that divides batch_size ({self.batch_size}); "
                f"got {self.queries_per_video}"
            )
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

    name: _Name
    """Name of the model, stored with it; its run folder is called so."""
    seed: Seed = 0
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
    values = read_settings(path, TrainConfig)
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def read_settings(
    path: Path, kind: object, *, subject: str = "", remedy: str = "recipes are in configs/"
) -> dict[str, Any]:
    """Plain values of a YAML file of settings.

    Args:
        path: The file.
        kind: Type of the settings; what is a text there is taken as it was written.
        subject: What the file is, for errors; its path by default.
        remedy: Where there are such files.

    Raises:
        ConfigError: If it cannot be read, or is no mapping of plain values.
    """
    subject = subject or str(path)
    try:
        reader = YamlReader(read_text(path))
        values = build(reader, reader.root, kind)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            subject,
            expected="a readable YAML file",
            got=f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}",
            remedy=f"check the path; {remedy}",
        ) from error
    except ValueError as error:
        raise ConfigError(
            subject,
            expected="valid YAML",
            got=str(error)[:200],
            remedy=f"mend the file; {remedy}",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            subject,
            expected="a mapping of settings",
            got=type(values).__name__,
            remedy=f"mend the file; {remedy}",
        )
    return values


def load_stored_config(path: Path) -> TrainConfig:
    """Read the config of a finished run, which an older demr may have written.

    Training settings that went since do not matter to what is done with a finished run, and are
    left out; where its data are is read as it was written.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    values = read_settings(path, TrainConfig)
    data, stage = values.get("data"), values.get("retrieval")
    if isinstance(data, dict):
        if share := data.pop("val_share", 0):
            data["val"] = share
        # Rendered when it was trained, with another seed perhaps.
        data.pop("shapes", None)
    if isinstance(stage, dict) and stage.get("schedule") == "step":
        stage["schedule"] = stage.get("drop_epoch", 160)
    if isinstance(values.get("name"), str):
        # Once it could be a path.
        values["name"] = re.sub(r"[/\\]+", "-", values["name"]).lstrip(".- ") or "model"
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
        fault = first_fault(error, TrainConfig)
        raise ConfigError(
            f"{source}: {fault.key or 'config'}",
            expected=fault.expected,
            got=fault.got,
            remedy=fault.remedy,
        ) from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    subject = f"--set {override[:80]}"
    if not separator or not key:
        raise ConfigError(
            subject,
            expected="a.b=value",
            got="no key and value",
            remedy="write for example --set retrieval.lr=0.0002",
        )
    *parents, last = key.strip().split(".")
    target, kind = values, cast("object", TrainConfig)
    for parent in parents:
        nested = target.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise ConfigError(
                subject,
                expected="a key inside a mapping",
                got=f"{parent} is {nested!r}"[:120],
                remedy="check the key",
            )
        target, kind = nested, kind_at(kind, parent)
    try:
        reader = YamlReader(text)
        target[last] = build(reader, reader.root, kind_at(kind, last))
    except ValueError as error:
        raise ConfigError(
            subject, expected="a YAML value", got=str(error)[:200], remedy="quote it"
        ) from error
