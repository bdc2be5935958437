"""Videos -> a feature pack: resumable, past files that are broken, by processes or a cluster.

Videos are encoded in units (:mod:`demr.video_files`). Each finished unit is a file in the folder
``OUT.partial``; when all are there, the pack is written and the folder removed. What a unit's
features are depends on its files alone, so that a run that was killed and started again makes
the same bytes.
"""

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from demr import __version__
from demr.encoders import Encoder, EncoderIdentity, VideoFeatures
from demr.encoders.frames import (
    Assembly,
    Block,
    Closed,
    FrameEncoder,
    FrameStream,
    Opened,
    Rows,
    embed_block,
    encode_noting_damage,
    read_ahead,
)
from demr.errors import DemrError, FeatureError, InputError, ModelError, VideoError
from demr.feature_shards import TENSOR
from demr.features import FeaturePack, FeaturePackWriter, check_storable
from demr.files import atomic_path
from demr.video_files import Found, Unit, VideoFile, cut_into_units
from demr.wording import counted

REPORT = "extraction.json"
_PLAN_VERSION = 1
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Attributes:
        vid: Its name.
        features: float16 ``(L, D)``; no rows where it was skipped.
        duration_s: In seconds; 0 where it was skipped.
        error: Why it was skipped, on one line; empty if it was not.
        notes: What was damaged in it.
        dtype: What it was computed in; empty where it was skipped.
    """

    vid: str
    features: NDArray[np.float16]
    duration_s: float
    error: str = ""
    notes: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Done:
    """A finished unit, as its worker tells it.

    Attributes:
        key: Of the unit.
        skipped: Path and reason of each video that could not be used.
    """

    key: str
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; it travels to other processes and machines.

    Attributes:
        encoder: What to ask :func:`demr.encoders.get_encoder` for.
        device: Where networks run.
        identity: What that encoder has to be, as a plain dictionary.
        parts: Folder of the finished units.
    """

    encoder: str
    device: str
    identity: Mapping[str, Any]
    parts: Path

    def make_encoder(self) -> Encoder:
        """The encoder, on this machine.

        Raises:
            ModelError: If weights or versions here are not those of the machine that asked.
        """
        from demr.encoders import get_encoder

        encoder = get_encoder(self.encoder, device=self.device)
        wanted = EncoderIdentity.from_dict(self.identity)
        if encoder.identity != wanted:
            raise ModelError(
                f"encoder {self.encoder} of a worker",
                expected=f"{wanted}",
                got=f"{encoder.identity}",
                remedy="put the same weights and the same demr on all machines",
            )
        return encoder


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


Tell = Callable[[Unit, float, Done | None], None]
"""Called with a unit, the share of it that is done, and what it came to once it is finished."""
Runner = Callable[[Sequence[Unit], Job, Tell], None]
"""Works on all units of a list, each in the end a file among the parts."""


def extract(
    found: Found, encoder: Encoder, job: Job, out: Path, run: Runner, tell: Tell
) -> Summary:
    """Bring videos into a feature pack.

    Args:
        found: The videos.
        encoder: What describes them, as ``job`` makes it.
        job: Told to workers.
        out: Folder of the pack; ``out.partial`` beside it holds what is finished meanwhile.
        run: Who works on the units that are not there yet.
        tell: Told of units that are, too.

    Raises:
        FeatureError: If ``out`` exists and is not this pack, ``out.partial`` holds another
            encoder's features, or the disk is full.
        VideoError: If no video at all can be used; nothing is left behind.
    """
    if out.exists():
        return _finished_before(found, encoder.identity, out, job.parts)
    with _parts_folder(job.parts, encoder.identity):
        units = cut_into_units(found.videos)
        todo = []
        for unit in units:
            if has_part(job.parts, unit):
                tell(unit, 1.0, None)
            else:
                todo.append(unit)
        try:
            if todo:
                run(todo, job, tell)
        except DemrError:
            # Of weights that cannot be loaded nothing is left that would bar the right ones.
            if not any(job.parts.glob("unit-*")):
                shutil.rmtree(job.parts, ignore_errors=True)
            raise
        summary = _publish(found, units, encoder.identity, job.parts, out)
        _remove(job.parts)
    return summary


