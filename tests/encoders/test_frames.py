"""Decoding once for several streams, blocks over several videos, and their assembly."""

import random
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.frames import (
    Assembly,
    Block,
    Closed,
    Opened,
    Part,
    Rows,
    embed_block,
    encode_noting_damage,
    read_ahead,
    read_blocks,
)
from demr.video.reading import Frame, Video, VideoInfo, iter_frames, probe_video
from demr.video.source import DamagedVideoWarning
from demr.video.writing import VideoWriter


class Means:
    """A stream whose rows are the mean colours of a clip's frames, one after the other."""

    def __init__(self, name: str, offsets: Sequence[float], batch: int = 4, size: int = 4) -> None:
        self.name = name
        self.offsets = offsets
        self.dims = 3 * len(offsets)
        self.batch = batch
        self.size = size
        self.blocks: list[tuple[int, ...]] = []

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        starts = np.arange(int(np.ceil(video.duration_s))) * 1.0
        times: NDArray[np.float64] = starts[:, None] + np.array(self.offsets)
        return times

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        side = min(self.size, *rgb.shape[:2]) if self.size else rgb.shape[0]
        return torch.from_numpy(np.ascontiguousarray(rgb[:side])).permute(2, 0, 1)

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        self.blocks.append(tuple(clips.shape))
        means: NDArray[np.float32] = clips.float().mean(dim=(3, 4)).flatten(1).numpy()
        return means


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """Ten seconds of ten frames each, lighter by one level a frame."""
    path = tmp_path / "grey.mp4"
    with VideoWriter(path, 32, 16, 10, crf=0) as writer:
        for index in range(100):
            writer.write(np.full((16, 32, 3), 2 * index, np.uint8))
    return path


def embedded(parts: Iterator[Part], streams: Sequence[Means]) -> Assembly:
    made = Assembly(tuple(stream.dims for stream in streams), 1.0)
    for part in parts:
        made.add(embed_block(part, streams) if isinstance(part, Block) else part)
    return made


def slow_rows(path: Path, stream: Means) -> NDArray[np.float32]:
    """The same, one frame at a time, each found from the start of the file."""
    rows = []
    for times in stream.times(probe_video(path)):
        clip = [
            next(iter_frames(path, [time_s])).rgb[: stream.size].astype(np.float32).mean((0, 1))
            for time_s in times
        ]
        rows.append(np.concatenate(clip))
    return np.stack(rows)


