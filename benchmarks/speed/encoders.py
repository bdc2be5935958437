"""What encoders cost, and where the time of an extraction goes.

    python benchmarks/speed/encoders.py [--models DIR] [--device cpu] [--only clip ...]

Each encoder, with random weights of the published size, reads videos of 640x360 with 30 frames a
second (rendered by decoding_videos.py), in a process of its own. The speed of the network is that
on clips that were prepared before; end to end is what `demr extract` does between loading the
weights and the finished pack. "Decoder or network" is the share of that wall time in which at
least one of the two is at work: what is left is ours. Numbers go to
benchmarks/results/encoders.json, tables to docs/encoders.md.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding_videos import CLIP_S as FILE_S
from decoding_videos import make_clips
from encoder_models import build
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

import demr.encoders.frames
from demr.encoders import Encoder, get_encoder
from demr.encoders.frames import Block, FrameEncoder, read_blocks
from demr.extraction.job import extract, parts_folder
from demr.extraction.parts import ExtractionPlan, encode_video, write_part
from demr.extraction.videos import find_videos
from demr.video.reading import Frame, Video

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
HEADER = (
    "| encoder | where | in | row | token | parameters | GFLOP | network alone, clips/s "
    "| end to end, clips/s | hours of video an hour | MB an hour of video "
    "| cosine to float32 | peak GB |"
)
BEGIN, END = "<!-- encoders -->", "<!-- end of encoders -->"
# Encoder -> what it is asked for by, models it needs, files of 10 s that it reads.
ENCODERS = {
    "builtin": ("builtin", (), 10),
    "clip": ("clip:{clip}", ("clip",), 40),
    "clip,dtype=float32": ("clip:{clip},dtype=float32", ("clip",), 20),
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
    make_clips(arguments.videos)
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
            "dtype": identity.dtype,
            "threads": torch.get_num_threads(),
            "streams": " + ".join(f"{stream} {dims}" for stream, dims in identity.streams),
            "text": identity.text_dim,
            "parameters": sum(map(count_parameters, folders.values())),
            "megabytes_an_hour": identity.video_dim * 2 * 3600 / identity.clip_s / 1e6,
        }
        if isinstance(encoder, FrameEncoder):
            blocks = prepared(encoder, [video.path for video in found.videos])
            row["gflop"] = gigaflop(encoder, blocks)
            row["network_clips_per_s"] = network_speed(encoder, blocks)
            row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            exact = get_encoder(f"{spec.removesuffix(',dtype=float32')},dtype=float32")
            row["cosine"] = least_cosine(encoder, exact, blocks)
            del exact
            clock.watch(encoder)
        out = Path(temporary) / "pack"
        plan = ExtractionPlan(spec, arguments.device, identity.to_dict(), parts_folder(out))
        began = time.perf_counter()

        def run(videos: Any, plan: ExtractionPlan, tell: Any) -> None:
            for video in videos:
                write_part(plan.parts, video, encode_video(encoder, video, plan))
                tell(video, 1.0, "")

        summary = extract(found, encoder, plan, out, run, nothing)
        wall_s = time.perf_counter() - began
        row |= {
            "clips": summary.clips,
            "wall_s": wall_s,
            "clips_per_s": summary.clips / wall_s,
            "hours_per_hour": files * FILE_S / wall_s,
        }
        if isinstance(encoder, FrameEncoder):
            row |= {f"{kind}_share": clock.share(wall_s, kind) for kind in ("decoder", "network")}
            row["prepare_share"] = clock.share(wall_s, "prepare")
            row["decoder_or_network_share"] = clock.share(wall_s, "decoder", "network")
    return row


def prepared(encoder: FrameEncoder, paths: list[Path]) -> list[Block]:
    """Blocks of videos, as the networks get them."""
    return [block for path in paths for block in read_blocks(Video(path), encoder.streams)]


def gigaflop(encoder: FrameEncoder, blocks: list[Block]) -> float:
    """Floating-point operations of all networks for a clip, in billions."""
    clips = sum(len(block.rows) for block in blocks if not block.stream)
    with FlopCounterMode(display=False) as counter:
        embed_all(encoder, blocks)
    return counter.get_total_flops() / clips / 1e9


def network_speed(encoder: FrameEncoder, blocks: list[Block]) -> float:
    """Clips a second that all networks together do; the best of three, after the first use."""
    clips = sum(len(block.rows) for block in blocks if not block.stream)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        embed_all(encoder, blocks)
        seconds.append(time.perf_counter() - began)
    return clips / min(seconds)


def least_cosine(encoder: FrameEncoder, exact: Encoder, blocks: list[Block]) -> float:
    """Of any row to what it is in float32."""
    if not isinstance(exact, FrameEncoder):
        raise TypeError(f"{exact.identity.spec} reads no frames")
    least = 1.0
    for block in blocks:
        pixels = torch.from_numpy(block.pixels)
        rows, same = (made.streams[block.stream].embed(pixels) for made in (encoder, exact))
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(same, axis=1)
        least = min(least, float(((rows * same).sum(axis=1) / lengths).min()))
    return least


def embed_all(encoder: FrameEncoder, blocks: list[Block]) -> None:
    """Run all networks on all blocks."""
    for block in blocks:
        encoder.streams[block.stream].embed(torch.from_numpy(block.pixels))


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
        clock = self

        class TimedVideo(Video):
            """Waiting for the file to open and for each frame counts as decoding."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                clock._timed("decoder", super().__init__)(*args, **kwargs)

            def frames(self, *args: Any, **kwargs: Any) -> Iterator[Frame]:
                frames = super().frames(*args, **kwargs)
                following = clock._timed("decoder", lambda: next(frames, None))
                while (frame := following()) is not None:
                    yield frame

        demr.encoders.frames.Video = TimedVideo  # type: ignore[misc]

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


