"""What answering by expected overlap brings: stored raw predictions, several ways to answer.

    python benchmarks/studies/overlap_study.py RUN [RUN ...] [--data DIR] [--store runs/overlap]

Raw predictions of every split are made once and stored; nothing is trained. Compared are "score"
with suppression, today's voting, and expected overlap, whose expected IoU is calibrated on the
validation split. `--choose` prints the mean IoU of validation over the power of the probability
and the factor on the scale, from which the two constants of `answers/mixture.py` were taken.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from demr.annotations.windows import window_iou
from demr.answers.mixture import Moments, answer
from demr.answers.proposals import Proposals, Ranking, select
from demr.metrics import retrieval_metrics, spearman
from demr.runs.data import open_data
from demr.runs.folder import load_run
from demr.runs.predicting import predict_split

Floats = NDArray[np.float64]
FIELDS = ("window_norm", "foreground", "nu", "alpha", "beta")
POWERS, SPREADS = (1.0, 1.5, 2.0, 3.0), (0.3, 0.5, 0.8)


@dataclass(frozen=True)
class Stored:
    """Raw predictions of the present queries of a split, and their true windows in seconds."""

    proposals: list[Proposals]
    truths: list[Floats]

    @property
    def several(self) -> NDArray[np.bool_]:
        """Queries with more than one true window."""
        return np.array([len(truth) > 1 for truth in self.truths])


def main() -> None:
    """Predict what is not stored, then print a table a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, help="folder of the features, instead of the run's")
    parser.add_argument("--store", type=Path, default=Path("runs/overlap"))
    parser.add_argument("--choose", action="store_true")
    arguments = parser.parse_args()
    for run in arguments.runs:
        splits = stored_splits(run, arguments.data, arguments.store / run.resolve().name)
        if arguments.choose:
            choose(splits["val"])
        calibrate = fit_expected_iou(splits["val"])
        print(f"\n{run}\n{HEAD}")
        for name, split in splits.items():
            for label, windows, confidence in ways(split, calibrate):
                print(f"| {name} | {label} | {row(split, windows, confidence)} |", flush=True)


def stored_splits(run: Path, data_root: Path | None, store: Path) -> dict[str, Stored]:
    """Splits of a run, predicted where they are not stored yet."""
    config, pretrained = load_run(run)
    paths = {"val": config.data.val, **config.data.tests}
    if not all((store / f"{name}.npz").exists() for name in paths):
        settings = config.data
        if data_root is not None:
            settings = settings.model_copy(update={"root": data_root})
        data = open_data(settings)
        store.mkdir(parents=True, exist_ok=True)
        for name in paths:
            queries = data.val() if name == "val" else data.read(settings.tests[name])
            queries = [annotation for annotation in queries if annotation.windows_s]
            split = predict_split(pretrained, data, queries, device=torch.device("cpu"))
            write(store / f"{name}.npz", split.raw, [a.windows_s or () for a in queries])
    return {name: read(store / f"{name}.npz") for name in paths}