def test_streams_get_their_own_frames_from_one_pass(
    grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    real = Video.frames

    def counted(self: Video, times_s: Iterable[float], **size: int | None) -> Iterator[Frame]:
        passes.append(self)
        return real(self, times_s, **size)

    monkeypatch.setattr(Video, "frames", counted)
    # The second stream's clips reach into their neighbours, and past both ends of the video.
    streams = [Means("one", [0.5]), Means("wide", [-0.3, 0.1, 0.5, 1.6])]
    made = embedded(read_blocks([grey], streams, 1.0), streams)
    assert len(passes) == 1
    table = made.video(0, "grey").features
    assert table.shape == (10, 15)
    np.testing.assert_allclose(table[:, :3], slow_rows(grey, streams[0]), atol=1e-4)
    np.testing.assert_allclose(table[:, 3:], slow_rows(grey, streams[1]), atol=1e-4)
    assert [stream.blocks[0] for stream in streams] == [(4, 1, 3, 4, 32), (4, 4, 3, 4, 32)]


def test_blocks_are_filled_across_videos_and_cut_where_the_size_changes(
    grey: Path, tmp_path: Path
) -> None:
    tall = tmp_path / "tall.mp4"
    with VideoWriter(tall, 48, 64, 10) as writer:
        for _ in range(30):
            writer.write(np.full((64, 48, 3), 90, np.uint8))
    stream = Means("one", [0.5], batch=4, size=0)
    blocks = [
        part
        for part in read_blocks([grey, grey, tall, grey], [stream], 1.0)
        if isinstance(part, Block)
    ]
    assert [block.pixels.shape for block in blocks] == [
        *[(4, 1, 3, 16, 32)] * 5,
        (3, 1, 3, 64, 48),
        *[(4, 1, 3, 16, 32)] * 2,
        (2, 1, 3, 16, 32),
    ]
    assert blocks[2].videos.tolist() == [0, 0, 1, 1]
    assert blocks[2].rows.tolist() == [8, 9, 0, 1]


def test_a_broken_file_among_others(grey: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    streams = [Means("one", [0.5])]
    made = embedded(read_blocks([grey, broken, tmp_path / "gone", grey], streams, 1.0), streams)
    assert [made.closed[index].error != "" for index in range(4)] == [False, True, True, False]
    assert "no such file" in made.closed[2].error
    np.testing.assert_array_equal(made.video(0, "a").features, made.video(3, "b").features)


def test_damage_is_noted_and_the_lost_end_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(100):
            picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    streams = [Means("one", [0.5])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = embedded(read_blocks([path], streams, 1.0), streams)
    (note,) = made.closed[0].notes
    assert "damaged video" in note
    table = made.video(0, "long").features
    assert 3 < np.count_nonzero(table.any(axis=1)) < 8
    assert not table[8:].any()


def test_reading_ahead_yields_the_same_and_stops_when_nobody_listens(grey: Path) -> None:
    streams = [Means("one", [0.5]), Means("wide", [0.0, 0.9])]
    plain = embedded(read_blocks([grey, grey], streams, 1.0), streams)
    ahead = embedded(read_ahead([grey, grey], streams, 1.0), streams)
    for index in range(2):
        np.testing.assert_array_equal(
            plain.video(index, "x").features, ahead.video(index, "x").features
        )
    before = threading.active_count()
    parts = read_ahead([grey] * 50, streams, 1.0)
    next(parts)
    assert threading.active_count() == before + 1
    began = time.monotonic()
    parts.close()
    assert time.monotonic() - began < 2
    assert threading.active_count() == before


def test_an_error_of_the_reader_reaches_the_listener(
    grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: NDArray[np.uint8]) -> Tensor:
        raise MemoryError("no room")

    stream = Means("one", [0.5])
    monkeypatch.setattr(stream, "prepare", fail)
    with pytest.raises(MemoryError, match="no room"):
        list(read_ahead([grey], [stream], 1.0))


def test_parts_may_come_in_any_order() -> None:
    def rows(stream: int, *owners: tuple[int, int]) -> Rows:
        videos, places = np.array(owners).T
        values = np.array([[100 * v + r + 10 * stream] for v, r in owners], np.float32)
        return Rows(stream, videos, places, values)

    parts: list[Opened | Closed | Rows] = [
        Opened(0, 2.0, 2),
        Opened(1, 1.0, 1),
        Closed(0),
        Closed(1, "broken"),
        Closed(1, "", ("late",)),
        rows(0, (0, 0), (0, 1), (1, 0)),
        rows(1, (0, 1)),
        rows(1, (0, 0), (1, 0)),
    ]
    for seed in range(20):
        made = Assembly((1, 1), 1.0)
        for part in random.Random(seed).sample(parts, len(parts)):
            made.add(part)
        np.testing.assert_array_equal(made.video(0, "v").features, [[0, 10], [1, 11]])
        assert made.closed[1].error == "broken"


def test_damage_becomes_notes_and_other_warnings_stay_warnings(tmp_path: Path) -> None:
    class Grumbling:
        def encode_video(self, path: str | Path) -> object:
            warnings.warn(f"{path}: damaged", DamagedVideoWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)
            return path

    with pytest.warns(UserWarning, match="something else") as caught:
        _, notes = encode_noting_damage(Grumbling(), tmp_path)  # type: ignore[arg-type]
    assert notes == (f"{tmp_path}: damaged",)
    assert len(caught) == 1
