"""Find the moment in a video that a sentence describes, and know how far to trust the answer.

Public names are imported when they are first used, so that ``import demr`` stays fast
and loads no torch:

>>> import demr
>>> "MomentRetriever" in dir(demr)
True
"""

from importlib import import_module
from typing import TYPE_CHECKING

from demr.machine.lazy import import_on_use

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
    "errors": ("DemrError",),
    "search.result": ("Answer", "Moment", "SearchResult"),
    "search.retriever": ("MomentRetriever",),
    "search.zero_shot": ("ZeroShotRetriever",),
}
_get = import_on_use(__name__, _HOME)


def __getattr__(name: str) -> object:
    return import_module("demr.evidential") if name == "evidential" else _get(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
