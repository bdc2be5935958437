"""A model on disk: ``model.safetensors`` and ``config.json``, all that loading needs."""

import json
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from demr.answers.domain import check_domain
from demr.batches.stretches import MAX_CLIPS
from demr.encoders import Encoder, EncoderIdentity, get_encoder
from demr.errors import DemrError, ModelError
from demr.machine.documents import format_version, read_json
from demr.machine.files import atomic_path
from demr.machine.hub import fetch
from demr.network.model import DemrModel
from demr.network.settings import Architecture
from demr.network.weights import read_weights

FORMAT_VERSION = 1
# The start and end fraction that features.prepare_video appends to a clip.
APPENDED_DIMS = 2


@dataclass(frozen=True)
class Pretrained:
    """A loaded model and what is known about it.

    Attributes:
        model: In evaluation mode, float32.
        name: As the training config called it.
        identity: The encoder whose features it understands.
        architecture: Size and wiring of ``model``.
        known_words: Words of the training queries, or None where the encoder can place words
            that were never trained on.
        domain: The range of every raw feature in the training videos, see
            :func:`demr.answers.domain.describe_domain`; None in models that do not say it.
        max_clips: Clips of the longest video it was trained on, or of the longest stretch; longer
            videos are read by stretches of so many. Models that do not say so get
            :data:`demr.batches.stretches.MAX_CLIPS`.
    """

    model: DemrModel
    name: str
    identity: EncoderIdentity
    architecture: Architecture
    known_words: frozenset[str] | None = None
    domain: Mapping[str, Any] | None = None
    max_clips: int = MAX_CLIPS

    def load_encoder(self, device: str = "auto") -> Encoder:
        """Make the encoder that this model was trained on.

        Raises:
            ModelError: If this installation has another version of it, or other weights.
        """
        return self.check_encoder(get_encoder(self.identity.request, device=device))

    def check_encoder(self, encoder: Encoder) -> Encoder:
        """Return an encoder if its features are those that this model was trained on.

        Raises:
            ModelError: If they are not.
        """
        if not encoder.identity.fits(self.identity):
            raise ModelError(
                self.name,
                expected=f"an encoder that is {self.identity}",
                got=f"{encoder.identity}",
                remedy="name that encoder with --encoder, use the demr version it was trained "
                "with, or train it again",
            )
        return encoder

    def unknown_words(
        self, words: Iterable[str], calibrated: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Words that neither training nor calibration showed, each once.

        None where the encoder knows any word.

        Args:
            words: Of a query.
            calibrated: Words of the queries that the model was calibrated on.
        """
        if self.known_words is None:
            return ()
        known = self.known_words.union(calibrated)
        return tuple(dict.fromkeys(word for word in words if word not in known))


def save_pretrained(folder: Path, pretrained: Pretrained, half: bool = False) -> None:
    """Write a model; one that is there stays whole until the new one is written.

    Args:
        folder: Created if missing.
        pretrained: What to write.
        half: Store the weights in float16.

    Raises:
        ModelError: If the disk is full or the folder not writable; nothing is left half-written.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "name": pretrained.name,
        "architecture": asdict(pretrained.architecture),
        "encoder": pretrained.identity.to_dict(),
        "known_words": None if pretrained.known_words is None else sorted(pretrained.known_words),
        "domain": None if pretrained.domain is None else dict(pretrained.domain),
        "max_clips": pretrained.max_clips,
    }
    state = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous().cpu()
        for name, value in pretrained.model.state_dict().items()
    }
    try:
        # Both are written before either is put in place: weights never meet another's config.
        with (
            atomic_path(folder / "config.json") as described,
            atomic_path(folder / "model.safetensors") as weights,
        ):
            save_file(state, weights)
            described.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            str(folder),
            expected="room to save the model",
            got=f"{type(error).__name__}: {error}",
            remedy="free disk space or choose another folder; what was there is unchanged",
        ) from error


