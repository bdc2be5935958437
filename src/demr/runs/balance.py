"""Modality balance: how the uncertainty answers to noise on the video and on the text."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from demr.answers.calibration import Calibration
from demr.answers.fitting import load_calibration
from demr.answers.inference import predict_dataset
from demr.answers.predictions import rank_all
from demr.batches.dataset import MomentDataset
from demr.batches.noise import FeatureDeviation, FeatureNoise
from demr.batches.stretches import MAX_CLIPS
from demr.errors import InputError
from demr.machine.devices import resolve_device
from demr.machine.files import write_json
from demr.network.model import DemrModel
from demr.report.figures import noise_figure
from demr.runs.data import open_data
from demr.runs.folder import load_run

LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Mean standardised log uncertainty at every noise level, 0 first.

    Attributes:
        epistemic: Of EU.
        predictive: Of AU + EU.
    """

    epistemic: tuple[float, ...]
    predictive: tuple[float, ...]


def noise_curves(
    model: DemrModel,
    dataset: MomentDataset,
    calibration: Calibration,
    deviation: FeatureDeviation,
    *,
    seed: int = 0,
    max_clips: int = MAX_CLIPS,
    device: torch.device | None = None,
) -> dict[str, Curve]:
    """Disturb one modality at a time and watch the top moment's uncertainty.

    Log uncertainties are standardised by mean and deviation over the undisturbed queries, so
    models of different scale compare.

    Args:
        model: In evaluation mode.
        dataset: Queries to disturb.
        calibration: Gives the ranking.
        deviation: Of the raw features over the training data.
        seed: Of the noise.
        max_clips: Clips to read at once.
        device: Where to run.

    Returns:
        ``video`` and ``text``.
    """
    measure = partial(
        _log_uncertainty, model, calibration=calibration, max_clips=max_clips, device=device
    )
    clean = measure(dataset)
    mean, spread = clean.mean(axis=1), clean.std(axis=1) + 1e-9
    curves = {}
    for name in ("video", "text"):
        points = []
        for level in LEVELS:
            noise = FeatureNoise(
                deviation.video if name == "video" else None,
                deviation.text if name == "text" else None,
                level,
                seed,
            )
            values = clean if level == 0 else measure(noise.apply(dataset))
            points.append((values.mean(axis=1) - mean) / spread)
        epistemic, predictive = np.array(points).T.tolist()
        curves[name] = Curve(tuple(epistemic), tuple(predictive))
    return curves


def _log_uncertainty(
    model: DemrModel,
    dataset: MomentDataset,
    calibration: Calibration,
    max_clips: int,
    device: torch.device | None,
) -> FloatArray:
    raw = predict_dataset(model, dataset, max_clips=max_clips, device=device)
    predictions = rank_all(raw, calibration, top=1)
    epistemic = np.array([p.moments.epistemic[0].mean() for p in predictions])
    aleatoric = np.array([p.moments.aleatoric[0].mean() for p in predictions])
    values: FloatArray = np.log(np.maximum(np.stack([epistemic, epistemic + aleatoric]), 1e-12))
    return values


def dvar(video: tuple[float, ...], text: tuple[float, ...]) -> float:
    """Difference of the variances over noise levels (the undisturbed one left out).

    A small value counts only where both curves rise: a flat uncertainty is balanced and
    worthless. See :func:`rises`.
    """
    return float(abs(np.var(video[1:]) - np.var(text[1:])))


def rises(curve: tuple[float, ...]) -> bool:
    """Whether the uncertainty grows with every level of noise."""
    return all(later > earlier for earlier, later in pairwise(curve))


def measure_balance(run: Path, split: str, limit: int, device: str = "auto") -> dict[str, object]:
    """Noise curves and dVar of a run on one of its splits.

    Raises:
        InputError: If the run has no such split, or the split too few queries to average.
    """
    config, pretrained = load_run(run)
    data = open_data(config.data)
    paths = config.data.tests
    if split not in ("val", *paths):
        raise InputError(
            f"--split {split}",
            expected=f"one of {', '.join(('val', *paths))}",
            got=split,
            remedy="name a split of the run's config",
        )
    shown, val = data.train_and_val()
    train = data.dataset(shown)
    queries = val if split == "val" else data.read(paths[split])
    annotations = [a for a in queries if a.windows_s and a.kind == "present"]
    if limit < 0 or limit == 1 or len(annotations) < 2:
        raise InputError(
            f"--split {split} --limit {limit}",
            expected="at least 2 queries whose moment is in the video, or 0 for all of them",
            got=f"{len(annotations)} in the split",
            remedy="name a larger split or limit",
        )
    if limit:
        chosen = np.linspace(0, len(annotations) - 1, min(limit, len(annotations))).astype(int)
        annotations = [annotations[i] for i in chosen]
    curves = noise_curves(
        pretrained.model,
        data.dataset(annotations),
        load_calibration(run / "calibration.json"),
        FeatureDeviation.of(train, data.pack),
        seed=config.seed,
        max_clips=pretrained.max_clips,
        device=resolve_device(device),
    )
    video, text = curves["video"], curves["text"]
    return {
        "split": split,
        "queries": len(annotations),
        "levels": list(LEVELS),
        "EU": {
            "video": list(video.epistemic),
            "text": list(text.epistemic),
            "dVar": dvar(video.epistemic, text.epistemic),
            "both rise": rises(video.epistemic) and rises(text.epistemic),
        },
        "AU+EU": {
            "video": list(video.predictive),
            "text": list(text.predictive),
            "dVar": dvar(video.predictive, text.predictive),
            "both rise": rises(video.predictive) and rises(text.predictive),
        },
    }


def balance_run(run: Path, split: str, limit: int, device: str = "auto") -> str:
    """Measure, write ``balance.json`` and its figure ``balance.png``, and word the result."""
    result = measure_balance(run, split, limit, device)
    write_json(run / "balance.json", result)
    noise_figure({"": [result]}, run / "balance.png")
    lines = [f"noise level      {'  '.join(f'{level:>6g}' for level in LEVELS)}"]
    for measure in ("EU", "AU+EU"):
        part = result[measure]
        if not isinstance(part, dict):
            continue
        for name in ("video", "text"):
            values = "  ".join(f"{value:+6.2f}" for value in part[name])
            lines.append(f"{measure:>5} {name:<9}  {values}")
        rising = "both curves rise" if part["both rise"] else "not both curves rise"
        lines.append(f"{measure:>5} dVar {part['dVar']:.3f} ({rising})")
    return "\n".join(lines)
