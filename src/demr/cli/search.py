"""The command line: searching one video, several, or folders of them."""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demr.cli.clips import check_clips, save_clips
from demr.cli.options import Device
from demr.errors import FeatureError, InputError, VideoError
from demr.machine.reading import read_bytes
from demr.machine.terminal import complain, console, plain, say, status, write_text

if TYPE_CHECKING:
    from demr.search.result import SearchResult
    from demr.search.retriever import MomentRetriever
    from demr.search.zero_shot import ZeroShotRetriever

app = typer.Typer()
# A file of sentences beyond this is no file of sentences.
_LONGEST_QUERIES = 10_000_000


class _Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    SRT = "srt"


@app.command()
def search(  # noqa: PLR0913, PLR0917  (one an option)
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO|FOLDER... QUERY...",
            help="Videos and folders of videos: all that exists or ends like a video; then the "
            "sentences to look for.",
        ),
    ],
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
        bool, typer.Option("--srt", help="Print subtitles of the moments, of one video.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Also write a page with the videos and their timelines.  [NAME.html]"),
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option("--save-clips", help="Folder to cut the moments into that are shown."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace clips that are there.")
    ] = False,
) -> None:
    """Find the moments that sentences describe, in one video or the best of several.

    A video of several that cannot be read is skipped and named; the exit code is 1 then.
    """
    # All that can be wrong is asked before a model is fetched or loaded and a video read.
    output = _one_output(as_json, as_csv, as_srt)
    sources, given = split_words(words)
    sentences = _collect_queries(given, queries, sources)
    from demr.search.queries import check_level, check_queries

    check_queries(sentences, top)
    check_level(level)
    is_one = len(sources) == 1 and not os.path.isdir(sources[0])  # noqa: PTH112
    if output is _Output.SRT and not is_one:
        raise InputError(
            "--srt",
            expected="one video, which subtitles belong to",
            got="a folder" if len(sources) == 1 else f"{len(sources)} videos",
            remedy="search each by itself, or print --csv",
        )
    if html is not None:
        _check_page(html)
    from demr.video.watchdog import DECODER_TIMEOUT_S, decoder_watchdog

    with decoder_watchdog(DECODER_TIMEOUT_S, _give_up):
        videos, closed = find_sources(sources, is_one=is_one)
        if clips is not None:
            check_clips(clips, videos.values(), len(sentences), overwrite=overwrite)
        retriever = _retriever(model, encoder, device, level)
        results, skipped = _search_all(retriever, list(videos), sentences, top, is_one=is_one)
        report_skipped(closed)
        # Of several videos a sentence has so many moments in all.
        most = None if is_one else top
        _print_results(results, output, most)
        if html is not None:
            from demr.report import write_html_report

            write_html_report(html, results[0] if is_one else results)
            say(str(html), stderr=True)
        failed = clips is not None and save_clips(results, videos, clips, most, overwrite=overwrite)
    if skipped or closed or failed:
        raise typer.Exit(1)


def _check_page(path: Path) -> None:
    """Refuse what is no name of a page, such as a video that it would replace."""
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise InputError(
            f"--html {path}",
            expected="a file whose name ends in .html",
            got="a folder" if path.is_dir() else "another name",
            remedy="write for example --html answers.html",
        )


