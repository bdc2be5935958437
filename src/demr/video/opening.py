"""Opening of files that may be anything, their packets, and the errors for what is no video."""

import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags

from demr.errors import InputError, VideoError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

# Forms that hold all their data. FFmpeg would also follow playlists and lists of files, under any
# name, to whatever else lies on this machine, and draw texts and pictures as videos.
_CONTAINERS = (
    *("apng", "asf", "av1", "avi", "avs2", "avs3", "cavsvideo", "dirac", "dnxhd", "dv", "evc"),
    *("flv", "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf", "kux", "live_flv", "m4v"),
    *("matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegtsraw", "mpegvideo", "mxf", "nut"),
    *("obu", "ogg", "rm", "vc1", "vc1test", "vvc", "wtv", "yuv4mpegpipe"),
)
# 8192 x 8192. A header can ask for frames of gigabytes.
MOST_PIXELS = 1 << 26


def open_video(path: Path) -> InputContainer:
    """Open a file of this machine for reading.

    Raises:
        InputError: If it is a URL.
        VideoError: If it is none, or holds no video that FFmpeg can read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if is_url(str(path)):
            raise url_error(str(path)) from None
        got = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise video_error(path, got) from None
    # Opening a FIFO or a device would wait for a writer, perhaps for ever.
    if stat.S_ISDIR(status.st_mode):
        raise video_error(path, "a directory")
    if not stat.S_ISREG(status.st_mode):
        raise video_error(path, "a pipe, socket or device")
    if status.st_size == 0:
        raise video_error(path, "an empty file")
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(_CONTAINERS),
        "max_pixels": str(MOST_PIXELS),
    }
    try:
        return av.open(str(path.absolute()), "r", metadata_errors="replace", options=options)
    except FFmpegError as error:
        raise video_error(path, reason_of(error)) from None


def is_url(text: str) -> bool:
    """Whether text names something on a network, or a file in the way of browsers.

    >>> is_url("https://example.com/talk.mp4"), is_url("talk.mp4"), is_url("C:/talk.mp4")
    (True, False, False)
    """
    # As a Path it has lost a slash.
    return _URL.match(text) is not None


def url_error(url: str) -> InputError:
    """The error to raise where a URL stands for a video."""
    scheme, _, rest = url.partition(":")
    is_local = scheme.lower() == "file"
    return InputError(
        f"{scheme}:{'///' if is_local else '//'}{rest.lstrip('/')}",
        expected="a file of this machine",
        got="a URL",
        remedy=f"name the file itself: /{rest.lstrip('/')}"
        if is_local
        else "download it first (curl -LO, yt-dlp) and name the file",
    )


def read_packets(
    container: InputContainer,
    stream: "Stream | None" = None,
    failed: Callable[[Exception], None] | None = None,
) -> "Iterator[Packet[Any]]":
    """Packets in the order of the file, without the empty ones that end a stream.

    A demuxer that fails is asked again, as long as it gets on.

    Args:
        container: An opened file.
        stream: The only one wanted; None for all.
        failed: Called with what went wrong: errors of FFmpeg, and of PyAV where a stream that no
            header lists comes up.
    """
    gets_on = True
    while gets_on:
        gets_on = False
        try:
            for packet in container.demux(*(() if stream is None else (stream,))):
                gets_on = True
                if packet.size or packet.dts is not None:
                    yield packet
            return
        except Exception as error:
            # FFmpeg lacks memory, too, where a damaged file asks for gigabytes.
            if isinstance(error, MemoryError) and not isinstance(error, FFmpegError):
                raise
            if failed is not None:
                failed(error)


def has_flag(container: InputContainer, flag: Flags) -> bool:
    """Whether FFmpeg marks a kind of container so."""
    # PyAV's type stub takes a flag for its value.
    return bool(container.format.flags & cast("int", flag.value))


def video_error(path: Path, got: str) -> VideoError:
    """The error to raise where a file is no readable video."""
    return VideoError(
        str(path),
        expected="a readable video file (mp4, mkv, webm, mov, avi)",
        got=got,
        remedy="check the path and that a player shows the file",
    )


def reason_of(error: Exception) -> str:
    """What FFmpeg or PyAV raised, in words that stand after "got"."""
    if isinstance(error, av.error.ArgumentError):
        return "a list of files, a picture, sound, a text or another form that holds no video"
    if isinstance(error, av.error.InvalidDataError):
        return "data that is no video, or whose index is missing"
    if isinstance(error, av.error.EOFError):
        return "a file that was cut off"
    if isinstance(error, FFmpegError) and error.strerror:
        return error.strerror.strip()
    return " ".join(f"{type(error).__name__}: {error}".split())
