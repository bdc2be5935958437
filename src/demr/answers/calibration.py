"""From a model's raw uncertainty to intervals that cover and a presence one can believe.

Fitted on validation queries (or on fifty labels of one's own) after training; the network is
not touched. Saved beside the weights as ``calibration.json``.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from demr.answers.domain import check_domain
from demr.answers.intervals import LEVELS, IntervalCalibrator
from demr.answers.presence import LEAST_POINTS, PresenceCalibrator, Standardizer, numbers
from demr.answers.proposals import Ranking
from demr.errors import InputError, ModelError
from demr.machine.documents import format_version, read_json
from demr.machine.files import atomic_path

__all__ = [
    "FORMAT_VERSION",
    "LEVELS",
    "Calibration",
    "IntervalCalibrator",
    "PresenceCalibrator",
    "Standardizer",
    "check_counts",
]

FORMAT_VERSION = 4
_PARTS = ("interval", "further", "presence", "confidence", "further_confidence")
_Part = TypeVar("_Part", IntervalCalibrator, PresenceCalibrator)


def check_counts(present: int, absent: int, subject: str = "calibration") -> None:
    """Check that there are queries enough to calibrate on; a training should not end to find out.

    Args:
        present: Queries with windows.
        absent: Queries whose moment is not in the video; presence is fitted on as many of either
            kind, and not at all without.
        subject: What is too small, for the message.

    Raises:
        InputError: If there are too few of a kind.
    """
    if present < LEAST_POINTS:
        raise InputError(
            subject,
            expected=f"at least {LEAST_POINTS} queries with windows to calibrate intervals on",
            got=str(present),
            remedy="add labelled queries",
        )
    if absent and 2 * absent < LEAST_POINTS:
        raise InputError(
            subject,
            expected=f"at least {-(-LEAST_POINTS // 2)} absent queries to calibrate presence on, "
            "or none",
            got=str(absent),
            remedy="add absent queries, or leave these out",
        )


@dataclass(frozen=True)
class Calibration:
    """All that is fitted on validation after training; ``calibration.json`` of a run folder.

    Attributes:
        interval: Of the boundaries of a query's first moment; None if not fitted.
        further: Of those of the moments after it, where a query has several true windows; None
            if too few have.
        presence: Of the moment; None if not fitted.
        confidence: That a query's best moment is a true one, at an IoU of 0.5 and more; None if
            not fitted.
        further_confidence: That a moment after it is another true one; None if not fitted.
        tau: Weight of the standardised log epistemic uncertainty in the ranking.
        ranking: ``score``, ``uncertainty``, ``fusion`` or ``voting``.
        thresholds: Named limits of ``present`` and of the confidence of moments, from which
            verdicts are made.
        disagreement: Weight of the voters' spread where the ranking is ``voting``.
        domain: What the videos look like that it was fitted on, where those are others than the
            model's own; see :func:`demr.answers.domain.describe_domain`.
        known_words: Words of their present queries.
    """

    interval: IntervalCalibrator | None = None
    further: IntervalCalibrator | None = None
    presence: PresenceCalibrator | None = None
    confidence: PresenceCalibrator | None = None
    further_confidence: PresenceCalibrator | None = None
    tau: float = 0.0
    ranking: str = "score"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    disagreement: float = 1.0
    domain: Mapping[str, Any] | None = None
    known_words: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the format's version."""
        parts = {name: getattr(self, name) for name in _PARTS}
        return {
            "version": FORMAT_VERSION,
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
            "tau": self.tau,
            "disagreement": self.disagreement,
            "ranking": self.ranking,
            "thresholds": dict(self.thresholds),
            "domain": None if self.domain is None else dict(self.domain),
            "known_words": list(self.known_words),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; the version is :meth:`load`'s to check.

        Raises:
            InputError, KeyError, TypeError, ValueError: If it is damaged.
        """
        thresholds = data["thresholds"]
        if data["ranking"] not in get_args(Ranking) or not isinstance(thresholds, dict):
            raise TypeError(f"ranking must be one of {get_args(Ranking)}, thresholds an object")
        judges = data["presence"] is not None
        if judges and not {"found", "absent"} <= thresholds.keys():
            raise ValueError("thresholds must have found and absent, as there is presence")
        # Formats 1 and 2 said of further moments what they knew of the first, none before 4 how
        # sure a moment is, and format 1 nothing of disagreement.
        later = {"further": None, "confidence": None, "further_confidence": None}
        data = {**later, "disagreement": 1.0, "domain": None, "known_words": [], **data}
        if not isinstance(data["known_words"], list):
            raise TypeError("known_words must be a list")

        def part(name: str, kind: type[_Part]) -> _Part | None:
            return None if data[name] is None else kind.from_dict(data[name])

        return cls(
            part("interval", IntervalCalibrator),
            part("further", IntervalCalibrator),
            part("presence", PresenceCalibrator),
            part("confidence", PresenceCalibrator),
            part("further_confidence", PresenceCalibrator),
            float(numbers(data, "tau", ())),
            data["ranking"],
            {str(name): float(numbers(thresholds, name, ())) for name in thresholds},
            float(numbers(data, "disagreement", ())),
            check_domain(data["domain"]),
            tuple(map(str, data["known_words"])),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all; what was there stays until then.

        Raises:
            ModelError: If it cannot be written, or holds a number that is not finite.
        """
        target = Path(path)
        try:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        except ValueError as error:
            raise ModelError(
                f"calibration for {target}",
                expected="finite numbers",
                got=str(error),
                remedy="fit the calibration again",
            ) from error
        try:
            with atomic_path(target) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ModelError(
                str(target),
                expected="a place that can be written",
                got=error.strerror or str(error),
                remedy="free space or choose another folder; the old file is unchanged",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by :meth:`save`.

        Raises:
            ModelError: If it is missing, damaged, or of a newer format.
        """
        target = Path(path)
        try:
            data = read_json(target)
            if not isinstance(data, dict):
                raise TypeError("not a JSON object")
            version = format_version(data, "version", FORMAT_VERSION)
        except OSError as error:
            raise ModelError(
                str(target),
                expected="a calibration file",
                got=error.strerror or str(error),
                remedy="run demr calibrate",
            ) from error
        except (TypeError, ValueError) as error:
            raise _damaged(target, error) from error
        if version > FORMAT_VERSION:
            raise ModelError(
                str(target),
                expected=f"calibration format {FORMAT_VERSION} or older",
                got=f"format {version}",
                remedy="update demr",
            )
        try:
            return cls.from_dict(data)
        except (
            InputError,
            AttributeError,
            LookupError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise _damaged(target, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        str(path),
        expected="a calibration file as demr writes it",
        got=f"a damaged one ({type(error).__name__}: {str(error)[:200]})",
        remedy="run demr calibrate again",
    )
