import math
from dataclasses import replace

import pytest
from tests.report.searches import answer, moment, result_of

from demr.report.timeline import Span, lay_out


def test_bars_lie_where_the_times_are() -> None:
    one = answer("x", moments=[moment(20.0, 60.0, half=(4.0, 8.0))])
    drawing = lay_out(one, result_of(one), [(40.0, 80.0)])
    (bar,) = drawing.bars
    assert bar.span == Span(25.0, 50.0)
    assert [whisker.span for whisker in bar.whiskers] == [Span(20.0, 10.0), Span(65.0, 20.0)]
    assert [whisker.shift for whisker in bar.whiskers] == [0.0, 0.0]
    assert drawing.truth == (((40.0, 80.0), Span(50.0, 50.0)),)
    assert drawing.description == "Timeline of 1:20.0: 0:20.0 to 1:00.0"


def test_overlapping_moments_take_lanes_of_their_own() -> None:
    one = answer("x", moments=[moment(10.0, 20.0), moment(18.0, 26.0), moment(40.0, 50.0)])
    first, second, third = lay_out(one, result_of(one), None).bars
    assert first.middle == third.middle < second.middle
    assert second.middle - first.middle == 24


def test_whiskers_that_meet_are_drawn_apart() -> None:
    one = answer("x", moments=[moment(10.0, 14.0, half=(3.0, 3.0))])
    (bar,) = lay_out(one, result_of(one), None).bars
    assert [whisker.shift for whisker in bar.whiskers] == [-3.0, 3.0]


def test_a_moment_of_seconds_in_hours_can_be_seen_and_has_no_whiskers() -> None:
    one = answer("x", moments=[moment(10_000.0, 10_004.0), moment(7196.0, 7200.0)])
    for bar in lay_out(one, result_of(one, duration=7200.0), None).bars:
        assert bar.span.width == pytest.approx(0.6)
        assert bar.span.right <= 100.0
        assert bar.whiskers == ()


def test_unknown_truth_has_no_row_and_an_absent_one_has() -> None:
    one = answer("x", moments=[moment(10.0, 20.0)])
    unknown, absent = lay_out(one, result_of(one), None), lay_out(one, result_of(one), [])
    assert unknown.truth is None
    assert absent.truth == ()
    assert absent.bottom - unknown.bottom == absent.bars_top - unknown.bars_top == 18


def test_what_is_not_in_the_video_has_no_bar() -> None:
    one = answer("x", "not in this video", present=0.02)
    drawing = lay_out(one, result_of(one), None)
    assert drawing.bars == ()
    assert drawing.description.endswith("no moment")


@pytest.mark.parametrize(
    ("duration", "labels"),
    [
        (2.0, ["0:00", "0:00.5", "0:01", "0:01.5", "0:02"]),
        (40.0, ["0:00", "0:10", "0:20", "0:30", "0:40"]),
        (7300.0, ["0:00", "20:00", "40:00", "1:00:00", "1:20:00", "1:40:00", "2:00:00"]),
    ],
)
def test_an_axis_has_few_round_marks(duration: float, labels: list[str]) -> None:
    one = answer("x")
    ticks = lay_out(one, result_of(one, duration=duration), None).ticks
    assert [tick.label for tick in ticks] == labels


def points(curve: str) -> list[tuple[float, float]]:
    """The points that a path goes through."""
    pieces = [list(map(float, piece.split())) for piece in curve[1:].split("C")]
    return [(piece[-2], piece[-1]) for piece in pieces]


def test_a_curve_goes_through_the_middles_of_clips_on_one_scale() -> None:
    one = replace(answer("x"), saliency=(0.0, 1.0, 0.5, math.nan))
    drawing = lay_out(one, result_of(one), None)
    # Bottom at 98, top at 4; what is no number lies at the bottom.
    assert points(drawing.curve) == [
        (0.0, 98.0),
        (125.0, 98.0),
        (375.0, 4.0),
        (625.0, 51.0),
        (875.0, 98.0),
        (1000.0, 98.0),
    ]
    flat = replace(answer("y"), saliency=(0.5,) * 4)
    assert {y for _, y in points(lay_out(flat, result_of(one, flat), None).curve)} == {51.0}
    assert lay_out(replace(one, saliency=()), result_of(one), None).curve == ""


def test_a_peak_survives_in_a_long_curve() -> None:
    saliency = [0.0] * 10_000
    saliency[4321] = 1.0
    one = replace(answer("x"), saliency=tuple(saliency))
    result = replace(result_of(one, duration=10_000.0), clip_s=1.0)
    places = points(lay_out(one, result, None).curve)
    assert len(places) <= 602
    (peak,) = [x for x, y in places if y == 4.0]
    assert peak == pytest.approx(432.1, abs=1.0)
