from collections import Counter
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from demr.shapes import (
    Scene,
    demo_annotations,
    demo_scene,
    event_table,
    frames,
    make_scene,
    render_scene,
    scene_annotations,
)
from demr.shapes.language import (
    ACTION_PHRASES,
    COLOR_WORDS,
    SHAPE_WORDS,
    Semantics,
    merge_windows,
    sentence,
    true_windows,
)
from demr.shapes.render import _distance
from demr.shapes.script import (
    ACTIONS,
    ASPECT,
    COLORS,
    EARLY,
    SHAPES,
    SPLITS,
    Actor,
    Event,
    Motion,
    Pose,
    Split,
    is_held_out,
    may_be_asked,
    may_happen,
    stable_rng,
)
from demr.shapes.words import unknown_words
from demr.video.reading import iter_frames, probe_video

TRAINING: tuple[Split, ...] = ("train", "val", "iid")
ALL: tuple[Split, ...] = (*TRAINING, "ood")


@cache
def some_scenes(split: Split, count: int = 40) -> list[Scene]:
    return [make_scene(split, seed) for seed in range(count)]


def still_pose(**changes: float) -> Pose:
    values = {"x": 0.5, "y": 0.5, "radius": 0.1, "angle_deg": 0.0, "alpha": 1.0} | changes
    return Pose(**values, rgb=(214.0, 40.0, 44.0))


def one_actor_scene(actor: Actor, duration_s: float = 8.0) -> Scene:
    return Scene("val", 0, duration_s, (actor,), ())


# --- scripts


@pytest.mark.parametrize("split", ALL)
def test_a_scene_is_a_function_of_split_and_seed(split: Split) -> None:
    assert make_scene(split, 7) == make_scene(split, 7)
    assert make_scene(split, 7) != make_scene(split, 8)
    assert scene_annotations(make_scene(split, 7)) == scene_annotations(make_scene(split, 7))


def test_the_splits_show_different_scenes() -> None:
    assert len({make_scene(split, 3).events for split in ALL}) == len(ALL)


def test_the_stable_generator_never_changes() -> None:
    # The published data sets depend on these bits.
    assert stable_rng("scene", "train", 0).integers(1 << 30) == 1026813122


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, iid, ood"):
        make_scene("test", 0)  # type: ignore[arg-type]
    assert SPLITS == ALL


@pytest.mark.parametrize("split", ALL)
def test_scenes_keep_the_promised_numbers(split: Split) -> None:
    for scene in some_scenes(split):
        assert 30 <= scene.duration_s <= 120
        assert len(scene.events) >= 4
        assert len(event_table(scene)) == len(scene.events)
        times_s = np.arange(0, scene.duration_s, 0.25)
        on_screen = sum(
            (a.states(times_s, blinking=False).alpha > 0).astype(int) for a in scene.actors
        )
        assert np.all((on_screen >= 3) & (on_screen <= 5))
        for actor in scene.actors:
            mine = [e for e in scene.events if e.object_id == actor.object_id]
            assert len(mine) == len(actor.motions)
            for event in mine:
                assert 0 < event.start_s < event.end_s <= scene.duration_s
                assert 2.99 <= event.end_s - event.start_s <= 16.01
            for before, after in pairwise(mine):
                assert after.start_s - before.end_s >= 1.49


def test_shapes_stay_in_the_picture_and_apart() -> None:
    for scene in some_scenes("train"):
        times_s = np.arange(0, scene.duration_s, 0.5)
        states = [actor.states(times_s, blinking=False) for actor in scene.actors]
        for i, mine in enumerate(states):
            seen = mine.alpha > 0
            reach = mine.radius[seen] * 1.2
            assert np.all(mine.x[seen] >= reach)
            assert np.all(mine.x[seen] <= ASPECT - reach)
            assert np.all(mine.y[seen] >= reach)
            assert np.all(mine.y[seen] <= 1 - reach)
            for theirs in states[:i]:
                both = (mine.alpha > 0) & (theirs.alpha > 0)
                apart = np.hypot(mine.x - theirs.x, mine.y - theirs.y)[both]
                assert np.all(apart > 0.95 * (mine.radius + theirs.radius)[both])


def test_moves_are_long_enough_to_be_seen() -> None:
    moves = [m for s in some_scenes("train") for a in s.actors for m in a.motions]
    sideways = [m for m in moves if m.action in ("move_left", "move_right")]
    upright = [m for m in moves if m.action in ("move_up", "move_down")]
    assert min(abs(m.after.x - m.before.x) for m in sideways) >= 0.25 * ASPECT - 1e-9
    assert min(abs(m.after.y - m.before.y) for m in upright) >= 0.25 - 1e-9


