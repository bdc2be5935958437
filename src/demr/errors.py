"""The errors a user can cause or repair; each is one line that says what to do."""

from typing import Any


class DemrError(Exception):
    """Base of all errors that a user can act upon.

    The command line prints ``str(error)`` and exits with code 2.

    Args:
        subject: What is wrong, named as the user knows it (a path, an option, a key).
        expected: What would have been right.
        got: What was found instead.
        remedy: What to do about it.
    """

    def __init__(self, subject: str, *, expected: str, got: str, remedy: str) -> None:
        self.subject = subject
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(_one_line(f"{subject}: expected {expected}, got {got}; {remedy}"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes, with all that they are made of."""
        return _rebuild, (type(self), self.subject, self.expected, self.got, self.remedy)


class InputError(DemrError):
    """A query, an argument or a file given by the user cannot be used."""


class VideoError(DemrError):
    """A video cannot be opened, decoded or written."""


class AnnotationError(DemrError):
    """A file of queries or predictions breaks its format."""


class FeatureError(DemrError):
    """Features are missing, damaged, or were made by another encoder."""


class ConfigError(DemrError):
    """A training config has an unknown key, a wrong type or an impossible value."""


class ModelError(DemrError):
    """A model or run folder is missing, damaged, or of a newer format."""


def _rebuild(kind: type[DemrError], subject: str, *rest: str) -> DemrError:
    expected, got, remedy = rest
    return kind(subject, expected=expected, got=got, remedy=remedy)


def _one_line(text: str) -> str:
    return " ".join(text.split())
