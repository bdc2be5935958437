"""The builtin encoder on frames drawn here, where every motion is known by hand."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from demr.encoders import EncoderIdentity, clip_count, get_encoder, needs_training
from demr.encoders.builtin.encoder import VIDEO_DIM, describe_frames
from demr.encoders.builtin.track_codes import HUE_DIM, MOTION_DIM, MOTIONS, SHAPE_DIM
from demr.encoders.words import split_words, word_vector
from demr.errors import FeatureError, InputError
from demr.video.writing import VideoWriter

Frame = NDArray[np.uint8]
Drawing = Callable[[int], NDArray[np.bool_]]

_HEIGHT, _WIDTH = 108, 192
_ROW, _COLUMN = np.mgrid[:_HEIGHT, :_WIDTH]
_RED, _BLUE = (220, 30, 30), (30, 60, 220)
# The hue bins, 30 degrees each, in which these two colours lie.
_RED_BIN, _BLUE_BIN = 0, 8
RED_STARTS = [0.1097, -0.0337, -0.0044, -0.0717]


def disc(x: float, y: float, radius: float = 12) -> NDArray[np.bool_]:
    return np.asarray(np.hypot(_COLUMN - x, _ROW - y) < radius)


def square(x: float, y: float, angle: float = 0, half: float = 12) -> NDArray[np.bool_]:
    along = (_COLUMN - x) * np.cos(angle) + (_ROW - y) * np.sin(angle)
    across = (_ROW - y) * np.cos(angle) - (_COLUMN - x) * np.sin(angle)
    return np.asarray((np.abs(along) < half) & (np.abs(across) < half))


def draw(samples: int, *objects: tuple[Drawing, tuple[int, int, int]]) -> list[Frame]:
    """Frames with coloured objects on a noisy grey wall, eight a second."""
    rng = np.random.default_rng(0)
    wall = 110 + rng.normal(0, 6, (_HEIGHT, _WIDTH, 1)) + rng.normal(0, 2, (_HEIGHT, _WIDTH, 3))
    frames = []
    for sample in range(samples):
        frame = wall + rng.normal(0, 2, wall.shape)
        for drawing, colour in objects:
            frame[drawing(sample)] = colour
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def hue_motion(features: NDArray[np.float32], clip: int, hue: int) -> dict[str, float]:
    table = features[clip, : HUE_DIM * MOTION_DIM].reshape(HUE_DIM, MOTION_DIM)
    return dict(zip(MOTIONS, table[hue].tolist(), strict=True))


def shape_motion(features: NDArray[np.float32], clip: int, motion: str) -> NDArray[np.float32]:
    begin = HUE_DIM * MOTION_DIM
    block = features[clip, begin : begin + SHAPE_DIM * MOTION_DIM]
    return block.reshape(SHAPE_DIM, MOTION_DIM)[:, MOTIONS.index(motion)]


@pytest.mark.parametrize(
    ("name", "dx", "dy"),
    [("left", -2, 0), ("right", 2, 0), ("up", 0, -1), ("down", 0, 1)],
)
def test_direction_of_motion_is_the_one_drawn(name: str, dx: int, dy: int) -> None:
    frames = draw(32, (lambda i: disc(96 + dx * (i - 16), 54 + dy * (i - 16)), _RED))
    motion = hue_motion(describe_frames(frames, 4), 2, _RED_BIN)
    others = {"left", "right", "up", "down"} - {name}
    assert motion[name] > 0.3
    assert motion["far_" + name] > 0.3
    assert all(motion[other] < 0.05 and motion["far_" + other] < 0.05 for other in others)
    assert motion["turn_cw"] + motion["turn_ccw"] < 0.1


def test_two_objects_are_told_apart() -> None:
    """The same two objects and the same two motions, dealt out the other way round."""
    moving, still = (lambda i: disc(40 + 2 * i, 30)), (lambda _: square(140, 80))
    one = describe_frames(draw(32, (moving, _RED), (still, _BLUE)), 4)
    other = describe_frames(draw(32, (moving, _BLUE), (still, _RED)), 4)
    assert hue_motion(one, 1, _RED_BIN)["right"] > 0.3
    assert hue_motion(one, 1, _BLUE_BIN)["right"] < 0.03
    assert hue_motion(one, 1, _BLUE_BIN)["still"] > 0.5
    assert hue_motion(other, 1, _BLUE_BIN)["right"] > 0.3
    assert hue_motion(other, 1, _RED_BIN)["right"] < 0.03
    # Order 0 is the disc, order 4 the square.
    moves = shape_motion(one, 1, "right")
    assert moves[0] > 5 * moves[3]
    stays = shape_motion(one, 1, "still")
    assert stays[3] > 3 * stays[0]


@pytest.mark.parametrize(("rate", "name"), [(0.2, "turn_cw"), (-0.2, "turn_ccw")])
def test_spin_is_seen_with_its_sense(rate: float, name: str) -> None:
    motion = hue_motion(
        describe_frames(draw(32, (lambda i: square(96, 54, rate * i), _BLUE)), 4), 2, _BLUE_BIN
    )
    opposite = {"turn_cw": "turn_ccw", "turn_ccw": "turn_cw"}[name]
    assert motion[name] > 0.4
    assert motion[opposite] < 0.05
    assert motion["still"] < 0.2
    assert motion["right"] + motion["left"] < 0.05


def test_still_object_does_nothing() -> None:
    motion = hue_motion(describe_frames(draw(32, (lambda _: square(96, 54), _BLUE)), 4), 2, 8)
    busy = set(MOTIONS) - {"still", "present", "active_first", "active_second"}
    assert motion["still"] > 0.4
    assert all(motion[name] < 0.1 for name in busy)


def test_blink_grow_swing_and_fade() -> None:
    def blinking(i: int) -> NDArray[np.bool_]:
        return disc(40, 54) & (i % 4 < 2)

    blink = hue_motion(describe_frames(draw(40, (blinking, _RED)), 5), 2, _RED_BIN)
    assert blink["flicker"] > 0.4
    assert blink["vanish"] + blink["appear"] < 0.1

    grow = describe_frames(draw(40, (lambda i: disc(96, 54, 8 * 1.02**i), _RED)), 5)
    assert hue_motion(grow, 2, _RED_BIN)["grow"] > 0.5
    assert hue_motion(grow, 2, _RED_BIN)["shrink"] == 0

    def hopping(i: int) -> NDArray[np.bool_]:
        return disc(96, 70 - 25 * abs(np.sin(np.pi * i / 8)))

    hop = hue_motion(describe_frames(draw(40, (hopping, _RED)), 5), 2, _RED_BIN)
    assert hop["swing_y"] > 0.5
    assert hop["swing_x"] < 0.1
    assert hop["far_up"] + hop["far_down"] < 0.2

    frames = draw(40, (lambda _: disc(96, 54), _RED))
    empty = draw(40)
    fading = [
        ((1 - i / 40) * frame.astype(float) + i / 40 * bare).astype(np.uint8)
        for i, (frame, bare) in enumerate(zip(frames, empty, strict=True))
    ]
    fade = hue_motion(describe_frames(fading, 5), 3, _RED_BIN)
    assert fade["fade_out"] > 0.3
    assert fade["fade_in"] == 0
    assert fade["shrink"] < 0.3


def test_shaking_camera_is_not_motion_of_objects() -> None:
    rng = np.random.default_rng(1)
    wall = rng.normal(0, 1, (_HEIGHT + 8, _WIDTH + 8))
    for _ in range(3):
        wall = (wall + np.roll(wall, 1, 0) + np.roll(wall, 1, 1) + np.roll(wall, -1, 1)) / 2
    frames = []
    for i in range(48):
        shift = round(2 * np.sin(2 * np.pi * i / 24))
        part = wall[4 : 4 + _HEIGHT, 4 - shift : 4 - shift + _WIDTH]
        frame = np.repeat(110 + 10 * part[..., None], 3, axis=2)
        frame[disc(96 + shift, 54)] = _RED
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    motion = hue_motion(describe_frames(frames, 6), 3, _RED_BIN)
    assert motion["left"] + motion["right"] + motion["far_left"] + motion["far_right"] < 0.15


def test_halves_of_a_clip_tell_when_it_began() -> None:
    frames = draw(32, (lambda i: disc(40 + 3 * max(0, i - 12), 54), _RED))
    motion = hue_motion(describe_frames(frames, 4), 1, _RED_BIN)
    assert motion["active_second"] > 2 * motion["active_first"]


def test_repeated_picture_is_analysed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from demr.encoders.builtin.objects import FrameAnalyser, FrameObjects

    seen = []
    analyse = FrameAnalyser.analyse

    def counting(self: FrameAnalyser, frames: NDArray[np.uint8]) -> FrameObjects:
        seen.append(len(frames))
        return analyse(self, frames)

    monkeypatch.setattr(FrameAnalyser, "analyse", counting)
    distinct = draw(3, (lambda i: disc(40 + i, 54), _RED))
    repeated = [frame for frame in distinct for _ in range(8)]
    held = describe_frames(repeated, 3)
    assert sum(seen) == 3
    # The background's tint is a mean over a batch, so that other batches differ a little.
    copies = describe_frames([frame.copy() for frame in repeated], 3)
    np.testing.assert_allclose(held, copies, atol=5e-3)


def test_equal_input_gives_equal_numbers_and_missing_frames_zeros() -> None:
    frames = draw(20, (lambda i: disc(40 + i, 54), _RED))
    first = describe_frames(frames, 3)
    np.testing.assert_array_equal(first, describe_frames(iter(frames), 3))
    longer = describe_frames(frames, 9)
    assert not longer[3:].any()
    np.testing.assert_array_equal(longer[:3], first)
    np.testing.assert_array_equal(
        describe_frames(frames + frames, 2), describe_frames(frames[:16], 2)
    )


@pytest.mark.parametrize("height", [1, 2, 8, 15, 33])
@pytest.mark.parametrize("width", [1, 8, 31, 384])
def test_any_size_and_content_gives_finite_numbers(height: int, width: int) -> None:
    rng = np.random.default_rng(height * width)
    videos: list[NDArray[np.uint8]] = [
        np.zeros((9, height, width, 3), np.uint8),
        np.full((9, height, width, 3), 255, np.uint8),
        rng.integers(0, 256, (9, height, width, 3), dtype=np.uint8),
        rng.choice(np.array([0, 255], np.uint8), (1, height, width, 3)),
    ]
    for video in videos:
        features = describe_frames(video, 2)
        assert features.shape == (2, VIDEO_DIM)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert np.abs(features).max() < 12


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(*(st.integers(1, n) for n in (12, 40, 40)), st.just(3))))
def test_garbage_gives_finite_numbers(video: NDArray[np.uint8]) -> None:
    features = describe_frames(video, 2)
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 12


def test_noise_and_no_frames() -> None:
    rng = np.random.default_rng(0)

    def noise() -> Iterator[Frame]:
        for _ in range(16):
            yield rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)

    features = describe_frames(noise(), 2)
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 12
    assert not describe_frames(iter(()), 2).any()


def test_video_file(tmp_path: Path) -> None:
    path = tmp_path / "moves.mp4"
    with VideoWriter(path, _WIDTH, _HEIGHT, 8) as writer:
        for frame in draw(28, (lambda i: disc(40 + 2 * i, 54), _RED)):
            writer.write(frame)
    encoder = get_encoder("builtin")
    video = encoder.encode_video(path)
    assert video.vid == "moves"
    assert video.duration_s == pytest.approx(3.5)
    assert video.features.shape == (4, encoder.identity.video_dim)
    assert hue_motion(np.asarray(video.features, np.float32), 1, _RED_BIN)["right"] > 0.3
    np.testing.assert_array_equal(video.features, encoder.encode_video(str(path)).features)


def test_identity_survives_a_round_trip_and_names_what_is_wrong() -> None:
    identity = get_encoder("builtin@1").identity
    assert identity.spec == "builtin@1"
    assert identity.video_dim == VIDEO_DIM
    assert EncoderIdentity.from_dict(identity.to_dict()) == identity
    for wrong in (
        {},
        {**identity.to_dict(), "clip_s": "long"},
        {**identity.to_dict(), "streams": 3},
    ):
        with pytest.raises(FeatureError, match="encoder identity"):
            EncoderIdentity.from_dict(wrong)


def test_which_encoders_need_training_is_known_by_name() -> None:
    for name in ("builtin", "clip", "clip@1:a/b,clip_s=1", "xclip:/folder", "nonsense", ""):
        assert not needs_training(name)
    for name in ("vlm:a/b,layer=2", "slowfast", "clip+slowfast@1", "clip+xclip:a/b,xclip=c/d"):
        assert needs_training(name)


@pytest.mark.parametrize(
    "name", ["clap", "builtin@2", "", "Builtin", "builtin:a/b", "clip@2", "clip:", "clip;x"]
)
def test_unknown_encoder_names_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="builtin@1"):
        get_encoder(name)


def test_clip_count() -> None:
    assert [clip_count(d, 2.0) for d in (0.0, 0.1, 2.0, 2.0009, 2.002, 5.0)] == [1, 1, 1, 1, 2, 3]


def test_words() -> None:
    assert split_words("The RED circle, again!") == ("the", "red", "circle", "again")
    assert split_words("ＦＵＬＬ été 2x don’t") == ("full", "été", "2x", "don't")  # noqa: RUF001
    assert len(split_words("word " * 500)) == 77
    assert split_words("🙂 ... !") == ()


def test_word_vectors_are_near_for_near_words_only() -> None:
    words = ["red", "yellow", "green", "circle", "square", "star", "bounces", "spins", "left"]
    vectors = np.stack([word_vector(word) for word in words])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    cosine = vectors @ vectors.T - np.eye(len(words))
    assert np.abs(cosine).max() < 0.45
    assert np.abs(cosine).mean() < 0.12
    for left, right in pairwise(("bounce", "bounces", "bouncing")):
        related = float(word_vector(left) @ word_vector(right))
        assert related > float(word_vector("bounce") @ word_vector("yellow"))
    # The same on every machine: signs of a hash, not of a random generator.
    assert word_vector("red")[:4].tolist() == pytest.approx(RED_STARTS, abs=1e-4)


def test_queries() -> None:
    encoder = get_encoder("builtin")
    one, two = encoder.encode_queries(["A red star.", "star"])
    assert one.words == ("a", "red", "star")
    assert one.features.shape == (3, encoder.identity.text_dim)
    assert one.features.dtype == np.float32
    assert one.token_word.tolist() == [0, 1, 2]
    assert one.token_word.dtype == np.int64
    # A word's vector does not depend on its place.
    np.testing.assert_array_equal(one.features[2], two.features[0])
    assert encoder.encode_queries([]) == []
    for empty in ("", "   ", "🙂🙂", "?!"):
        with pytest.raises(InputError, match="at least one word"):
            encoder.encode_queries([empty])