def parts_folder(out: Path) -> Path:
    """Where finished units lie until the pack is whole."""
    return out.with_name(out.name + _PARTIAL)


def encode_unit(encoder: Encoder, unit: Unit, tell: Callable[[float], None]) -> list[Outcome]:
    """Encode the videos of a unit; one that cannot be used comes to nothing but its error.

    Args:
        encoder: Any.
        unit: Decoded by a thread while the network works, if the encoder lets them be parted.
        tell: Called with the share of the unit that is done.

    Raises:
        ModelError: If weights are damaged.
    """
    gathering = Gathering(unit, encoder.identity, tell)
    if isinstance(encoder, FrameEncoder):
        streams = encoder.streams
        paths = [video.path for video in unit.videos]
        parts = read_ahead(paths, streams, encoder.identity.clip_s)
        try:
            for part in parts:
                for made in embed(part, streams) if isinstance(part, Block) else (part,):
                    gathering.add(made)
        finally:
            parts.close()
    else:
        for index, video in enumerate(unit.videos):
            gathering.put(index, *_encode_whole(encoder, video))
    return gathering.outcomes()


def embed(block: Block, streams: Sequence[FrameStream]) -> Iterator[Rows | Closed]:
    """Rows of a block; where they are of no use, video by video, so that the others stay.

    Raises:
        ModelError: If weights are damaged.
    """
    try:
        yield embed_block(block, streams)
    except FeatureError as error:
        videos = np.unique(block.videos)
        if len(videos) == 1:
            yield Closed(int(videos[0]), str(error))
            return
        for index in videos:
            own = block.videos == index
            yield from embed(
                Block(block.stream, block.videos[own], block.rows[own], block.pixels[own]), streams
            )


class Gathering:
    """Features of a unit's videos, as they come in.

    Args:
        unit: Whose videos.
        identity: Of the encoder.
        tell: Called with the share of the unit that is done.

    Attributes:
        dtype: What features are computed in; of the encoder, until somebody knows better.
    """

    def __init__(
        self, unit: Unit, identity: EncoderIdentity, tell: Callable[[float], None]
    ) -> None:
        self.dtype = identity.dtype
        self._unit = unit
        self._identity = identity
        self._tell = tell
        dims = tuple(dims for _, dims in identity.streams)
        self._made = Assembly(dims, identity.clip_s)
        self._done = 0.0

    def add(self, part: Opened | Closed | Rows) -> None:
        """Take in what was decoded or embedded."""
        self._made.add(part)
        if isinstance(part, Rows):
            for index in np.unique(part.videos):
                if int(index) in self._made.tables:
                    share = np.count_nonzero(part.videos == index) / len(
                        self._made.tables[int(index)]
                    )
                    self._advance(int(index), share / len(self._identity.streams))

    def put(self, index: int, video: VideoFeatures | None, closed: Closed) -> None:
        """Take in a video that was encoded as a whole."""
        if video is not None:
            self._made.durations[index] = video.duration_s
            self._made.tables[index] = np.asarray(video.features, np.float32)
        self._made.add(replace(closed, index=index))
        self._advance(index, 1.0)

    def outcomes(self) -> list[Outcome]:
        """What became of each video, in the unit's order."""
        return [self._outcome(index, video) for index, video in enumerate(self._unit.videos)]

    def _outcome(self, index: int, video: VideoFile) -> Outcome:
        closed = self._made.closed[index]
        if not closed.error:
            features = self._made.video(index, video.vid)
            try:
                check_storable(features, self._identity)
            except FeatureError as error:
                closed = replace(closed, error=str(error))
            else:
                half = features.features.astype(np.float16)
                return Outcome(video.vid, half, features.duration_s, "", closed.notes, self.dtype)
        return skipped_video(video, closed.error, self._identity)

    def _advance(self, index: int, share: float) -> None:
        self._done += self._unit.videos[index].size * share
        self._tell(min(self._done / max(self._unit.size, 1), 1.0))


