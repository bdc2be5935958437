"""The encoder without weights: colour, form and motion of the objects in each clip.

Tensor-product binding: were the codes of all objects simply added, "a red one moves, a blue one
stands" and "a blue one moves, a red one stands" would be equal. So each object's codes are
multiplied with each other first (hue x motion, form x motion, hue x form), and the products are
added: which property goes with which stays readable by a linear layer, whatever the number of
objects. Objects are not weighted by their size.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures, clip_count
from demr.encoders.builtin.objects import (
    CAMERA,
    CONTRAST,
    LIGHTNESS,
    SCENE_COLUMNS,
    TEXTURE,
    Floats,
    FrameAnalyser,
)
from demr.encoders.builtin.track_codes import (
    HUE_DIM,
    MOTION_DIM,
    SAMPLES_PER_S,
    SHAPE_DIM,
    TrackCodes,
    describe_track,
)
from demr.encoders.builtin.tracking import Track, Tracker
from demr.encoders.words import TEXT_DIM, query_words, word_vector
from demr.video import Video

CLIP_S = 1.0
# Pixels that frames are shrunk to: the height at which the embedded world is rendered, and no more
# columns than twice its width, so that a panorama costs no more than two frames.
_HEIGHT = 108
_MAX_WIDTH = 384
# Frames that are analysed at once.
_BATCH = 8
# Samples: half a second, below which a track is noise.
_MIN_LENGTH = 4
# Chroma (0..1) that makes a track a full object.
_CLEAR_CONTRAST = 0.16
_SCENE_DIM = SCENE_COLUMNS + 1
VIDEO_DIM = (
    HUE_DIM * MOTION_DIM
    + SHAPE_DIM * MOTION_DIM
    + HUE_DIM * SHAPE_DIM
    + HUE_DIM
    + SHAPE_DIM
    + MOTION_DIM
    + _SCENE_DIM
)


class BuiltinEncoder:
    """Statistics of tracked objects for videos, hashed vectors for words; nothing is learned."""

    @property
    def identity(self) -> EncoderIdentity:
        """Stored beside the features."""
        return EncoderIdentity(
            name="builtin",
            version="1",
            clip_s=CLIP_S,
            streams=(("objects", VIDEO_DIM),),
            text_dim=TEXT_DIM,
            normalization="none",
        )

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """Describe each second of a video.

        Args:
            path: Any video file.

        Raises:
            VideoError: If it cannot be decoded.
        """
        video = Video(path)
        info = video.info
        clips = clip_count(info.duration_s, CLIP_S)
        samples = max(1, min(clips * SAMPLES_PER_S, int(info.duration_s * SAMPLES_PER_S + 0.5)))
        # The middle of each sample's interval: the clip's frames are those shown within it.
        times = ((index + 0.5) / SAMPLES_PER_S for index in range(samples))
        height = min(_HEIGHT, info.height)
        if info.width * height > _MAX_WIDTH * info.height:
            height = max(1, _MAX_WIDTH * info.height // info.width)
        frames = (frame.rgb for frame in video.frames(times, height=height))
        features = describe_frames(frames, clips)
        return VideoFeatures(Path(path).stem, info.duration_s, CLIP_S, features)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Hashed vectors of each query's words.

        Args:
            queries: Sentences; words past the 77th are dropped.
            hidden: For each query the indices of words to hide; they become zero vectors.

        Raises:
            InputError: If a query holds no word.
        """
        encoded = [_encode_query(query) for query in queries]
        if hidden is None:
            return encoded
        return [_hide(query, words) for query, words in zip(encoded, hidden, strict=True)]


def describe_frames(frames: Iterable[NDArray[np.uint8]], clips: int) -> Floats:
    """Features of each clip from frames sampled eight times a second.

    Args:
        frames: uint8 RGB ``(H, W, 3)``; the very same array again stands for a repeated picture
            and costs nothing.
        clips: Number of clips, L; frames beyond them are not read, missing ones leave zeros.

    Returns:
        float32, ``(L, VIDEO_DIM)``, finite.
    """
    tracker = Tracker(_MIN_LENGTH)
    scene = np.zeros((clips * SAMPLES_PER_S, SCENE_COLUMNS), dtype=np.float32)
    samples = 0
    for regions, row in _analysed(frames, clips * SAMPLES_PER_S):
        tracker.add(samples, regions)
        scene[samples] = row
        samples += 1
    # The camera's place has no meaning by itself: its motion from sample to sample has.
    camera = scene[:, CAMERA].copy()
    scene[1:, CAMERA] = np.diff(camera, axis=0)
    scene[0, CAMERA] = 0
    scene[samples:, CAMERA] = 0
    features = np.zeros((clips, VIDEO_DIM), dtype=np.float32)
    if samples == 0:
        return features
    count = np.zeros(clips, dtype=np.float32)
    for track in tracker.tracks():
        codes = describe_track(track, camera, scene[:, LIGHTNESS], samples)
        first, row, there = _bound(codes, samples)
        trust = _trust(track)
        features[first : first + len(row), : row.shape[1]] += row * trust
        count[first : first + len(row)] += there * trust
    # A crowd of objects would leave the range that a model knows.
    features /= np.maximum(1, count / 6)[:, None]
    features[:, -_SCENE_DIM:-1] = _per_clip(scene, samples, clips)
    features[:, -1] = np.tanh(count / 6)
    return np.nan_to_num(features, nan=0.0, posinf=0.0, neginf=0.0)


