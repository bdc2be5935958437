"""The command line. Heavy imports happen inside the commands, so that ``--help`` is instant."""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demr.errors import ConfigError, DemrError, InputError

if TYPE_CHECKING:
    from demr.answers import SearchResult
    from demr.retriever import MomentRetriever
    from demr.zero_shot_retriever import ZeroShotRetriever

app = typer.Typer(
    help="Find the moment in a video that a sentence describes, and know how far to trust it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

import_app = typer.Typer(
    help="Convert what others publish into demr's own files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(import_app, name="import")

BAD_INPUT = 2
INTERRUPTED = 130


class _Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    SRT = "srt"


class _Format(StrEnum):
    ONNX = "onnx"
    PT2 = "pt2"


@app.command()
def search(
    video: Annotated[Path, typer.Argument(help="Any video file.")],
    query: Annotated[list[str] | None, typer.Argument(help="Sentences to look for.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Text file with one sentence a line; - reads from stdin.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Run folder, Hugging Face id, or the bundled model.  [shapes]"),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="builtin, clip, xclip or vlm; all but the first also with :ORG/NAME or :/folder. "
            "With --model, the one it was trained on; clip and xclip alone answer zero-shot."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Moments to list for a query.")] = 3,
    level: Annotated[float, typer.Option(help="Coverage the intervals promise.")] = 0.9,
    device: Annotated[str, typer.Option(help="auto, cpu, or an accelerator.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV alone.")] = False,
    as_srt: Annotated[
        bool, typer.Option("--srt", help="Print subtitles of found moments.")
    ] = False,
    save_clips: Annotated[
        Path | None, typer.Option(help="Folder to cut the found moments into.")
    ] = None,
) -> None:
    """Find the moments that sentences describe."""
    output = _one_output(as_json, as_csv, as_srt)
    asked = _collect_queries(query or [], queries)
    from demr.retriever import check_queries

    # Before a model is loaded and a video read.
    check_queries(asked, top)
    if not 0 < level < 1:
        raise InputError(
            "--level", expected="a number between 0 and 1", got=f"{level:g}", remedy="try 0.9"
        )
    retriever = _retriever(model, encoder, device, level)
    with _status(f"reading {video.name}") as status:
        result = retriever.search_file(video, asked, top=top, tell=status.update)
    _print_result(result, output)
    if save_clips is not None:
        _save_clips(result, video, save_clips)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the video and the report.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Another seed renders another video.")] = 0,
) -> None:
    """Render a video, search it, and write a report: the whole system in a minute."""
    from demr.demo import run_demo

    run_demo(out, seed)


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
    from demr.config import load_config

    loaded = load_config(config, overrides or [])
    _need_extra("train", "lightning", "tensorboard", "HanTa")
    from demr.runs import default_run_folder, is_main_process, train_run

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
    typer.echo(f"run finished: {run}", err=True)
    _print_metrics(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Predictions in the field's JSON lines.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotations to compare with.")] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this file.")
    ] = None,
) -> None:
    """Measure a run on its splits, or predictions against annotations."""
    if (run is None) == (predictions is None) or (predictions is None) != (annotations is None):
        raise InputError(
            "evaluate",
            expected="a run folder, or --predictions together with --annotations",
            got="neither or both",
            remedy="see demr evaluate --help",
        )
    if run is not None:
        _need_extra("train", "lightning")
        from demr.runs import evaluate_run

        metrics = evaluate_run(run)
    else:
        from demr.predictions import evaluate_predictions

        metrics = {"all": evaluate_predictions(Path(str(predictions)), Path(str(annotations)))}
    if as_json is not None:
        from demr.evaluation import write_json

        write_json(as_json, metrics)
    _print_metrics(metrics)


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    annotations: Annotated[
        Path | None,
        typer.Option(help="Labels of your own (present and absent), for videos with features."),
    ] = None,
) -> None:
    """Fit intervals, presence and ranking on validation queries, or on labels of your own."""
    _need_extra("train", "lightning")
    from demr.annotations import read_annotations
    from demr.runs import calibrate_run

    own = None if annotations is None else read_annotations(annotations)
    fitted = calibrate_run(run, annotations=own)
    points = 0 if fitted.interval is None else fitted.interval.points
    presence = "no" if fitted.presence is None else str(fitted.presence.points)
    typer.echo(
        f"{run / 'calibration.json'}: ranking {fitted.ranking} (tau {fitted.tau:g}), "
        f"intervals from {points} queries, presence from {presence} queries"
    )


@app.command()
def balance(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[str, typer.Option(help="Split to disturb.")] = "val",
    limit: Annotated[int, typer.Option(help="Queries to use; 0 takes all.")] = 500,
) -> None:
    """Measure how uncertainty answers to noise on video and on text (dVar)."""
    _need_extra("train", "lightning")
    from demr.balance import balance_run

    typer.echo(balance_run(run, split, limit))


