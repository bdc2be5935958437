"""Five people against a data set: how far they disagree, and whether a model knows where.

    DEMR_DATA=... python benchmarks/studies/human_agreement.py --train data/human
    DEMR_DATA=... python benchmarks/studies/human_agreement.py --run data/human/run
    DEMR_DATA=... python benchmarks/studies/human_agreement.py

A thousand test queries of Charades-STA were annotated again by five people each (Otani et al. 2020,
Uncovering Hidden Challenges in Query-Based Video Moment Retrieval). The first command trains on
Charades-STA's training videos, none of which is among them, with the simulated timeline features of
`prepare_tracks.py`; the second measures a run that answered the thousand; the third the people
alone. Each writes benchmarks/results/human.json and docs/human_agreement.md.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from human_page import FIGURE, LEVELS, draw, page
from numpy.typing import NDArray
from prepare_tracks import Sources, prepare_timeline
from scipy import special
from study import CONFIGS, FIGURES, RESULTS, ROOT

from demr.annotations.annotations import Annotation, read_annotations, tidy_query
from demr.annotations.windows import iou
from demr.evaluation.predictions import PredictionRecord, read_predictions
from demr.metrics import consistency_bins, spearman
from demr.runs.config import load_stored_config

FloatArray = NDArray[np.float64]

STORED = RESULTS / "human.json"
PAGE = ROOT / "docs" / "human_agreement.md"
PEOPLE = 5
BOOTSTRAPS = 1000
VALIDATION = 12  # one training video in twelve
NOISE = 4.0
# Text layers, noise and refit of "+ ours" in track_grid.yaml, for a fifth of its schedule.
OVERRIDES = (
    "data.tests={human: human.jsonl}",
    "reconstruction.epochs=0",
    "retrieval.epochs=1",
    "model.text_layers=1",
    "retrieval.noise.video=0.02",
    "retrieval.refit_epochs=2",
    "retrieval.refit_share=0.1",
)


@dataclass(frozen=True, eq=False)
class Reannotated:
    """A query, and where people say that it happens.

    Attributes:
        annotation: With the data set's own window.
        percent: Windows of the five, in percent of the video, ``(5, 2)``.
    """

    annotation: Annotation
    percent: FloatArray

    @property
    def people(self) -> FloatArray:
        """Windows of the five, in seconds, ``(5, 2)``."""
        seconds: FloatArray = self.percent * self.annotation.duration_s / 100
        return seconds

    @property
    def original(self) -> FloatArray:
        """The data set's window, ``(2,)``."""
        return np.asarray((self.annotation.windows_s or ())[0])

    @property
    def disagreement_s(self) -> float:
        """Mean distance of a boundary between two people."""
        pairs = itertools.combinations(self.people, 2)
        return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))

    @property
    def dissimilarity(self) -> float:
        """1 - mean IoU of two people."""
        first, second = np.array(list(itertools.combinations(self.people, 2))).swapaxes(0, 1)
        return float(1 - iou(first, second).mean())


