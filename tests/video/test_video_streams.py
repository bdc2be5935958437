"""Which stream is the video, and which files are never opened."""

import warnings
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from tests.video.numbered_videos import every, grey, make_video, shown, write_sound

from demr.errors import VideoError
from demr.video.reading import probe_video

DEFAULT, NONE = Disposition.default, Disposition(0)


def several(
    path: Path,
    *streams: tuple[str, int, int, Disposition],
    with_audio: bool = False,
) -> Path:
    """Write streams of a codec, a width, a number of frames and flags; numbers begin at its place.

    Stream k shows number 20 k first.
    """
    with av.open(str(path), "w") as container:
        made = []
        for codec, width, _, flags in streams:
            stream = container.add_stream(codec, 10, {"crf": "5"} if codec == "libx264" else {})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = width, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = flags
            made.append(stream)
        sound = container.add_stream("aac", 16000) if with_audio else None
        for place, (stream, (_, width, count, _)) in enumerate(zip(made, streams, strict=True)):
            for index in range(count):
                image = grey(20 * place + index, 48, width)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound is not None:
            write_sound(container, sound, Fraction(2))
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_the_default_stream_is_shown_as_players_do(tmp_path: Path, suffix: str) -> None:
    x = "libx264"
    path = several(tmp_path / f"b{suffix}", (x, 64, 20, NONE), (x, 80, 20, DEFAULT))
    assert probe_video(path).width == 80
    assert shown(path, [0.05, 1.95]) == [20, 39]
    path = several(tmp_path / f"a{suffix}", (x, 64, 20, DEFAULT), (x, 80, 20, NONE))
    assert shown(path, [0.05, 1.95]) == [0, 19]


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_of_equals_the_largest_is_shown_then_the_first(tmp_path: Path, suffix: str) -> None:
    x = "libx264"
    path = several(tmp_path / f"a{suffix}", (x, 64, 20, NONE), (x, 80, 20, NONE))
    assert shown(path, [0.05, 1.95]) == [20, 39]
    path = several(tmp_path / f"b{suffix}", (x, 64, 20, NONE), (x, 64, 20, NONE))
    assert shown(path, [0.05, 1.95]) == [0, 19]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
@pytest.mark.parametrize("flags", [DEFAULT, NONE, Disposition.attached_pic])
def test_a_thumbnail_is_no_video(tmp_path: Path, suffix: str, flags: Disposition) -> None:
    picture = ("mjpeg", 80, 1, flags)
    path = several(tmp_path / f"v{suffix}", picture, ("libx264", 64, 20, NONE))
    assert shown(path, [0.05, 1.95]) == [20, 39]
    assert probe_video(path).duration_s == pytest.approx(2.0, abs=0.01)
    song = several(tmp_path / f"song{suffix}", picture, with_audio=True)
    with pytest.raises(VideoError, match="without video"):
        probe_video(song)


def test_a_song_with_one_frame_is_no_video(tmp_path: Path) -> None:
    path = several(tmp_path / "v.mp4", ("libx264", 64, 1, DEFAULT), with_audio=True)
    with pytest.raises(VideoError, match="audio and a single frame"):
        probe_video(path)


def lists(folder: Path) -> dict[str, str]:
    """What FFmpeg follows to another file, by the names under which it would."""
    video = folder / "v.ts"
    return {
        "a.ffconcat": f"ffconcat version 1.0\nfile {video}\n",
        "a.mp4": "ffconcat version 1.0\nfile v.ts\n",
        "b.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{video}\n#EXT-X-ENDLIST\n",
        "live.ts": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{video}\n",
        "c.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "d.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        f"<Period><AdaptationSet><Representation><BaseURL>{video}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
        "e.asx": f'<asx version="3.0"><entry><ref href="{video}"/></entry></asx>',
        "f.txt": f"{video}\n",
        "g.mkv": "testsrc=d=5",
        "h.idx": "# VobSub index file, v7\nid: en, index: 0\n",
        "i.mp4": "RTSPtext\nrtsp://127.0.0.1/x\n",
    }


def test_lists_of_files_are_never_followed(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.ts", every(10, 20))
    for name, text in lists(tmp_path).items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(VideoError, match=r"a list of files|data that is no video"):
            probe_video(path)
    for name in ("x%03d.mp4", "x*.mkv", "list.m3u8", "a.txt", "concat:v.ts", "%d.ts"):
        path = tmp_path / name
        path.write_bytes(video.read_bytes())
        assert shown(path, [0.05, 1.95]) == [0, 19], name


def test_pictures_under_a_pattern_are_no_video(tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    for name in ("p000.png", "p001.png", "p%03d.png"):
        frame.save(str(tmp_path / name))
    for name in ("p000.png", "p%03d.png"):
        with pytest.raises(VideoError):
            probe_video(tmp_path / name)


def test_a_track_in_another_file_is_not_followed(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "v.mp4", every(10, 20))
    data = bytearray(whole.read_bytes())
    begin = data.index(b"url \0\0\0\1")
    # No longer "in this file"; the alias is too short to hold a name.
    data[begin : begin + 8] = b"alis\0\0\0\0"
    path = tmp_path / "w.mp4"
    path.write_bytes(data)
    with warnings.catch_warnings(), suppress(VideoError):
        warnings.simplefilter("ignore")
        assert shown(path, [0.05]) == [0]
