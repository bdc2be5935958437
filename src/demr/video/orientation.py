"""Which way up a frame is, by the display matrix that phones write."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Orientation:
    """Right-angle part of a display matrix: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """The counterclockwise turn that makes the stored frame upright."""
        if self.transpose:
            return 270 if self.mirror_x else 90
        return 180 if self.mirror_x else 0

    def upright(self, pixels: Pixels) -> Pixels:
        """Turn ``(H, W)`` or ``(H, W, 3)`` pixels; the result is contiguous."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        if self.mirror_x:
            pixels = pixels[:, ::-1]
        if self.mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


def orientation_of(frame: VideoFrame) -> Orientation:
    """How a decoded frame has to be turned, by its display matrix."""
    try:
        # PyAV's type stub knows one kind of side data; the mapping holds all.
        matrix = bytes(cast("SideDataContainer", frame.side_data)[SideDataType.DISPLAYMATRIX])
    except KeyError:
        return Orientation()
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(mirror_x=a < 0, mirror_y=d < 0)