def write(path: Path, raw: Sequence[Any], truths: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Store plain arrays, the rows of all queries one under another."""
    every = [one.proposals for one in raw][: len(truths)]
    np.savez(
        path,
        n=[len(one) for one in every],
        duration_s=[one.duration_s for one in every],
        n_truths=[len(truth) for truth in truths],
        truth=np.concatenate([np.array(truth) for truth in truths]),
        **{name: np.concatenate([getattr(one, name) for one in every]) for name in FIELDS},
    )


def read(path: Path) -> Stored:
    """What :func:`write` stored."""
    with np.load(path) as file:
        ends = np.cumsum(file["n"])[:-1]
        columns = [np.split(file[name], ends) for name in FIELDS]
        truths = np.split(file["truth"], np.cumsum(file["n_truths"])[:-1])
        durations = file["duration_s"].tolist()
    proposals = [
        Proposals(window, p, nu, alpha, beta, np.arange(len(p)), p, duration_s)
        for window, p, nu, alpha, beta, duration_s in zip(*columns, durations, strict=True)
    ]
    return Stored(proposals, truths)


def ways(split: Stored, calibrate: Any) -> list[tuple[str, list[Floats], dict[str, Floats]]]:
    """Label, windows of every query and confidences of its first one, of each way to answer."""
    result = []
    rankings: tuple[Ranking, ...] = ("score", "voting")
    for ranking in rankings:
        chosen = [select(one, ranking=ranking) for one in split.proposals]
        confidence = {
            "p": np.array([one.foreground[0] for one in chosen]),
            "-EU": -np.array([one.epistemic[0].mean() for one in chosen]),
        }
        result.append((ranking, [one.window_s for one in chosen], confidence))
    found = answer(split.proposals)
    confidence = {"O": np.array([one.overlap[0] for one in found]), "expected": calibrate(found)}
    result.append(("expected overlap", [one.window_s for one in found], confidence))
    return result


HEAD = (
    "| split | answer | R1@0.5 | R1@0.7 | mIoU | mAP | mAP, several moments |"
    " Spearman(1 - IoU, 1 - confidence) | R1@0.5 gained without the least sure fifth | bias |\n"
    f"|{'---|' * 10}"
)


def row(split: Stored, windows: Sequence[Floats], confidence: dict[str, Floats]) -> str:
    """One line of the table."""
    # In the order given: average precision sorts by score.
    scored = [np.column_stack([w, -np.arange(len(w), dtype=float)]) for w in windows]
    metrics = retrieval_metrics(scored, split.truths)
    several = np.flatnonzero(split.several)
    some = [[of[i] for i in several] for of in (scored, split.truths)]
    of_several = retrieval_metrics(*some)["mAP"] if len(several) else np.nan
    iou = first_iou(windows, split.truths)
    cells = [f"{metrics[key]:.1f}" for key in ("R1@0.5", "R1@0.7", "mIoU", "mAP")]
    ordered = [f"{name} {spearman(1 - iou, -sure):.2f}" for name, sure in confidence.items()]
    gained = []
    for name, sure in confidence.items():
        kept = np.argsort(-sure, kind="stable")[: round(0.8 * len(sure))]
        gained.append(f"{name} {100 * ((iou[kept] >= 0.5).mean() - (iou >= 0.5).mean()):.1f}")
    expected = confidence.get("expected")
    bias = "" if expected is None else f"{expected.mean() - iou.mean():+.3f}"
    joined = [", ".join(ordered), ", ".join(gained)]
    return " | ".join([*cells, f"{of_several:.1f}", *joined, bias])


def first_iou(windows: Sequence[Floats], truths: Sequence[Floats]) -> Floats:
    """IoU of each query's first window with its best true one."""
    return np.array(
        [float(window_iou(w[:1], t).max()) for w, t in zip(windows, truths, strict=True)]
    )


def fit_expected_iou(split: Stored) -> Any:
    """Logistic regression of the IoU of first moments on three quantities of the mixture.

    Their overlap within their own mode; how many moments its clips say there are; and the share
    of the mass that it holds. By log-loss, whose labels may be fractions.
    """
    found = answer(split.proposals, top=1)
    iou = first_iou([one.window_s for one in found], split.truths)
    raw = covariates(found)
    mean, std = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-9)

    def design(x: Floats) -> Floats:
        return np.column_stack([np.ones(len(x)), (x - mean) / std])

    def loss(w: Floats) -> float:
        line = design(raw) @ w
        return float((np.logaddexp(0, line) - iou * line).mean() + 5e-4 * w[1:] @ w[1:])

    weights = minimize(loss, np.zeros(4)).x
    return lambda moments: expit(design(covariates(moments)) @ weights)


def covariates(found: Sequence[Moments]) -> Floats:
    """Of each query's first moment, ``(N, 3)``."""
    overlap, share, count = (
        np.array([getattr(one, name)[0] for one in found]) for name in ("overlap", "share", "count")
    )
    within = np.clip(overlap / np.maximum(share, 1e-9), 1e-3, 1 - 1e-3)
    held = logit(np.clip(share, 1e-3, 1 - 1e-3))
    return np.column_stack([logit(within), np.log(np.maximum(count, 1e-6)), held])


def choose(split: Stored) -> None:
    """Mean IoU of validation over both constants."""
    print("| power | scale | mIoU | R1@0.7 |\n|---|---|---|---|")
    for power in POWERS:
        for spread in SPREADS:
            found = answer(split.proposals, top=1, power=power, spread=spread)
            iou = first_iou([one.window_s for one in found], split.truths)
            share = (iou >= 0.7).mean()
            print(f"| {power:g} | {spread:g} | {100 * iou.mean():.2f} | {100 * share:.1f} |")


if __name__ == "__main__":
    main()
