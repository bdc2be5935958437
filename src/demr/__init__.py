"""Find the moment in a video that a sentence describes, and know how far to trust the answer.

Public names are imported when they are first used, so that ``import demr`` stays fast
and loads no torch:

>>> import demr
>>> "MomentRetriever" in dir(demr)
True
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demr import evidential
    from demr.errors import DemrError
    from demr.search.result import Answer, Moment, SearchResult
    from demr.search.retriever import MomentRetriever
    from demr.search.zero_shot import ZeroShotRetriever

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "DemrError",
    "Moment",
    "MomentRetriever",
    "SearchResult",
    "ZeroShotRetriever",
    "__version__",
    "evidential",
]

_HOME = {
    "Answer": "demr.search.result",
    "DemrError": "demr.errors",
    "Moment": "demr.search.result",
    "MomentRetriever": "demr.search.retriever",
    "SearchResult": "demr.search.result",
    "ZeroShotRetriever": "demr.search.zero_shot",
}


def __getattr__(name: str) -> object:
    if name == "evidential":
        return import_module("demr.evidential")
    if name in _HOME:
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
