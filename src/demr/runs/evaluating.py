"""Measure a run on its splits."""

from collections.abc import Mapping
from pathlib import Path

from demr.annotations.annotations import Annotation
from demr.answers.answering import apply_calibration, load_calibration
from demr.evaluation.measure import error_bins, is_scored, measure, prediction_lines
from demr.machine.files import atomic_path, write_json
from demr.report.figures import error_figure
from demr.runs.data import RunData, open_data
from demr.runs.folder import load_run
from demr.runs.predicting import run_model


def evaluate_run(
    run: Path, data: RunData | None = None, splits: Mapping[str, list[Annotation]] | None = None
) -> dict[str, dict[str, float]]:
    """Measure a run on its validation and test splits.

    Writes ``metrics.json``, ``predictions.jsonl`` (of all splits, in order), ``error_bins.json``
    and ``uncertainty.png``, its figure.

    Returns:
        Split -> metric -> value; where there are splits called iid and ood, also their ``gap``.
    """
    config, pretrained = load_run(run)
    data = open_data(config.data) if data is None else data
    if splits is None:
        splits = {"val": data.val()}
        splits |= {name: data.read(path) for name, path in config.data.tests.items()}
    calibration = load_calibration(run / "calibration.json")
    level = config.calibration.interval_level
    metrics: dict[str, dict[str, float]] = {}
    bins: dict[str, dict[str, list[float]]] = {}
    lines: list[str] = []
    for name, annotations in splits.items():
        raw = run_model(pretrained.model, data.dataset(annotations), max_clips=pretrained.max_clips)
        # Vague queries have no single moment; what a model makes of them is shown, not scored.
        scored = [(r, a) for r, a in zip(raw, annotations, strict=True) if is_scored(a)]
        predictions = apply_calibration([r for r, _ in scored], calibration)
        queries = [a for _, a in scored]
        metrics[name] = measure(predictions, queries, calibration, level=level)
        bins[name] = error_bins(predictions, queries)
        lines += prediction_lines(predictions, queries, calibration, level)
    if {"iid", "ood"} <= metrics.keys():
        metrics["gap"] = {
            key: metrics["iid"][key] - metrics["ood"][key]
            for key in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")
        }
    write_json(run / "error_bins.json", bins)
    error_figure({name: [part] for name, part in bins.items()}, run / "uncertainty.png")
    write_json(run / "metrics.json", metrics)
    with atomic_path(run / "predictions.jsonl") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return metrics
