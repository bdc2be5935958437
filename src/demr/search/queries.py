"""What can be asked: checks of sentences before any video is read."""

from collections.abc import Sequence

from demr.errors import InputError

LONGEST_QUERY_WORDS = 77


def check_queries(queries: Sequence[str], top: int) -> None:
    """Reject a search that asks for nothing, or what cannot be asked.

    Raises:
        InputError: If there is no query, one has no word or too many, or no moment is wanted.
    """
    if not queries:
        raise InputError(
            "queries", expected="at least one", got="an empty list", remedy="ask something"
        )
    if top < 1:
        raise InputError("--top", expected="at least 1", got=str(top), remedy="raise it")
    for text in queries:
        check_query(text)


def check_query(query: str) -> None:
    """Reject what cannot be asked.

    Raises:
        InputError: If the query holds no word or is longer than encoders read.
    """
    words = query.split()
    if not any(map(str.isalnum, query)):
        raise InputError(
            "query",
            expected="a sentence",
            got=f"no word in {query[:20]!r}" if words else "an empty one",
            remedy="describe the moment",
        )
    if len(words) > LONGEST_QUERY_WORDS:
        raise InputError(
            f"query '{' '.join(words[:6])} ...'",
            expected=f"at most {LONGEST_QUERY_WORDS} words",
            got=f"{len(words)}",
            remedy="describe one moment in one sentence",
        )
