"""Videos -> a feature pack: resumable, past files that are broken, by processes or a cluster.

Each finished video is a file in the folder ``OUT.partial``; when all are there, the pack is written
and the folder removed. A video's features depend on its file alone, so that a run that was killed
and started again makes the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from demr import __version__
from demr.encoders import Encoder, EncoderIdentity, VideoFeatures
from demr.errors import DemrError, FeatureError, InputError, VideoError
from demr.extraction.parts import ExtractionPlan, Tell, disk_errors, has_part, read_part
from demr.extraction.videos import Found, VideoFile
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.machine.documents import format_version, read_json
from demr.machine.files import atomic_path, locked, sweep
from demr.machine.terminal import counted

REPORT = "extraction.json"
# 1 had several videos in a file.
_PLAN_VERSION = 2
_PARTIAL = ".partial"
_FINISHED = "video-*.safetensors"


@dataclass(frozen=True)
class Summary:
    """A finished extraction.

    Attributes:
        videos: In the pack.
        clips: Of all of them.
        skipped: Path and reason of each video that is not in it.
        damaged: Path and damage of each that is there in part.
        identity: The encoder.
        size: Bytes of the pack.
        was_there: Whether the pack had been finished before.
    """

    videos: int
    clips: int
    skipped: tuple[tuple[str, str], ...]
    damaged: tuple[tuple[str, str], ...]
    identity: EncoderIdentity
    size: int
    was_there: bool = False


Runner = Callable[[Sequence[VideoFile], ExtractionPlan, Tell], None]
"""Encodes all videos of a list, each in the end a file among the parts."""


def extract(
    found: Found, encoder: Encoder, plan: ExtractionPlan, out: Path, run: Runner, tell: Tell
) -> Summary:
    """Bring videos into a feature pack.

    Args:
        found: The videos.
        encoder: What describes them, as ``plan`` makes it.
        plan: For workers.
        out: Folder of the pack; ``out.partial`` beside it holds what is finished meanwhile.
        run: Who encodes the videos that are not there yet.
        tell: Told of videos that are, too.

    Raises:
        FeatureError: If ``out`` exists and is not this pack, ``out.partial`` holds another
            encoder's features, or the disk is full.
        VideoError: If no video at all can be used; nothing is left behind.
    """
    if out.exists():
        return _finished_before(found, encoder.identity, out, plan.parts)
    with _parts_folder(plan.parts, encoder.identity):
        todo = []
        for video in found.videos:
            if has_part(plan.parts, video):
                tell(video, 1.0, "")
            else:
                todo.append(video)
        try:
            if todo:
                run(todo, plan, tell)
        except DemrError:
            # Of weights that cannot be loaded nothing is left that would bar the right ones.
            if not any(plan.parts.glob(_FINISHED)):
                shutil.rmtree(plan.parts, ignore_errors=True)
            raise
        try:
            summary = _publish(found, encoder.identity, plan.parts, out)
        except VideoError:
            _remove(plan.parts)
            raise
        _remove(plan.parts)
    return summary


def parts_folder(out: Path) -> Path:
    """Where finished videos lie until the pack is whole."""
    return out.with_name(out.name + _PARTIAL)


@contextmanager
def _parts_folder(parts: Path, identity: EncoderIdentity) -> Iterator[None]:
    """The folder of finished videos, checked, and for this process alone."""
    busy = FeatureError(
        str(parts),
        expected="one extraction at a time",
        got="another that is at work there",
        remedy="wait for it, or choose another --out",
    )
    with ExitStack() as stack:
        with disk_errors(parts):
            parts.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(parts / "lock", busy=busy, required=True))
        _check_plan(parts, identity)
        # What was half written when a process was killed.
        sweep(parts)
        yield


def _remove(parts: Path) -> None:
    """Remove what extractions have put into the folder, and the folder if that was all."""
    sweep(parts)
    for pattern in (_FINISHED, "plan.json", "lock"):
        for path in parts.glob(pattern):
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        parts.rmdir()


def _check_plan(parts: Path, identity: EncoderIdentity) -> None:
    path = parts / "plan.json"
    if not path.exists():
        plan = {"version": _PLAN_VERSION, "encoder": identity.to_dict()}
        with disk_errors(parts), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plan), encoding="utf-8")
        return
    try:
        plan = read_json(path)
        version = format_version(plan, "version", _PLAN_VERSION)
        begun = EncoderIdentity.from_dict(plan["encoder"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureError(
            str(path),
            expected="the plan of an extraction",
            got=f"{type(error).__name__}: {error}",
            remedy=f"remove {parts} and start anew",
        ) from error
    if version != _PLAN_VERSION:
        age = "an older" if version < _PLAN_VERSION else "a newer"
        raise FeatureError(
            str(parts),
            expected="an extraction that this version of demr began",
            got=f"one of {age} version, which keeps its parts in another form",
            remedy="finish it with that version, or remove that folder",
        )
    if begun != identity:
        raise FeatureError(
            str(parts),
            expected=f"an extraction by {identity}",
            got=f"one that was begun by {begun}",
            remedy="choose another --out, or remove that folder",
        )


def _publish(found: Found, identity: EncoderIdentity, parts: Path, out: Path) -> Summary:
    """Write the pack from the finished videos."""
    skipped = [tuple(text.rsplit(": ", 1)) for text in found.closed]
    damaged: list[tuple[str, str]] = []
    videos = clips = 0
    used: set[str] = set()
    with FeaturePackWriter(out, identity, within=parts) as writer:
        for video in found.videos:
            done, path = read_part(parts, video), str(video.path)
            if done.features is None:
                skipped.append((path, done.error))
                continue
            damaged += [(path, note) for note in done.notes]
            writer.add(VideoFeatures(video.vid, done.duration_s, identity.clip_s, done.features))
            videos += 1
            clips += len(done.features)
            used.add(done.dtype)
        if not videos:
            raise VideoError(
                counted(len(skipped), "video"),
                expected="at least one that can be used",
                got=f"none, such as {skipped[0][1]}",
                remedy="check the files",
            )
        # Machines of a cluster may have computed in half precision, or some of them.
        identity = writer.identity = replace(identity, dtype="+".join(sorted(used)))
        report = {
            "demr": __version__,
            "encoder": identity.to_dict(),
            "files": _fingerprint(found),
            "videos": videos,
            "clips": clips,
            "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
            "damaged": [{"path": path, "damage": note} for path, note in damaged],
        }
        writer.add_text(REPORT, json.dumps(report, indent=1) + "\n")
    size = sum(file.stat().st_size for file in out.iterdir())
    pairs = tuple((path, reason) for path, reason in skipped)
    return Summary(videos, clips, pairs, tuple(damaged), identity, size)


def _fingerprint(found: Found) -> str:
    """Of the files' names and sizes: copies elsewhere are the same videos, mended ones are not."""
    text = "\n".join(f"{video.vid}\0{video.size}" for video in found.videos)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finished_before(found: Found, identity: EncoderIdentity, out: Path, parts: Path) -> Summary:
    """The summary of a pack that is there, if it is the one that was asked for."""
    unasked = f"a pack of other files than the {len(found.videos)} asked for"
    try:
        pack = FeaturePack(out)
        report = read_json(out / REPORT)
        skipped = tuple((str(e["path"]), str(e["reason"])) for e in report["skipped"])
        damaged = tuple((str(e["path"]), str(e["damage"])) for e in report["damaged"])
        clips = int(report["clips"])
        files = str(report["files"])
    except (DemrError, OSError, ValueError, KeyError, TypeError):
        same, unasked = False, "something else"
    else:
        same = pack.identity == identity and files == _fingerprint(found)
        if pack.identity != identity:
            unasked = f"a pack by {pack.identity}, where {identity} was asked for"
    if not same:
        raise InputError(
            f"--out {out}",
            expected="a new folder for the feature pack, or this very pack",
            got=unasked,
            remedy="choose another folder, or remove this one",
        )
    if parts.exists():
        # Killed while it removed them; what another is at work on, or has made, stays.
        with suppress(FeatureError), _parts_folder(parts, identity):
            _remove(parts)
    size = sum(file.stat().st_size for file in out.iterdir())
    return Summary(len(pack), clips, skipped, damaged, identity, size, was_there=True)