def main() -> None:
    """Train, measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="folder for the track and the run")
    parser.add_argument("--run", type=Path, help="run that answered the queries")
    arguments = parser.parse_args()
    run = arguments.run
    if arguments.train is not None:
        run = train(arguments.train)
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    queries = read_queries(data_folder())
    stored["people"] = people_figures(queries)
    if run is not None:
        found = model_figures(read_predictions(run / "predictions.jsonl"), queries)
        stored["model"] = {"made": how_it_was_made(run), **found}
    STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    if "model" in stored:
        draw(stored["model"], FIGURES / FIGURE)
    PAGE.write_text(page(stored), encoding="utf-8")


def data_folder() -> Path:
    """What DEMR_DATA names."""
    if "DEMR_DATA" not in os.environ:
        raise SystemExit("DEMR_DATA must name the folder of real data")
    return Path(os.environ["DEMR_DATA"]).resolve()


def read_queries(root: Path) -> list[Reannotated]:
    """The thousand queries; people's percentages are of the data set's duration."""
    people: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for part in sorted((root / "annotations" / "charades_sta_multi_annotator").glob("test_*.csv")):
        with part.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                key = row["video_id"].removesuffix(".mp4"), tidy_query(row["description"])
                people.setdefault(key, []).append((float(row["start"]), float(row["end"])))
    queries = []
    for annotation in read_annotations(root / "annotations" / "charades_sta" / "test.jsonl"):
        windows = people.get((annotation.vid, annotation.query))
        if windows is not None:
            queries.append(Reannotated(annotation, np.array(windows)))
    return queries


def train(folder: Path) -> Path:
    """Train on Charades-STA's training videos and answer the thousand; the run's folder."""
    sources = Sources(data_folder())
    track = folder / "track"
    if not track.exists():
        sta = sources.root / "annotations" / "charades_sta"
        every = read_annotations(sta / "train.jsonl.gz")
        human = [query.annotation for query in read_queries(sources.root)]
        splits = {
            "train": [a for a in every if not is_validation(a.vid)],
            "val": [a for a in every if is_validation(a.vid)],
            "human": human,
        }
        prepare_timeline(sources, track, NOISE, splits)
        (track / "glove.npz").symlink_to(sources.words)
    command = [sys.executable, "-m", "demr", "train", str(CONFIGS / "timeline_track.yaml")]
    for override in (f"data.root={track}", *OVERRIDES):
        command += ["--set", override]
    run = folder / "run"
    subprocess.run([*command, "--out", str(run)], check=True)  # noqa: S603 - our own command
    return run


def how_it_was_made(run: Path) -> dict[str, Any]:
    """The settings of a run that the page tells."""
    config = load_stored_config(run / "config.yaml")
    return {
        "reconstruction epochs": config.reconstruction.epochs,
        "retrieval epochs": config.retrieval.epochs,
        "refit epochs": config.retrieval.refit_epochs,
        "ranking": config.calibration.ranking,
    }


def is_validation(vid: str) -> bool:
    """Whether a training video is kept for validation."""
    return int(hashlib.sha256(vid.encode()).hexdigest(), 16) % VALIDATION == 0


def scores(overlap: FloatArray) -> dict[str, float]:
    """Recall and mean IoU, in percent."""
    recall = {f"R1@{t}": float(100 * (overlap >= t).mean()) for t in (0.5, 0.7)}
    return recall | {"mIoU": float(100 * overlap.mean())}


def people_figures(queries: Sequence[Reannotated]) -> dict[str, Any]:
    """People against the data set and against each other."""
    people = np.stack([query.people for query in queries])
    original = np.stack([query.original for query in queries])[:, None]
    pairs = list(itertools.combinations(range(PEOPLE), 2))
    first, second = (people[:, list(side)] for side in zip(*pairs, strict=True))
    # In whole percents: an IoU of exactly 0.5 is common, and in seconds rounding loses many.
    percent = np.stack([query.percent for query in queries])
    between = iou(percent[:, :, None], percent[:, None])
    of_pairs = np.column_stack([between[:, a, b] for a, b in pairs])
    between[:, range(PEOPLE), range(PEOPLE)] = 0
    to_original = iou(people, original)
    any_other = np.maximum(between.max(axis=2), to_original)

    def medians(a: FloatArray, b: FloatArray) -> dict[str, float]:
        start, end = np.median(np.abs(a - b).reshape(-1, 2), axis=0).tolist()
        return {"start s": start, "end s": end}

    return {
        "queries": len(queries),
        "videos": len({query.annotation.vid for query in queries}),
        "one person": {
            "the data set": scores(to_original) | medians(people, original),
            "another person": scores(of_pairs) | medians(first, second),
            "another person, in seconds": scores(iou(first, second)),
            "any of the other five": scores(any_other),
        },
        "the data set": {"any of the five": scores(to_original.max(axis=1))},
    }


def model_figures(
    records: Sequence[PredictionRecord], queries: Sequence[Reannotated]
) -> dict[str, Any]:
    """A model against the data set and the people, and what its uncertainty knows of them.

    Args:
        records: Predictions with deviations, Student-t's and intervals; those of other queries are
            ignored.
        queries: Every one must be answered.

    Raises:
        SystemExit: If a query is not answered.
    """
    answered = {(r.vid, tidy_query(r.query or "")): r for r in records}
    keys = [(query.annotation.vid, query.annotation.query) for query in queries]
    if missing := [key for key in keys if key not in answered]:
        raise SystemExit(f"{len(missing)} queries are not answered, such as {missing[0]}")
    found = [answered[key] for key in keys]
    window = np.stack([record.windows[0, :2] for record in found])
    people = np.stack([query.people for query in queries])
    original = np.stack([query.original for query in queries])
    to_people, to_original = iou(window[:, None], people), iou(window, original)
    any_six = np.maximum(to_people.max(axis=1), to_original)
    vids = [vid for vid, _ in keys]
    return {
        "against": {
            "the data set": scores(to_original),
            "one person": scores(to_people),
            "the median of the five": scores(iou(window, np.median(people, axis=1))),
            "any of the six": scores(any_six),
        },
        "ranking": ranking(found, queries, vids),
        "coverage": coverage(found, queries, vids),
        "bins": bins(found, queries),
    }


def deviations(records: Sequence[PredictionRecord]) -> dict[str, FloatArray]:
    """Measures of uncertainty of the first windows, means of start and end, in seconds."""
    aleatoric, epistemic, scale = (
        np.stack([getattr(record, name)[0] for record in records])
        for name in ("aleatoric", "epistemic", "scale")
    )
    window = np.stack([record.windows[0, :2] for record in records])
    return {
        "AU": aleatoric.mean(axis=1),
        "EU": epistemic.mean(axis=1),
        "AU + EU": np.sqrt((aleatoric**2 + epistemic**2).mean(axis=1)),
        "scale": scale.mean(axis=1),
        "length of the answer": window[:, 1] - window[:, 0],
    }


def ranking(
    records: Sequence[PredictionRecord], queries: Sequence[Reannotated], vids: Sequence[str]
) -> dict[str, Any]:
    """Rank correlation of disagreement with each measure, with intervals over videos."""
    apart = {
        "seconds": np.array([query.disagreement_s for query in queries]),
        "1 - IoU": np.array([query.dissimilarity for query in queries]),
    }
    measures = deviations(records)
    length = measures["length of the answer"]
    draws = video_draws(vids)
    table: dict[str, Any] = {}
    for measure, values in measures.items():
        table[measure] = {
            name: interval(lambda rows, a=a, v=values: spearman(a[rows], v[rows]), draws)
            for name, a in apart.items()
        }
        if values is not length:
            table[measure]["seconds, length held"] = interval(
                lambda rows, v=values: partial_spearman(
                    apart["seconds"][rows], v[rows], length[rows]
                ),
                draws,
            )
    return table


def partial_spearman(a: FloatArray, b: FloatArray, held: FloatArray) -> float:
    """Rank correlation of two things where a third is held, by the usual formula."""
    ab, ac, bc = spearman(a, b), spearman(a, held), spearman(b, held)
    return float((ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2)))


def coverage(
    records: Sequence[PredictionRecord], queries: Sequence[Reannotated], vids: Sequence[str]
) -> dict[str, Any]:
    """Share of boundaries inside intervals: of the data set, of people, of all five at once."""
    window = np.stack([record.windows[0, :2] for record in records])
    scale, alpha = (
        np.stack([getattr(record, name)[0] for record in records]) for name in ("scale", "alpha")
    )
    bounds: dict[str, tuple[FloatArray, FloatArray]] = {}
    for level in LEVELS:
        half = scale * special.stdtrit(2 * alpha, 0.5 + level / 2)
        bounds[f"Student-t {level:g}"] = (window - half, window + half)
    fitted = calibrated(records)
    bounds["calibrated 0.9"] = (fitted[..., 0], fitted[..., 1])
    people = np.stack([query.people for query in queries])
    original = np.stack([query.original for query in queries])
    draws = video_draws(vids)
    result: dict[str, Any] = {}
    for name, (low, high) in bounds.items():
        known = ~np.isnan(low).any(axis=1)
        inside = (low[:, None] <= people) & (people <= high[:, None])
        of_original = (low <= original) & (original <= high)
        shares = {
            "data set": of_original.mean(axis=1),
            "people": inside.mean(axis=(1, 2)),
            "all five": inside.all(axis=1).mean(axis=1),
        }
        result[name] = {
            "queries": int(known.sum()),
            "width s": float((high - low)[known].mean()),
        } | {
            who: interval(
                lambda rows, s=share, k=known: float(s[rows][k[rows]].mean()),
                draws,
            )
            for who, share in shares.items()
        }
    return result


def calibrated(records: Sequence[PredictionRecord]) -> FloatArray:
    """Intervals of first windows, ``(N, 2, 2)``; NaN where the model cannot judge a query."""
    none = np.full((2, 2), np.nan)
    return np.stack([none if r.intervals is None else r.intervals[0] for r in records])


def bins(
    records: Sequence[PredictionRecord], queries: Sequence[Reannotated]
) -> dict[str, list[float]]:
    """Disagreement in ten bins of equal mass by AU, with its standard error."""
    apart = np.array([query.disagreement_s for query in queries])
    measure = deviations(records)["AU"]
    mean_measure, mean, count = consistency_bins(apart, measure)
    _, square, _ = consistency_bins(apart**2, measure)
    error = np.sqrt(np.maximum(square - mean**2, 0) / count)
    columns = {"AU s": mean_measure, "disagreement s": mean, "standard error s": error}
    return {name: values.tolist() for name, values in columns.items()}


def video_draws(vids: Sequence[str]) -> list[NDArray[np.int64]]:
    """Rows of queries, all once and then of videos drawn again with replacement."""
    _, index = np.unique(vids, return_inverse=True)
    of_video = [np.flatnonzero(index == number) for number in range(index.max() + 1)]
    generator = np.random.default_rng(0)
    draws = [np.arange(len(vids))]
    for _ in range(BOOTSTRAPS):
        drawn = generator.integers(0, len(of_video), len(of_video))
        draws.append(np.concatenate([of_video[number] for number in drawn]))
    return draws


def interval(statistic: Any, draws: Sequence[NDArray[np.int64]]) -> list[float]:
    """The statistic, and the ends of its 95 % interval over the draws."""
    value, *resampled = (statistic(rows) for rows in draws)
    return [float(value), *np.quantile(resampled, (0.025, 0.975)).tolist()]


if __name__ == "__main__":
    main()