def skipped_video(video: VideoFile, error: str, identity: EncoderIdentity) -> Outcome:
    """A video that could not be used."""
    return Outcome(video.vid, np.zeros((0, identity.video_dim), np.float16), 0.0, error)


def has_part(parts: Path, unit: Unit) -> bool:
    """Whether a unit is finished."""
    return _part(parts, unit).exists()


def write_part(parts: Path, unit: Unit, outcomes: Sequence[Outcome]) -> Done:
    """Store a finished unit.

    Raises:
        FeatureError: If the disk is full.
    """
    described = [
        {key: value for key, value in asdict(outcome).items() if key != "features"}
        | {"rows": len(outcome.features)}
        for outcome in outcomes
    ]
    with _disk_errors(parts), atomic_path(_part(parts, unit)) as temporary:
        save_file(
            {TENSOR: np.concatenate([outcome.features for outcome in outcomes])},
            temporary,
            metadata={"videos": json.dumps(described)},
        )
    paths = {video.vid: str(video.path) for video in unit.videos}
    return Done(unit.key, tuple((paths[o.vid], o.error) for o in outcomes if o.error))


def read_part(parts: Path, unit: Unit) -> list[Outcome]:
    """Read a finished unit.

    Raises:
        FeatureError: If it is damaged.
    """
    path = _part(parts, unit)
    try:
        with safe_open(path, framework="numpy") as file:
            features = file.get_tensor(TENSOR)
            described = json.loads(file.metadata()["videos"])
        ends = np.cumsum([0, *(entry["rows"] for entry in described)])
        if ends[-1] != len(features):
            raise ValueError(f"{ends[-1]} rows described, {len(features)} there")
        return [
            Outcome(
                str(entry["vid"]),
                features[low : low + int(entry["rows"])],
                float(entry["duration_s"]),
                str(entry["error"]),
                tuple(map(str, entry["notes"])),
                str(entry["dtype"]),
            )
            for entry, low in zip(described, ends[:-1], strict=True)
        ]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            str(path),
            expected="a finished part of this extraction",
            got=f"{type(error).__name__}: {error}",
            remedy="remove this file and run the same command again",
        ) from error


def _part(parts: Path, unit: Unit) -> Path:
    return parts / f"unit-{unit.key}.safetensors"


def _encode_whole(encoder: Encoder, video: VideoFile) -> tuple[VideoFeatures | None, Closed]:
    try:
        features, notes = encode_noting_damage(encoder, video.path)
    except (VideoError, FeatureError, OSError) as error:
        return None, Closed(0, " ".join(str(error).split()))
    return features, Closed(0, "", notes)


@contextmanager
def _parts_folder(parts: Path, identity: EncoderIdentity) -> Iterator[None]:
    """The folder of finished units, checked, and for this process alone."""
    with _disk_errors(parts):
        parts.mkdir(parents=True, exist_ok=True)
        lock = (parts / "lock").open("w")
    with lock:
        with _disk_errors(parts):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # One that was just finishing has removed the file that is locked here.
                is_alone = os.fstat(lock.fileno()).st_nlink > 0
            except BlockingIOError:
                is_alone = False
        if not is_alone:
            raise FeatureError(
                str(parts),
                expected="one extraction at a time",
                got="another that is at work there",
                remedy="wait for it, or choose another --out",
            )
        _check_plan(parts, identity)
        # What was half written when a process was killed.
        _remove(parts, finished=False)
        yield


def _remove(parts: Path, *, finished: bool = True) -> None:
    """Remove what extractions have put into the folder, and the folder if that was all."""
    pack = glob.escape(parts.name.removesuffix(_PARTIAL))
    half = (f".{pack}.*", ".unit-*", ".plan.json.*")
    for pattern in (*half, "unit-*", "plan.json", "lock") if finished else half:
        for path in parts.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
    if finished:
        with suppress(OSError):
            parts.rmdir()


