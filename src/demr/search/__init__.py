"""A video and a sentence in, moments with intervals and a verdict out.

It imports :mod:`demr.answers`, :mod:`demr.encoders` and what lies below. Begin with
``retriever.py``; ``result.py`` is what users get.
"""

from typing import TYPE_CHECKING

from demr.machine.lazy import import_on_use

if TYPE_CHECKING:
    from demr.search.queries import check_queries
    from demr.search.result import Answer, Moment, SearchResult
    from demr.search.retriever import EncodedVideo, MomentRetriever
    from demr.search.similarity import Segment, localise
    from demr.search.zero_shot import ZeroShotRetriever, ZeroShotVideo

__all__ = [
    "Answer",
    "EncodedVideo",
    "Moment",
    "MomentRetriever",
    "SearchResult",
    "Segment",
    "ZeroShotRetriever",
    "ZeroShotVideo",
    "check_queries",
    "localise",
]

__getattr__ = import_on_use(
    __name__,
    {
        "queries": ("check_queries",),
        "result": (
            "Answer",
            "Moment",
            "SearchResult",
        ),
        "retriever": (
            "EncodedVideo",
            "MomentRetriever",
        ),
        "similarity": (
            "Segment",
            "localise",
        ),
        "zero_shot": (
            "ZeroShotRetriever",
            "ZeroShotVideo",
        ),
    },
)
