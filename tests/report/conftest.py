from pathlib import Path

import pytest
from tests.report.searches import answer, moment, result_of, zero_shot_result

from demr.search.result import SearchResult


@pytest.fixture
def result() -> SearchResult:
    """One answer of each verdict."""
    return result_of(
        answer("a red circle bounces", moments=[moment(62.25, 70.0), moment(10.0, 14.0)]),
        answer("something", "uncertain", [moment(30.0, 36.0, confidence=0.45)], present=0.5),
        answer("a star, spinning", "not in this video", present=0.03),
        answer("a zebra, galloping", "uncertain", present=None, unknown_words=("zebra",)),
    )


@pytest.fixture
def zero_shot() -> SearchResult:
    return zero_shot_result()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "talk 1.mp4"
    path.write_bytes(b"\x00\x01video")
    return path
