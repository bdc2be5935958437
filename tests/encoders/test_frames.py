"""Decoding once for several streams, blocks of clips, and how videos fail."""

import itertools
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import Encoder, EncoderIdentity
from demr.encoders.builtin.encoder import BuiltinEncoder
from demr.encoders.frames import ReadsFrames, _read_ahead, encode_noting_damage, read_blocks
from demr.errors import VideoError
from demr.video.damage import DamagedVideoWarning
from demr.video.reading import Frame, Video, VideoInfo, iter_frames, probe_video
from demr.video.source import Source
from demr.video.watchdog import TIMED_OUT
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


class Colours(ReadsFrames):
    """An encoder of such streams."""

    def __init__(self, *streams: Means) -> None:
        self.streams = streams
        dims = tuple((stream.name, stream.dims) for stream in streams)
        self.identity = EncoderIdentity("colours", "1", 1.0, dims, 2, "none")

    def encode_queries(self, queries: object, hidden: object = None) -> Any:
        raise NotImplementedError


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
    table = Colours(*streams).encode_video(grey).features
    assert len(passes) == 1
    assert table.shape == (10, 15)
    np.testing.assert_allclose(table[:, :3], slow_rows(grey, streams[0]), atol=1e-4)
    np.testing.assert_allclose(table[:, 3:], slow_rows(grey, streams[1]), atol=1e-4)
    assert [stream.blocks[0] for stream in streams] == [(4, 1, 3, 4, 32), (4, 4, 3, 4, 32)]


def test_blocks_are_of_one_video_and_one_size(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Means("one", [0.5], batch=4, size=0)
    sizes = [block.pixels.shape for block in read_blocks(Video(grey), [stream])]
    assert sizes == [(4, 1, 3, 16, 32), (4, 1, 3, 16, 32), (2, 1, 3, 16, 32)]
    # A stream of frames that change their size, as broadcasts do.
    pictures = iter([*[(3, 16, 32)] * 5, *[(3, 64, 48)] * 5])
    monkeypatch.setattr(stream, "prepare", lambda _: torch.zeros(next(pictures), dtype=torch.uint8))
    blocks = list(read_blocks(Video(grey), [stream]))
    assert [len(block.rows) for block in blocks] == [4, 1, 4, 1]
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(10))


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
        features, (note,) = encode_noting_damage(Colours(*streams), path)
    assert "damaged video" in note
    table = features.features
    assert 3 < np.count_nonzero(table.any(axis=1)) < 8
    assert not table[8:].any()


def test_reading_ahead_yields_the_same_and_stops_when_nobody_listens(grey: Path) -> None:
    streams = [Means("one", [0.5], batch=1), Means("wide", [0.0, 0.9])]
    plain = list(read_blocks(Video(grey), streams))
    ahead = list(_read_ahead(read_blocks(Video(grey), streams)))
    for one, other in zip(plain, ahead, strict=True):
        assert one.stream == other.stream
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.pixels, other.pixels)
    before = threading.active_count()
    blocks = _read_ahead(read_blocks(Video(grey), streams))
    next(blocks)
    assert threading.active_count() == before + 1
    began = time.monotonic()
    blocks.close()
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
        Colours(stream).encode_video(grey)


@pytest.mark.parametrize("encoder", [Colours(Means("one", [0.5])), BuiltinEncoder()])
def test_whatever_is_wrong_with_a_file_is_a_video_error(
    grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    for path, got in ((broken, "no video"), (tmp_path / "gone", "no such file")):
        with pytest.raises(VideoError, match=got):
            encode_noting_damage(encoder, path)
    # As PyAV does in mid-file, where damage looks like a stream that nobody announced.
    decode = Source._decoded

    def fail(self: Source) -> Iterator[VideoFrame]:
        yield from itertools.islice(decode(self), 30)
        raise IndexError("list index\nout of range")

    monkeypatch.setattr(Source, "_decoded", fail)
    with pytest.raises(VideoError) as caught:
        encode_noting_damage(encoder, grey)
    assert str(grey) in str(caught.value)
    assert "fails on (IndexError: list index out of range); check the path" in str(caught.value)


def test_bytes_turned_over_anywhere_end_in_features_or_a_video_error(
    grey: Path, tmp_path: Path
) -> None:
    transport = tmp_path / "film.ts"
    with av.open(str(grey)) as source, av.open(str(transport), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    whole, draw = transport.read_bytes(), np.random.default_rng(0)
    encoder = Colours(Means("one", [0.5]))
    for _ in range(20):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 40):
            damaged[place] ^= 0xFF
        transport.write_bytes(damaged)
        with suppress(VideoError):
            encode_noting_damage(encoder, transport)


HANGS = """
import sys, time
from demr.video import Video, decoder_watchdog
from demr.video.source import Source

if sys.argv[2] == "decoder":
    decode = Source._decoded
    def hang(self):
        yield next(decode(self))
        time.sleep(60)
    Source._decoded = hang
with decoder_watchdog(0.3):
    for frame in Video(sys.argv[1]).frames([0.0, 5.0, 9.0]):
        if sys.argv[2] == "network":
            time.sleep(0.5)
"""


@pytest.mark.parametrize(("hangs", "code"), [("decoder", -TIMED_OUT), ("network", 0)])
def test_a_decoder_that_hangs_ends_its_process(grey: Path, hangs: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS, str(grey), hangs], check=False, timeout=60)
    assert done.returncode == code


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
