"""What a million hours of video would cost, from figures that were measured.

    python benchmarks/speed/cost_model.py

Reads what encoders.py, decoding.py and long_video.py left, measures the few things that grow with
the number of videos here, and writes the section of docs/scale.md.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np

from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.extraction.videos import VideoFile
from demr.features.pack import FeaturePack, FeaturePackWriter

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- cost model -->", "<!-- end of cost model -->"
HOURS = 1_000_000
# Half precision, of an accelerator with a peak of about 1000: an assumption, not a measurement.
SUSTAINED_TFLOPS = 100
VIDEOS = 100_000
VECTORS, DIMS = 1_000_000, 512
CANDIDATES, CANDIDATE_S = 100, 150
# Bytes of a clip's vector: half precision, and what product quantisation keeps.
HALF, CODE = 2 * DIMS, 64


def main() -> None:
    """Measure, compute, write."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    encoders = json.loads((RESULTS / "encoders.json").read_text(encoding="utf-8"))
    decoding = json.loads((RESULTS / "decoding.json").read_text(encoding="utf-8"))
    scale = ROOT / "docs" / "scale.md"
    text = scale.read_text(encoding="utf-8")
    here = {**measure_pack(), **measure_scan(), **measure_list(), "per_hour_s": long_video(text)}
    print(json.dumps(here, indent=1))
    section = "\n".join([BEGIN, *lines(encoders, decoding, here), END])
    before, mark, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if mark else "\n"
    scale.write_text(f"{before.rstrip()}\n\n{section}{after}", encoding="utf-8")


