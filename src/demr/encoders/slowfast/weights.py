"""Weights of SlowFast R50 8x8: found or fetched, checked, loaded without unpickling.

Any file with them, or the one that PyTorchVideo publishes, which is cached where ``torch.hub``
caches it: who has used the model there has it here.
"""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from demr.encoders.model_folder import brief
from demr.encoders.slowfast.network import (
    HEAD,
    SlowFastNetwork,
    guess_naming,
    names_in,
    tensor_shapes,
)
from demr.errors import ModelError
from demr.machine.arrays import check_loadable
from demr.machine.files import atomic_path
from demr.machine.reading import open_regular

PUBLISHED = "SLOWFAST_8x8_R50"
"""Name of PyTorchVideo's weights, trained on Kinetics-400."""
URL = f"https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/{PUBLISHED}.pyth"

_SUFFIXES = (".pyth", ".pt", ".pth", ".pkl", ".safetensors")
# Seconds without an answer after which a server counts as gone.
_TIMEOUT_S = 20.0
_WHOLE = "the complete tensors of a SlowFast R50 8x8"
_AGAIN = "copy the file again from where it came from"
# How torch begins its files; the older ones begin with a pickled number.
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass(frozen=True)
class SlowFastWeights:
    """A file of weights on disk.

    Attributes:
        source: As it was asked for: a name or a path.
        path: Where it lies.
    """

    source: str
    path: Path

    def digest(self) -> str:
        """First 16 hexadecimal digits of the file's SHA-256."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    def load(self) -> SlowFastNetwork:
        """Build the network, in evaluation mode, float32, on the CPU.

        Raises:
            ModelError: If the file is damaged, or a tensor is missing, unknown or misshapen.
        """
        state = self._checked(self._read())
        with torch.device("meta"):  # nothing is drawn that is replaced at once
            network = SlowFastNetwork()
        for name in network.state_dict():
            if name.endswith("num_batches_tracked"):
                state[name] = torch.zeros((), dtype=torch.int64)
        network.load_state_dict(state, assign=True)
        return network.eval()

    def _read(self) -> Mapping[Any, Any]:
        try:
            if self.path.suffix == ".safetensors":
                return load_file(self.path)
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            state = state.get("model_state", state)
            return {name: state[name] for name in state}
        except Exception as error:  # errors of torch, pickle, zip files and safetensors
            raise ModelError(
                self._name,
                expected="tensors by name, as torch or safetensors saves them",
                got=f"a file that cannot be read so ({brief(error)})",
                remedy=_AGAIN,
            ) from error

    def _checked(self, given: Mapping[Any, Any]) -> dict[str, Tensor]:
        """Tensors that the network needs, by its names, after a check of all that are given."""
        given = {
            str(name): value
            for name, value in given.items()
            if not str(name).endswith("num_batches_tracked")
        }
        naming = guess_naming(given)
        if naming is None:
            raise self._unlike(
                "names such as "
                + (", ".join(sorted(given)[:2]) or "none at all")
                + ", not those of PyTorchVideo, PySlowFast or Caffe2"
            )
        shapes = tensor_shapes()
        wanted = names_in(naming, shapes)
        head = names_in(naming, HEAD)
        missing = sorted(wanted.keys() - given.keys())
        unknown = sorted(given.keys() - wanted.keys() - head.keys())
        if naming == "caffe2":
            # Its files are whole workspaces, in which anything may lie beside the weights.
            given = {name: value for name, value in given.items() if name not in unknown}
            unknown = []
        for kind, names in (("missing", missing), ("unknown", unknown)):
            if names:
                raise self._unlike(f"{len(names)} tensors {kind}, such as {names[0]}")
        for name, value in given.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise self._unlike(f"no numbers under {name}")
            ours = wanted.get(name) or head[name]
            if ours == HEAD[0]:
                fits = value.ndim == 2 and value.shape[1] == 2304
            elif ours == HEAD[1]:
                fits = value.ndim == 1
            else:
                fits = tuple(value.shape) == shapes[ours]
            if not fits:
                expected = "(N, 2304)" if ours in HEAD else str(shapes[ours])
                raise self._unlike(f"{name} of shape {tuple(value.shape)} and not {expected}")
        return {ours: given[name].float() for name, ours in wanted.items()}

    @property
    def _name(self) -> str:
        """For errors: as it was asked for, with the file's name where that differs."""
        is_path = Path(self.source).name == self.path.name
        return self.source if is_path else f"{self.source} ({self.path.name})"

    def _unlike(self, got: str) -> ModelError:
        return ModelError(
            self._name,
            expected=_WHOLE,
            got=got,
            remedy=f"give the file of SlowFast R50 8x8, such as {PUBLISHED}.pyth",
        )


