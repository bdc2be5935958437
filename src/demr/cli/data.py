"""The command line: features of videos, and what others publish."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from demr.cli.options import Device, check_at_least
from demr.errors import InputError
from demr.machine.terminal import need_extra, say, status

app = typer.Typer()
import_app = typer.Typer(
    help="Convert what others publish into demr's own files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(import_app, name="import")


@app.command()
def extract(
    sources: Annotated[
        # What is closed is skipped, as it is inside of folders.
        list[Path],
        typer.Argument(metavar="VIDEO|DIR...", readable=False, help="Videos, folders."),
    ],
    encoder: Annotated[str, typer.Option(help="Encoder, such as clip or clip+slowfast.")],
    out: Annotated[Path, typer.Option(help="New folder for the feature pack.")],
    workers: Annotated[int, typer.Option(help="Processes, which share the cores.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, or local: decode and encode there."),
    ] = None,
    timeout: Annotated[
        int,
        typer.Option(help="Seconds; a video whose decoder gives no frame for so long is skipped."),
    ] = 300,
    device: Device = "auto",
) -> None:
    """Bring the clip features of videos into a feature pack.

    Can be stopped at any moment: the same command goes on where it was. A video that cannot be
    read, or that its decoder hangs on, is skipped, named and listed in extraction.json; the exit
    code is 1 then.
    """
    from demr.extraction.progress import describe, extract_with_progress

    check_at_least("--workers", workers, 1)
    check_at_least("--timeout", timeout, 1)
    if ray is not None:
        need_extra("cluster", "ray")
    summary = extract_with_progress(
        sources, encoder, out, workers=workers, ray=ray, device=device, timeout_s=timeout
    )
    say(*describe(summary, out))
    if summary.skipped:
        raise typer.Exit(1)


@import_app.command("annotations")
def import_annotations(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines of the field; JSON of ActivityNet Captions, CD and CG splits, TACoS, "
            "DiDeMo, Ego4D NLQ, YouCook2, HiREST; text of Charades-STA; CSV with the columns "
            "video, query, start, end; plain or .gz."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New JSON Lines file; .jsonl.gz is compressed.")],
    durations: Annotated[
        Path | None,
        typer.Option(
            help="Annotations that say how long each video is, for forms that do not: text, CSV, "
            "DiDeMo."
        ),
    ] = None,
) -> None:
    """Mend annotations of any known form, and say what was mended."""
    from demr.annotations.annotations import (
        read_annotations,
        read_annotations_with_report,
        write_annotations,
    )

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
        else {
            annotation.vid: annotation.duration_s
            for annotation in read_annotations(durations)
            if not annotation.duration_guessed
        }
    )
    annotations, report = read_annotations_with_report(file, durations_s=lengths)
    write_annotations(out, annotations)
    say(f"{out}: {report.summary()}")


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
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out videos whose features do not fit; list them.")
    ] = False,
) -> None:
    """Bring published video features into a feature pack.

    What does not fit (a video without features, damaged files, rows unlike the duration) is named,
    all of it, and nothing is stored; with --skip everything else is.
    """
    from demr.features.imports import import_features as bring_in

    streams = dict(_named_path(text) for text in stream)
    name, _, version = encoder.partition("@")
    _check(len(streams) == len(stream), "--stream", "streams of different names", str(stream))
    _check(0 < clip_length < 1e6, "--clip-length", "seconds above 0", f"{clip_length:g}")
    _check(text_dim > 0, "--text-dim", "at least 1", str(text_dim))
    _check(bool(name and version), "--encoder", "NAME@VERSION", encoder)
    durations = _durations(annotations, clip_length)
    with status(f"reading {len(durations)} videos"):
        done = bring_in(
            streams,
            durations,
            out,
            name=name,
            version=version,
            clip_s=clip_length,
            text_dim=text_dim,
            normalization="none" if raw else "l2",
            skip=skip,
        )
    for line in done.misfits:
        say(f"left out: {line}")
    say(f"{out}: {done.summary()}")


def _check(is_right: bool, option: str, expected: str, got: str) -> None:
    if not is_right:
        raise InputError(
            option, expected=expected, got=got, remedy="see demr import features --help"
        )


def _durations(files: Sequence[Path], clip_length: float) -> dict[str, float]:
    """How long each annotated video is, in seconds; files must agree to within a clip."""
    from demr.annotations.annotations import read_annotations

    durations: dict[str, float] = {}
    for file in files:
        for annotation in read_annotations(file):
            known = durations.setdefault(annotation.vid, annotation.duration_s)
            if abs(known - annotation.duration_s) > clip_length:
                raise InputError(
                    f"--annotations {file}",
                    expected=f"video {annotation.vid} to last {known:g} s, as said before",
                    got=f"{annotation.duration_s:g} s",
                    remedy="annotations of one video must agree to within a clip",
                )
    return durations


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
