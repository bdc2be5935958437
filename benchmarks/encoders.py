"""What encoders cost, and where the time of an extraction goes.

    python benchmarks/encoders.py [--models runs/encoder_models] [--device cpu] [--only clip ...]

Each encoder, with random weights of the published size, reads videos of 640x360 with 30 frames a
second (rendered by decoding_videos.py), in a process of its own. The speed of the network is that
on clips that were prepared before; end to end is what `demr extract` does between loading the
weights and the finished pack. "Decoder or network" is the share of that wall time in which at
least one of the two is at work: what is left is ours. Numbers go to
benchmarks/results/encoders.json, tables to docs/encoders.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from decoding_videos import CLIP_S as FILE_S
from decoding_videos import make_videos
from encoder_models import build

import demr.encoders.frames
from demr.encoders import get_encoder
from demr.encoders.frames import Block, FrameEncoder, read_blocks
from demr.extraction import Job, encode_unit, extract, parts_folder, write_part
from demr.video_files import cut_into_units, find_videos

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
BEGIN, END = "<!-- encoders -->", "<!-- end of encoders -->"
# Encoder -> what it is asked for by, models it needs, files of 10 s that it reads.
ENCODERS = {
    "builtin": ("builtin", (), 10),
    "clip": ("clip:{clip}", ("clip",), 40),
    "clip (SigLIP 2 base)": ("clip:{siglip}", ("siglip",), 10),
    "xclip": ("xclip:{xclip}", ("xclip",), 5),
    "slowfast": ("slowfast:{slowfast}/slowfast.safetensors", ("slowfast",), 2),
    "clip+slowfast": (
        "clip+slowfast:{clip},slowfast={slowfast}/slowfast.safetensors",
        ("clip", "slowfast"),
        2,
    ),
    "vlm": ("vlm:{vlm}", ("vlm",), 1),
}


def main() -> None:
    """Measure every encoder in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/encoder_models"))
    parser.add_argument("--videos", type=Path, default=Path("runs/decoding_videos"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=ENCODERS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments)))
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.only or ENCODERS:
        options = ["--models", arguments.models, "--videos", arguments.videos]
        done = subprocess.run(  # noqa: S603 - our own command
            [
                *(sys.executable, __file__, "--child", name, "--device", arguments.device),
                *map(str, options),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        row = json.loads(done.stdout.splitlines()[-1])
        print(name, row, flush=True)
        rows[f"{name} on {row['device']}"] = row
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_section(rows)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one encoder."""
    spec, models, files = ENCODERS[name]
    folders = {model: build(arguments.models, model) for model in models}
    spec = spec.format(**folders)
    make_videos(arguments.videos, ["c"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        folder.mkdir()
        sources = sorted(arguments.videos.glob("c*/*.mp4"))
        for number in range(files):
            os.link(sources[number % len(sources)], folder / f"{number:03d}.mp4")
        encoder = get_encoder(spec, device=arguments.device)
        identity = encoder.identity
        found = find_videos([folder])
        clock = Clock()
        row: dict[str, Any] = {
            "device": device_name(arguments.device),
            "threads": torch.get_num_threads(),
            "streams": " + ".join(f"{stream} {dims}" for stream, dims in identity.streams),
            "text": identity.text_dim,
            "parameters": sum(map(count_parameters, folders.values())),
            "megabytes_an_hour": identity.video_dim * 2 * 3600 / identity.clip_s / 1e6,
        }
        if isinstance(encoder, FrameEncoder):
            row["network_clips_per_s"] = network_speed(encoder, found.videos[0].path)
            clock.watch(encoder)
        out = Path(temporary) / "pack"
        job = Job(spec, arguments.device, identity.to_dict(), parts_folder(out))
        began = time.perf_counter()

        def run(units: Any, job: Job, tell: Any) -> None:
            for unit in units:
                tell(unit, 1.0, write_part(job.parts, unit, encode_unit(encoder, unit, print_none)))

        summary = extract(found, encoder, job, out, run, untold)
        wall_s = time.perf_counter() - began
        row |= {
            "clips": summary.clips,
            "units": len(cut_into_units(found.videos)),
            "wall_s": wall_s,
            "clips_per_s": summary.clips / wall_s,
            "hours_per_hour": files * FILE_S / wall_s,
        }
        if isinstance(encoder, FrameEncoder):
            row |= {f"{kind}_share": clock.share(wall_s, kind) for kind in ("decoder", "network")}
            row["prepare_share"] = clock.share(wall_s, "prepare")
            row["decoder_or_network_share"] = clock.share(wall_s, "decoder", "network")
    return row


def network_speed(encoder: FrameEncoder, path: Path) -> float:
    """Clips a second that all networks together do, on clips prepared before; best of three."""
    blocks = [
        part
        for part in read_blocks([path], encoder.streams, encoder.identity.clip_s)
        if isinstance(part, Block)
    ]
    clips = sum(len(block.rows) for block in blocks if not block.stream)
    best = 0.0
    for turn in range(3):
        began = time.perf_counter()
        for block in blocks:
            encoder.streams[block.stream].embed(torch.from_numpy(block.pixels))
        if turn or len(blocks) == 1:
            best = max(best, clips / (time.perf_counter() - began))
    return best


class Clock:
    """When decoder, preparation and network were at work."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = {}
        self._lock = threading.Lock()

    def watch(self, encoder: FrameEncoder) -> None:
        """Time what an encoder's streams and the decoder do from here on."""
        for kind in {type(stream) for stream in encoder.streams}:
            for method, name in (("prepare", "prepare"), ("embed", "network")):
                setattr(kind, method, self._timed(name, getattr(kind, method)))
        open_video = demr.encoders.frames.open_video

        def opened(*args: Any, **kwargs: Any) -> Any:
            video = self._timed("decoder", open_video)(*args, **kwargs)
            return _Timed(video, self)

        demr.encoders.frames.open_video = opened

    def each(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The same frames; waiting for each counts as decoding."""
        following = self._timed("decoder", frames.__next__)
        while True:
            try:
                frame = following()
            except StopIteration:
                return
            yield frame

    def share(self, wall_s: float, *kinds: str) -> float:
        """Share of the wall time in which at least one of the kinds was at work."""
        total, until = 0.0, 0.0
        for begin, end in sorted(span for kind in kinds for span in self._spans.get(kind, ())):
            total += max(0.0, end - max(begin, until))
            until = max(until, end)
        return total / wall_s

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    self._spans.setdefault(name, []).append((began, time.perf_counter()))

        return call