def find_weights(source: str) -> SlowFastWeights:
    """Find a file by its path, or the published one, which is fetched if it is not here.

    Args:
        source: A path, or :data:`PUBLISHED`.

    Raises:
        ModelError: If there is no such file, it cannot be fetched, or it is a Caffe2 pickle.
    """
    if source == PUBLISHED:
        return _check(source, cached_weights() or _fetch(_cache()))
    path = Path(source).expanduser()
    if not path.is_file():
        raise ModelError(
            f"encoder slowfast ({source})",
            expected=f"a file with weights, or {PUBLISHED} for PyTorchVideo's",
            got="a folder" if path.is_dir() else "no such file",
            remedy="check the path",
        )
    return _check(source, path)


def cached_weights() -> Path | None:
    """The published file if it is on this machine; nothing is fetched."""
    return path if (path := _cache()).is_file() else None


def how_to_fetch() -> str:
    """Remedy where it cannot be fetched from here."""
    return (
        f"with a network run `curl -f --create-dirs -o {_cache()} {URL}`, "
        "or give a file: slowfast:/path/to/file, or clip+slowfast,slowfast=/path/to/file"
    )


def _check(source: str, path: Path) -> SlowFastWeights:
    try:
        check_loadable(path)
        with open_regular(path) as stream:
            begin = stream.read(4096)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"encoder slowfast ({source})",
            expected="a file that can be read",
            got=brief(error),
            remedy="check its permissions, or copy it again",
        ) from error
    if path.suffix not in _SUFFIXES:
        raise ModelError(
            f"encoder slowfast ({source})",
            expected=f"a file of weights ({', '.join(_SUFFIXES)})",
            got=path.suffix or "a name without an ending",
            remedy="check the path",
        )
    if path.suffix != ".safetensors" and not begin.startswith(_TORCH) and b"blobs" in begin:
        raise ModelError(
            f"encoder slowfast ({source})",
            expected="tensors as torch or safetensors saves them",
            got="a pickle of Caffe2, which could run anything",
            remedy="turn it into a torch file as docs/encoders.md says, or use PyTorchVideo's "
            f"{PUBLISHED}.pyth",
        )
    return SlowFastWeights(source, path)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{PUBLISHED}.pyth"


def _fetch(path: Path) -> Path:
    """Bring the published file to where torch.hub would."""
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise OSError("HF_HUB_OFFLINE is set")
        with (
            urllib.request.urlopen(URL, timeout=_TIMEOUT_S) as answer,
            atomic_path(path) as temporary,
        ):
            with temporary.open("wb") as stream:
                shutil.copyfileobj(answer, stream, 1 << 20)
            whole = int(answer.headers.get("Content-Length") or -1)
            if whole != (size := temporary.stat().st_size):
                raise OSError(f"the connection ended after {size} of {whole} bytes")
    except OSError as error:  # urllib's errors are among them
        raise ModelError(
            f"encoder slowfast ({PUBLISHED})",
            expected="weights on this machine or at their publisher",
            got=f"no copy here, and {_reason(error)}",
            remedy=how_to_fetch(),
        ) from error
    return path


def _reason(error: OSError) -> str:
    """Why the publisher could not be reached, in words that stand after "and"."""
    if type(error) is not urllib.error.URLError:
        return " ".join(str(error).split()) or type(error).__name__
    cause = getattr(error.reason, "strerror", None) or error.reason
    return f"no way to the publisher ({cause})"
