"""Measure a run on its splits."""

from collections.abc import Mapping
from pathlib import Path

from demr.annotations import Annotation, Qid, write_annotations
from demr.answers.calibration import Calibration
from demr.answers.fitting import load_calibration
from demr.evaluation.measuring import measure
from demr.evaluation.predictions import PredictionRecord, write_predictions
from demr.evaluation.uncertainty import error_bins
from demr.machine.devices import resolve_device
from demr.machine.files import write_json
from demr.report.figures import error_figure
from demr.runs.data import open_data
from demr.runs.folder import load_run
from demr.runs.predicting import SplitPredictions, predict_split

Metrics = dict[str, dict[str, float]]
_GAP = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")


def evaluate_run(
    run: Path, *, device: str = "auto", splits: Mapping[str, list[Annotation]] | None = None
) -> Metrics:
    """Measure a finished run; see :func:`write_evaluation`.

    Args:
        run: Its folder.
        device: ``auto``, ``cpu``, or an accelerator.
        splits: Name -> queries; None takes the validation and test splits of its config.
    """
    config, pretrained = load_run(run)
    calibration = load_calibration(run / "calibration.json")
    data = open_data(config.data)
    if splits is None:
        splits = {"val": data.val()}
        splits |= {name: data.read(path) for name, path in config.data.tests.items()}
    on = resolve_device(device)
    predicted = {
        name: predict_split(pretrained, data, annotations, calibration=calibration, device=on)
        for name, annotations in splits.items()
    }
    return write_evaluation(run, predicted, calibration)


def write_evaluation(
    run: Path, splits: Mapping[str, SplitPredictions], calibration: Calibration
) -> Metrics:
    """Measure predictions of a run's splits, and write what came out into its folder.

    Writes ``metrics.json``, ``predictions.jsonl`` (of all splits, in order), ``error_bins.json``
    and ``uncertainty.png``, its figure. Absent queries that were made for a split
    (:meth:`~demr.runs.data.RunData.absent_queries`) and their predictions have files of their own,
    ``absent_queries.jsonl`` and ``absent_predictions.jsonl``: evaluators of the field refuse
    predictions for queries that the annotations do not have.

    Returns:
        Split -> metric -> value; where there are splits called iid and ood, also their ``gap``.
    """
    metrics: Metrics = {}
    bins: dict[str, dict[str, list[float]]] = {}
    records: list[PredictionRecord] = []
    absent: list[PredictionRecord] = []
    made: dict[Qid, Annotation] = {}
    for name, split in splits.items():
        every = split.records(calibration)
        # Of a test split whose answers are not public only the predictions are wanted.
        is_labelled = any(a.windows_s is not None or a.saliency for a in split.annotations)
        metrics[name] = measure(every, split.annotations).metrics if is_labelled else {}
        bins[name] = error_bins(every, split.annotations)
        annotated = len(every) - split.made
        records += every[:annotated]
        absent += every[annotated:]
        made |= {annotation.qid: annotation for annotation in split.annotations[annotated:]}
    if {"iid", "ood"} <= metrics.keys():
        metrics["gap"] = {key: metrics["iid"][key] - metrics["ood"][key] for key in _GAP}
    write_json(run / "error_bins.json", bins)
    error_figure({name: [part] for name, part in bins.items()}, run / "uncertainty.png")
    write_json(run / "metrics.json", metrics)
    write_predictions(run / "predictions.jsonl", records)
    if made:
        write_annotations(run / "absent_queries.jsonl", made.values())
        write_predictions(run / "absent_predictions.jsonl", absent)
    return metrics