def load_pretrained(folder: Path) -> Pretrained:
    """Read a model written by :func:`save_pretrained`.

    Raises:
        ModelError: If a file is missing, damaged, or of a newer format.
    """
    config = _read_config(folder / "config.json")
    try:
        identity = EncoderIdentity.from_dict(config["encoder"])
        architecture = Architecture.from_stored(config["architecture"])
        known_words = _known_words(config.get("known_words"))
        domain = check_domain(config.get("domain"), identity.video_dim)
        max_clips = config.get("max_clips", MAX_CLIPS)
        if type(max_clips) is not int or max_clips < 1:
            raise ValueError(f"max_clips must be a number above 0, is {max_clips!r}")
    except (DemrError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            str(folder / "config.json"),
            expected="the architecture and encoder of a model",
            got=_brief(error),
            remedy="copy the file again from the training run",
        ) from error
    weights = folder / "model.safetensors"
    try:
        # Without memory, until the file is known to hold what the config describes.
        with torch.device("meta"):
            model = DemrModel(identity.video_dim + APPENDED_DIMS, identity.text_dim, architecture)
        model.load_state_dict(read_weights(weights, model), assign=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            str(weights),
            expected="the complete weights that config.json describes, all finite",
            got=_brief(error),
            remedy="copy the file again from the training run, or train it again",
        ) from error
    return Pretrained(
        model.eval(),
        str(config.get("name", folder.name)),
        identity,
        architecture,
        known_words,
        domain,
        max_clips,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """A model's ``config.json``, of a format and a network that demr has."""
    try:
        config = read_json(path)
        if not isinstance(config, dict):
            raise ValueError("no object")
        version = format_version(config, "format_version", FORMAT_VERSION)
    except (OSError, ValueError) as error:
        raise ModelError(
            str(path),
            expected="a model folder with config.json and model.safetensors",
            got=_brief(error),
            remedy="name the run folder that `demr train` wrote",
        ) from error
    if version > FORMAT_VERSION:
        raise ModelError(
            str(path),
            expected=f"model format {FORMAT_VERSION} or older",
            got=f"format {version}",
            remedy="upgrade demr",
        )
    stored = config.get("architecture")
    if isinstance(stored, dict) and stored.get("saliency_hint"):
        raise ModelError(
            str(path),
            expected="a network of the parts that demr still has",
            got="one with saliency_hint",
            remedy="train it again, or keep the demr that trained it",
        )
    return config


def _known_words(known: object) -> frozenset[str] | None:
    if known is None:
        return None
    if not isinstance(known, list) or not all(isinstance(word, str) for word in known):
        raise TypeError("known_words must be a list of words, or null")
    return frozenset(known)


def _brief(error: Exception) -> str:
    # torch lists every tensor that does not fit.
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")


DEFAULT_MODEL = "shapes"


def find_model(source: str | Path) -> Path:
    """Folder of a model given by path, by the name of a bundled one, or by Hugging Face id.

    Raises:
        ModelError: If there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    bundled = Path(str(files("demr"))) / "models" / str(source)
    if str(source).isidentifier() and bundled.is_dir():
        return bundled
    if str(source).count("/") == 1 and not folder.suffix and not folder.is_absolute():
        return _download(str(source))
    raise ModelError(
        str(source),
        expected="a model folder, a Hugging Face id, or 'shapes'",
        got="no such model",
        remedy="name the run folder that `demr train` wrote",
    )


def _download(identifier: str) -> Path:
    try:
        files = ["config.json", "model.safetensors", "calibration.json"]
        return fetch(identifier, files, or_cached=True)
    except ImportError as error:
        raise ModelError(
            identifier,
            expected="a local folder, or the package huggingface_hub to fetch a model",
            got="neither",
            remedy="pip install huggingface_hub, or check the path",
        ) from error
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ModelError(
            identifier,
            expected="a local folder or a model on the Hugging Face hub",
            got=f"{type(error).__name__}",
            remedy="check the id and the network",
        ) from error
