"""Models of the Hugging Face hub on disk: found or fetched, checked, loaded without unpickling.

What is on disk already is used without asking the network: a frozen encoder does not change, and
a search must not depend on a server that answers slowly.
"""

import hashlib
import os
import re
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from demr.errors import InputError, ModelError
from demr.machine.arrays import check_loadable
from demr.machine.documents import read_json
from demr.machine.hub import fetch
from demr.machine.reading import check_regular_tree, read_text

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_WANTED = [*_SETTINGS, *_SAFE, "model-*.safetensors"]
_NO_LIMIT = 1 << 62
# Bytes, bytes that end a word, and special tokens.
_UNMERGED = 256 + 256 + 64
_AGAIN = "copy the file again from where the model came from"


@dataclass(frozen=True)
class Family:
    """Which models an encoder takes.

    Attributes:
        encoder: The encoder's name, as users write it.
        models: What one of them is called, with its article, for errors.
        classes: Model type as ``config.json`` calls it -> class of transformers.
        example: Id of one of them on the hub.
    """

    encoder: str
    models: str
    classes: Mapping[str, str]
    example: str

    @property
    def known(self) -> str:
        """Their names and model types in words."""
        *most, last = self.classes
        types = f"{', '.join(most)} or {last}" if most else last
        return f"{self.models} model (model_type {types})"


