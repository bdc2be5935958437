"""An extraction as the command line shows it: a bar with the time left, and what was skipped."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from demr.encoders import get_encoder
from demr.extraction import REPORT, Done, Job, Runner, Summary, extract, parts_folder
from demr.extraction_workers import run_workers
from demr.video_files import Unit, find_videos
from demr.wording import counted

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
) -> Summary:
    """Find videos, encode them and write the pack, telling the terminal how far it is.

    Args:
        sources: Videos and folders of videos.
        encoder: What :func:`demr.encoders.get_encoder` takes.
        out: Folder of the pack.
        workers: Processes, or encoding actors of a cluster.
        ray: Address of a cluster, ``local`` for one on this machine, None for none.
        device: Where networks run.

    Raises:
        DemrError: If a source or the encoder is unusable, ``out`` is something else, the disk is
            full, or no video can be used.
    """
    made = get_encoder(encoder, device=device)
    found = find_videos(sources)
    out = out.absolute()
    job = Job(encoder, device, made.identity.to_dict(), parts_folder(out))
    console = Console(stderr=True)
    for closed in found.closed:
        console.print(f"demr: skipped {closed}", markup=False, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[videos]} videos"),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        tell = _Teller(progress, made.identity.spec, [video.size for video in found.videos])
        return extract(found, made, job, out, _runner(workers, ray), tell)


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
    from demr.cluster import run_on_ray

    return partial(run_on_ray, address=ray, workers=workers)


class _Teller:
    """Turns what workers say into a bar; counts bytes, shows videos."""

    def __init__(self, progress: Progress, description: str, sizes: Sequence[int]) -> None:
        self._progress = progress
        self._task = progress.add_task(
            description, total=max(sum(sizes), 1), videos=f"0/{len(sizes)}"
        )
        self._videos = len(sizes)
        self._begun: dict[str, float] = {}
        self._finished: dict[str, Unit] = {}
        self._named: set[str] = set()

    def __call__(self, unit: Unit, share: float, done: Done | None) -> None:
        self._begun[unit.key] = share * unit.size
        if share >= 1.0:
            self._finished[unit.key] = unit
        videos = sum(len(finished.videos) for finished in self._finished.values())
        self._progress.update(
            self._task,
            completed=sum(self._begun.values()),
            videos=f"{min(videos, self._videos)}/{self._videos}",
        )
        for path, reason in done.skipped if done else ():
            if path not in self._named:
                self._named.add(path)
                self._name(path, reason)

    def _name(self, path: str, reason: str) -> None:
        line = f"skipped {reason if path in reason else f'{path}: {reason}'}"
        if len(self._named) > _NAMED:
            return
        if len(self._named) == _NAMED:
            line = f"skipped more than can be named here; {REPORT} will list them"
        self._progress.console.print(f"demr: {line}", markup=False, highlight=False, soft_wrap=True)
