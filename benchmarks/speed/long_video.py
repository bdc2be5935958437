"""Search in videos of ten minutes to twelve hours: time, memory, seams, false alarms.

    python benchmarks/speed/long_video.py [--world runs/long_video_world] [--hours 0.1667 1 4 12]

Renders scenes of the embedded world (IID split, their own seed) and encodes them once. A long video
is features: half of the scenes in random order, again and again, and over them, each once, scenes
of the other half, placed so that the middle of a moment lies where one stretch takes over from the
one before ("seam"), or right between two such places ("elsewhere"). Every second video exchanges
the two, so the same moments are compared. Asked are sentences that one event of all scenes meets,
and, as absent ones, sentences that no event meets or nearly meets. Every length runs in a process
of its own, for its peak memory. Rewrites the section on long video in docs/scale.md.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demr import MomentRetriever
from demr.annotations.annotations import Annotation, read_annotations
from demr.annotations.windows import iou
from demr.answers.inference import predict
from demr.answers.judging import presence_probability
from demr.answers.predictions import rank_all
from demr.batches.batch import Item
from demr.batches.stretches import plan_stretches
from demr.encoders import VideoFeatures
from demr.features.pack import FeaturePack
from demr.features.prepare import prepare_query
from demr.search.retriever import EncodedVideo
from demr.shapes.dataset import build_dataset
from demr.shapes.language import Semantics, sentence
from demr.shapes.script import ACTIONS, COLORS, SHAPES, Event
from demr.shapes.world import make_scene

ROOT = Path(__file__).resolve().parents[2]
SCENES, SEED = 48, 7
# Videos of each length in clips: enough moments to compare, within minutes.
VIDEOS = {600: 8, 3600: 4, 14400: 2}
BEGIN, END = "<!-- long video -->", "<!-- end of long video -->"


def main() -> None:
    """Measure every length in a process of its own and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=Path, default=Path("runs/long_video_world"))
    parser.add_argument("--hours", type=float, nargs="+", default=[1 / 6, 1, 4, 12])
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(arguments.world, arguments.child)))
        return
    build_dataset(arguments.world, {"iid": SCENES}, seed=SEED)
    rows = []
    for hours in arguments.hours:
        command = [sys.executable, __file__, "--world", str(arguments.world)]
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, "--child", str(hours)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    write_section(rows)