def _give_up(error: VideoError) -> None:
    """End the process, whose decoder does not come back."""
    complain(str(error))
    # As main() ends what a user can mend.
    os._exit(2)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell videos from sentences.

    The first word is a video; so is each that follows until one is no file, no folder, no URL and
    does not end like a video. That one and all behind it are sentences.

    Returns:
        The videos and folders, and the sentences.
    """
    first = next((n for n, word in enumerate(words) if n and not _names_video(word)), len(words))
    late = [word for word in words[first:] if os.path.isfile(word)]  # noqa: PTH113
    if late:
        complain(f"warning: {late[0]} stands behind a sentence and is asked for as one")
    return list(words[:first]), list(words[first:])


def _names_video(word: str) -> bool:
    from demr.extraction.videos import SUFFIXES
    from demr.video.opening import is_url

    # Not by Path: sentences are too long for it, or hold what no path can.
    is_there = os.path.exists(word)  # noqa: PTH110
    return is_there or is_url(word) or os.path.splitext(word)[1].lower() in SUFFIXES  # noqa: PTH122


def find_sources(
    sources: Sequence[str], *, is_one: bool
) -> tuple[dict[Path, str], tuple[str, ...]]:
    """Look for the videos that were named, and for those in folders.

    Returns:
        Each video's path, as it was named, with a name that no other has; and what could not be
        looked into.

    Raises:
        InputError: If one that was named does not exist, or a folder has no video.
        VideoError: If the only one is no video.
    """
    from demr.extraction.videos import find_videos
    from demr.search.queries import check_path
    from demr.video.source import Source

    paths = [check_path(source) for source in sources]
    if is_one:
        with Source(paths[0]):
            pass
        return {paths[0]: paths[0].stem}, ()
    found = find_videos(paths)
    as_named = {path.absolute(): path for path in paths}
    videos = {}
    for video in found.videos:
        above = next(path for path in (video.path, *video.path.parents) if path in as_named)
        videos[as_named[above] / video.path.relative_to(above)] = video.vid
    return videos, found.closed


def _search_all(
    retriever: "MomentRetriever | ZeroShotRetriever",
    videos: Sequence[Path],
    sentences: list[str],
    top: int,
    *,
    is_one: bool,
) -> tuple[list["SearchResult"], int]:
    """Search every video; of several, those that cannot be read are named and left out.

    Returns:
        The searches, the surest first, and how many videos were left out.

    Raises:
        VideoError: If the only video, or none of several, can be read.
    """
    results: list[SearchResult] = []
    for number, video in enumerate(videos, start=1):
        place = "" if is_one else f" ({number} of {len(videos)})"
        try:
            with status(f"reading {video.name}{place}") as show:

                def tell(text: str, place: str = place) -> None:
                    show(f"{text}{place}")

                results.append(retriever.search_file(video, sentences, top=top, tell=tell))
        except (VideoError, FeatureError) as error:
            if is_one:
                raise
            report_skipped([str(error)])
    if not results:
        raise VideoError(
            f"{len(videos)} videos",
            expected="at least one that can be read",
            got="none",
            remedy="check that a player shows them",
        )
    from demr.search.several import order_videos

    return order_videos(results), len(videos) - len(results)


def report_skipped(reasons: Sequence[str]) -> None:
    """Name what was left out, each with its reason, on stderr."""
    for reason in reasons:
        complain(f"skipped {reason}")


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


def _collect_queries(given: Sequence[str], file: Path | None, sources: Sequence[str]) -> list[str]:
    sentences = list(given)
    if file is not None:
        text = _read_queries(file)
        sentences += [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        named = f"none after the videos {' and '.join(sources)}" if len(sources) > 1 else "none"
        raise InputError(
            "queries",
            expected="at least one sentence",
            got=named,
            remedy="write it after the video, or give --queries FILE",
        )
    return sentences


def _read_queries(file: Path) -> str:
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(_LONGEST_QUERIES + 1)
            if len(content) > _LONGEST_QUERIES:
                raise OSError(f"more than {_LONGEST_QUERIES / 1e6:g} MB")
        else:
            content = read_bytes(file, _LONGEST_QUERIES)
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--queries {file}",
            expected="a UTF-8 text file with one sentence a line",
            got=str(error),
            remedy="check the path and the encoding",
        ) from error


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


def _print_results(results: list["SearchResult"], output: _Output, most: int | None) -> None:
    """Print the search of one video, or with ``most`` those of several together."""
    from demr.report import search_table, to_csv, to_json, to_srt, unique_notes, videos_table

    searched = results[0] if most is None else results
    if output is _Output.JSON:
        write_text(f"{to_json(searched)}\n")
    elif output is _Output.CSV:
        write_text(to_csv(searched))
    elif output is _Output.SRT:
        write_text(to_srt(results[0]))
        # Subtitles have no place for what limits the trust in them.
        say(*unique_notes(results), stderr=True)
    else:
        table = search_table(results[0]) if most is None else videos_table(results, most)
        console().print(table, *map(plain, unique_notes(results)), sep="\n")
