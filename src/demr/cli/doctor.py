"""What is installed, cached and usable here, and what to run to get the rest."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import av
import torch
from rich import box
from rich.table import Table

import demr
from demr.errors import DemrError
from demr.machine.terminal import plain

State = Literal["ok", "missing", "broken"]
# Of the decoders that videos of today need.
_CODECS = ("h264", "hevc", "vp9", "av1")
_EXTRAS = {
    "train": "demr train, evaluate, calibrate, balance, ablate; reading HDF5",
    "encoders": "searching real videos with --encoder clip, xclip or vlm",
    "export": "demr export to ONNX",
    "cluster": "demr extract --ray",
}
# Their weights are on the hub.
_ENCODERS = ("clip", "xclip", "vlm")
_STYLE = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        state: ``missing`` is optional and not here; ``broken`` is needed, or here and unusable.
        detail: Versions, places, or what went wrong.
        remedy: What to run to have it; empty where nothing has to be done.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything once, without the network."""
    return [
        _package(),
        _device(),
        _decoders(),
        *(_extra(name, use) for name, use in _EXTRAS.items()),
        _bundled_model(),
        *map(_weights, _ENCODERS),
        _slowfast(),
        _temporary_files(),
    ]


def examine_pack(path: Path) -> list[Finding]:
    """Read every shard of a feature pack and compare it with what was packed.

    Raises:
        FeatureError: If it is no pack.
    """
    from demr.features.pack import FeaturePack

    pack = FeaturePack(path)
    findings = [Finding("pack", "ok", f"{path}: {len(pack)} videos, {pack.identity}")]
    again = "copy it again from where the pack came from, or make the pack again"
    shards = list(pack.check_shards())
    whole = [shard for shard in shards if not shard.error]
    findings += [
        Finding(shard.path.name, "broken", shard.error, again) for shard in shards if shard.error
    ]
    bare = sum(not shard.has_checksum for shard in whole)
    if bare:
        detail = f"{len(whole)} of {len(shards)} can be read; {bare} without a checksum"
        remedy = "extract or import the features again to have checksums"
        return [*findings, Finding("shards", "missing", detail, remedy)]
    state: State = "ok" if whole else "broken"
    detail = f"{len(whole)} of {len(shards)} are what was packed (SHA-256)"
    return [*findings, Finding("shards", state, detail)]


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing is broken; optional parts may be missing."""
    return all(finding.state != "broken" for finding in findings)


def findings_table(findings: list[Finding]) -> Table:
    """The findings for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("part", "state", "what"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        what = plain(finding.detail)
        if finding.remedy:
            what.append("\n-> ").append(plain(finding.remedy))
        table.add_row(plain(finding.name), plain(finding.state, _STYLE[finding.state]), what)
    return table


def _package() -> Finding:
    here = Path(demr.__file__).parent
    python = platform.python_version()
    return Finding("demr", "ok", f"{demr.__version__} in {here}, Python {python} ({sys.platform})")


def _device() -> Finding:
    from demr.machine.devices import resolve_device

    device = resolve_device("auto")
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Finding("torch", "ok", f"{torch.__version__}, computes on {name}, {threads} threads")


def _decoders() -> Finding:
    there = sorted(set(_CODECS) & av.codecs_available)
    lacking = sorted(set(_CODECS) - set(there))
    detail = f"PyAV {av.__version__} decodes {', '.join(there) or 'none of ' + ', '.join(_CODECS)}"
    if not lacking:
        return Finding("video", "ok", detail)
    return Finding(
        "video", "broken", f"{detail}; not {', '.join(lacking)}", "pip install --force-reinstall av"
    )


def _extra(name: str, use: str) -> Finding:
    """Whether the packages of an extra are installed."""
    found, lacking = [], []
    for package in _packages_of(name):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lacking.append(package)
    if not found and not lacking:
        detail = "not known to the installed package, which is older than this code"
        return Finding(
            f"extra {name}", "broken", detail, "install demr again (from a clone: make install)"
        )
    if lacking:
        return Finding(
            f"extra {name}",
            "missing",
            f"without {', '.join(lacking)}; needed for {use}",
            f"pip install 'demr[{name}]' (from a clone: make install)",
        )
    return Finding(f"extra {name}", "ok", ", ".join(found))


def _packages_of(extra: str) -> Iterator[str]:
    for line in requires("demr") or ():
        if re.search(rf"extra == ['\"]{extra}['\"]", line):
            yield re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0]


def _bundled_model() -> Finding:
    from demr.answers.pretrained import DEFAULT_MODEL
    from demr.search.retriever import MomentRetriever

    def load() -> str:
        retriever = MomentRetriever.from_pretrained()
        return f"{DEFAULT_MODEL}, for encoder {retriever.pretrained.identity.spec}"

    return _attempt("bundled model", load, "install demr again")


def _weights(encoder: str) -> Finding:
    """Whether the default model of an encoder is on disk; nothing is fetched."""
    name = f"encoder {encoder}"
    if find_spec("transformers") is None:
        return Finding(name, "missing", "needs the extra encoders", "see above")
    from demr.encoders.model_folder import cached_folder

    model = _default_model(encoder)
    folder = cached_folder(model)
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    if folder is None:
        return Finding(
            name,
            "missing",
            f"{model} is not on this machine{offline}; its first use fetches it",
            f"hf download {model}, or give a folder: --encoder {encoder}:/path",
        )
    return Finding(name, "ok", f"{model} in {folder}")


def _default_model(encoder: str) -> str:
    from demr.encoders.clip.clip import ClipEncoder
    from demr.encoders.clip.xclip import XClipEncoder
    from demr.encoders.vlm.encoder import FAMILY

    families = {"clip": ClipEncoder.family, "xclip": XClipEncoder.family, "vlm": FAMILY}
    return families[encoder].example


def _slowfast() -> Finding:
    """Whether the published weights of encoder ``slowfast`` are on disk; nothing is fetched."""
    from demr.encoders.slowfast.weights import PUBLISHED, cached_weights, how_to_fetch

    name = "encoder slowfast"
    path = cached_weights()
    if path is None:
        detail = f"{PUBLISHED} is not on this machine; the first use fetches it (0.13 GB)"
        return Finding(name, "missing", detail, how_to_fetch())
    return Finding(name, "ok", str(path))


def _temporary_files() -> Finding:
    """Whether temporary files can be written."""

    def write() -> str:
        with tempfile.NamedTemporaryFile() as stream:
            stream.write(bytes(1 << 20))
            stream.flush()
        free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        return f"{tempfile.gettempdir()}, {free:.1f} GB free"

    return _attempt("temporary files", write, "set TMPDIR to a folder with room")


def _attempt(name: str, work: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(name, "ok", work())
    except (DemrError, OSError) as error:
        return Finding(name, "broken", str(error), remedy)
