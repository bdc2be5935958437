"""Items a second from a feature pack, against `np.load` of the published form of the same.

    python benchmarks/speed/feature_loading.py [--compressed]

Writes random features of QVHighlights' dimensions (75 clips, SlowFast 2,304 and CLIP 512, float16)
as one .npz a video and stream, as they are published, and as a feature pack; then loads videos in
random order from both, in turns, files in the page cache, and prints the median of the rounds.
Four things called loading are told apart:

view      the pack gives a view, whose values are not touched yet; `np.load` gives float16 arrays
values    every value was read once: the view is copied; `np.load` as above, streams side by side
prepared  the tensor that a model takes: aligned, float32, finite, normalised (l2 or none), with
          the clips' times; both sides call the same `prepare_video`
item      what training asks for in every step: an item of a `MomentDataset`, which keeps prepared
          videos up to 2 GiB; `np.load` prepares them every time, as loaders without memory do
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from demr.annotations.annotations import Annotation
from demr.batches.dataset import MomentDataset
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures
from demr.features.imports import import_features
from demr.features.pack import FeaturePack
from demr.features.prepare import align_streams, prepare_video

WIDTHS = {"slowfast": 2304, "clip": 512}
DURATION_S = 150.0


class OneToken:
    """Encodes every query as a single 0, which takes no time."""

    def __init__(self, identity: EncoderIdentity) -> None:
        """Keep the identity of the pack."""
        self.identity = identity

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """Refuse: nothing here is a video."""
        raise NotImplementedError(path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """One token a query."""
        del hidden
        token = np.zeros((1, 1), np.float32)
        return [QueryFeatures(query, token, ("a",), np.zeros(1, np.int64)) for query in queries]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compressed", action="store_true", help="np.savez_compressed")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    vids = [f"v{number}" for number in range(arguments.videos)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save = np.savez_compressed if arguments.compressed else np.savez
        for stream, width in WIDTHS.items():
            (root / stream).mkdir()
            for vid in vids:
                table = rng.standard_normal((75, width)).astype(np.float16)
                save(root / stream / f"{vid}.npz", features=table)
        import_features(
            {stream: root / stream for stream in WIDTHS},
            dict.fromkeys(vids, DURATION_S),
            root / "pack",
            name="x",
            version="1",
            clip_s=2.0,
            text_dim=1,
            normalization="l2",
        )
        compare(root, FeaturePack(root / "pack"), rng.permutation(vids).tolist(), arguments.rounds)


def compare(root: Path, pack: FeaturePack, order: list[str], rounds: int) -> None:
    """Check that both sides give the same numbers, then measure and print."""
    raw = replace(pack.identity, normalization="none")
    asked = [Annotation(vid, "a", vid, DURATION_S, ((2.0, 6.0),)) for vid in order]
    place = {vid: index for index, vid in enumerate(order)}
    dataset = MomentDataset(asked, pack, OneToken(pack.identity))

    def published(vid: str) -> dict[str, Any]:
        streams = {}
        for stream in WIDTHS:
            with np.load(root / stream / f"{vid}.npz") as arrays:
                streams[stream] = arrays["features"]
        return streams

    def joined(vid: str) -> VideoFeatures:
        return VideoFeatures(vid, DURATION_S, 2.0, align_streams(published(vid), vid))

    cases: dict[str, tuple[Callable[[str], Any], Callable[[str], Any]]] = {
        "view": (published, lambda vid: pack[vid].features),
        "values": (
            lambda vid: np.concatenate([*published(vid).values()], axis=1),
            lambda vid: pack[vid].features.copy(),
        ),
        "prepared, none": (
            lambda vid: prepare_video(joined(vid), raw)[0],
            lambda vid: prepare_video(pack[vid], raw)[0],
        ),
        "prepared, l2": (
            lambda vid: prepare_video(joined(vid), pack.identity)[0],
            lambda vid: prepare_video(pack[vid], pack.identity)[0],
        ),
        "item, l2": (
            lambda vid: prepare_video(joined(vid), pack.identity)[0],
            lambda vid: dataset[place[vid]].video,
        ),
    }
    for case, (slow, fast) in cases.items():
        if case != "view":
            np.testing.assert_array_equal(slow(order[0]), fast(order[0]))
        rates = np.array([[rate(slow, order), rate(fast, order)] for _ in range(rounds)])
        there, here = np.median(rates, axis=0)
        ratio = np.median(rates[:, 1] / rates[:, 0])
        print(
            f"{case:15s} np.load {there:8.0f} videos/s   pack {here:8.0f} videos/s   x {ratio:.1f}"
        )


def rate(load: Callable[[str], Any], order: list[str]) -> float:
    """Videos a second."""
    began = time.perf_counter()
    for vid in order:
        load(vid)
    return len(order) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