def test_held_out_combinations_occur_in_ood_and_nowhere_else() -> None:
    for split in ALL:
        events = [event for scene in some_scenes(split) for event in scene.events]
        share = np.mean([is_held_out(e.color, e.shape, e.action) for e in events])
        if split == "ood":
            assert 0.3 < share < 0.6
        else:
            assert share == 0


def test_ood_asks_for_held_out_combinations_in_videos_as_full_as_the_others() -> None:
    full = [
        asked
        for scene in some_scenes("ood")
        for row in scene_annotations(scene)
        if row.kind in ("present", "absent")
        and None not in (asked := parse_name(row.event))
        and asked[2] in ACTIONS
    ]
    assert len(full) > 100
    assert all(is_held_out(str(color), str(shape), action) for color, shape, action in full)

    def events_a_minute(split: Split) -> float:
        scenes = some_scenes(split)
        return 60 * sum(len(s.events) for s in scenes) / sum(s.duration_s for s in scenes)

    assert events_a_minute("ood") == pytest.approx(events_a_minute("iid"), rel=0.1)


def test_a_quarter_is_held_out_and_every_pair_stays_well_covered() -> None:
    triples = list(product(COLORS, SHAPES, ACTIONS))
    assert np.mean([is_held_out(*triple) for triple in triples]) == pytest.approx(0.25, abs=0.03)
    known = [triple for triple in triples if may_happen("train", *triple)]
    color_shape = Counter((c, s) for c, s, _ in known)
    color_action = Counter((c, a) for c, _, a in known)
    shape_action = Counter((s, a) for _, s, a in known)
    assert len(color_shape) == 48
    assert len(color_action) == 104
    assert len(shape_action) == 77  # a spinning circle cannot be seen
    assert min(color_shape.values()) >= 8
    assert min(color_action.values()) >= 3
    assert min(shape_action.values()) >= 6


def test_training_shows_every_pair() -> None:
    events = [e for seed in range(200) for e in make_scene("train", seed).events]
    known = [t for t in product(COLORS, SHAPES, ACTIONS) if may_happen("train", *t)]
    assert {(e.color, e.shape) for e in events} == {(c, s) for c, s, _ in known}
    assert {(e.color, e.action) for e in events} == {(c, a) for c, _, a in known}
    assert {(e.shape, e.action) for e in events} == {(s, a) for _, s, a in known}


def test_ood_flips_the_place_of_the_actions_in_the_video() -> None:
    def share_of_early_actions(split: Split, first_half: bool) -> float:
        actions = [
            event.action
            for scene in some_scenes(split)
            for event in scene.events
            if ((event.start_s + event.end_s) / 2 < scene.duration_s / 2) == first_half
        ]
        return float(np.mean([action in EARLY for action in actions]))

    assert share_of_early_actions("train", True) > share_of_early_actions("train", False) + 0.25
    assert share_of_early_actions("ood", True) < share_of_early_actions("ood", False) - 0.25


def test_motions_by_hand() -> None:
    home = still_pose()
    there = still_pose(x=1.0)
    actor = Actor(
        0,
        "circle",
        "red",
        home,
        (
            Motion("move_right", 1.0, 5.0, home, there),
            Motion("bounce", 6.0, 10.0, there, there, rate=4, amplitude=0.2),
            Motion("blink", 12.0, 14.0, there, there, rate=4),
            Motion("grow", 15.0, 17.0, there, still_pose(x=1.0, radius=0.16)),
        ),
    )
    states = actor.states(np.array([0.0, 1.0, 3.0, 5.0, 6.5, 7.0, 12.1, 12.4, 16.0, 30.0]))
    assert states.x[:4] == pytest.approx([0.5, 0.5, 0.75, 1.0])
    assert states.y[4:6] == pytest.approx([0.3, 0.5])
    assert states.alpha.tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    assert states.radius[-2:] == pytest.approx([np.sqrt(0.1 * 0.16), 0.16])
    assert np.all(actor.states(np.array([12.1]), blinking=False).alpha == 1)


def test_a_swap_exchanges_the_colours() -> None:
    swaps = [(s, e) for s in some_scenes("train") for e in s.events if e.action == "swap"]
    assert swaps
    for scene, event in swaps:
        partners = [
            e
            for e in scene.events
            if e.action == "swap" and e.start_s == event.start_s and e.color == event.color_after
        ]
        assert any(e.color_after == event.color for e in partners)
    for scene, event in swaps[:20]:
        before, after = (
            scene.actors[event.object_id]
            .states(np.array([event.start_s - 0.01, event.end_s + 0.01]))
            .rgb
        )
        assert np.abs(before - COLORS[event.color]).max() < 30
        assert np.abs(after - COLORS[event.color_after]).max() < 30


# --- sentences


