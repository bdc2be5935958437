"""Opening of files that may be anything, and the errors for those that are no video."""

import stat
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError

from demr.errors import VideoError


def open_video(path: Path) -> InputContainer:
    """Open a file of this machine for reading.

    Raises:
        VideoError: If it is none, or nothing that FFmpeg can read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
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