def measure(world: Path, hours: float) -> dict[str, Any]:
    """All numbers of one length."""
    retriever = MomentRetriever.from_pretrained(device="cpu")
    pack = FeaturePack(world / "features")
    first = SEED * 1_000_000
    events = [make_scene("iid", first + index).events for index in range(SCENES)]
    vids = [make_scene("iid", first + index).vid for index in range(SCENES)]
    unique = unique_queries(read_annotations(world / "iid.jsonl"), vids, events)
    clips = round(hours * 3600)
    videos = VIDEOS.get(clips, 1)
    hits: dict[str, list[bool]] = {"seam": [], "elsewhere": [], "alone": []}
    presence: dict[str, list[list[float]]] = {"present": [], "absent": [], "alone": []}
    row: dict[str, Any] = {"hours": hours}
    for number in range(videos):
        rng = np.random.default_rng((SEED, clips, number // 2))
        features, planted = plant(pack, vids, unique, clips, rng, number % 2)
        video = retriever.prepare(VideoFeatures("long", float(clips), 1.0, features), "long")
        if number == 0:
            row["base_mb"] = peak_mb()
            start = time.perf_counter()
            retriever.search(video, planted[0][0])
            row["one_s"] = time.perf_counter() - start
            row["one_mb"] = peak_mb()
            eight = [query for query, _, _ in planted][:4] * 2
            start = time.perf_counter()
            retriever.search(video, eight)
            row["eight_s"] = (time.perf_counter() - start) / len(eight)
            row["eight_mb"] = peak_mb()
        for query, window, kind in planted:
            top, present = ask(retriever, video, query)
            hits[kind].append(iou(np.array(top), np.array(window)) >= 0.5)
            presence["present"].append(present)
        for query in absent_queries(events, len(planted), rng):
            presence["absent"].append(ask(retriever, video, query)[1])
    for annotation in unique.values():
        alone = retriever.prepare(pack[annotation.vid], annotation.vid)
        top, present = ask(retriever, alone, annotation.query)
        presence["alone"].append(present)
        hits["alone"].append(iou(np.array(top), np.array((annotation.windows_s or ())[0])) >= 0.5)
    row |= {f"{kind}": [sum(values), len(values)] for kind, values in hits.items()}
    limits = retriever.calibration.thresholds
    for kind, values in presence.items():
        table = np.array(values)
        row[f"{kind} queries_found"] = (table >= limits["found"]).mean(axis=0).round(3).tolist()
        row[f"{kind} queries_not"] = (table <= limits["absent"]).mean(axis=0).round(3).tolist()
        row[f"{kind} queries"] = len(table)
    return row


def ask(
    retriever: MomentRetriever, video: EncodedVideo, query: str
) -> tuple[tuple[float, float], list[float]]:
    """The best moment, and what three ways of combining the stretches make of presence.

    Returns:
        Start and end; probabilities by the surest stretch, lowered for the number of chances
        (which a search gives), by the surest as it is, and by the mean of all odds.
    """
    encoded = retriever.encoder.encode_queries([query])[0]
    text = prepare_query(encoded, retriever.pretrained.identity)
    item = Item(video.inputs, text, video.span_norm, video.duration_s)
    model = retriever.pretrained.model
    raw = predict(model, [item], video.clip_s, max_clips=retriever.max_clips)
    (found,) = rank_all(raw, retriever.calibration, 1)
    calibrator = retriever.calibration.presence
    given = presence_probability(retriever.calibration, [found])
    if calibrator is None or given is None:
        raise SystemExit("the bundled model has no calibration of presence")
    rows = found.presence[None] if found.stretches is None else found.stretches
    each = calibrator.probability(rows)
    start, end = found.moments.window_s[0].tolist()
    odds = (each / (1 - each)).mean()
    return (start, end), [float(given[0]), float(each.max()), float(odds / (1 + odds))]


def meaning(name: str) -> Semantics:
    """Read the canonical text of an event."""
    words = name.split()
    color = next((word for word in words if word in COLORS), None)
    shape = next((word for word in words if word in SHAPES), None)
    return Semantics(color, shape, words[-1])


def unique_queries(
    annotations: list[Annotation], vids: list[str], events: list[tuple[Event, ...]]
) -> dict[str, Annotation]:
    """Of every second scene a query that one event of all scenes meets."""
    every = [event for of_scene in events for event in of_scene]
    chosen: dict[str, Annotation] = {}
    for annotation in annotations:
        if annotation.kind != "present" or annotation.vid not in vids[::2]:
            continue
        asked = meaning(str(annotation.event))
        if sum(asked.nearly_matches(event) for event in every) == 1:
            chosen.setdefault(annotation.vid, annotation)
    return chosen


def absent_queries(
    events: list[tuple[Event, ...]], count: int, rng: np.random.Generator
) -> list[str]:
    """Sentences about coloured shapes that no event of any scene comes near."""
    every = [event for of_scene in events for event in of_scene]
    found: list[str] = []
    while len(found) < count:
        asked = Semantics(*(str(rng.choice(list(part))) for part in (COLORS, SHAPES, ACTIONS)))
        if not any(asked.nearly_matches(event) for event in every):
            found.append(sentence(asked, rng))
    return found


def plant(
    pack: FeaturePack,
    vids: list[str],
    unique: dict[str, Annotation],
    clips: int,
    rng: np.random.Generator,
    turn: int,
) -> tuple[np.ndarray, list[tuple[str, tuple[float, float], str]]]:
    """Features of a long video, and what to ask: query, window in seconds, kind of place."""
    fillers = [pack[vid].features[: int(pack[vid].duration_s)] for vid in vids[1::2]]
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < clips:
        parts += [fillers[index] for index in rng.permutation(len(fillers))]
    video = np.concatenate(parts)[:clips].copy()
    plan = plan_stretches(clips, MomentRetriever.from_pretrained(device="cpu").max_clips)
    taken = np.zeros(clips, bool)
    planted: list[tuple[str, tuple[float, float], str]] = []
    seams = [float(stretch.core_stop) for stretch in plan[:-1]]
    middles = [(a + b) / 2 for a, b in pairwise(seams)]
    order = [str(vid) for vid in rng.permutation(sorted(unique))]
    places = rng.permutation(len(middles))
    for vid in order:
        annotation = unique[vid]
        scene = pack[vid].features[: int(pack[vid].duration_s)]
        start, end = (annotation.windows_s or ())[0]
        for place in places:
            kind = ("seam", "elsewhere")[(len(planted) + turn) % 2]
            target = (seams if kind == "seam" else middles)[place]
            first = round(target - (start + end) / 2)
            whole = slice(first, first + len(scene))
            # The neighbouring place must be free, too: the other turn is to fit as well.
            around = slice(max(first - 60, 0), first + len(scene) + 60)
            if first < 60 or whole.stop + 60 > clips or taken[around].any():
                continue
            video[whole], taken[whole] = scene, True
            planted.append((annotation.query, (first + start, first + end), kind))
            break
    return video, planted


def peak_mb() -> float:
    """Most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_section(rows: list[dict[str, Any]]) -> None:
    """Put the tables into docs/scale.md, and leave the rest of it as it is."""
    lines = [
        BEGIN,
        "## Long video",
        "",
        f"Made by `python benchmarks/speed/long_video.py` (seed {SEED}, {SCENES} scenes",
        f"of 30 to 120 s) with the bundled model, {platform.machine()},",
        f"{torch.get_num_threads()} thread(s) of cores shared with other work. Time is",
        "after encoding. The model reads 120 clips of 1 s at",
        "once; a query alone pays for the projection of the video, eight at once share it.",
        "",
        "| hours | s a query | of 8 at once | s a query and hour | peak MB before | one | 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['hours']:.3g} | {row['one_s']:.2f} | {row['eight_s']:.2f} |"
        f" {row['one_s'] / row['hours']:.2f} | {row['base_mb']:.0f} | {row['one_mb']:.0f} |"
        f" {row['eight_mb']:.0f} |"
        for row in rows
    ]
    lines += [
        "",
        "R1@0.5 of moments that occur once, at seams, elsewhere, and in their own short video:",
        "",
        "| hours | at seams | elsewhere | own video |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (f"{100 * row[k][0] / max(row[k][1], 1):.0f} % of {row[k][1]}" for k in KINDS)
        lines.append(f"| {row['hours']:.3g} | {' | '.join(cells)} |")
    lines += [
        "",
        "Verdicts, by three ways of making one `present` from those of all stretches. A search",
        "takes the first (`demr.answers.presence.somewhere`); its 0.3 was fitted with the roles",
        "of the scenes exchanged (75 present and 75 absent queries); that the surest stretch is",
        "the better start was seen on the queries below. Alone queries are the present ones in",
        "their short video.",
        "",
        "| hours | queries | verdict | surest, less chance | surest | mean odds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for kind in ("present queries", "absent queries", "alone queries"):
            for key, name in (("found", "found"), ("not", "not in this video")):
                cells = (f"{100 * share:.0f} %" for share in row[f"{kind}_{key}"])
                lines.append(
                    f"| {row['hours']:.3g} | {row[kind]} {kind} | {name} | {' | '.join(cells)} |"
                )
    lines.append(END)
    path = ROOT / "docs" / "scale.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Scale\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    path.write_text(head + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")


KINDS = ("seam", "elsewhere", "alone")

if __name__ == "__main__":
    main()
