"""The data that a config names, opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from demr.annotations.annotations import Annotation, read_annotations_with_report
from demr.answers.presence import LEAST_POINTS
from demr.batches.absent import make_absent, text_qid
from demr.batches.dataset import MomentDataset
from demr.batches.stretches import MAX_CLIPS
from demr.encoders import Encoder, get_encoder
from demr.encoders.cached_queries import CachedQueries
from demr.encoders.stored_text import StoredText, open_text
from demr.errors import AnnotationError, ConfigError
from demr.features.pack import FeaturePack
from demr.machine import terminal
from demr.runs.config import DataConfig
from demr.runs.splits import check_videos, hold_out
from demr.shapes.dataset import build_dataset

console = terminal.console(stderr=True, soft_wrap=True)


@dataclass(frozen=True)
class RunData:
    """The data a config names, opened."""

    config: DataConfig
    pack: FeaturePack
    encoder: Encoder

    def read(self, path: Path) -> list[Annotation]:
        """Annotations of one split, with features for every video.

        Raises:
            AnnotationError: If the split is empty or damaged.
            FeatureError: If a video has no features.
        """
        source = self.config.root / path
        annotations, report = read_annotations_with_report(source)
        console.print(f"{source}: {report.summary()}", highlight=False)
        check_videos(annotations, self.pack, source)
        return annotations

    def train_and_val(self) -> tuple[list[Annotation], list[Annotation]]:
        """Queries to train on and to choose by.

        Raises:
            AnnotationError: If a split is empty or damaged.
            ConfigError: If the share that is ``data.val`` leaves one of them without a moment.
            FeatureError: If a video has no features.
        """
        train = self._read_annotated(self.config.train)
        if isinstance(self.config.val, float):
            return hold_out(train, self.config.val, "data.val")
        return train, self._read_annotated(self.config.val)

    def val(self) -> list[Annotation]:
        """Queries to choose by; training queries are read only where these are held out of them."""
        if isinstance(self.config.val, float):
            return self.train_and_val()[1]
        return self._read_annotated(self.config.val)

    def _read_annotated(self, path: Path) -> list[Annotation]:
        """As :meth:`read`, without queries of which it is not known where their moment is."""
        annotations = self.read(path)
        known = [annotation for annotation in annotations if annotation.windows_s is not None]
        if not any(annotation.windows_s for annotation in known):
            raise AnnotationError(
                str(self.config.root / path),
                expected="queries with relevant_windows, to learn from and to choose by",
                got=f"{len(annotations)} queries, none with windows",
                remedy="use another split; this one can only be answered",
            )
        if len(known) < len(annotations):
            console.print(f"{len(annotations) - len(known)} queries without windows left out")
        return known

    def absent_queries(self, annotations: Sequence[Annotation]) -> list[Annotation]:
        """Absent queries for a validation or test split that has none, to judge ``present`` by.

        They serve to calibrate and to measure, never to choose a checkpoint or to train. They are
        the same whatever the run's seed, so that runs compare.

        Args:
            annotations: The whole split.

        Returns:
            See :func:`~demr.batches.absent.make_absent`; none where ``data.absent_queries`` is
            off, or too few could be made to calibrate on.
        """
        made = make_absent(annotations) if self.config.absent_queries else []
        return made if 2 * len(made) >= LEAST_POINTS else []

    def dataset(
        self, annotations: Sequence[Annotation], *, training: bool = False, seed: int = 0
    ) -> MomentDataset:
        """Annotations with their features.

        Args:
            annotations: One item each.
            training: Show one stretch of a long video at a time.
            seed: Of the draw of stretches.
        """
        encoder = self.encoder
        if isinstance(encoder, StoredText):
            encoder = encoder.with_qids({a.query: text_qid(a) for a in annotations})
        max_clips = MAX_CLIPS if training else None
        return MomentDataset(annotations, self.pack, encoder, max_clips=max_clips, seed=seed)


def open_data(config: DataConfig, *, render: bool = False) -> RunData:
    """Open what a config names.

    Args:
        config: The data section of a config.
        render: Render the embedded world first, if the config asks for it and it is not there.

    Raises:
        ConfigError: If the data folder is missing and not to be rendered.
        FeatureError: If its features are missing or damaged.
    """
    if render and config.shapes is not None:
        prepare_shapes(config)
    elif not config.root.is_dir():
        raise ConfigError(
            str(config.root),
            expected="the run's data folder, data.root of its config",
            got=f"none seen from {Path.cwd()}",
            remedy="run this in the folder that training was started in, or train first",
        )
    pack = FeaturePack(config.root / config.features)
    if config.text is None:
        return RunData(config, pack, CachedQueries(get_encoder(config.encoder)))
    return RunData(config, pack, open_text(config.root / config.text, pack.identity))


def prepare_shapes(config: DataConfig) -> None:
    """Render and encode the embedded world into ``config.root``, unless it is there."""
    if config.shapes is None:
        return
    # Without work even an empty bar would print a line.
    splits = (config.train, config.val, *config.tests.values())
    idle = all((config.root / s).exists() for s in splits if isinstance(s, Path))
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=idle) as bar:
        tasks: dict[str, Any] = {}

        def report(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(f"rendering {split}", total=total)
            bar.update(tasks[split], completed=done)

        def waiting() -> None:
            console.print(f"{config.root}: waiting for another process that renders it")

        build_dataset(config.root, dict(config.shapes), progress=report, waiting=waiting)