@pytest.mark.parametrize("split", ALL)
def test_queries_tell_the_truth(split: Split) -> None:
    kinds: Counter[str] = Counter()
    for scene in some_scenes(split):
        rows = scene_annotations(scene)
        assert len({row.qid for row in rows}) == len(rows)
        for number, row in enumerate(rows):
            kinds[row.kind] += 1
            assert row.qid == f"{scene.vid}_{number:02d}"
            assert row.windows_s is not None
            assert all(0 <= start < end <= scene.duration_s for start, end in row.windows_s)
            asked = parse_name(row.event) if row.kind != "unknown" else None
            if row.event == "shape":  # asks for anything at all
                assert row.windows_s == ((0.0, scene.duration_s),)
                continue
            hits = [e for e in scene.events if asked is not None and naive_match(asked, e)]
            assert bool(hits) == bool(row.windows_s)
            covered = {t for e in hits for t in range(round(e.start_s), round(e.end_s))}
            told = {t for s, e in row.windows_s for t in range(round(s), round(e))}
            assert covered <= told
            if row.kind == "absent" and asked is not None and None not in asked:
                color, shape, action = asked
                if action in ACTIONS:
                    assert may_be_asked(split, str(color), str(shape), str(action))
        present_rows = [r for r in rows if r.kind == "present"]
        assert len({r.event for r in present_rows}) == len(present_rows)
    assert kinds["absent"] == 8 * 40
    assert kinds["present"] >= 7.8 * 40
    assert kinds["vague"] == kinds["unknown"] == 40


def parse_name(name: str | None) -> tuple[str | None, str | None, str]:
    words = str(name).split()
    color = next((w for w in words if w in COLORS), None)
    shape = next((w for w in words if w in SHAPES), None)
    return color, shape, words[-1]


def naive_match(asked: tuple[str | None, str | None, str], event: Event) -> bool:
    color, shape, action = asked
    groups = {
        "travel": event.action.startswith("move"),
        "resize": event.action in ("grow", "shrink"),
        "motion": event.action.startswith("move") or event.action in ("bounce", "wobble", "spin"),
        "any": True,
    }
    if color is not None and color != event.color:
        return False
    if shape is not None and shape != event.shape:
        return False
    return groups.get(action, event.action == action)


def test_most_absent_queries_are_one_attribute_away_from_an_event() -> None:
    near = []
    for scene in some_scenes("train"):
        for row in scene_annotations(scene):
            asked = parse_name(row.event)
            if row.kind == "absent" and None not in asked:
                near.append(
                    any(
                        sum(
                            a != b for a, b in zip(asked, (e.color, e.shape, e.action), strict=True)
                        )
                        == 1
                        for e in scene.events
                    )
                )
    assert np.mean(near) > 0.7


def test_a_fair_share_of_queries_has_several_windows() -> None:
    counts = [
        len(row.windows_s or ())
        for scene in some_scenes("train")
        for row in scene_annotations(scene)
        if row.kind == "present"
    ]
    assert 0.15 < np.mean([count > 1 for count in counts]) < 0.5


def test_a_swap_is_never_absent_under_the_colour_that_it_ends_with() -> None:
    asked = Semantics("blue", "circle", "swap")
    event = Event(0, "red", "circle", "swap", 1.0, 5.0, color_after="blue")
    assert not asked.matches(event)
    assert asked.nearly_matches(event)
    assert not Semantics("green", "circle", "swap").nearly_matches(event)


def test_windows_merge_by_hand() -> None:
    assert merge_windows([(5.0, 7.0), (1.0, 2.0), (6.0, 9.0), (2.0, 3.0)]) == ((1, 3), (5, 9))
    assert merge_windows([]) == ()


def test_wording_varies_and_stays_english() -> None:
    rng = stable_rng("test")
    texts = {sentence(Semantics("orange", "star", "spin"), rng) for _ in range(300)}
    assert len(texts) > 100
    assert not any("  " in text or " a orange" in text for text in texts)
    assert any("spinning" in text for text in texts)
    assert any("revolves" in text for text in texts)
    every = [
        sentence(Semantics(color, shape, action), rng)
        for color, shape, action in product((None, *COLORS), (None, *SHAPES), ACTION_PHRASES)
    ]
    assert not any(
        wrong in " ".join(every) for wrong in ("spining", "goed", "goeing", "|", "flashs")
    )


def test_unknown_words_are_many_foreign_and_split_in_two() -> None:
    world = {
        word
        for table in (COLOR_WORDS, SHAPE_WORDS, ACTION_PHRASES)
        for phrases in table.values()
        for phrase in phrases
        for word in phrase.replace("|", " ").replace("-", " ").split()
    }
    train, test = (
        {word for sort in ("noun", "verb", "adjective") for word in unknown_words(sort, part)}
        for part in ("train", "test")
    )
    assert len(train | test) >= 250
    assert len(train & test) == 0
    assert not (train | test) & world
    seen = {
        word
        for scene in some_scenes("train")
        for row in scene_annotations(scene, 0, 0, 0, 5)
        for word in row.query.lower().rstrip(".").split()
    }
    assert not seen & {w for w in test if w not in train}


