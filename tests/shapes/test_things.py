"""Queries that name a thing and no action: when they are true, and how they are worded."""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from demr.shapes import Scene, demo_annotations, demo_scene, make_scene, thing_annotations
from demr.shapes.language import (
    SHAPE_WORDS,
    VISIBLE,
    Semantics,
    sentence,
    sightings,
    true_windows,
    unknown_thing,
)
from demr.shapes.script import COLORS, SHAPES, SPLITS, Actor, Event, Motion, Pose, Split, stable_rng
from demr.shapes.words import unknown_words

RED, BLUE = (214.0, 40.0, 44.0), (42.0, 84.0, 214.0)


@cache
def some_scenes(split: Split) -> list[Scene]:
    return [make_scene(split, seed) for seed in range(20)]


def pose(alpha: float = 1.0, rgb: tuple[float, float, float] = RED) -> Pose:
    return Pose(0.5, 0.5, 0.1, 0.0, alpha, rgb)


def scene_by_hand() -> Scene:
    """A red star fades out from 10 to 14 s and in from 20 to 24 s; at 30 to 34 s it turns blue.

    A red circle is there all the time; a hidden blue star comes in from 36 to 40 s.
    """
    star = Actor(
        0,
        "star",
        "red",
        pose(),
        (
            Motion("blink", 2.0, 6.0, pose(), pose(), rate=8),
            Motion("fade_out", 10.0, 14.0, pose(), pose(0.0)),
            Motion("fade_in", 20.0, 24.0, pose(0.0), pose()),
            Motion("swap", 30.0, 34.0, pose(), pose(rgb=BLUE)),
        ),
    )
    circle = Actor(1, "circle", "red", pose(), ())
    late = Actor(
        2,
        "star",
        "blue",
        pose(0.0, BLUE),
        (Motion("fade_in", 36.0, 40.0, pose(0.0, BLUE), pose(rgb=BLUE)),),
    )
    events = (
        Event(0, "red", "star", "blink", 2.0, 6.0, "red"),
        Event(0, "red", "star", "fade_out", 10.0, 14.0, "red"),
        Event(0, "red", "star", "fade_in", 20.0, 24.0, "red"),
        Event(0, "red", "star", "swap", 30.0, 34.0, "blue"),
        Event(2, "blue", "star", "fade_in", 36.0, 40.0, "blue"),
    )
    return Scene("val", 0, 50.0, (star, circle, late), events)


@pytest.mark.parametrize(
    ("color", "shape", "windows"),
    [
        ("red", "star", ((0, 13), (21, 32))),
        ("blue", "star", ((32, 50),)),
        (None, "star", ((0, 13), (21, 50))),
        ("red", None, ((0, 50),)),
        ("blue", None, ((32, 50),)),
        ("red", "circle", ((0, 50),)),
        (None, None, ((0, 50),)),
        ("blue", "circle", ()),
        ("green", None, ()),
        (None, "bar", ()),
    ],
)
def test_a_thing_is_there_while_it_is_visible(
    color: str | None, shape: str | None, windows: tuple[tuple[float, float], ...]
) -> None:
    # Half of a swap, and a quarter of a fade: 4 s long, so 1 s from its dark end.
    assert true_windows(scene_by_hand(), Semantics(color, shape, None)) == windows


@pytest.mark.parametrize("split", SPLITS)
def test_sightings_are_what_the_renderer_draws(split: Split) -> None:
    for scene in some_scenes(split):
        times_s = np.arange(0.05, scene.duration_s, 0.1)
        for actor in scene.actors:
            alone = Scene(scene.split, 0, scene.duration_s, (actor,), scene.events)
            drawn = actor.states(times_s, blinking=False)
            told = {name: np.zeros(len(times_s), bool) for name in COLORS}
            for seen in sightings(alone):
                assert seen.shape == actor.shape
                told[seen.color] |= (times_s >= seen.start_s) & (times_s < seen.end_s)
            visible = np.any(list(told.values()), axis=0)
            off = np.abs(drawn.alpha - VISIBLE) > 0.05
            np.testing.assert_array_equal(visible[off], drawn.alpha[off] >= VISIBLE)
            nearest = np.array(
                [np.abs(drawn.rgb - np.array(rgb)).max(axis=1) < 30 for rgb in COLORS.values()]
            )
            for row, name in zip(nearest, COLORS, strict=True):
                # Half-way between two colours a third may be near.
                turning = np.zeros(len(times_s), bool)
                for motion in actor.motions:
                    if motion.action == "swap":
                        turning |= (times_s > motion.start_s) & (times_s < motion.end_s)
                sure = row & visible & ~turning
                assert np.all(told[name][sure])


