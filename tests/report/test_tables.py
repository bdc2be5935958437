import io

import pytest
from rich.console import Console
from rich.table import Table
from tests.report.searches import HOSTILE, answer, moment, result_of

from demr.report.tables import metrics_table, search_table
from demr.search.result import SearchResult


def printed(table: Table, width: int = 120) -> str:
    # With markup, as anyone's console has it.
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_table_has_every_number(result: SearchResult) -> None:
    text = printed(search_table(result))
    for expected in (
        "1:02.2",
        "1:01.8–02.8",
        "90 %",
        "0.10/0.21",
        "0.10/0.34",
        "0.75",
        "84 %",
        "50 %",
    ):
        assert expected in text
    # Nobody knows of a zebra.
    assert "not known" in text


def test_table_shows_the_truth_at_eighty_columns(result: SearchResult) -> None:
    truth = {"a red circle bounces": [(62.0, 70.5), (10.0, 13.0)], "a star, spinning": []}
    text = printed(search_table(result, truth), width=80)
    for expected in ("1:02.0–10.5", "0:10.0–13.0", "absent", "unknown", "0.75"):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_moment_has_a_row_with_its_own_verdict() -> None:
    doubtful = moment(60.0, 66.0, confidence=0.45)
    text = printed(search_table(result_of(answer("x", moments=[moment(10.0, 20.0), doubtful]))))
    first, second = (line for line in text.splitlines() if "0.75" in line)
    assert first.split()[:2] == ["x", "found"]
    assert second.split()[:2] == ["uncertain", "1:00.0"]
    assert "45 %" in text


@pytest.mark.parametrize("query", HOSTILE)
def test_table_prints_a_query_as_it_is(query: str) -> None:
    table = search_table(result_of(answer(query)), {query: []})
    assert query in printed(table, width=200)
    assert query in printed(metrics_table({query: {"mAP": 3.0}}), width=200)


def test_table_makes_control_characters_visible() -> None:
    text = printed(search_table(result_of(answer("a\x1b[2Jb\nc\u202ed\udcff"))), width=200)
    assert r"a\x1b[2Jb\nc\u202ed\udcff" in text


def test_table_leaves_unknown_numbers_out(zero_shot: SearchResult) -> None:
    text = printed(search_table(zero_shot))
    assert "not known" in text
    assert "0:50.0" in text
    assert "%" not in text
    assert "nan" not in text


def test_metrics_have_a_column_a_split_and_blanks() -> None:
    text = printed(metrics_table({"iid": {"mAP": 51.26, "mIoU": 40.0}, "ood": {"mAP": 7.0}}))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["metric"] == ["iid", "ood"]
    assert rows["mAP"] == ["51.3", "7.0"]
    assert rows["mIoU"] == ["40.0"]
    assert "R1@0.5" not in rows


def test_metrics_that_nothing_was_measured_for_have_no_row() -> None:
    nan = float("nan")
    text = printed(metrics_table({"iid": {"R1@0.5": nan, "mIoU": nan}, "ood": {"mIoU": 7.0}}))
    assert "nan" not in text
    assert "R1@0.5" not in text
    (row,) = (line.split() for line in text.splitlines() if "mIoU" in line)
    assert row == ["mIoU", "7.0"]
