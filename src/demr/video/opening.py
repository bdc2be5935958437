"""Opening of files that may be anything, and the errors for those that are no video."""

import re
import stat
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError

from demr.errors import InputError, VideoError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def open_video(path: Path) -> InputContainer:
    """Open a file of this machine for reading.

    Raises:
        InputError: If it is a URL.
        VideoError: If it is none, or nothing that FFmpeg can read.
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
    try:
        # The whitelist keeps a playlist in disguise from reaching the network.
        return av.open(
            str(path.absolute()),
            "r",
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        )
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


def video_error(path: Path, got: str) -> VideoError:
    """The error to raise where a file is no readable video."""
    return VideoError(
        str(path),
        expected="a readable video file (mp4, mkv, webm, mov, avi)",
        got=got,
        remedy="check the path and that a player shows the file",
    )


def reason_of(error: FFmpegError) -> str:
    """An error of FFmpeg in words that stand after "got"."""
    if isinstance(error, av.error.InvalidDataError):
        return "data that is no video, or whose index is missing"
    if isinstance(error, av.error.EOFError):
        return "a file that was cut off"
    return (error.strerror or str(error) or type(error).__name__).strip()
