"""Which stream of a file is its video, and which only looks like one.

As players choose: no covers, thumbnails or stills; of the streams that move the one that is
flagged as default, then the largest, then the first.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from demr.video.opening import open_video, read_packets, video_error

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# What a single frame of is a picture, whatever it lies in; and forms of pictures that can move.
_PICTURE_CODECS = frozenset(("apng", "bmp", "gif", "jpeg2000", "mjpeg", "png", "tiff", "webp"))
_PICTURE_BRANDS = frozenset(("avif", "avis", "heic", "heix", "hevc", "hevx", "mif1", "msf1"))


def choose_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that a player shows.

    Raises:
        VideoError: If nothing in the file moves. A lone frame of a video codec is a video.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & _PICTURES and stream.codec_context is not None
    ]
    has_company = len(container.streams) > 1
    is_picture = container.metadata.get("major_brand") in _PICTURE_BRANDS or any(
        stream.codec_context.codec.canonical_name in _PICTURE_CODECS for stream in streams
    )
    if streams and (has_company or is_picture):
        counts = _frame_counts(streams, path)
        streams = [stream for stream in streams if counts[stream.index] != 1]
        if not streams and not container.streams.audio:
            raise video_error(path, "a still picture")
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams} - {"video"})
        # Of a damaged file, too, one frame may be all that is found.
        kinds += [_name_of_one(stream) for stream in container.streams.video[:1]]
        raise video_error(path, f"a file without video (only {' and '.join(kinds) or 'nothing'})")
    return max(streams, key=_rank)


def _name_of_one(stream: VideoStream) -> str:
    if stream.disposition & _PICTURES or stream.codec_context is None:
        return "a picture"
    is_picture = stream.codec_context.codec.canonical_name in _PICTURE_CODECS
    return "a picture" if is_picture else "a single frame"


def _rank(stream: VideoStream) -> tuple[bool, int, int]:
    context = stream.codec_context
    return (
        Disposition.default in stream.disposition,
        context.width * context.height,
        -stream.index,
    )


def _frame_counts(streams: Sequence[VideoStream], path: Path) -> Counter[int]:
    """Frames of each stream, by its index: as an mp4 lists them, else counted up to two."""
    is_listed = streams[0].container.format.name.startswith("mov")
    counts = Counter({s.index: s.frames for s in streams if is_listed and s.frames})
    unknown = {stream.index for stream in streams} - counts.keys()
    if unknown:
        with open_video(path) as container:
            for packet in read_packets(container):
                counts[packet.stream_index] += packet.stream_index in unknown
                unknown = {index for index in unknown if counts[index] < 2}
                if not unknown:
                    break
    return counts