def test_the_demo_asks_every_kind_of_question() -> None:
    scene = demo_scene(0)
    rows = demo_annotations(scene)
    assert scene.duration_s == 40
    assert Counter(row.kind for row in rows) == {
        "present": 5,
        "thing": 1,
        "absent": 3,
        "unknown": 1,
        "vague": 1,
    }
    assert sum(len(row.windows_s or ()) == 2 for row in rows if row.kind == "present") == 1
    assert all(bool(row.windows_s) == (row.kind in ("present", "thing", "vague")) for row in rows)
    assert demo_scene(0) == demo_scene(0)
    assert demo_scene(0).actors != demo_scene(1).actors
    assert not any(is_held_out(e.color, e.shape, e.action) for e in scene.events)
    assert true_windows(scene, Semantics(None, "circle", "bounce")) == ((6.5, 12.0), (25.0, 30.5))


# --- pixels


def redness(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    values = rgb.astype(int)
    red: NDArray[np.bool_] = values[..., 0] - np.maximum(values[..., 1], values[..., 2]) > 60
    return red


def test_a_moving_shape_moves_in_its_window_and_stands_still_outside() -> None:
    start, end = still_pose(x=0.4), still_pose(x=1.3)
    actor = Actor(0, "square", "red", start, (Motion("move_right", 2.0, 6.0, start, end),))
    centres = []
    for frame in frames(one_actor_scene(actor), 192, 108, 8):
        assert frame.shape == (108, 192, 3)
        assert frame.dtype == np.uint8
        centres.append(np.argwhere(redness(frame)).mean(axis=0))
    x = np.array(centres)[:, 1] / 192 * ASPECT
    assert len(x) == 64
    assert np.ptp(x[:17]) < 0.05  # the camera shakes a little
    assert np.ptp(x[48:]) < 0.05
    assert x[0] == pytest.approx(0.4, abs=0.04)
    assert x[-1] == pytest.approx(1.3, abs=0.04)
    assert np.all(np.diff(x[18:47]) > 0)


def test_frames_look_alike_at_every_size() -> None:
    scene = make_scene("val", 1)
    small = next(frames(scene, 192, 108, 1)).astype(float)
    large = next(frames(scene, 576, 324, 1)).astype(float)
    shrunk = large.reshape(108, 3, 192, 3, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 6


def test_rendering_is_deterministic_and_noisy() -> None:
    scene = one_actor_scene(Actor(0, "star", "red", still_pose(), ()), duration_s=1.0)
    first, second = (list(frames(scene, 96, 54, 4)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_the_area_of_their_formulas(shape: str) -> None:
    line = np.arange(-60, 60) + 0.5
    x, y = np.meshgrid(line, line)
    inside = _distance(shape, x, y, 40.0, 0.7) < 0
    tenth = 0.5 * 48 * 20.8 * np.sin(np.pi / 5)  # of a star: from centre over tip to knee
    expected = {
        "circle": np.pi * 40**2,
        "square": (2 * 33.6) ** 2,
        "bar": 4 * 46.4 * 12.8,
        "cross": 2 * 4 * 44 * 13.6 - 4 * 13.6**2,
        "triangle": 3 * np.sqrt(3) * 24**2,
        "star": 10 * tenth,
    }
    assert inside.sum() == pytest.approx(expected[shape], rel=0.01)
    assert np.hypot(x, y)[inside].max() <= 1.2 * 40 + 1


def test_an_unknown_shape_cannot_be_drawn() -> None:
    actor = Actor(0, "heptagon", "red", still_pose(), ())
    with pytest.raises(ValueError, match="heptagon"):
        next(frames(one_actor_scene(actor), 96, 54, 1))


def test_the_rendered_file_shows_the_scene(tmp_path: Path) -> None:
    scene = make_scene("val", 2)
    path = tmp_path / "scene.mp4"
    render_scene(scene, path)
    info = probe_video(path)
    assert (info.width, info.height, info.codec) == (192, 108, "h264")
    assert info.duration_s == pytest.approx(scene.duration_s, abs=1e-3)
    wanted = {i: f for i, f in enumerate(frames(scene, 192, 108, 8)) if i in (0, 40, 200)}
    for frame in iter_frames(path, [i / 8 for i in wanted]):
        drawn = wanted[round(frame.time_s * 8)].astype(float)
        assert np.abs(frame.rgb.astype(float) - drawn).mean() < 8
