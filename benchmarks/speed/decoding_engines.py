"""Ways of taking the frames shown at given times out of a video, shrunk: ours and what others use.

An engine is called with a path, the first time, the step between times and the end, in seconds
(None: the end of the file), and yields RGB frames of ``SIZE``. All average areas when they shrink.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from demr.video.reading import Video

if TYPE_CHECKING:
    import cv2

Pixels = npt.NDArray[np.uint8]
Engine = Callable[[Path, float, float, float | None], Iterator[Pixels]]
HEIGHT, WIDTH = SIZE = (224, 398)


def times_of(first_s: float, step_s: float, end_s: float) -> list[float]:
    """The asked-for times before an end, in seconds."""
    return [first_s + step_s * k for k in range(int((end_s - first_s) / step_s) + 1)]


def demr(path: Path, first_s: float, step_s: float, end_s: float | None) -> Iterator[Pixels]:
    """What the encoders do."""
    with Video(path) as video:
        times = times_of(first_s, step_s, end_s or video.info.duration_s)
        for frame in video.frames(times, height=HEIGHT, width=WIDTH):
            yield frame.rgb


def shrunk(frame: av.VideoFrame) -> Pixels:
    """Scale and convert inside FFmpeg's scaler."""
    return frame.reformat(
        width=WIDTH, height=HEIGHT, format="rgb24", interpolation=Interpolation.AREA
    ).to_ndarray()


def pyav_plain(path: Path, first_s: float, step_s: float, end_s: float | None) -> Iterator[Pixels]:
    """Decode every frame, on all cores."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        end_s = end_s or float(stream.duration * stream.time_base)
        times = iter(times_of(first_s, step_s, end_s))
        time_s, shown = next(times), None
        for frame in container.decode(stream):
            while shown is not None and time_s < frame.time:
                yield shrunk(shown)
                time_s = next(times, None)
                if time_s is None:
                    return
            shown = frame
        while time_s is not None:
            yield shrunk(shown)
            time_s = next(times, None)


def pyav_seek(path: Path, first_s: float, step_s: float, end_s: float | None) -> Iterator[Pixels]:
    """Seek to the keyframe before every time and decode from there, on all cores."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        end_s = end_s or float(stream.duration * stream.time_base)
        for time_s in times_of(first_s, step_s, end_s):
            container.seek(int(time_s / stream.time_base), stream=stream)
            shown = None
            for frame in container.decode(stream):
                if shown is not None and frame.time > time_s:
                    break
                shown = frame
            yield shrunk(shown)


def opencv_shrunk(capture: "cv2.VideoCapture") -> Pixels:
    """Convert at full size, which OpenCV's reader always does, then shrink."""
    import cv2

    frame = cv2.resize(capture.retrieve()[1], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def opencv_grab(path: Path, first_s: float, step_s: float, end_s: float | None) -> Iterator[Pixels]:
    """Grab every frame, retrieve those asked for; a constant rate is taken for granted."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    wanted = [int(t * fps) for t in times_of(first_s, step_s, end_s or frames / fps)]
    for index in count():
        if not capture.grab():
            return
        if index == wanted[0]:
            yield opencv_shrunk(capture)
            wanted = wanted[1:]
            if not wanted:
                return


def opencv_seek(path: Path, first_s: float, step_s: float, end_s: float | None) -> Iterator[Pixels]:
    """Set the position for every frame; a constant rate is taken for granted."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    for time_s in times_of(first_s, step_s, end_s or frames / fps):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(time_s * fps))
        capture.grab()
        yield opencv_shrunk(capture)


def ffmpeg(path: Path, first_s: float, step_s: float, end_s: float | None) -> Iterator[Pixels]:
    """The program, decoding everything; its fps filter holds the last frame that has started."""
    filters = (
        f"fps=fps={1 / step_s:.9g}:start_time={first_s:.9g}:round=up,"
        f"scale={WIDTH}:{HEIGHT}:flags=area,format=rgb24"
    )
    length = [] if end_s is None else ["-t", f"{end_s:g}"]
    command = ["ffmpeg", "-v", "error", *length, "-i", str(path), "-an", "-vf", filters]
    with subprocess.Popen([*command, "-f", "rawvideo", "-"], stdout=subprocess.PIPE) as process:  # noqa: S603
        size = HEIGHT * WIDTH * 3
        while len(data := process.stdout.read(size)) == size:
            yield np.frombuffer(data, np.uint8).reshape(HEIGHT, WIDTH, 3)


ENGINES: dict[str, Engine] = {
    "demr": demr,
    "PyAV plain": pyav_plain,
    "PyAV seek": pyav_seek,
    "OpenCV grab": opencv_grab,
    "OpenCV seek": opencv_seek,
    "ffmpeg": ffmpeg,
}


def missing() -> dict[str, str]:
    """Engines that cannot run here, and why."""
    reasons = {}
    if find_spec("cv2") is None:
        reasons |= dict.fromkeys(("OpenCV grab", "OpenCV seek"), "opencv-python-headless is absent")
    if shutil.which("ffmpeg") is None:
        reasons["ffmpeg"] = "the program is absent"
    return reasons