def nothing(*_: Any) -> None:
    """Nobody is told how far it is."""


def count_parameters(folder: Path) -> int:
    """Of all tensors in a model's files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def device_name(device: str) -> str:
    """What the numbers hold for."""
    if device == "cpu":
        return f"{os.cpu_count()} {platform.machine()} cores"
    return torch.cuda.get_device_name()


def write_section(rows: dict[str, dict[str, Any]]) -> None:
    """Put the tables between their marks in docs/encoders.md."""
    path = ROOT / "docs" / "encoders.md"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [
        "Made by `python benchmarks/speed/encoders.py`: random weights of the published sizes,",
        "computed in what each device does fast; videos of 640x360, 30 frames a second, clips of",
        "2 s. Parameters are those of the whole model, text included; GFLOP the network's for a",
        "clip. The cosine is the least of any row to the same row in float32; the peak is the",
        "process's.",
        "",
        HEADER,
        f"|{'---|' * 13}",
    ]
    for name, row in rows.items():
        has_network = "network_share" in row
        columns = [
            *(f"`{name.partition(' on ')[0]}`", row["device"], row["dtype"], row["streams"]),
            str(row["text"] or "-"),
            f"{row['parameters'] / 1e6:.0f} M" if has_network else "none",
            f"{row['gflop']:.1f}" if has_network else "-",
            f"{row['network_clips_per_s']:.2f}" if has_network else "-",
            *(f"{row['clips_per_s']:.2f}", f"{row['hours_per_hour']:.1f}"),
            f"{row['megabytes_an_hour']:.1f}",
            f"{row['cosine']:.5f}" if has_network else "-",
            f"{row['peak_gb']:.1f}" if has_network else "-",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    lines += [
        "",
        "Where the wall time of that extraction goes, between loaded weights and finished pack.",
        "Decoding and resizing run beside the network, so that shares overlap. What neither",
        "decoder nor network fills is resizing, waiting and writing.",
        "",
        "| encoder | where | clips | decoder | resizing | network | decoder or network |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "network_share" in row:
            kinds = ("decoder", "prepare", "network", "decoder_or_network")
            shares = [f"{row[f'{kind}_share']:.0%}" for kind in kinds]
            columns = [f"`{name.partition(' on ')[0]}`", row["device"], str(row["clips"]), *shares]
            lines.append(f"| {' | '.join(columns)} |")
    section = "\n".join([BEGIN, *lines, END])
    path.write_text(f"{before}{section}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
