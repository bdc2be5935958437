"""An extraction as the command line shows it: a bar with the time left, and what was skipped."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from demr.encoders import get_encoder
from demr.errors import InputError
from demr.extraction.job import REPORT, Runner, Summary, extract, parts_folder
from demr.extraction.parts import ExtractionPlan
from demr.extraction.videos import VideoFile, find_videos
from demr.extraction.workers import run_workers
from demr.machine.terminal import console, counted, shortened
from demr.video.watchdog import DECODER_TIMEOUT_S

# Lines about skipped files; a terminal does not hold a hundred thousand.
_NAMED = 50


def extract_with_progress(
    sources: Sequence[Path],
    encoder: str,
    out: Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    device: str = "auto",
    timeout_s: float = DECODER_TIMEOUT_S,
) -> Summary:
    """Find videos, encode them and write the pack, telling the terminal how far it is.

    Args:
        sources: Videos and folders of videos.
        encoder: What :func:`demr.encoders.get_encoder` takes.
        out: Folder of the pack.
        workers: Processes, here or on the machines of a cluster.
        ray: Address of a cluster, ``local`` for one on this machine, None for none.
        device: Where networks run.
        timeout_s: Longest wait for a frame of a decoder; a video that it does not give is
            skipped.

    Raises:
        DemrError: If a source or the encoder is unusable, ``out`` is something else, the disk is
            full, or no video can be used.
    """
    made = get_encoder(encoder, device=device)
    found = find_videos(sources)
    # A name to put another beside, whatever dots and links it was given with.
    out = Path(os.path.realpath(out))
    if not out.name:
        raise InputError(
            f"--out {out}",
            expected="a new folder for the feature pack",
            got="the root of all folders",
            remedy="choose another folder",
        )
    plan = ExtractionPlan(encoder, device, made.identity.to_dict(), parts_folder(out), timeout_s)
    screen = console(stderr=True, soft_wrap=True)
    for closed in found.closed:
        screen.print(_skipped(closed))
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[videos]} videos"),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    quiet = not screen.is_terminal
    with Progress(*columns, console=screen, transient=True, disable=quiet) as progress:
        tell = _Teller(progress, made.identity.spec, [video.size for video in found.videos])
        return extract(found, made, plan, out, _runner(workers, ray), tell)


def describe(summary: Summary, out: Path) -> list[str]:
    """What came out, in lines for people."""
    state = "was there already: " if summary.was_there else ""
    streams = " + ".join(f"{name} {dims}" for name, dims in summary.identity.streams)
    whole = (
        f"{out}: {state}{counted(summary.videos, 'video')}, {counted(summary.clips, 'clip')} of "
        f"{summary.identity.clip_s:g} s, {summary.identity.spec} ({streams}), "
        f"{summary.size / 1e6:.1f} MB"
    )
    lines = [whole]
    if summary.damaged:
        damaged = len({path for path, _ in summary.damaged})
        lines.append(f"damaged, of which the good part was used: {counted(damaged, 'video')}")
    if summary.skipped:
        lines.append(f"skipped: {counted(len(summary.skipped), 'file')}")
    if summary.damaged or summary.skipped:
        lines.append(f"which, and why: {out / REPORT}")
    return lines


def _runner(workers: int, ray: str | None) -> Runner:
    if ray is None:
        return partial(run_workers, workers=workers)
    from demr.extraction.cluster import run_on_ray

    return partial(run_on_ray, address=ray, workers=workers)


class _Teller:
    """Turns what workers tell into a bar; counts bytes, shows videos."""

    def __init__(self, progress: Progress, description: str, sizes: Sequence[int]) -> None:
        self._progress = progress
        self._task = progress.add_task(
            description, total=max(sum(sizes), 1), videos=f"0/{len(sizes)}"
        )
        self._videos = len(sizes)
        # Of videos that are begun. Sums are kept, not added up anew: there may be a hundred
        # thousand videos.
        self._shares: dict[str, float] = {}
        self._bytes = 0.0
        self._finished = self._skipped = 0

    def __call__(self, video: VideoFile, share: float, skipped: str) -> None:
        before = self._shares.pop(video.vid, 0.0)
        self._bytes += (share - before) * video.size
        if share < 1.0:
            self._shares[video.vid] = share
        else:
            self._finished += 1
        self._progress.update(
            self._task, completed=self._bytes, videos=f"{self._finished}/{self._videos}"
        )
        if skipped:
            self._skipped += 1
            self._name(str(video.path), skipped)

    def _name(self, path: str, reason: str) -> None:
        if self._skipped > _NAMED:
            return
        # Errors are of one line, names of files need not be.
        is_named = " ".join(path.split()) in reason
        line = reason if is_named else f"{path}: {reason}"
        if self._skipped == _NAMED:
            line = f"more than can be named here; {REPORT} will list them"
        self._progress.console.print(_skipped(line))


def _skipped(line: str) -> str:
    return shortened(f"demr: skipped {line}")