@pytest.mark.parametrize("split", SPLITS)
def test_queries_about_things_tell_the_truth(split: Split) -> None:
    kinds: Counter[str] = Counter()
    for scene in some_scenes(split):
        rows = thing_annotations(scene)
        assert rows == thing_annotations(scene)
        assert len({row.qid for row in rows}) == len(rows)
        seen = [(s.color, s.shape, s.start_s, s.end_s) for s in sightings(scene)]
        for row in rows:
            kinds[row.kind] += 1
            assert row.windows_s is not None
            if row.kind == "unknown":
                assert row.windows_s == ()
                continue
            words = str(row.event).split()
            hits = [
                (start, end)
                for color, shape, start, end in seen
                if all(word in (color, shape) for word in words)
            ]
            assert bool(hits) == bool(row.windows_s) == (row.kind == "thing")
            for t in np.arange(0.05, scene.duration_s, 0.5):
                inside = any(start <= t <= end for start, end in row.windows_s)
                assert inside == any(start <= t <= end for start, end in hits)
        events = [row.event for row in rows if row.kind != "unknown"]
        assert len(set(events)) == len(events)
    assert kinds == {"thing": 80, "absent thing": 80, "unknown": 20}


def test_most_absent_things_resemble_what_is_there() -> None:
    near, together = [], []
    for scene in some_scenes("train"):
        colors = {seen.color for seen in sightings(scene)}
        shapes = {seen.shape for seen in sightings(scene)}
        for row in thing_annotations(scene):
            words = str(row.event).split()
            if row.kind == "absent thing" and len(words) == 2:
                near.append(words[0] in colors or words[1] in shapes)
                together.append(words[0] in colors and words[1] in shapes)
    assert np.mean(near) > 0.7
    assert np.mean(together) > 0.3


def test_things_are_often_not_there_all_the_time() -> None:
    shares = [
        sum(end - start for start, end in row.windows_s or ()) / row.duration_s
        for scene in some_scenes("train")
        for row in thing_annotations(scene)
        if row.kind == "thing"
    ]
    assert 0.3 < np.mean(np.array(shares) > 0.999) < 0.7
    assert np.quantile(shares, 0.1) < 0.6


def test_the_wording_of_things_varies_and_stays_english() -> None:
    rng = stable_rng("test")
    texts = {sentence(Semantics("orange", "star", None), rng) for _ in range(400)}
    assert len(texts) > 80
    assert {"the orange star", "show me the orange star", "orange stars"} <= texts
    every = " | ".join(
        sentence(Semantics(color, shape, None), rng)
        for color in COLORS
        for shape in SHAPES
        for _ in range(20)
    )
    assert not any(
        wrong in every for wrong in ("  ", " a orange", "boxs", "crosss", "pluss ", "None")
    )
    colors = {sentence(Semantics("yellow", None, None), rng) for _ in range(300)}
    assert {"something yellow", "the yellow thing", "yellow shapes"} <= colors


def test_what_this_world_does_not_have_is_unknown() -> None:
    rng = stable_rng("test")
    shapes = {word for words in SHAPE_WORDS.values() for word in words}
    foreign = {word for sort in ("noun", "adjective") for word in unknown_words(sort, "test")}
    for _ in range(200):
        words = set(unknown_thing("iid", rng).lower().rstrip(".?").split())
        assert not words & shapes
        assert words & foreign


def test_a_thing_is_no_event() -> None:
    event = Event(0, "red", "circle", "bounce", 1.0, 5.0, "red")
    asked = Semantics("red", "circle", None)
    assert not asked.matches(event)
    assert asked.name == "red circle"
    assert Semantics(None, None, None).name == "shape"


def test_the_demo_asks_for_a_thing_that_leaves() -> None:
    (row,) = [row for row in demo_annotations(demo_scene(0)) if row.kind == "thing"]
    assert row.query == "the yellow cross"
    assert row.windows_s == ((0.0, 25.0),)