def _check_plan(parts: Path, identity: EncoderIdentity) -> None:
    path = parts / "plan.json"
    if not path.exists():
        plan = {"version": _PLAN_VERSION, "encoder": identity.to_dict()}
        with _disk_errors(parts), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plan), encoding="utf-8")
        return
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        begun, version = EncoderIdentity.from_dict(plan["encoder"]), plan["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            str(path),
            expected="the plan of an extraction",
            got=f"{type(error).__name__}: {error}",
            remedy=f"remove {parts} and start anew",
        ) from error
    if begun != identity or version != _PLAN_VERSION:
        raise FeatureError(
            str(parts),
            expected=f"an extraction by {identity}",
            got=f"one that was begun by {begun}",
            remedy="choose another --out, or remove that folder",
        )


def _publish(
    found: Found, units: Sequence[Unit], identity: EncoderIdentity, parts: Path, out: Path
) -> Summary:
    """Write the pack from the finished units."""
    paths = {video.vid: str(video.path) for video in found.videos}
    skipped = [tuple(text.rsplit(": ", 1)) for text in found.closed]
    damaged: list[tuple[str, str]] = []
    videos = clips = 0
    # Actors of a cluster may have computed in half precision, or some of them.
    used = {outcome.dtype for unit in units for outcome in read_part(parts, unit)} - {""}
    identity = replace(identity, dtype="+".join(sorted(used)) or identity.dtype)
    with FeaturePackWriter(out, identity, within=parts) as writer:
        for unit in units:
            for outcome in read_part(parts, unit):
                path = paths[outcome.vid]
                if outcome.error:
                    skipped.append((path, outcome.error))
                    continue
                damaged += [(path, note) for note in outcome.notes]
                writer.add(
                    VideoFeatures(
                        outcome.vid, outcome.duration_s, identity.clip_s, outcome.features
                    )
                )
                videos += 1
                clips += len(outcome.features)
        if not videos:
            _remove(parts)
            raise VideoError(
                counted(len(skipped), "video"),
                expected="at least one that can be used",
                got=f"none, such as {skipped[0][1]}",
                remedy="check the files",
            )
        report = {
            "demr": __version__,
            "encoder": identity.to_dict(),
            "videos": videos,
            "clips": clips,
            "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
            "damaged": [{"path": path, "damage": note} for path, note in damaged],
        }
        writer.add_text(REPORT, json.dumps(report, indent=1) + "\n")
    size = sum(file.stat().st_size for file in out.iterdir())
    pairs = tuple((path, reason) for path, reason in skipped)
    return Summary(videos, clips, pairs, tuple(damaged), identity, size)


def _finished_before(found: Found, identity: EncoderIdentity, out: Path, parts: Path) -> Summary:
    """The summary of a pack that is there, if it is the one that was asked for."""
    unasked = f"a pack of other videos than the {len(found.videos)} asked for"
    try:
        pack = FeaturePack(out)
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        skipped = tuple((str(e["path"]), str(e["reason"])) for e in report["skipped"])
        damaged = tuple((str(e["path"]), str(e["damage"])) for e in report["damaged"])
        clips = int(report["clips"])
    except (DemrError, OSError, ValueError, KeyError, TypeError):
        same, unasked = False, "something else"
    else:
        gone = {path for path, _ in skipped}
        wanted = {video.vid for video in found.videos if str(video.path) not in gone}
        same = pack.identity == identity and wanted == set(pack.vids)
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


@contextmanager
def _disk_errors(parts: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FeatureError(
            str(parts),
            expected="a folder with room for the features",
            got=f"{type(error).__name__}: {error}",
            remedy="free disk space or choose another --out; what is finished is kept there, "
            "and the same command goes on",
        ) from error
