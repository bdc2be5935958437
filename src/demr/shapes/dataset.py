"""The embedded world as a data set: videos rendered to H.264, encoded, and annotated."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from demr.annotations import Annotation, write_annotations
from demr.encoders import VideoFeatures, get_encoder
from demr.errors import ConfigError
from demr.features import FeaturePackWriter
from demr.machine import (
    atomic_path,
    end_with_parent,
    ignored_interrupts,
    locked,
    temporary_folder,
)
from demr.machine.documents import read_json
from demr.shapes.queries import scene_annotations, thing_annotations
from demr.shapes.render import render_scene
from demr.shapes.world import Split, make_scene

SPLITS: tuple[Split, ...] = ("train", "val", "iid", "ood")
# Changes whenever the same seed renders other videos or writes other sentences.
WORLD_VERSION = 4
# Sentences cost nothing beside pixels, and with 8 of each a model learns the training queries by
# heart: R1@0.7 was 77 on them and 57 on validation, and 77 on validation with 24 of each. The other
# splits keep the 8 that make a fair sample of their events.
_TRAIN_QUERIES = {"n_present": 24, "n_absent": 24, "n_vague": 2, "n_unknown": 3}
# A fifth of the queries name a thing and no action. In training and validation they stand among the
# others, as people ask either; test splits have them in files of their own, `<split>_things.jsonl`,
# since most are true for much of a video, and would pass for skill with moments.
_THINGS: dict[str, dict[str, int]] = {
    "train": {"n_present": 5, "n_absent": 6, "n_unknown": 2},
    "val": {"n_present": 2, "n_absent": 2, "n_unknown": 1},
}
_TESTS = ("iid", "ood")
# Features of a video, queries about its events, and queries that name a thing.
_Made = tuple[VideoFeatures, Sequence[Annotation], Sequence[Annotation]]


def build_dataset(
    root: Path,
    counts: dict[Split, int],
    *,
    seed: int = 0,
    workers: int = 0,
    keep_videos: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    waiting: Callable[[], None] | None = None,
) -> None:
    """Render, encode and annotate every split that is not there yet.

    A split appears whole or not at all, so an interrupted build goes on with the split it was
    at. The folder then holds ``<split>.jsonl``, ``features/<split>``, and for test splits
    ``<split>_things.jsonl``, the queries that name a thing and no action. Of two processes that
    build the same one renders, and the other waits and then has it.

    Args:
        root: Folder to fill.
        counts: Videos of each split.
        seed: Of the world; video i of a split has the number ``seed * 1_000_000 + i``.
        workers: Processes; 0 takes one per core, 1 works in this one.
        keep_videos: Also keep the mp4 files, in ``videos``.
        progress: Called with split, videos done and videos in all.
        waiting: Called if another process is at work in the folder.

    Raises:
        ConfigError: If the folder holds another world than the one asked for.
    """
    manifest = {"world": WORLD_VERSION, "seed": seed, "counts": dict(counts)}
    if all((root / f"{split}.jsonl").exists() for split in counts):
        # Without a lock, for which the folder would have to be writable.
        _claim(root, manifest)
        return
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / ".lock", waiting=waiting):
        _claim(root, manifest)
        for split, count in counts.items():
            if not (root / f"{split}.jsonl").exists():
                _build_split(root, split, count, seed, workers, keep_videos, progress)


def _claim(root: Path, manifest: dict[str, Any]) -> None:
    """Write down which world a folder holds, or check that it is this one."""
    path = root / "manifest.json"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        return
    try:
        stored = read_json(path)
    except (OSError, ValueError) as error:
        stored = type(error).__name__
    if stored != manifest:
        raise ConfigError(
            str(root),
            expected=f"the shapes world {json.dumps(manifest)}",
            got=json.dumps(stored),
            remedy="set data.root to another folder",
        )


def _build_split(
    root: Path,
    split: Split,
    count: int,
    seed: int,
    workers: int,
    keep_videos: bool,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    shutil.rmtree(root / "features" / split, ignore_errors=True)
    annotations: list[Annotation] = []
    things: list[Annotation] = []
    videos = root / "videos" if keep_videos else None
    make = partial(_make_video, split, videos)
    numbers = range(seed * 1_000_000, seed * 1_000_000 + count)
    identity = get_encoder("builtin").identity
    with (
        FeaturePackWriter(root / "features" / split, identity) as writer,
        _each(make, numbers, workers or os.cpu_count() or 1) as made,
    ):
        for done, (features, about_events, about_things) in enumerate(made):
            writer.add(features)
            annotations += about_events
            (things if split in _TESTS else annotations).extend(about_things)
            if progress is not None:
                progress(split, done + 1, count)
    if things:
        write_annotations(root / f"{split}_things.jsonl", things)
    write_annotations(root / f"{split}.jsonl", annotations)


@contextmanager
def _each(make: Callable[[int], _Made], numbers: range, workers: int) -> Iterator[Iterator[_Made]]:
    if workers == 1:
        yield map(make, numbers)
        return
    # Forked children of a process with running threads may hang; spawned ones cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(numbers)), mp_context=context, initializer=end_with_parent
    ) as pool:
        try:
            with ignored_interrupts():
                made = pool.map(make, numbers)
            yield made
        except BaseException:
            # Nobody waits for what is left; rendering it could take minutes. To wait for what has
            # begun is part of it: leaving the pool shuts it down once more, and without waiting
            # that would come first and take the cancelling back.
            pool.shutdown(cancel_futures=True)
            raise


def _make_video(split: Split, videos: Path | None, number: int) -> _Made:
    scene = make_scene(split, number)
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        path = folder / f"{scene.vid}.mp4"
        render_scene(scene, path)
        features = get_encoder("builtin").encode_video(path)
        if videos is not None:
            videos.mkdir(parents=True, exist_ok=True)
            shutil.move(path, videos / path.name)
    # Annotations speak of the scene, features of the file; both must mean the same seconds.
    same = VideoFeatures(scene.vid, scene.duration_s, features.clip_s, features.features)
    about_events = scene_annotations(scene, **(_TRAIN_QUERIES if split == "train" else {}))
    return same, about_events, thing_annotations(scene, **_THINGS.get(split, {}))
