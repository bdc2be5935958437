"""What the numbers of queries of a track support: bootstrap over videos, and blind baselines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import Part

from demr.annotations.annotations import Annotation, read_annotations
from demr.annotations.windows import window_iou

BOOTSTRAPS = 2000


def resample(part: Part) -> dict[str, Any] | None:
    """Bootstrap over videos, and baselines that never see a video.

    Predictions of a run lie in its folder, which is not kept: so this is done when all runs have
    ended, and there is nothing to tell where one of them is gone.
    """
    (variants,) = part.ablation().trials.values()
    config = next(iter(next(iter(variants.values())).values())).config
    splits = {
        split: read_annotations(config.data.root / path)
        for split, path in {"train": config.data.train, **config.data.tests}.items()
    }
    # Queries without a known window are answered, and not scored.
    splits = {split: [a for a in every if a.windows_s] for split, every in splits.items()}
    overlap: dict[str, dict[str, np.ndarray]] = {"iid": {}, "ood": {}}
    for variant, of_seed in variants.items():
        tops: list[dict[Any, Any]] = []
        for trial in of_seed.values():
            path = part.folder / "runs" / trial.name / "predictions.jsonl"
            if not path.exists():
                return None
            tops.append(top_windows(path))
        for split, found in overlap.items():
            found[variant] = np.mean([overlaps(top, splits[split]) for top in tops], axis=0)
    blind = {"the whole video": (0.0, 1.0), "training prior": training_prior(splits["train"])}
    return {
        "intervals": {
            split: bootstrap(found, [a.vid for a in splits[split]])
            for split, found in overlap.items()
        },
        "blind": {
            label: {"window": window}
            | {split: blind_scores(window, splits[split]) for split in overlap}
            for label, window in blind.items()
        },
        "queries": {split: len(splits[split]) for split in overlap},
        "videos": {split: len({a.vid for a in splits[split]}) for split in overlap},
    }


def top_windows(path: Path) -> dict[Any, list[float]]:
    """First window of every query of a run, by qid."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {line["qid"]: line["pred_relevant_windows"][0][:2] for line in lines}


def overlaps(top: Mapping[Any, list[float]], annotations: Sequence[Annotation]) -> np.ndarray:
    """Hit at 0.5 and IoU of every query, ``(N, 2)``."""
    iou = np.array(
        [window_iou(np.array([top[a.qid]]), np.asarray(a.windows_s)).max() for a in annotations]
    )
    return np.column_stack([iou >= 0.5, iou]) * 100.0


def bootstrap(found: Mapping[str, np.ndarray], vids: Sequence[str]) -> dict[str, Any]:
    """95 % intervals of R1@0.5 and mIoU, and of what each variant adds to the first.

    Videos are drawn, not queries: those of one video fail together. Seeds are averaged first, so
    the intervals are about the queries.
    """
    names, index = np.unique(vids, return_inverse=True)
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), BOOTSTRAPS)
    weight = drawn[:, index].astype(float)
    weight /= weight.sum(axis=1, keepdims=True)
    first = next(iter(found.values()))
    return {
        variant: {
            key: [float(np.mean(values)), *np.quantile(weight @ values, (0.025, 0.975)).tolist()]
            for key, values in (
                ("R1@0.5", table[:, 0]),
                ("mIoU", table[:, 1]),
                ("R1@0.5 more", (table - first)[:, 0]),
                ("mIoU more", (table - first)[:, 1]),
            )
        }
        for variant, table in found.items()
    }


def training_prior(train: Sequence[Annotation]) -> tuple[float, float]:
    """The window, in fractions of a video, with the best mean IoU over the training queries."""
    true = np.array([np.divide((a.windows_s or ())[0], a.duration_s) for a in train])
    edges = np.linspace(0, 1, 41)
    candidates = np.array([(low, high) for low in edges for high in edges if low < high])
    best = window_iou(candidates, true).mean(axis=1).argmax()
    return tuple(candidates[best].tolist())  # type: ignore[return-value]


def blind_scores(
    window: tuple[float, float], annotations: Sequence[Annotation]
) -> dict[str, float]:
    """Recall and mIoU of one answer to every query."""
    iou = np.array(
        [
            window_iou(np.array([window]) * a.duration_s, np.asarray(a.windows_s)).max()
            for a in annotations
        ]
    )
    recall = {f"R1@{t}": float((iou >= t).mean() * 100) for t in (0.3, 0.5, 0.7)}
    return recall | {"mIoU": float(iou.mean() * 100)}


def queries_section(name: str, stored: Mapping[str, Any], first: str) -> list[str]:
    """Bootstrap intervals and blind baselines as Markdown; ``first`` is what differences are to."""
    lines = [
        f"### {name}: what the queries support",
        "",
        f"95 % intervals from {BOOTSTRAPS} draws of the videos, seeds averaged; differences are to",
        f"{first}, query by query. A blind answer is the same for every query: the whole video, or",
        "the window with the best mean IoU over the training queries.",
        "",
    ]
    for split, intervals in stored["intervals"].items():
        queries, videos = stored["queries"][split], stored["videos"][split]
        heads = ["R1@0.5", "mIoU", "R1@0.5 more", "mIoU more"]
        lines += [
            f"| {split}: {queries} queries, {videos} videos | {' | '.join(heads)} |",
            "|---|---|---|---|---|",
        ]
        for label, values in stored["blind"].items():
            low, high = values["window"]
            lines.append(
                f"| {label} ({low:.0%} to {high:.0%}) | {values[split]['R1@0.5']:.1f} | "
                f"{values[split]['mIoU']:.1f} | | |"
            )
        for variant, values in intervals.items():
            cells = [
                f"{mean:{'+' if 'more' in key else ''}.1f} ({low:.1f} to {high:.1f})"
                for key, (mean, low, high) in values.items()
            ]
            if variant == first:
                cells[2:] = ["", ""]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
        lines.append("")
    return lines
