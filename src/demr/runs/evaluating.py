"""Measure a run on its splits."""

from collections.abc import Mapping
from pathlib import Path

from demr.annotations.annotations import Annotation, write_annotations
from demr.answers.answering import Prediction, apply_calibration, load_calibration
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
    and ``uncertainty.png``, its figure. Absent queries that were made for a split
    (:meth:`~demr.runs.data.RunData.absent_queries`) and their predictions have files of their own,
    ``absent_queries.jsonl`` and ``absent_predictions.jsonl``: evaluators of the field refuse
    predictions for queries that the annotations do not have.

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
    absent_lines: list[str] = []
    absent: dict[str, Annotation] = {}

    def predict(annotations: list[Annotation]) -> list[Prediction]:
        dataset = data.dataset(annotations)
        raw = run_model(pretrained.model, dataset, max_clips=pretrained.max_clips)
        return apply_calibration(raw, calibration)

    for name, annotations in splits.items():
        # Vague queries have no single moment; what a model makes of them is shown, not scored.
        queries = [annotation for annotation in annotations if is_scored(annotation)]
        predictions = predict(queries)
        made = data.absent_queries(annotations)
        # By themselves, so that nothing else changes for them.
        answered = predict(made) if made else []
        metrics[name] = measure(
            [*predictions, *answered], [*queries, *made], calibration, level=level
        )
        bins[name] = error_bins(predictions, queries)
        lines += prediction_lines(predictions, queries, calibration, level)
        absent_lines += prediction_lines(answered, made, calibration, level)
        absent |= {annotation.qid: annotation for annotation in made}
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
    if absent:
        write_annotations(run / "absent_queries.jsonl", absent.values())
        with atomic_path(run / "absent_predictions.jsonl") as path:
            path.write_text("\n".join(absent_lines) + "\n", encoding="utf-8")
    return metrics
