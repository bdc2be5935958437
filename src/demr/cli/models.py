"""The command line: training, measuring, comparing and exporting models."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from demr.cli.options import check_at_least
from demr.errors import ConfigError, InputError
from demr.machine.terminal import complain, console, need_extra, say, status

app = typer.Typer()

_Device = Annotated[str, typer.Option(help="auto, cpu, or an accelerator.")]


class _Format(StrEnum):
    ONNX = "onnx"
    PT2 = "pt2"


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A recipe, such as configs/shapes.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: a.b=value.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New run folder.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out after a stop.")
    ] = False,
) -> None:
    """Train, calibrate and evaluate a model."""
    from demr.runs.config import load_config

    loaded = load_config(config, overrides or [])
    need_extra("train", "lightning", "tensorboard", "HanTa")
    from demr.runs.folder import check_processes, default_run_folder, is_main_process

    check_processes(loaded.devices)
    from demr.training.run import train_run

    if resume and out is None:
        raise ConfigError(
            "--resume",
            expected="the run to go on with",
            got="no --out",
            remedy="name its folder with --out",
        )
    run = train_run(loaded, out or default_run_folder(loaded.name), resume=resume)
    if not is_main_process():
        return
    say(f"run finished: {run}", stderr=True)
    _print_metrics(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Predictions in the field's JSON lines.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Annotations to compare with, in any known form.")
    ] = None,
    iou: Annotated[
        str,
        typer.Option(help="Of predictions, R1 and R5 at further IoU, with commas: 0.35,0.4,0.45."),
    ] = "",
    unclipped: Annotated[
        bool,
        typer.Option(
            "--unclipped",
            help="Of predictions, true windows as annotated, also past the end of the video.",
        ),
    ] = False,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this file.")
    ] = None,
    device: _Device = "auto",
) -> None:
    """Measure a run on its splits, or predictions against annotations."""
    if (run is None) == (predictions is None) or (predictions is None) != (annotations is None):
        raise InputError(
            "evaluate",
            expected="a run folder, or --predictions together with --annotations",
            got="neither or both",
            remedy="see demr evaluate --help",
        )
    thresholds = _thresholds(iou)
    if run is not None:
        _check_run_alone(iou, unclipped)
        from demr.runs.evaluating import evaluate_run

        metrics = evaluate_run(run, device=device)
    else:
        from demr.evaluation.measuring import evaluate_predictions

        files = Path(str(predictions)), Path(str(annotations))
        found = evaluate_predictions(*files, thresholds=thresholds, unclipped=unclipped)
        metrics = {"all": found}
    if as_json is not None:
        from demr.machine.files import write_json

        write_json(as_json, metrics)
    _print_metrics(metrics, thresholds)


def _thresholds(text: str) -> list[float]:
    try:
        thresholds = [float(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        thresholds = [0.0]
    if not all(0 < threshold <= 1 for threshold in thresholds):
        raise InputError(
            f"--iou {text}",
            expected="numbers above 0, at most 1, with commas",
            got="something else",
            remedy="write for example --iou 0.35,0.4,0.45",
        )
    return sorted(set(thresholds))


def _check_run_alone(iou: str, unclipped: bool) -> None:
    if iou or unclipped:
        raise InputError(
            "evaluate",
            expected="--iou and --unclipped with --predictions and --annotations",
            got="a run folder",
            remedy="measure the run's predictions.jsonl against the annotations of a split",
        )


@app.command()
def calibrate(
    model: Annotated[
        str, typer.Argument(help="Run folder, model folder, Hugging Face id, or shapes.")
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(help="Labels of your own, present and absent; without them a run's own."),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder with the labelled videos, which are encoded.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Feature pack with the labelled videos instead.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for a calibrated copy; needed where the model is not yours."),
    ] = None,
    device: _Device = "auto",
) -> None:
    """Fit intervals, presence and ranking on validation queries, or on labels of your own."""
    _check_calibrate(annotations, videos, features, out)
    from demr.annotations.annotations import read_annotations
    from demr.runs.calibrating import calibrate_model, calibrate_run

    labels = None if annotations is None else read_annotations(annotations)
    if labels is None or (videos is None and features is None):
        folder, fitted = Path(model), calibrate_run(Path(model), labels, device=device)
    else:
        with status(f"loading {model}") as line:
            folder, fitted = calibrate_model(
                model,
                labels,
                videos=videos,
                features=features,
                out=out,
                device=device,
                tell=line,
            )
    points = 0 if fitted.interval is None else fitted.interval.points
    presence = "no" if fitted.presence is None else str(fitted.presence.points)
    say(
        f"{folder / 'calibration.json'}: ranking {fitted.ranking} (tau {fitted.tau:g}), "
        f"intervals from {points} queries, presence from {presence} queries"
    )


def _check_calibrate(
    annotations: Path | None, videos: Path | None, features: Path | None, out: Path | None
) -> None:
    if videos is not None and features is not None:
        got = "--videos and --features"
    elif annotations is None and (videos is not None or features is not None):
        got = "videos without labels"
    elif out is not None and videos is None and features is None:
        got = "--out alone"
    else:
        return
    raise InputError(
        "calibrate",
        expected="--annotations with --videos or --features (and --out), or a run folder alone",
        got=got,
        remedy="see demr calibrate --help",
    )


@app.command()
def balance(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[str, typer.Option(help="Split to disturb.")] = "val",
    limit: Annotated[int, typer.Option(help="Queries to use; 0 takes all.")] = 500,
    device: _Device = "auto",
) -> None:
    """Measure how uncertainty answers to noise on video and on text (dVar)."""
    check_at_least("--limit", limit, 0)
    from demr.runs.balance import balance_run

    say(*balance_run(run, split, limit, device).split("\n"))


@app.command()
def ablate(
    config: Annotated[Path, typer.Argument(help="The recipe that variants depart from.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(help="What to vary: a name (--list shows them) or a YAML file. [steps]"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every variant, with commas.")] = "0,1,2",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of the recipe in all variants: a.b=value."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; finished runs in it are kept.  [runs/NAME-ablation]"),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, which share the cores.")] = 1,
    balance: Annotated[
        str, typer.Option(help="Split whose noise curves are measured, or none.")
    ] = "val",
    limit: Annotated[int, typer.Option(help="Queries of that split; 0 takes all.")] = 500,
    list_grids: Annotated[
        bool, typer.Option("--list", help="Show the grids and their runs, and train nothing.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Tables and figures of what is finished.")
    ] = False,
) -> None:
    """Train variants of a recipe with several seeds, and compare them.

    Can be stopped and started at will: finished runs are kept, others go on. Another recipe or
    override is another run. A failed run does not stop the rest.
    """
    need_extra("train", "lightning", "tensorboard", "HanTa")
    from demr.training.ablation import plan_ablation
    from demr.training.grids import GRIDS, load_grid
    from demr.training.trials import NoiseCurves

    check_at_least("--jobs", jobs, 1)
    check_at_least("--limit", limit, 0)
    names = grid or (list(GRIDS) if list_grids else ["steps"])
    grids = dict(load_grid(name) for name in names)
    ablation = plan_ablation(config, grids, _seeds(seeds), overrides or [], out)
    if list_grids:
        say(*ablation.describe().split("\n"))
        return
    noise = None if balance == "none" else NoiseCurves(balance, limit)
    if noise:
        ablation.check_split(noise.split)
    failed = [] if report_only else ablation.train(jobs=jobs, noise=noise)
    say(str(ablation.write_report()))
    if failed:
        complain(f"{len(failed)} runs failed; the same command tries them again")
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="Run folder, Hugging Face id, or shapes, the bundled model.")
    ],
    file_format: Annotated[
        _Format, typer.Option("--format", help="onnx runs without torch, pt2 with torch alone.")
    ] = _Format.ONNX,
    out: Annotated[
        Path | None,
        typer.Option(help="New file.  [RUN/model.FORMAT; of no run folder NAME.FORMAT here]"),
    ] = None,
) -> None:
    """Write a model as one file that runs without demr, and try that file."""
    if file_format is _Format.ONNX:
        need_extra("export", "onnx", "onnxruntime", "onnxscript")
    from demr.export.exporting import export_model

    with status(f"exporting {run}"):
        exported = export_model(run, file_format.value, out)
    say(exported.summary())


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(
            f"--seeds {text}",
            expected="different whole numbers from 0 on, with commas",
            got="something else",
            remedy="write for example --seeds 0,1,2",
        )
    return seeds


def _print_metrics(metrics: dict[str, dict[str, float]], thresholds: Sequence[float] = ()) -> None:
    from demr.report import metrics_table

    console().print(metrics_table(metrics, thresholds))
