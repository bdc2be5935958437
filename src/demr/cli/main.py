"""The command line: searching, and how any command ends.

Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demr.cli.data import app as data_app
from demr.cli.models import app as models_app
from demr.cli.options import Device
from demr.errors import DemrError, InputError
from demr.machine.reading import read_text
from demr.machine.terminal import console, plain, printable, status

if TYPE_CHECKING:
    from demr.search.result import SearchResult
    from demr.search.retriever import MomentRetriever
    from demr.search.zero_shot import ZeroShotRetriever

app = typer.Typer(
    help="Find the moment in a video that a sentence describes, and know how far to trust it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models_app)
app.add_typer(data_app)

BAD_INPUT = 2
INTERRUPTED = 130


class _Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    SRT = "srt"


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
    device: Device = "auto",
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
    sentences = _collect_queries(query or [], queries)
    from demr.search.queries import check_queries
    from demr.video.opening import open_video

    # Before a model is fetched or loaded and a video read.
    check_queries(sentences, top)
    open_video(video).close()
    if not 0 < level < 1:
        raise InputError(
            "--level", expected="a number between 0 and 1", got=f"{level:g}", remedy="try 0.9"
        )
    retriever = _retriever(model, encoder, device, level)
    with status(f"reading {video.name}") as tell:
        result = retriever.search_file(video, sentences, top=top, tell=tell)
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
    from demr.cli.demo import run_demo

    run_demo(out, seed)


@app.command()
def doctor() -> None:
    """Show what is installed, cached and usable, and what to run to get the rest."""
    from demr.cli.doctor import examine, findings_table, is_healthy

    findings = examine()
    console().print(findings_table(findings))
    if not is_healthy(findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a user can mend becomes one line and exit code 2."""
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the encoding of the output lacks becomes a question mark.
        sys.stdout.reconfigure(errors="replace")
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
    typer.echo(f"demr: {printable(line)}", err=True)
    sys.exit(BAD_INPUT)


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    typer.echo(f"demr: warning: {printable(str(message))}", err=True)


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
    sentences = list(given)
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else read_text(file, encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--queries {file}",
                expected="a UTF-8 text file with one sentence a line",
                got=str(error),
                remedy="check the path and the encoding",
            ) from error
        sentences += [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise InputError(
            "queries",
            expected="at least one sentence",
            got="none",
            remedy="write it after the video, or give --queries FILE",
        )
    return sentences


def _retriever(
    model: str | None, encoder: str | None, device: str, level: float
) -> "MomentRetriever | ZeroShotRetriever":
    """The model that was asked for; with an encoder that has weights alone, zero-shot."""
    from demr.answers.pretrained import DEFAULT_MODEL
    from demr.encoders import get_encoder, needs_training
    from demr.search.retriever import MomentRetriever

    if encoder is None:
        return MomentRetriever.from_pretrained(model or DEFAULT_MODEL, device=device, level=level)
    if model is None and needs_training(encoder):
        from demr.search.zero_shot import untrained

        raise untrained(encoder)
    chosen = get_encoder(encoder, device=device)
    # The bundled model is for the one encoder that has no weights.
    if model is None and chosen.identity.model:
        from demr.search.zero_shot import ZeroShotRetriever

        return ZeroShotRetriever(chosen)
    return MomentRetriever.from_pretrained(
        model or DEFAULT_MODEL, device=device, level=level, encoder=chosen
    )


def _print_result(result: "SearchResult", output: _Output) -> None:
    from demr.report import search_table, to_csv, to_json, to_srt, unique_notes

    if output is _Output.JSON:
        typer.echo(to_json(result))
    elif output is _Output.CSV:
        typer.echo(to_csv(result), nl=False)
    elif output is _Output.SRT:
        typer.echo(to_srt(result), nl=False)
    else:
        console().print(search_table(result), *map(plain, unique_notes(result)), sep="\n")


def _save_clips(result: "SearchResult", video: Path, folder: Path) -> None:
    from demr.video.writing import cut_clip

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