@app.command()
def extract(
    sources: Annotated[list[Path], typer.Argument(metavar="VIDEO|DIR...", help="Videos, folders.")],
    encoder: Annotated[str, typer.Option(help="Encoder, such as clip or clip+slowfast.")],
    out: Annotated[Path, typer.Option(help="New folder for the feature pack.")],
    workers: Annotated[int, typer.Option(help="Processes, which share the cores.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, or local: decode and encode there."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, or an accelerator.")] = "auto",
) -> None:
    """Bring the clip features of videos into a feature pack.

    Can be stopped at any moment: the same command goes on where it was. A video that cannot be
    read is skipped, named and listed in extraction.json; the exit code is 1 then.
    """
    from demr.extraction_report import describe, extract_with_progress

    if workers < 1:
        raise InputError("--workers", expected="at least 1", got=str(workers), remedy="raise it")
    if ray is not None:
        _need_extra("cluster", "ray", "pyarrow")
    summary = extract_with_progress(sources, encoder, out, workers=workers, ray=ray, device=device)
    typer.echo("\n".join(describe(summary, out)))
    if summary.skipped:
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
        _need_extra("export", "onnx", "onnxruntime", "onnxscript")
    from demr.export import export_model

    with _status(f"exporting {run}"):
        exported = export_model(run, file_format.value, out)
    typer.echo(exported.summary())


@app.command()
def doctor() -> None:
    """Show what is installed, cached and usable, and what to run to get the rest."""
    from rich.console import Console

    from demr.doctor import examine, findings_table, is_healthy

    findings = examine()
    Console().print(findings_table(findings))
    if not is_healthy(findings):
        raise typer.Exit(1)


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
    _need_extra("train", "lightning", "tensorboard", "HanTa")
    from demr.ablation import GRIDS, load_grid
    from demr.ablation_report import ablate_recipe, describe

    names = grid or (list(GRIDS) if list_grids else ["steps"])
    grids = dict(load_grid(name) for name in names)
    parsed = _seeds(seeds)
    if list_grids:
        typer.echo(describe(config, grids, parsed, overrides or []))
        return
    for option, value, least in (("--jobs", jobs, 1), ("--limit", limit, 0)):
        if value < least:
            raise InputError(
                option, expected=f"at least {least}", got=str(value), remedy="raise it"
            )
    report, failed = ablate_recipe(
        config,
        grids,
        parsed,
        overrides or [],
        out,
        jobs=jobs,
        balance=None if balance == "none" else balance,
        limit=limit,
        train=not report_only,
    )
    typer.echo(report)
    if failed:
        typer.echo(f"demr: {failed} runs failed; the same command tries them again", err=True)
        raise typer.Exit(1)


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


@import_app.command("annotations")
def import_annotations(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines of the field, JSON of ActivityNet Captions or a CD split, text of "
            "Charades-STA; plain or .gz."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New JSON Lines file; .jsonl.gz is compressed.")],
    durations: Annotated[
        Path | None,
        typer.Option(
            help="Annotations that say how long each video is, for the text form, which does not."
        ),
    ] = None,
) -> None:
    """Mend annotations of any known form, and say what was mended."""
    from demr.annotations import read_annotations, read_annotations_with_report, write_annotations

    if out.exists():
        raise InputError(
            f"--out {out}",
            expected="a new file",
            got="a folder" if out.is_dir() else "one that is there",
            remedy="choose another name, or remove it first",
        )
    lengths = (
        None
        if durations is None
        else {annotation.vid: annotation.duration_s for annotation in read_annotations(durations)}
    )
    annotations, report = read_annotations_with_report(file, durations_s=lengths)
    write_annotations(out, annotations)
    typer.echo(f"{out}: {report.summary()}")


@import_app.command("features")
def import_features(
    stream: Annotated[
        list[str],
        typer.Option(help="NAME=PATH, in the order of concatenation: a folder of .npz, or HDF5."),
    ],
    annotations: Annotated[
        list[Path], typer.Option(help="Annotations of the wanted videos; they know the durations.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the feature pack.")],
    clip_length: Annotated[float, typer.Option(help="Seconds between two rows.")],
    encoder: Annotated[str, typer.Option(help="What made them, as NAME@VERSION.")],
    text_dim: Annotated[int, typer.Option(help="Width of a token of the queries' features.")] = 512,
    raw: Annotated[
        bool, typer.Option("--raw", help="Models must not bring each row to unit length.")
    ] = False,
) -> None:
    """Bring published video features into a feature pack."""
    from demr.annotations import read_annotations
    from demr.feature_formats import import_features as bring_in

    streams = dict(_named_path(text) for text in stream)
    name, separator, version = encoder.partition("@")
    wrong = {
        "--stream": (len(streams) < len(stream), "streams with names of their own", str(stream)),
        "--clip-length": (not 0 < clip_length < 1e6, "seconds above 0", f"{clip_length:g}"),
        "--text-dim": (text_dim < 1, "at least 1", str(text_dim)),
        "--encoder": (not (name and separator and version), "NAME@VERSION", encoder),
    }
    for option, (is_wrong, expected, got) in wrong.items():
        if is_wrong:
            raise InputError(
                option, expected=expected, got=got, remedy="see demr import features --help"
            )
    durations: dict[str, float] = {}
    for file in annotations:
        for annotation in read_annotations(file):
            known = durations.setdefault(annotation.vid, annotation.duration_s)
            if abs(known - annotation.duration_s) > clip_length:
                raise InputError(
                    f"--annotations {file}",
                    expected=f"video {annotation.vid} to last {known:g} s, as said before",
                    got=f"{annotation.duration_s:g} s",
                    remedy="annotations of one video must agree to within a clip",
                )
    with _status(f"reading {len(durations)} videos"):
        done = bring_in(
            streams,
            durations,
            out,
            name=name,
            version=version,
            clip_s=clip_length,
            text_dim=text_dim,
            normalization="none" if raw else "l2",
        )
    typer.echo(f"{out}: {done.summary()}")


def main() -> None:
    """Run the command line; what a user can mend becomes one line and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        # Typer returns the code where others raise: of an early exit, and of Ctrl-C.
        code = app(prog_name="demr", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except DemrError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("demr: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; a second error at exit would be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    except Exception as error:
        # Click's usage errors (a missing argument, an unknown option) share no public base here.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        text = message()
        if text.startswith("Usage:"):
            # A bare `demr` asks what there is.
            typer.echo(text, err=True)
            sys.exit(BAD_INPUT)
        _fail(f"{' '.join(text.split()).rstrip('.')}; see demr --help")


def _fail(line: str) -> None:
    typer.echo(f"demr: {line}", err=True)
    sys.exit(BAD_INPUT)


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    typer.echo(f"demr: warning: {message}", err=True)


def _one_output(as_json: bool, as_csv: bool, as_srt: bool) -> _Output:
    chosen = [
        kind
        for wanted, kind in ((as_json, _Output.JSON), (as_csv, _Output.CSV), (as_srt, _Output.SRT))
        if wanted
    ]
    if len(chosen) > 1:
        raise InputError(
            "output",
            expected="one of --json, --csv and --srt",
            got=" and ".join(f"--{kind}" for kind in chosen),
            remedy="choose one",
        )
    return chosen[0] if chosen else _Output.TABLE


def _collect_queries(given: Sequence[str], file: Path | None) -> list[str]:
    asked = list(given)
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--queries {file}",
                expected="a UTF-8 text file with one sentence a line",
                got=type(error).__name__,
                remedy="check the path and the encoding",
            ) from error
        asked += [line.strip() for line in text.splitlines() if line.strip()]
    if not asked:
        raise InputError(
            "queries",
            expected="at least one sentence",
            got="none",
            remedy="write it after the video, or give --queries FILE",
        )
    return asked


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise InputError(
            f"--stream {text}",
            expected="NAME=PATH, such as clip=features/clip",
            got="no name and path",
            remedy="see demr import features --help",
        )
    return name, Path(path)


def _retriever(
    model: str | None, encoder: str | None, device: str, level: float
) -> "MomentRetriever | ZeroShotRetriever":
    """The model that was asked for; with an encoder that has weights alone, zero-shot."""
    from demr.encoders import get_encoder
    from demr.retriever import DEFAULT_MODEL, MomentRetriever

    if encoder is None:
        return MomentRetriever.from_pretrained(model or DEFAULT_MODEL, device=device, level=level)
    chosen = get_encoder(encoder, device=device)
    # The bundled model is for the one encoder that has no weights.
    if model is None and chosen.identity.model:
        from demr.zero_shot_retriever import ZeroShotRetriever

        return ZeroShotRetriever(chosen)
    return MomentRetriever.from_pretrained(
        model or DEFAULT_MODEL, device=device, level=level, encoder=chosen
    )


def _status(text: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(text)


def _print_result(result: "SearchResult", output: _Output) -> None:
    from demr import report

    if output is _Output.JSON:
        typer.echo(report.to_json(result))
    elif output is _Output.CSV:
        typer.echo(report.to_csv(result), nl=False)
    elif output is _Output.SRT:
        typer.echo(report.to_srt(result), nl=False)
    else:
        from rich.console import Console

        console = Console()
        console.print(report.search_table(result))
        for line in report.notes(result):
            console.print(line, highlight=False)


def _save_clips(result: "SearchResult", video: Path, folder: Path) -> None:
    from demr.video import cut_clip

    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for number, answer in enumerate(result.answers, 1):
        if answer.verdict != "found" or not answer.moments:
            continue
        moment = answer.moments[0]
        out = folder / f"{video.stem}-{number:02d}-{moment.start:.1f}-{moment.end:.1f}.mp4"
        cut_clip(video, moment.start, moment.end, out)
        count += 1
        typer.echo(str(out), err=True)
    if not count:
        typer.echo("no clip saved: no query was answered with 'found'", err=True)


def _need_extra(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(
            f"this command without {', '.join(missing)}",
            expected=f"the packages of the extra '{extra}'",
            got="an installation without them",
            remedy=f"pip install 'demr[{extra}]' (from a clone: make install)",
        )


def _print_metrics(metrics: dict[str, dict[str, float]]) -> None:
    from rich.console import Console

    from demr.report import metrics_table

    Console().print(metrics_table(metrics))
