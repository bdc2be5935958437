"""Memory and time of an epoch of batches, videos prepared on demand against all beforehand.

    python benchmarks/dataset_memory.py [--videos 4000] [--queries 1] [--step]

Writes a pack of random features of QVHighlights' dimensions (75 clips of 2,816, float16), then
collates shuffled epochs of batches of 32 in a process of its own each way, and prints the growth of
anonymous memory (pages of the mapped pack come and go as the system has room for them) and the time
of the second epoch. With --step also a training step of configs/qvhighlights.yaml's network on the
CPU, and what preparing adds to it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from demr.annotations.annotations import Annotation
from demr.batches.batch import Batch, collate
from demr.batches.dataset import MomentDataset
from demr.batches.sampling import LengthBatches
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.network.losses import LossWeights, retrieval_loss
from demr.network.model import DemrModel

IDENTITY = EncoderIdentity("x", "1", 2.0, (("slowfast", 2304), ("clip", 512)), 512, "l2")
CLIPS, DURATION_S, TOKENS = 75, 150.0, 12
QVHIGHLIGHTS = 10_000  # videos of train and val, rounded
BATCH = 32


class FewTokens:
    """Encodes every query as the same tokens, which takes neither time nor memory."""

    identity = IDENTITY
    _tokens = np.ones((TOKENS, 512), np.float32)

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """Refuse: nothing here is a video."""
        raise NotImplementedError(path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """The same tokens for each."""
        del hidden
        return [QueryFeatures(query, self._tokens, ("a",), np.zeros(TOKENS)) for query in queries]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=1, help="of each video")
    parser.add_argument("--step", action="store_true", help="also time a training step")
    parser.add_argument("--child", nargs=2, metavar=("PACK", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        pack, way = arguments.child
        print(json.dumps(epochs(Path(pack), arguments.queries, beforehand=way == "beforehand")))
        return
    with tempfile.TemporaryDirectory() as name:
        pack = Path(name) / "pack"
        write_pack(pack, arguments.videos)
        command = [
            sys.executable,
            __file__,
            "--queries",
            str(arguments.queries),
            "--child",
            str(pack),
        ]
        rows = {
            way: json.loads(subprocess.check_output([*command, way], text=True))  # noqa: S603 - our own command
            for way in ("beforehand", "on demand")
        }
    whole = QVHIGHLIGHTS / arguments.videos
    for way, row in rows.items():
        print(
            f"{way:10s}  memory {row['gib']:5.2f} GiB"
            f"  epoch {row['epoch_s']:6.2f} s  batch {1e3 * row['batch_s']:5.1f} ms"
        )
    before, after = rows["beforehand"], rows["on demand"]
    print(f"memory beforehand / on demand: {before['gib'] / after['gib']:.1f}")
    print(f"beforehand, of {QVHIGHLIGHTS:,} videos: {before['gib'] * whole:.1f} GiB")
    if arguments.step:
        step_s = training_step()
        more = (after["batch_s"] - before["batch_s"]) / step_s
        print(f"training step {step_s:.2f} s on this CPU; preparing on demand adds {more:.1%}")


def write_pack(path: Path, videos: int) -> None:
    """Random features, a few tables over and over: their values play no part."""
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((CLIPS, IDENTITY.video_dim), np.float32) for _ in range(16)]
    with FeaturePackWriter(path, IDENTITY) as writer:
        for number in range(videos):
            writer.add(VideoFeatures(f"v{number}", DURATION_S, 2.0, tables[number % len(tables)]))


def epochs(path: Path, queries: int, *, beforehand: bool) -> dict[str, float]:
    """Two epochs of batches; the time is the second's."""
    pack = FeaturePack(path)
    annotations = [
        Annotation(f"{vid}_{number}", "a", vid, DURATION_S, ((2.0, 6.0),))
        for vid in pack.vids
        for number in range(queries)
    ]
    start = anonymous_gib()
    dataset = MomentDataset(annotations, pack, FewTokens())
    # What is in use stays prepared.
    held = [dataset[index].video for index in range(len(dataset))] if beforehand else []
    elapsed, most, batches = 0.0, 0.0, LengthBatches(dataset, BATCH, seed=0, epoch=0)
    for epoch in range(2):
        batches = LengthBatches(dataset, BATCH, seed=0, epoch=epoch)
        began = time.perf_counter()
        for indices in batches:
            collate([dataset[index] for index in indices])
        elapsed = time.perf_counter() - began
        most = max(most, anonymous_gib())
    del held
    return {"gib": most - start, "epoch_s": elapsed, "batch_s": elapsed / len(batches)}


def anonymous_gib() -> float:
    """Memory of this process that no file backs; Linux tells."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 2**20


def training_step() -> float:
    """Seconds of forward, loss and backward of a batch, the median of three."""
    with tempfile.TemporaryDirectory() as name:
        write_pack(Path(name) / "pack", BATCH)
        pack = FeaturePack(Path(name) / "pack")
        asked = [Annotation(vid, "a", vid, DURATION_S, ((2.0, 6.0),)) for vid in pack.vids]
        dataset = MomentDataset(asked, pack, FewTokens())
        batch: Batch = collate([dataset[index] for index in range(BATCH)])
    model = DemrModel(IDENTITY.video_dim + 2, 512, dim=512, heads=8, layers=4, hidden=512)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        retrieval_loss(model(batch), batch, LossWeights()).total.backward()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


if __name__ == "__main__":
    main()
