"""Absent queries made of the sentences of a split."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from demr.annotations.annotations import Annotation, read_annotations, write_annotations
from demr.batches import absent
from demr.batches.absent import make_absent, text_qid

THINGS = ("cup", "lamp", "book", "door", "sofa", "plate", "towel", "phone", "shoe", "broom")
ACTIONS = ("opens", "washes", "throws", "lifts", "paints")


def query(qid: str, sentence: str, vid: str, duration_s: float = 30.0) -> Annotation:
    return Annotation(qid, sentence, vid, duration_s, ((2.0, 6.0),))


def split() -> list[Annotation]:
    """Fifty videos, each of one action and one thing."""
    return [
        query(f"q{i}", f"a person {ACTIONS[i % 5]} the {THINGS[i // 5]}", f"v{i}", 20.0 + i)
        for i in range(50)
    ]


@pytest.fixture(params=[True, False], ids=["tagger", "no tagger"], autouse=True)
def _tagger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(absent, "has_tagger", lambda: False)


def shares(first: str, second: str) -> bool:
    """Whether two sentences of the split share the action or the thing, but not both."""
    return len(set(first.split()[2:]) & set(second.split()[2:]) - {"the"}) == 1


def test_every_query_gets_an_absent_one_and_half_of_them_are_hard() -> None:
    annotations = split()
    made = make_absent(annotations)
    assert [a.vid for a in made] == [a.vid for a in annotations]
    assert [a.duration_s for a in made] == [a.duration_s for a in annotations]
    assert all(a.windows_s == () and a.kind == "absent" for a in made)
    assert len({a.qid for a in [*made, *annotations]}) == 100
    sentences = {a.query for a in annotations}
    assert all(m.query in sentences for m in made)
    assert all(m.query != a.query for m, a in zip(made, annotations, strict=True))
    hard = sum(shares(m.query, a.query) for m, a in zip(made, annotations, strict=True))
    # Of 49 other sentences 4 + 9 share a word: by chance 27 % of the other half do.
    assert 25 <= hard <= 25 + 15


def test_equal_seeds_make_equal_queries() -> None:
    assert make_absent(split()) == make_absent(split())
    assert make_absent(split(), 1) == make_absent(split(), 1) != make_absent(split())


def only(annotations: Sequence[Annotation], vid: str) -> set[str]:
    """Sentences that are ever asked about a video."""
    return {a.query for seed in range(20) for a in make_absent(annotations, seed) if a.vid == vid}


@pytest.mark.parametrize(
    "sentence",
    [
        "the person opens a door",  # equal content
        "Person Opens Door!",
        "a man opened the door",  # in another form, by somebody else
        "person opening doors",
        "a person then starts to open the door",
        "a person opens the door of their kitchen",  # says more
        "somebody opens it",  # says less
    ],
)
def test_what_the_video_may_show_is_never_asked(sentence: str) -> None:
    annotations = [
        query("1", "a person opens the door", "a"),
        query("2", sentence, "b"),
        query("3", "a person closes the window", "c"),
    ]
    assert only(annotations, "a") == {"a person closes the window"}


def test_queries_of_a_video_are_those_of_all_its_annotations() -> None:
    unknown = replace(query("4", "a person closes the window", "a"), windows_s=None)
    vague = replace(query("5", "something falls", "a"), kind="vague")
    annotations = [
        query("1", "a person opens the door", "a"),
        query("2", "a person closes the window", "b"),
        query("3", "a lamp falls down", "c"),
        unknown,
        vague,
    ]
    # The window is closed somewhere, and something falls.
    assert only(annotations, "a") == set()
    assert Counter(a.vid for a in make_absent(annotations)) == {"b": 1, "c": 1}


def test_nothing_is_asked_twice_about_a_video() -> None:
    annotations = [query(f"a{i}", f"a person lifts the {THINGS[i]}", "a") for i in range(4)]
    annotations += [query("b", "a dog barks", "b"), query("c", "the dogs are barking", "c")]
    made = [a for a in make_absent(annotations) if a.vid == "a"]
    assert len(made) == 1
    assert made[0].query in {"a dog barks", "the dogs are barking"}


def test_where_a_split_has_absent_queries_or_one_video_none_are_made() -> None:
    assert make_absent([*split(), replace(query("x", "a dog", "v1"), windows_s=())]) == []
    assert make_absent([replace(a, windows_s=None) for a in split()]) == []
    assert make_absent([replace(a, vid="v") for a in split()]) == []
    assert make_absent([]) == []


def test_they_can_be_written_and_their_text_found(tmp_path: Path) -> None:
    annotations = split()
    made = make_absent(annotations)
    write_annotations(tmp_path / "absent.jsonl", made)
    assert read_annotations(tmp_path / "absent.jsonl") == made
    sentences = {a.qid: a.query for a in annotations}
    assert all(sentences[text_qid(a)] == a.query for a in made)
    assert [text_qid(a) for a in annotations] == [a.qid for a in annotations]
    of_the_file = replace(annotations[0], windows_s=())
    assert text_qid(of_the_file) == "q0"


def test_a_qid_of_the_split_is_never_taken_again() -> None:
    annotations = [
        query("1", "a person opens the door", "a"),
        query("2", "a dog barks", "b"),
        query("2-not-in-a", "a lamp falls", "c"),
    ]
    assert only(annotations, "a") == {"a lamp falls"}
