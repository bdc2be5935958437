from typing import Any

import pytest

from demr.machine.documents import format_version, parse_json


@pytest.mark.parametrize("text", ['{"a": [1, -2.5, null, true, "x"]}', "[]", "1e300", '"nan"'])
def test_plain_json(text: str) -> None:
    assert parse_json(text) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a": ' * 100_000, "nested deeper"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a": [' * 40 + "1" + "]}" * 40, "nested deeper than 64 levels"),
        ("1e400", "beyond all numbers"),
        ("[-1e999]", "beyond all numbers"),
        ("NaN", "NaN is not a number"),
        ("[Infinity]", "Infinity is not a number"),
        ("-Infinity", "-Infinity is not a number"),
        ("1" + "0" * 400, "a whole number of 401 digits"),
        ("1" + "0" * 5000, "a whole number of 5001 digits"),
        ("18446744073709551616", "a whole number of 20 digits"),
        ("{", "Expecting"),
        ("", "Expecting value"),
    ],
)
def test_json_that_no_one_counts_with(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None, [1], {}])
def test_a_version_is_a_whole_number_from_1_on(version: Any) -> None:
    with pytest.raises(ValueError, match="under version, where formats are numbered 1 to 3"):
        format_version({"version": version}, "version", 3)
    assert format_version({"version": 4}, "version", 3) == 4
