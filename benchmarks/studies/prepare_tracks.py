"""Prepare the two tracks on real annotations from the folder that DEMR_DATA names.

    DEMR_DATA=... python benchmarks/studies/prepare_tracks.py --out data/tracks

`clip`: the Charades-STA test videos with their real CLIP features, split by Charades-CD.
`timeline-N`: all of Charades-CD; features are a simulation, made of what annotators say happens in
each second, under noise of length N. It holds the answers under noise: variants can be compared
on it, published figures cannot.

Every track is a folder with train, val, iid and ood.jsonl, a feature pack, and a link to the word
vectors. A track that is there is left alone.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demr.annotations.annotations import Annotation, read_annotations, write_annotations
from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.encoders.words import split_words
from demr.features.imports import import_features
from demr.features.pack import FeaturePackWriter
from demr.features.sources import open_source

SPLITS = {
    "train": "charades_train.json.gz",
    "val": "charades_val.json",
    "iid": "charades_test_iid.json",
    "ood": "charades_test_ood.json",
}
CLIP_S = 1.0
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sources:
    """Where the real data lie."""

    root: Path

    @property
    def words(self) -> Path:
        """Word vectors."""
        return self.root / "features" / "glove840b300d_subset.npz"

    @property
    def clip(self) -> Path:
        """CLIP features of the Charades-STA test videos."""
        return self.root / "features" / "charades_sta_test_clip_vitb32_1fps"

    def splits(self) -> dict[str, list[Annotation]]:
        """Charades-CD."""
        folder = self.root / "annotations" / "charades_cd"
        return {name: read_annotations(folder / file) for name, file in SPLITS.items()}


def main() -> None:
    """Prepare what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/tracks"))
    parser.add_argument("--noise", type=float, nargs="*", default=[2.0, 4.0])
    arguments = parser.parse_args()
    if "DEMR_DATA" not in os.environ:
        raise SystemExit("DEMR_DATA must name the folder of real data")
    sources = Sources(Path(os.environ["DEMR_DATA"]).resolve())
    for name in ("clip", *(f"timeline-{noise:g}" for noise in arguments.noise)):
        target = arguments.out / name
        if target.exists():
            print(f"{target}: there already")
            continue
        draft = target.with_name(f".{name}")
        shutil.rmtree(draft, ignore_errors=True)
        if name == "clip":
            prepare_clip(sources, draft)
        else:
            prepare_timeline(sources, draft, float(name.partition("-")[2]))
        (draft / "glove.npz").symlink_to(sources.words)
        draft.rename(target)
        counts = {
            split: len((target / f"{split}.jsonl").read_text().splitlines()) for split in SPLITS
        }
        print(f"{target}: {counts}")


def prepare_clip(sources: Sources, folder: Path) -> None:
    """Real CLIP features; every split keeps the queries of the 1,334 videos that have some."""
    there = set(open_source(sources.clip).vids)
    splits = {
        name: [annotation for annotation in annotations if annotation.vid in there]
        for name, annotations in sources.splits().items()
    }
    write_splits(folder, splits)
    import_features(
        {"clip": sources.clip},
        durations_of(splits),
        folder / "features",
        name="clip-vit-b32+glove",
        version="1",
        clip_s=CLIP_S,
        text_dim=300,
        normalization="l2",
    )


def prepare_timeline(
    sources: Sources,
    folder: Path,
    noise: float,
    splits: Mapping[str, list[Annotation]] | None = None,
) -> None:
    """Simulated features of every video of the splits; of Charades-CD where none are given."""
    if splits is None:
        splits = sources.splits()
    write_splits(folder, splits)
    actions_of, classes = read_actions(sources.root / "annotations" / "charades_actions")
    embeddings = class_embeddings(classes, sources.words)
    identity = EncoderIdentity(
        f"timeline-{noise:g}+glove",
        "1",
        CLIP_S,
        (("timeline", embeddings.shape[1]),),
        embeddings.shape[1],
        "l2",
    )
    with FeaturePackWriter(folder / "features", identity) as writer:
        for vid, duration_s in sorted(durations_of(splits).items()):
            table = timeline(vid, duration_s, actions_of[vid], embeddings, noise)
            writer.add(VideoFeatures(vid, duration_s, CLIP_S, table))


def write_splits(folder: Path, splits: Mapping[str, list[Annotation]]) -> None:
    """Annotations of every split."""
    for name, annotations in splits.items():
        write_annotations(folder / f"{name}.jsonl", annotations)


def durations_of(splits: Mapping[str, Iterable[Annotation]]) -> dict[str, float]:
    """Seconds of every annotated video."""
    return {a.vid: a.duration_s for annotations in splits.values() for a in annotations}


def read_actions(folder: Path) -> tuple[dict[str, list[tuple[int, float, float]]], list[str]]:
    """Actions (class, start, end) of each video, and the names of the classes."""
    with gzip.open(folder / "charades.json.gz", "rt", encoding="utf-8") as stream:
        videos = json.load(stream)
    lines = (folder / "Charades_v1_classes.txt").read_text(encoding="utf-8").splitlines()
    actions = {
        vid: [(int(number), float(start), float(end)) for number, start, end in video["actions"]]
        for vid, video in videos.items()
    }
    return actions, [line.partition(" ")[2] for line in lines if line]


def class_embeddings(classes: list[str], words: Path) -> Floats:
    """Mean vector of each name's known words, unit length, ``(C, D)``."""
    with np.load(words) as arrays:
        vectors = arrays["vectors"].astype(np.float32)
        place = {str(word): index for index, word in enumerate(arrays["words"].tolist())}
    means = np.stack(
        [
            vectors[[place[word] for word in split_words(name) if word in place]].mean(axis=0)
            for name in classes
        ]
    )
    unit: Floats = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


def timeline(
    vid: str,
    duration_s: float,
    actions: Iterable[tuple[int, float, float]],
    embeddings: Floats,
    noise: float,
) -> Floats:
    """Features of one video, ``(L, D)``, unit length.

    A clip is the sum of the classes that are active at its centre, plus noise: one draw a video,
    fixed by its name, whose rows have the expected length ``noise``.
    """
    count = math.ceil(duration_s)
    centre = np.minimum(np.arange(count) + 0.5, (np.arange(count) + duration_s) / 2)
    table = np.zeros((count, embeddings.shape[1]), dtype=np.float32)
    for number, start, end in actions:
        table[(centre >= start) & (centre <= end)] += embeddings[number]
    seed = int.from_bytes(hashlib.sha256(vid.encode()).digest()[:8], "big")
    draw = np.random.default_rng(seed).standard_normal(table.shape, dtype=np.float32)
    table += draw * np.float32(noise / math.sqrt(table.shape[1]))
    unit: Floats = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    return unit


if __name__ == "__main__":
    main()
