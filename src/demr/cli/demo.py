"""The demo: render a fresh video, search it, and lay the truth beside the answers."""

from pathlib import Path

from demr.errors import VideoError
from demr.machine.terminal import console, say, status
from demr.report import Windows, search_table, to_json, write_html_report
from demr.report.output import write_output
from demr.search.result import SearchResult
from demr.search.retriever import MomentRetriever
from demr.shapes import demo_annotations, demo_scene, render_scene

_WIDTH, _HEIGHT, _FPS = 640, 360, 12
# Sensor noise does not compress; at this quality the page stays below a megabyte.
_CRF = 28


def run_demo(out: Path, seed: int) -> Path:
    """Render, search, print the table and write ``report.html``.

    Args:
        out: Folder for ``shapes.mp4``, ``answers.json`` and ``report.html``; a previous demo's
            files are replaced.
        seed: Of the video.

    Returns:
        The report.

    Raises:
        InputError: If a file cannot be written.
        VideoError: If the folder cannot be made.
    """
    _make_folder(out)
    with status("rendering a video") as tell:
        video = out / "shapes.mp4"
        # The writer moves it into place when it is whole.
        render_scene(demo_scene(seed), video, width=_WIDTH, height=_HEIGHT, fps=_FPS, crf=_CRF)
        tell("searching it")
        result, truth = search_demo(video, seed)
        tell("writing the report")
        write_output(out / "answers.json", f"{to_json(result)}\n".encode())
        report = write_html_report(
            out / "report.html",
            result,
            video_path=video,
            truth=truth,
            title="demr demo: what happens when?",
        )
    console().print(search_table(result, truth))
    say(f"report: {report}")
    return report


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(
            str(out),
            expected="a folder that can be written",
            got=error.strerror or str(error),
            remedy="choose another --out",
        ) from error


def search_demo(video: Path, seed: int) -> tuple[SearchResult, dict[str, Windows]]:
    """Ask the demo's queries about its video.

    Returns:
        The answers, and the true windows of every query in seconds.
    """
    annotations = demo_annotations(demo_scene(seed))
    retriever = MomentRetriever.from_pretrained()
    encoded = retriever.encode_video(video)
    answers = retriever.search(encoded, [annotation.query for annotation in annotations], top=3)
    truth: dict[str, Windows] = {
        a.query: a.windows_s for a in annotations if a.windows_s is not None
    }
    return retriever.result(encoded, answers), truth