def _analysed(frames: Iterable[NDArray[np.uint8]], limit: int) -> Iterator[tuple[Floats, Floats]]:
    """Regions and scene row of each frame; distinct frames are analysed in batches."""
    analyser = FrameAnalyser()
    waiting: list[NDArray[np.uint8]] = []
    repeats: list[int] = []
    left = limit
    for frame in frames:
        if left == 0:
            break
        left -= 1
        if waiting and frame is waiting[-1]:
            repeats[-1] += 1
            continue
        if len(waiting) == _BATCH:
            yield from _flush(analyser, waiting, repeats)
            waiting, repeats = [], []
        waiting.append(frame)
        repeats.append(1)
    if waiting:
        yield from _flush(analyser, waiting, repeats)


def _flush(
    analyser: FrameAnalyser, frames: list[NDArray[np.uint8]], repeats: list[int]
) -> Iterator[tuple[Floats, Floats]]:
    analysed = analyser.analyse(np.stack(frames))
    for regions, row, times in zip(analysed.regions, analysed.scene, repeats, strict=True):
        for _ in range(times):
            yield regions, row


def _trust(track: Track) -> np.float32:
    """Weight of a track: a short one is often noise, one never clearly coloured often a stain."""
    length = min(1.0, len(track.index) / (2 * SAMPLES_PER_S))
    clear = min(1.0, float(track.rows[:, CONTRAST].max()) / _CLEAR_CONTRAST)
    return np.float32(length * clear**2)


def _bound(codes: TrackCodes, samples: int) -> tuple[int, Floats, Floats]:
    """Products of one track's codes in each of its clips.

    Returns:
        The first clip, the products and marginals ``(clips, VIDEO_DIM - scene)``, and the share of
        each clip for which the object is there ``(clips,)``.
    """
    length = len(codes.motion)
    first = codes.first // SAMPLES_PER_S
    clips = (codes.first + length - 1) // SAMPLES_PER_S - first + 1
    lead = codes.first - first * SAMPLES_PER_S

    def total(code: Floats) -> Floats:
        padded = np.zeros((clips * SAMPLES_PER_S, code.shape[1]), dtype=np.float32)
        padded[lead : lead + length] = code
        return np.asarray(padded.reshape(clips, SAMPLES_PER_S, -1).sum(axis=1))

    visible = total(np.ones((length, 1), dtype=np.float32))
    whole = np.full((clips, 1), SAMPLES_PER_S, dtype=np.float32)
    whole[-1] = min(SAMPLES_PER_S, samples - (first + clips - 1) * SAMPLES_PER_S)
    # Hue and form are averaged over the object's own time; motion over the whole clip, so that an
    # object that comes or goes within the clip counts by its share.
    hue, shape = total(codes.hue) / visible, total(codes.shape) / visible
    motion, there = total(codes.motion) / whole, visible / whole
    blocks = (
        _outer(hue, motion),
        _outer(shape, motion),
        _outer(hue, shape * there),
        hue * there,
        shape * there,
        motion,
    )
    return first, np.concatenate(blocks, axis=1), there[:, 0]


def _outer(left: Floats, right: Floats) -> Floats:
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


def _per_clip(scene: Floats, samples: int, clips: int) -> Floats:
    """Mean of each scene column over the samples that a clip has."""
    rows = scene.copy()
    rows[:, CAMERA] = np.tanh(np.abs(rows[:, CAMERA]) * 100)
    rows[:, TEXTURE] = np.tanh(rows[:, TEXTURE] * 10)
    there = np.zeros(clips * SAMPLES_PER_S, dtype=np.float32)
    there[:samples] = 1
    number = np.maximum(there.reshape(clips, SAMPLES_PER_S).sum(axis=1), 1)
    total: Floats = (rows * there[:, None]).reshape(clips, SAMPLES_PER_S, SCENE_COLUMNS).sum(axis=1)
    return np.asarray(total / number[:, None])


def _encode_query(query: str) -> QueryFeatures:
    words = query_words(query)
    features = np.stack([word_vector(word) for word in words])
    return QueryFeatures(query, features, words, np.arange(len(words), dtype=np.int64))


def _hide(query: QueryFeatures, words: Collection[int]) -> QueryFeatures:
    features = query.features.copy()
    features[np.isin(query.token_word, list(words))] = 0
    return replace(query, features=features)
