import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.searches import UNKNOWN, answer, moment, result_of

from demr.report.wording import (
    best_iou,
    explain_answer,
    percent,
    unique_notes,
    window_text,
)
from demr.search.result import SearchResult


def test_the_room_is_light() -> None:
    code = "import sys, demr.report; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "matplotlib", "jinja2", "scipy"} & set(done.stdout.split())


def test_a_window_repeats_the_minutes_only_where_they_differ() -> None:
    assert window_text(3599.0, 3601.0) == "59:59.0–1:00:01.0"
    assert window_text(3601.0, 3602.5) == "1:00:01.0–02.5"


def test_percent_never_claims_certainty() -> None:
    assert [percent(share) for share in (0, 1e-9, 0.494, 0.9999, 1)] == [
        "0 %",
        "<1 %",
        "49 %",
        ">99 %",
        "100 %",
    ]


def iou_by_hand(a: tuple[float, float], b: tuple[float, float]) -> float:
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return shared / (max(a[1], b[1]) - min(a[0], b[0])) if shared > 0 else 0.0


@given(st.tuples(*[st.floats(0, 100)] * 2), st.lists(st.tuples(*[st.floats(0, 100)] * 2)))
def test_best_iou_is_the_highest(
    own: tuple[float, float], others: list[tuple[float, float]]
) -> None:
    windows = [(min(pair), max(pair)) for pair in others]
    low, high = sorted(own)
    expected = max((iou_by_hand((low, high), window) for window in windows), default=0.0)
    assert best_iou(moment(low, high), windows) == pytest.approx(expected)


def test_best_iou_of_numbers_by_hand() -> None:
    assert best_iou(moment(0.0, 4.0), [(1.0, 5.0), (3.0, 9.0)]) == pytest.approx(0.6)
    assert best_iou(moment(0.0, 4.0), [(4.0, 5.0)]) == 0.0
    assert best_iou(moment(0.0, 4.0), []) == 0.0


def test_notes_are_said_once_and_name_the_queries_they_are_about() -> None:
    strange = "this video looks unlike anything the model was trained on"
    result = result_of(
        replace(answer("a star spins"), notes=(strange,)),
        replace(answer("a giraffe sings"), notes=(strange, "never trained on: giraffe")),
    )
    assert unique_notes(result) == [
        f"note: {strange}",
        "note on 'a giraffe sings': never trained on: giraffe",
    ]


def test_words_say_which_boundary_is_less_sure() -> None:
    one = answer("x", moments=[moment(10.0, 20.0, half=(0.4, 1.6))])
    assert explain_answer(one, result_of(one)) == (
        "The start is known to about ± 0.4 s (90 % sure), the end is less sure: ± 1.6 s."
    )
    other = answer("x", moments=[moment(10.0, 12.0, half=(3.0, 1.0))])
    assert explain_answer(other, result_of(other)) == (
        "The end is known only to about ± 1.0 s (90 % sure), the start is less sure: ± 3.0 s. "
        "That is wide for a moment of 2.0 s."
    )


def test_words_tell_absence_from_ignorance(result: SearchResult) -> None:
    assert explain_answer(result.answers[2], result) == (
        "Probably not in this video: the chance that it is in this video is put at 3 %."
    )
    unknown = result.answers[3]
    assert explain_answer(unknown, result) == "Whether it is in this video is not known."
    guess = replace(unknown, moments=(moment(10.0, 20.0),))
    assert explain_answer(guess, result) == (
        "Whether it is in this video is not known. The moment below is a guess."
    )


def test_a_moment_without_intervals_has_no_words_about_them() -> None:
    bare = replace(moment(10.0, 20.0), start_interval=UNKNOWN, end_interval=UNKNOWN)
    one = answer("x", moments=[bare])
    assert explain_answer(one, result_of(one)) == ""


def test_words_compare_the_epistemic_part_with_that_of_the_other_answers() -> None:
    usual = [answer(str(i), moments=[moment(10.0, 20.0, epistemic=0.1)]) for i in range(3)]
    odd = answer("odd", moments=[moment(10.0, 20.0, epistemic=0.35)])
    assert "3.5 times" in explain_answer(odd, result_of(*usual, odd))
    assert "times" not in explain_answer(usual[0], result_of(*usual, odd))
    assert "times" not in explain_answer(odd, result_of(usual[0], odd))  # two are no crowd


def test_words_do_not_call_a_trained_model_untrained(zero_shot: SearchResult) -> None:
    assert "Zero-shot" in explain_answer(zero_shot.answers[0], zero_shot)
    one = answer("x", "uncertain", [moment(10.0, 20.0)], present=None)
    assert "Zero-shot" not in explain_answer(one, result_of(one))