def measure_pack() -> dict[str, float]:
    """Writing, opening and reading a pack of very many short videos."""
    identity = EncoderIdentity("cost", "1", 2.0, (("clip", DIMS),), DIMS, "l2")
    rows = np.random.default_rng(0).standard_normal((5, DIMS)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pack"
        began = time.perf_counter()
        with FeaturePackWriter(path, identity) as writer:
            for number in range(VIDEOS):
                writer.add(VideoFeatures(f"video{number:09d}", 10.0, 2.0, rows))
        written_s = time.perf_counter() - began
        size = sum(file.stat().st_size for file in path.iterdir())
        opened_s, opened_mb = in_a_process_of_its_own(path)
        pack = FeaturePack(path)
        began = time.perf_counter()
        for number in range(0, VIDEOS, VIDEOS // 1000):
            pack[f"video{number:09d}"].features.sum()
        read_s = (time.perf_counter() - began) / 1000
        index = (path / "index.json").stat().st_size
    return {
        "write_mb_s": size / 1e6 / written_s,
        "open_s": opened_s,
        "open_mb": opened_mb,
        "index_mb": index / 1e6,
        "read_ms": read_s * 1e3,
    }


def in_a_process_of_its_own(path: Path) -> tuple[float, float]:
    """Seconds and megabytes that opening a pack takes."""
    # The peak that a process reports may be its parent's: what is there now is read instead.
    code = (
        "import sys, time; from pathlib import Path; from demr.features.pack import FeaturePack\n"
        "def pages(): return int(Path('/proc/self/statm').read_text().split()[1])\n"
        "before, began = pages(), time.perf_counter(); pack = FeaturePack(Path(sys.argv[1]))\n"
        "print(time.perf_counter() - began, (pages() - before) * 4096 / 1e6)"
    )
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def measure_scan() -> dict[str, float]:
    """One query against all vectors in memory, exactly; the fastest of five."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((VECTORS, DIMS), dtype=np.float32)
    query = table[0]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        scores = table @ query
        np.argpartition(scores, -CANDIDATES)[-CANDIDATES:]
        seconds.append(time.perf_counter() - began)
    return {"scan_s_per_million": min(seconds) / VECTORS * 1e6}


def measure_list() -> dict[str, float]:
    """Naming the part of each file of a list."""
    videos = [
        VideoFile(f"v{number:09d}", Path(f"/videos/v{number:09d}.mp4"), 1_000_000)
        for number in range(VIDEOS)
    ]
    began = time.perf_counter()
    keys = {video.key for video in videos}
    return {"list_s": time.perf_counter() - began, "names": len(keys)}


def long_video(text: str) -> float:
    """Seconds a query and hour of the longest video in the section before."""
    rows = re.findall(r"^\| ([\d.]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| ", text, flags=re.MULTILINE)
    return float(max(rows, key=lambda row: float(row[0]))[1])


def lines(
    encoders: dict[str, dict[str, Any]], decoding: dict[str, Any], here: dict[str, float]
) -> list[str]:
    """The section."""
    return [
        "## A million hours",
        "",
        paragraph(
            "Made by `python benchmarks/speed/cost_model.py` from the measurements of encoders.py, "
            f"decoding.py and long_video.py on {os.cpu_count()} {platform.machine()} cores, times "
            "the number of hours; clips of 2 s, 360p. No GPU was at hand: its hours are "
            f"arithmetic, GFLOP a clip at {SUSTAINED_TFLOPS} TFLOP/s sustained, a tenth of a large "
            "accelerator's peak."
        ),
        "",
        row("encoder", "features, TB", "core hours here, all in all", "GPU hours, computed"),
        row(*["---"] * 4),
        *(encoder_row(name, measured) for name, measured in encoders.items()),
        "",
        decoding_text(decoding),
        "",
        row("step", "measured here", "for a million hours", "who takes over, and when"),
        row(*["---"] * 4),
        *step_rows(first_row(encoders, "clip"), here),
        "",
        paragraph(
            "**What breaks first** is the pack. Its index is one JSON file that is read whole: "
            f"{here['index_mb']:.1f} MB for {VIDEOS:,} videos, and 240 times that for a million "
            "hours in videos of 150 s. At the end of an extraction one process copies all parts, "
            f"at {here['write_mb_s']:.0f} MB/s for videos of 10 s. Keep packs at a hundred "
            "thousand videos or so and put them in one folder: training reads a folder of packs "
            "as one, and each can be extracted, lost and made again alone. The list of files "
            f"breaks later: {VIDEOS:,} are named in {here['list_s']:.1f} s; until the pack is "
            "whole, each is a file of its own. Library search itself, clip vectors in an engine "
            "and localising in the best candidates, is not built yet."
        ),
    ]


def paragraph(text: str) -> str:
    """Text in lines of 120 at most."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def encoder_row(name: str, measured: dict[str, Any]) -> str:
    """What an encoder costs for all hours."""
    gpu = "-"
    if "gflop" in measured:
        seconds = measured["gflop"] * 1800 * HOURS / (SUSTAINED_TFLOPS * 1e3)
        gpu = f"{seconds / 3600:,.0f}"
    core_hours = HOURS / measured["hours_per_hour"] * (os.cpu_count() or 1)
    terabytes = measured["megabytes_an_hour"] * HOURS / 1e6
    return row(f"`{name.partition(' on ')[0]}`", f"{terabytes:.1f}", f"{core_hours:,.0f}", gpu)


def decoding_text(decoding: dict[str, Any]) -> str:
    """What decoding alone costs for all hours."""
    hours = {
        case: 30 * HOURS / decoding[case]["rows"]["demr"]["video_fps_per_core"]
        for case in ("a", "a dense", "b")
    }
    return paragraph(
        f"Decoding alone takes {hours['a']:,.0f} core hours for a frame every 2 s of 360p, "
        f"{hours['a dense']:,.0f} for 15 a second, {hours['b']:,.0f} for a frame every 2 s of "
        "1080p: with `clip` a GPU waits for the decoder, and wants hundreds of cores beside it."
    )


def step_rows(clip: dict[str, Any], here: dict[str, float]) -> list[str]:
    """Step by step, who takes over."""
    vectors, more = HOURS * 1800, 24_000_000 / VIDEOS
    scan_s = here["scan_s_per_million"]
    candidate_s = CANDIDATES * CANDIDATE_S / 3600 * here["per_hour_s"]
    return [
        row(
            "extraction",
            f"{clip['hours_per_hour']:.1f} hours of video an hour (`clip`)",
            "see above",
            "Ray (`--ray`), once one machine takes too long; the driver only writes",
        ),
        row(
            "features on disk",
            f"{clip['megabytes_an_hour']:.1f} MB an hour (`clip`)",
            "see above",
            "object storage, beyond one disk: packs are files that never change",
        ),
        row(
            "opening packs",
            f"{here['open_s']:.2f} s and {here['open_mb']:.0f} MB for {VIDEOS:,} videos",
            f"{here['open_s'] * more:,.0f} s and {here['open_mb'] * more / 1e3:.0f} GB for 24 "
            "million videos of 150 s",
            "a database for the index; see below",
        ),
        row("reading a video", f"{here['read_ms']:.2f} ms", "the same", "-"),
        row(
            "exact scan of clip vectors",
            f"{scan_s * 1e3:.0f} ms a million, in memory",
            f"{vectors / 1e9:.1f} billion, {scan_s * vectors / 1e6:,.0f} s a query, "
            f"{vectors * HALF / 1e12:.1f} TB in half precision",
            "an approximate index beyond ten million clips or so (5,000 hours); a distributed "
            f"vector database beyond one machine's memory ({vectors * CODE / 1e9:.0f} GB for all, "
            f"at {CODE} bytes a vector)",
        ),
        row(
            "localising",
            f"{here['per_hour_s']:.2f} s a query and hour",
            f"{here['per_hour_s'] * HOURS / 3600:,.0f} core hours a query: never. In the best "
            f"{CANDIDATES} of {CANDIDATE_S} s: {candidate_s:.1f} s of a core",
            "more cores: candidates are independent",
        ),
    ]


def first_row(encoders: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Of an encoder, wherever it was measured first."""
    return next(found for key, found in encoders.items() if key.startswith(f"{name} on "))


if __name__ == "__main__":
    main()