@dataclass(frozen=True)
class ModelFolder:
    """A complete model on disk.

    Attributes:
        family: Which it belongs to.
        source: As it was asked for: an id of the hub or a path.
        path: Where its files lie.
        model_type: One of the family's.
        weights: Files with the weights, in the order of their names.
    """

    family: Family
    source: str
    path: Path
    model_type: str
    weights: tuple[Path, ...]

    @property
    def class_name(self) -> str:
        """Its class in transformers."""
        return self.family.classes[self.model_type]

    def digest(self) -> str:
        """First 16 hexadecimal digits of the weight files' SHA-256.

        Raises:
            ModelError: If one cannot be read.
        """
        total = hashlib.sha256()
        for file in self.weights:
            try:
                with file.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise ModelError(
                    str(file),
                    expected="weights that can be read",
                    got=error.strerror or brief(error),
                    remedy="check the file's permissions, or copy it again",
                ) from error
        return total.hexdigest()[:16]

    def load(self, settings: Any) -> Any:
        """Load the model, in evaluation mode, float32, on the CPU.

        Args:
            settings: Its configuration, whole or of fewer layers: no more is loaded than it names.

        Raises:
            ModelError: If a file is damaged, or weights are missing or of another shape.
        """
        transformers = import_transformers(self.source, self.family)
        names = ", ".join(file.name for file in self.weights)
        try:
            with quiet_transformers():
                model, loading = getattr(transformers, self.class_name).from_pretrained(
                    self.path,
                    config=settings,
                    local_files_only=True,
                    use_safetensors=self.weights[0].suffix == ".safetensors",
                    weights_only=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:  # errors of json, safetensors, torch, pickle and transformers
            raise ModelError(
                f"{self.source} ({names})",
                expected=f"the complete weights of class {self.class_name}",
                got=brief(error),
                remedy=_AGAIN,
            ) from error
        # Where a weight is missing, transformers draws it at random and only logs that it did.
        missing = sorted(map(str, loading["missing_keys"]))
        if missing:
            raise ModelError(
                f"{self.source} ({names})",
                expected=f"the complete weights of class {self.class_name}",
                got=f"{len(missing)} tensors missing, such as {missing[0]}",
                remedy=_AGAIN,
            )
        return model.eval()

    def load_settings(self) -> Any:
        """The model's configuration, as an object of transformers.

        Raises:
            ModelError: If it has values that are no model.
        """
        transformers = import_transformers(self.source, self.family)
        try:
            with quiet_transformers():
                return transformers.AutoConfig.from_pretrained(self.path, local_files_only=True)
        except Exception as error:  # whatever a validator of transformers raises
            raise ModelError(
                str(self.path / "config.json"),
                expected=f"the configuration of class {self.class_name}",
                got=brief(error),
                remedy=_AGAIN,
            ) from error

    def load_tokenizer(self) -> Any:
        """The model's tokenizer, one that knows where in the text each token stands.

        Raises:
            ModelError: If there is none, or it is damaged.
        """
        transformers = import_transformers(self.source, self.family)
        try:
            _check_tokenizer_files(self.path)
            with quiet_transformers():
                # Read as it was published: the class named in the settings may ask for
                # sentencepiece, or rebuild what is in the file.
                ready = (self.path / "tokenizer.json").exists()
                kind = transformers.PreTrainedTokenizerFast if ready else transformers.AutoTokenizer
                tokenizer = kind.from_pretrained(self.path, local_files_only=True)
            if not tokenizer.is_fast:
                raise ValueError("a tokenizer without offsets")
            # What transformers takes unseen from the settings, such as a length that is no number
            # or a special token that is none, shows only here.
            with quiet_transformers():
                tokenizer("a dog")
            _ = tokenizer.all_special_ids
            # It would warn of sentences longer than a length that the model does not have.
            tokenizer.model_max_length = _NO_LIMIT
        except Exception as error:  # errors of json, tokenizers and transformers
            raise ModelError(
                str(self.path),
                expected="tokenizer.json, or vocab.json and merges.txt",
                got=brief(error),
                remedy=_AGAIN,
            ) from error
        return tokenizer


def _check_tokenizer_files(folder: Path) -> None:
    """Transformers makes a tokenizer without words where files are missing.

    Raises:
        ValueError: If they are, or were cut short.
        OSError: If one cannot be read.
    """
    if (folder / "tokenizer.json").exists() or any(folder.glob("*.model")):
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
    if missing:
        raise ValueError(f"no tokenizer.json, and no {' or '.join(missing)}")
    vocabulary = read_json(folder / "vocab.json")
    added = folder / "added_tokens.json"
    count = len(vocabulary) + (len(read_json(added)) if added.exists() else 0)
    merges = len(read_text(folder / "merges.txt").split("\n"))
    # Every token is a byte, a byte that ends a word, one that was added, or what a merge makes.
    if merges + _UNMERGED < count:
        raise ValueError(f"{merges} merges for a vocabulary of {count}")


def find_model_folder(source: str, family: Family) -> ModelFolder:
    """Find a model by path or by its id on the hub, which is asked only for what is not here.

    Args:
        source: A folder, or ``owner/name``.
        family: What the encoder takes.

    Raises:
        InputError: If transformers is not installed.
        ModelError: If there is no such model, it cannot be fetched, it is not of the family, or
            its weights are not there.
    """
    import_transformers(source, family)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _check(source, folder, family)
    if not _ID.fullmatch(source):
        raise ModelError(
            source,
            expected=f"a folder with a model, or an id such as {family.example}",
            got="a file" if folder.exists() else "no such folder",
            remedy="check the path",
        )
    return _check(source, _fetch(source, family), family)


def import_transformers(source: str, family: Family) -> Any:
    """The package transformers.

    Raises:
        InputError: If it is not installed.
    """
    missing = [name for name in ("transformers", "huggingface_hub") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"encoder {family.encoder} ({source})",
            expected="the packages of the extra 'encoders'",
            got=f"an installation without {' and '.join(missing)}",
            remedy="pip install 'demr[encoders]' (from a clone: make install)",
        )
    return import_module("transformers")


def brief(error: BaseException) -> str:
    """An error of a library on one line of bearable length."""
    text = " ".join(str(error).split()) or "no details"
    return textwrap.shorten(f"{type(error).__name__}: {text}", 200, placeholder=" ...")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and reports off the terminal: errors are raised here."""
    logging = import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check(source: str, folder: Path, family: Family) -> ModelFolder:
    try:
        check_regular_tree(folder)
        values = read_json(folder / "config.json")
        model_type = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            source,
            expected=f"the folder of {family.known}, with config.json",
            got=brief(error),
            remedy="check the path, or name a model of the hub",
        ) from error
    if not isinstance(model_type, str) or model_type not in family.classes:
        raise ModelError(
            source,
            expected=f"for encoder {family.encoder} {family.known}",
            got="no model_type" if model_type is None else f"model_type {str(model_type)[:40]!r}",
            remedy="name another model",
        )
    weights = _weights(folder, _SAFE) or _weights(folder, _PICKLED)
    try:
        for file in weights:
            check_loadable(file)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{source} ({file.name})",
            expected="weights that can be loaded",
            got=brief(error),
            remedy=_AGAIN,
        ) from error
    if not weights:
        raise ModelError(
            source,
            expected="weights: model.safetensors, or pytorch_model.bin read as plain tensors",
            got=f"neither in {folder}",
            remedy=_AGAIN,
        )
    return ModelFolder(family, source, folder, model_type, weights)


def _weights(folder: Path, names: tuple[str, str]) -> tuple[Path, ...]:
    """Weight files of one form, whole or in shards; none if there are none."""
    whole, index = folder / names[0], folder / names[1]
    if whole.exists():
        return (whole,)
    if not index.exists():
        return ()
    try:
        shards = set(read_json(index)["weight_map"].values())
        if any(Path(name).name != name for name in shards):
            raise ValueError("weights in other folders")
        files = tuple(folder / name for name in sorted(shards))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            str(index),
            expected="an index of weight files",
            got=brief(error),
            remedy=_AGAIN,
        ) from error
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ModelError(
            str(folder),
            expected=f"the {len(files)} weight files that {index.name} names",
            got=f"{len(missing)} missing, such as {missing[0]}",
            remedy=_AGAIN,
        )
    return files


def cached_folder(identifier: str) -> Path | None:
    """Folder of a hub's model if it is on this machine and complete; nothing is fetched."""
    hub = import_module("huggingface_hub")
    try:
        here = Path(
            hub.snapshot_download(identifier, allow_patterns=_WANTED, local_files_only=True)
        )
    except Exception:  # noqa: BLE001  (not here, in the words of one of several libraries)
        return None
    return here if _is_complete(here) else None


def _fetch(identifier: str, family: Family) -> Path:
    """Folder of a hub's model; fetched where it is not here or not complete."""
    cached = cached_folder(identifier)
    if cached is not None:
        return cached
    try:
        folder = fetch(identifier, _WANTED)
        if not _is_complete(folder):
            # Older models come as a pickle alone, of which torch reads nothing but tensors.
            folder = fetch(identifier, [*_WANTED, *_PICKLED, "pytorch_model-*.bin"])
    except Exception as error:  # the hub's client raises errors of several libraries
        offline = bool(import_module("huggingface_hub").constants.HF_HUB_OFFLINE)
        raise ModelError(
            f"encoder {family.encoder} ({identifier})",
            expected="a model on this machine or on the Hugging Face hub",
            got=_reason(error, offline),
            remedy=_how_to_fetch(identifier, family, offline),
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether settings and weights are there, each shard of them: a download may have been cut."""
    if not (folder / "config.json").exists():
        return False
    try:
        return bool(_weights(folder, _SAFE) or _weights(folder, _PICKLED))
    except ModelError:
        return False


def _reason(error: Exception, offline: bool) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    if offline:
        return "no complete copy here, and HF_HUB_OFFLINE is set"
    if "GatedRepoError" in names:
        return "a model whose licence has to be accepted first"
    if "RepositoryNotFoundError" in names:
        return "no such model, or one that is not public"
    if "TimeoutException" in names or "Timeout" in names:
        return "no complete copy here, and no answer from the hub"
    if "LocalEntryNotFoundError" in names or "ConnectError" in names or "ConnectionError" in names:
        return "no complete copy here, and the hub could not be reached"
    return brief(error)


def _how_to_fetch(identifier: str, family: Family, offline: bool) -> str:
    unset = "unset HF_HUB_OFFLINE, " if offline or os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"check the id; with a network {unset}run `hf download {identifier}`, "
        f"or copy its folder here and give {family.encoder}:/path/to/folder"
    )
