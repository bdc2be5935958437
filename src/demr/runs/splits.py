"""Splits of annotations: checked against each other and held out by video."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from demr.annotations.annotations import Annotation, may_share_qid
from demr.annotations.records import ByQid
from demr.errors import AnnotationError, ConfigError, FeatureError
from demr.features.pack import FeaturePack


def check_videos(annotations: Sequence[Annotation], pack: FeaturePack, source: Path) -> None:
    """Check that every annotated video has features.

    Raises:
        FeatureError: Naming how many are missing, and one of them.
    """
    missing = sorted({a.vid for a in annotations if a.vid not in pack})
    if missing:
        raise FeatureError(
            str(source),
            expected=f"videos with features in {pack.path}",
            got=f"{len(missing)} videos without, such as {missing[0]}",
            remedy="extract them or drop their queries",
        )


def check_splits(splits: Mapping[str, Sequence[Annotation]], pack: FeaturePack) -> list[str]:
    """Check that a qid means one query in all splits of a run.

    Stored text is found by qid, and predictions of all splits are joined by it.

    Args:
        splits: Name -> queries.
        pack: Holds their videos.

    Returns:
        What a reader should know, one line each with a count: queries that are in two splits, and
        videos that no query asks about.

    Raises:
        AnnotationError: If two splits have other content under a qid.
    """
    notes = []
    for (name, first), (other, second) in itertools.combinations(splits.items(), 2):
        known: ByQid[Annotation] = ByQid()
        for annotation in first:
            known.add(annotation.qid, annotation)
        shared = [a for a in second if a in known.get(a.qid)]
        differing = [
            a.qid
            for a in second
            if a not in (others := known.get(a.qid))
            and not all(may_share_qid(a, other) for other in others)
        ]
        if differing:
            raise AnnotationError(
                f"splits {name} and {other}",
                expected="qids of their own, or the same queries under them",
                got=f"{len(differing)} qids with other content, such as {differing[0]!r}",
                remedy="rename the queries of one of the two",
            )
        if shared:
            notes.append(
                f"{len(shared)} of {len(second)} queries of {other} are in {name} as well "
                f"(such as {shared[0].qid!r}): numbers on them say nothing about new videos"
            )
    queried = {annotation.vid for split in splits.values() for annotation in split}
    unused = [vid for vid in pack.vids if vid not in queried]
    if unused:
        notes.append(
            f"{len(unused)} of {len(pack)} videos in {pack.path} without a query in any split: "
            f"not used (such as {unused[0]})"
        )
    return notes


def hold_out(
    annotations: list[Annotation], share: float, setting: str
) -> tuple[list[Annotation], list[Annotation]]:
    """Split off the queries of every so many-th video, spread evenly over the sorted names.

    Args:
        annotations: Queries of one split.
        share: Of the videos; 0 holds none out, anything above at least one.
        setting: The config's name of the share, for errors.

    Returns:
        What is left, and the queries of the held-out videos.

    Raises:
        ConfigError: If either part would have no query whose moment is in the video.
    """
    if not share:
        return annotations, []
    vids = sorted({annotation.vid for annotation in annotations})
    count = max(round(share * len(vids)), 1)
    held = {vids[i] for i in np.linspace(0, len(vids) - 1, count).round().astype(int)}
    left = [annotation for annotation in annotations if annotation.vid not in held]
    held_out = [annotation for annotation in annotations if annotation.vid in held]
    if not all(any(a.windows_s for a in part) for part in (left, held_out)):
        raise ConfigError(
            setting,
            expected="queries with moments on both sides of the split",
            got=f"{share:g} of {len(vids)} videos",
            remedy="choose another share, or 0 to hold none out",
        )
    return left, held_out
