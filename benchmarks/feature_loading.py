"""Items a second from a feature pack, against `np.load` of the published form of the same.

    python benchmarks/feature_loading.py

Writes random features of QVHighlights' dimensions (75 clips, SlowFast 2,304 and CLIP 512, float16)
as one .npz a video and stream, as they are published, and as a feature pack; then loads videos in
random order from both, files in the page cache, and prints the ratio.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from demr.feature_formats import import_features
from demr.features import FeaturePack

WIDTHS = {"slowfast": 2304, "clip": 512}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
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
            dict.fromkeys(vids, 150.0),
            root / "pack",
            name="x",
            version="1",
            clip_s=2.0,
            text_dim=1,
            normalization="none",
        )
        pack = FeaturePack(root / "pack")

        def published(vid: str) -> np.ndarray:
            streams = []
            for stream in WIDTHS:
                with np.load(root / stream / f"{vid}.npz") as arrays:
                    streams.append(arrays["features"].astype(np.float32))
            return np.concatenate(streams, axis=1)

        def packed(vid: str) -> np.ndarray:
            return pack[vid].features

        for vid in vids[:3]:
            np.testing.assert_array_equal(published(vid), packed(vid))
        order = rng.permutation(vids).tolist()
        ratios = []
        for _ in range(arguments.rounds):
            slow, fast = rate(published, order), rate(packed, order)
            ratios.append(fast / slow)
            print(f"np.load {slow:8.0f} videos/s   pack {fast:8.0f} videos/s   x {fast / slow:.1f}")
        print(f"median ratio {np.median(ratios):.1f}")


def rate(load: Callable[[str], np.ndarray], order: list[str]) -> float:
    """Videos a second."""
    began = time.perf_counter()
    for vid in order:
        load(vid)
    return len(order) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
