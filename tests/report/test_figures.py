from pathlib import Path

from tests.report.searches import answer, moment, result_of

from demr.report.search_figure import search_figure
from demr.search.result import SearchResult


def test_search_figure_is_a_picture(result: SearchResult, tmp_path: Path) -> None:
    money = answer("costs $5 and $6^{", moments=[moment(30.0, 36.0)])
    truth = {"a red circle bounces": [(62.0, 70.0)]}
    path = search_figure(result_of(*result.answers, money), tmp_path / "new" / "answer.png", truth)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [found.name for found in path.parent.iterdir()] == ["answer.png"]


def test_search_figure_without_intervals_or_answers(
    zero_shot: SearchResult, tmp_path: Path
) -> None:
    for result in (zero_shot, result_of()):
        assert search_figure(result, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
