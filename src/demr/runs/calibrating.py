"""Calibrate a run, on its validation split or on labels of one's own."""

from pathlib import Path

from demr.annotations.annotations import Annotation
from demr.answers.answering import load_calibration
from demr.answers.calibration import Calibration
from demr.answers.fitting import fit_calibration
from demr.errors import ModelError
from demr.evaluation.measure import is_scored
from demr.runs.data import RunData, console, open_data
from demr.runs.folder import load_run
from demr.runs.predicting import run_model


def calibrate_run(
    run: Path,
    data: RunData | None = None,
    annotations: list[Annotation] | None = None,
) -> Calibration:
    """Fit ``calibration.json`` on the validation split, or on annotations of one's own.

    Without absent queries the presence calibration that is there stays, and a line says so.

    Raises:
        InputError: If there is too little to calibrate on.
        ModelError: If there are no absent queries, and the calibration that is there cannot be
            read: what it holds of presence would be lost.
    """
    config, pretrained = load_run(run)
    data = open_data(config.data) if data is None else data
    annotations = data.val() if annotations is None else annotations
    made = data.absent_queries(annotations)
    # As in evaluate_run: intervals are promised for moments, and a vague query has no single one.
    annotations = [annotation for annotation in annotations if is_scored(annotation)]
    path = run / "calibration.json"
    former, note = None, ""
    if not made and all(annotation.windows_s != () for annotation in annotations):
        former = _former_calibration(path)
        kept = "the one there is kept" if former and former.presence else "search will say so"
        note = f"no absent queries, so presence cannot be calibrated: {kept}"
    # By themselves: in batches of other sizes other predictions would change in the last digit.
    parts = [part for part in (annotations, made) if part]
    raw = [
        prediction
        for part in parts
        for prediction in run_model(
            pretrained.model, data.dataset(part), max_clips=pretrained.max_clips
        )
    ]
    calibration = fit_calibration(
        raw,
        [*annotations, *made],
        ranking=config.calibration.ranking,
        disagreement=config.calibration.disagreement,
        seed=config.seed,
        former=former,
    )
    calibration.save(path)
    if note:
        console.print(note)
    return calibration


def _former_calibration(path: Path) -> Calibration | None:
    if not path.exists():
        return None
    try:
        return load_calibration(path)
    except ModelError as error:
        raise ModelError(
            str(path),
            expected="a calibration to keep presence of, as these labels have no absent ones",
            got=error.got,
            remedy="add absent queries to the labels, or remove the file",
        ) from error
