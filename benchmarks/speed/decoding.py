"""Frames out of videos: demr's decoder against PyAV, OpenCV and the ffmpeg program.

    python benchmarks/speed/decoding.py [--videos runs/decoding_videos] [--rounds 3] [--cases a c]

Renders three workloads once: (a) 10 minutes of 640x360 with a keyframe every 250 frames, (b) an
hour of 1080p with one every 60, (c) 1000 clips of 10 s. From each, every engine takes the frame in
the middle of every 2 s, from (a) also 15 frames a second, as RGB of 398x224. Engines take turns,
each time in a process of its own; time is counted from the call of the engine on, without imports.
Every frame carries its number: an engine that shows another frame is named. Numbers go to
benchmarks/results/decoding.json, the tables to docs/decoding.md. OpenCV is used where it is
installed; a folder of its own (`pip install --target`) on PYTHONPATH will do.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from decoding_engines import ENGINES, missing, times_of
from decoding_videos import CLIP_KINDS, CLIP_S, CLIPS, FPS, MINUTE, make_videos, read_stamp

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- decoding -->", "<!-- end of decoding -->"
# Half a frame behind a frame's start, so that no engine's rounding decides.
OFF_S = 0.5 / FPS
REFERENCE = "PyAV plain"
KEPT = 24


@dataclass(frozen=True)
class Case:
    """A workload: which files, which times.

    Attributes:
        title: A line of the table.
        first_s: First time asked for.
        step_s: From one time to the next.
        length_s: Of each file.
        part_s: Only so much of each file is read; None for all.
        clips: Files a round; 0 for a single file.
    """

    title: str
    first_s: float
    step_s: float
    length_s: float
    part_s: float | None = None
    clips: int = 0

    def times(self) -> list[float]:
        """What is asked for in each file."""
        return times_of(self.first_s, self.step_s, self.part_s or self.length_s)


CASES = {
    "a": Case("10 min 640x360, keyframe every 250, a frame every 2 s", 1 + OFF_S, 2.0, 600),
    "a dense": Case("10 min 640x360, keyframe every 250, 15 frames a second", OFF_S, 1 / 15, 600),
    "b": Case(
        "1 h 1080p, keyframe every 60, a frame every 2 s, first 2 min", 1 + OFF_S, 2.0, 3600, 120.0
    ),
    "b whole": Case("1 h 1080p, keyframe every 60, a frame every 2 s, all", 1 + OFF_S, 2.0, 3600),
    "c": Case(
        "clips of 10 s 640x360, a frame every 2 s, 100 a round", 1 + OFF_S, 2.0, CLIP_S, None, 100
    ),
}
# A seek for each of 9000 frames takes ten minutes; a whole hour is decoded once, by those who jump.
ONLY = {
    "a dense": ("demr", "PyAV plain", "OpenCV grab", "ffmpeg"),
    "b whole": ("demr", "PyAV seek"),
}
ONCE = ("b whole",)


def main() -> None:
    """Measure all engines in turns and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=Path("runs/decoding_videos"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--dry", action="store_true", help="print only, write no tables")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        case, engine, turn, kept = arguments.child
        print(json.dumps(measure(arguments.videos, case, engine, int(turn), Path(kept))))
        return
    make_videos(arguments.videos)
    absent = missing()
    for name, reason in absent.items():
        print(f"left out: {name}, {reason}")
    engines = [name for name in arguments.engines if name not in absent]
    for case in arguments.cases:
        rows = compare(arguments, case, engines)
        if not arguments.dry:
            write_results(case, {"machine": machine(), "left out": absent, "rows": rows})


def write_results(case: str, result: dict[str, Any]) -> None:
    """Keep the numbers of one case, those of others as they are, and write the tables anew."""
    path = ROOT / "benchmarks" / "results" / "decoding.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[case] = result
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write_section({name: kept[name] for name in CASES if name in kept})


def compare(arguments: argparse.Namespace, case: str, engines: list[str]) -> dict[str, Any]:
    """Run the engines in turns, each round in another order."""
    rounds = 1 if case in ONCE else arguments.rounds
    engines = [name for name in engines if name in ONLY.get(case, ENGINES)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    pixels: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
                kept = Path(folder, f"{name}-{turn}.npy")
                command = [sys.executable, __file__, "--videos", str(arguments.videos)]
                done = subprocess.run(  # noqa: S603 - our own command
                    [*command, "--child", case, name, str(turn), str(kept)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                if turn == 0:
                    pixels[name] = np.load(kept)
                row = runs[name][-1]
                print(
                    f"{case}: {name}: {row['wall_s']:.2f} s, CPU {row['cpu_s']:.2f} s", flush=True
                )
    rows = {}
    files = CASES[case].clips or 1
    covered = (CASES[case].part_s or CASES[case].length_s) * FPS * files
    for name, found in runs.items():
        row: dict[str, Any] = {
            "wall_s": min(run["wall_s"] for run in found),
            "cpu_s": median(run["cpu_s"] for run in found),
            "all_wall_s": [round(run["wall_s"], 3) for run in found],
            "all_cpu_s": [round(run["cpu_s"], 3) for run in found],
            "wrong": max(run["wrong"] for run in found),
            "asked": found[0]["asked"],
        }
        row["video_fps_per_core"] = covered / row["cpu_s"]
        reference = pixels.get(REFERENCE)
        if reference is not None and pixels[name].shape == reference.shape:
            away = np.abs(pixels[name].astype(np.int16) - reference)
            row["pixel_mean"], row["pixel_max"] = float(away.mean()), int(away.max())
        rows[name] = row
        print(f"{case}: {name}: {row}")
    return rows


def measure(videos: Path, case_name: str, name: str, turn: int, kept: Path) -> dict[str, Any]:
    """Time of one engine on one case, and how many frames were not the ones asked for."""
    case, engine = CASES[case_name], ENGINES[name]
    expected: list[int] = []
    found: list[int] = []
    pictures: list[np.ndarray] = []
    files = list(files_of(videos, case_name, case, turn))
    asked = len(case.times()) * len(files)
    every = max(1, asked // KEPT)
    if name.startswith("OpenCV"):
        import cv2  # noqa: F401 - imports are not counted
    wall, cpu = time.perf_counter(), cpu_s()
    for path, number in files:
        for rgb in engine(path, case.first_s, case.step_s, case.part_s):
            if len(found) % every == 0:
                pictures.append(np.array(rgb))
            found.append(read_stamp(rgb))
        expected += [number + int(t * FPS) for t in case.times()]
    wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    if case.clips == 0:
        expected = [value % (MINUTE * FPS) for value in expected]
    wrong = sum(a != b for a, b in zip(expected, found, strict=False))
    wrong += abs(len(expected) - len(found))
    np.save(kept, np.stack(pictures[:KEPT]))
    return {"wall_s": wall, "cpu_s": cpu, "wrong": wrong, "asked": asked}


def files_of(videos: Path, name: str, case: Case, turn: int) -> Iterator[tuple[Path, int]]:
    """Files of a round, each with the number that its first frame carries."""
    if case.clips == 0:
        yield videos / f"{name[0]}.mp4", 0
    for k in range(case.clips):
        clip = (turn * case.clips + k) % CLIPS
        yield videos / "c" / f"{clip:04d}.mp4", clip % CLIP_KINDS * CLIP_S * FPS


def cpu_s() -> float:
    """CPU time of this process and of those that it waited for, all cores together."""
    return sum(os.times()[:4])


def machine() -> str:
    """What the numbers were measured with."""
    parts = [f"{platform.machine()}, {os.cpu_count()} cores shared with other work"]
    for package in ("av", "opencv-python-headless"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if "ffmpeg" not in missing():
        shown = subprocess.run(["ffmpeg", "-version"], capture_output=True, check=True, text=True)  # noqa: S607
        parts.append(f"ffmpeg {shown.stdout.split()[2]}")
    return ", ".join(parts)


def write_section(results: dict[str, Any]) -> None:
    """Put the tables into docs/decoding.md, and leave the rest of it as it is."""
    lines = [
        BEGIN,
        "Measured by `python benchmarks/speed/decoding.py`. CPU time is the median of the rounds,",
        "wall time the least, as other work comes and goes. Ratios are to the fastest engine that",
        "shows the right frames. Frames/s/core are the video's frames, decoded or passed over, for",
        'each second of CPU time. "Wrong" counts frames that are not the one asked for; "pixels"',
        f"is the mean absolute difference to {REFERENCE}, if that ran, in levels of 255.",
    ]
    for name, result in results.items():
        rows = result["rows"]
        right = [row for row in rows.values() if row["wrong"] == 0]
        best_wall = min(row["wall_s"] for row in right)
        best_cpu = min(row["cpu_s"] for row in right)
        lines += [
            "",
            f"### ({name}) {CASES[name].title}",
            "",
            f"On {result['machine']}.",
            *(f"Left out: {engine}, {reason}." for engine, reason in result["left out"].items()),
            "",
            "| engine | wall s | ratio | CPU s | ratio | frames/s/core | wrong | pixels |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for engine, row in sorted(rows.items(), key=lambda item: item[1]["cpu_s"]):
            pixels = f"{row['pixel_mean']:.2f}" if "pixel_mean" in row else "–"
            lines.append(
                f"| {engine} | {row['wall_s']:.2f} | {row['wall_s'] / best_wall:.2f} |"
                f" {row['cpu_s']:.2f} | {row['cpu_s'] / best_cpu:.2f} |"
                f" {row['video_fps_per_core']:.0f} | {row['wrong']} of {row['asked']} | {pixels} |"
            )
    lines.append(END)
    path = ROOT / "docs" / "decoding.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Decoding\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    path.write_text(head + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
