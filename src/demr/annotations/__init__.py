"""Queries about videos and the windows they describe, read from the field's files and repaired.

It imports :mod:`demr.machine`, :mod:`demr.errors` and NumPy, never torch. Begin with
:class:`Annotation` in ``annotations.py``; ``formats.py`` tells the forms apart that others publish,
and ``windows.py`` has overlap (IoU) and non-maximum suppression.
"""

from demr.annotations.annotations import (
    Annotation,
    Window,
    may_share_qid,
    read_annotations,
    read_annotations_with_report,
    saliency_votes,
    tidy_query,
    write_annotations,
)
from demr.annotations.records import Qid
from demr.annotations.repairs import RepairReport
from demr.annotations.windows import iou, suppress, true_windows, window_iou

__all__ = [
    "Annotation",
    "Qid",
    "RepairReport",
    "Window",
    "iou",
    "may_share_qid",
    "read_annotations",
    "read_annotations_with_report",
    "saliency_votes",
    "suppress",
    "tidy_query",
    "true_windows",
    "window_iou",
    "write_annotations",
]
