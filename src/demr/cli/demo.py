"""The demo: render a fresh video, search it, and lay the truth beside the answers."""

import tempfile
from pathlib import Path

from rich.console import Console

from demr.errors import VideoError
from demr.machine.files import atomic_path
from demr.report.formats import search_table, to_json
from demr.report.page import write_html_report
from demr.report.wording import Windows
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
        VideoError: If the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(
            str(out),
            expected="a folder that can be written",
            got=error.strerror or str(error),
            remedy="choose another --out",
        ) from error
    video = out / "shapes.mp4"
    with Console(stderr=True).status("rendering a video") as status:
        with tempfile.TemporaryDirectory(dir=out) as folder:
            fresh = Path(folder) / video.name
            scene = demo_scene(seed)
            render_scene(scene, fresh, width=_WIDTH, height=_HEIGHT, fps=_FPS, crf=_CRF)
            fresh.replace(video)
        status.update("searching it")
        result, truth = search_demo(video, seed)
        status.update("writing the report")
        with atomic_path(out / "answers.json") as path:
            path.write_text(to_json(result) + "\n", encoding="utf-8")
        report = write_html_report(
            out / "report.html",
            result,
            video_path=video,
            truth=truth,
            title="demr demo: what happens when?",
        )
    console = Console()
    console.print(search_table(result, truth))
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return report


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
