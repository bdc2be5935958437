"""Links the regions of consecutive frames by place, hue and size: one track per object."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from demr.encoders.builtin.objects import AREA, HUE_COS, HUE_SIN, Floats, X, Y

# Frames that an object may stay unseen (blinking, hidden) and still be the same one.
_MAX_GAP = 10
# Above this sum of distance (in sides of a square of the region's area), difference of hue and of
# size, two regions are not one object.
_MAX_COST = 2.2
# Open tracks, which bounds the matching of a crowd.
_MAX_ACTIVE = 32


@dataclass(frozen=True)
class Track:
    """One object through time.

    Attributes:
        index: Sample indices at which it was seen, increasing, ``(n,)``.
        rows: Its regions, ``(n, COLUMNS)``.
    """

    index: NDArray[np.int64]
    rows: Floats


class Tracker:
    """Links the regions of one sample after the other into tracks.

    Args:
        min_length: Tracks seen less often are noise and are forgotten.
    """

    def __init__(self, min_length: int) -> None:
        self._min_length = min_length
        self._tables: list[Floats] = []
        self._rows = 0
        self._active: list[_Open] = []
        self._finished: list[_Open] = []

    def add(self, index: int, regions: Floats) -> None:
        """Regions of sample ``index``; indices increase from call to call."""
        if any(index - track.times[-1] > _MAX_GAP for track in self._active):
            self._keep(lambda track: index - track.times[-1] <= _MAX_GAP)
        if len(regions) == 0:
            return
        matched: set[int] = set()
        if self._active:
            cost = self._cost(index, regions)
            for old, new in zip(*linear_sum_assignment(cost), strict=True):
                if cost[old, new] < _MAX_COST:
                    self._active[old].see(index, self._rows + int(new), regions[new])
                    matched.add(int(new))
        for number in range(len(regions)):
            if number not in matched:
                track = _Open(array("q"), array("q"), regions[number])
                track.see(index, self._rows + number, regions[number])
                self._active.append(track)
        self._tables.append(regions)
        self._rows += len(regions)
        if len(self._active) > _MAX_ACTIVE:
            # The longest unseen go first.
            oldest = sorted(track.times[-1] for track in self._active)[-_MAX_ACTIVE]
            self._keep(lambda track: track.times[-1] >= oldest)

    def tracks(self) -> list[Track]:
        """All tracks up to now, in the order of their first sight; ends them."""
        self._keep(lambda _: False)
        if not self._finished:
            return []
        rows = np.concatenate(self._tables)
        self._finished.sort(key=lambda track: track.times[0])
        return [
            Track(np.array(track.times, dtype=np.int64), rows[np.array(track.places)])
            for track in self._finished
        ]

    def _keep(self, is_active: Callable[["_Open"], bool]) -> None:
        ended = [track for track in self._active if not is_active(track)]
        self._finished += [track for track in ended if len(track.times) >= self._min_length]
        self._active = [track for track in self._active if is_active(track)]

    def _cost(self, index: int, regions: Floats) -> Floats:
        old = np.stack([track.last for track in self._active])[:, None]
        times = np.array([track.times[-1] for track in self._active])
        gap = (index - times).astype(np.float32)[:, None]
        new = regions[None]
        size = np.sqrt(np.maximum(old[..., AREA], new[..., AREA]))
        distance = np.hypot(old[..., X] - new[..., X], old[..., Y] - new[..., Y]) / size
        # An object unseen for longer may have gone further.
        distance = distance / (1 + 0.15 * (gap - 1))
        cosine = old[..., HUE_COS] * new[..., HUE_COS] + old[..., HUE_SIN] * new[..., HUE_SIN]
        # Place outweighs hue: an object that changes colour where it is stays the same object.
        hue = np.minimum((1 - cosine) * 2, 1)
        area = np.abs(np.log(old[..., AREA] / new[..., AREA]))
        cost: Floats = distance + hue + 0.5 * np.minimum(area, 2)
        return cost


@dataclass
class _Open:
    """A track that may go on: when it was seen, where its rows lie among all, and the last row."""

    times: "array[int]"
    places: "array[int]"
    last: Floats

    def see(self, index: int, place: int, row: Floats) -> None:
        self.times.append(index)
        self.places.append(place)
        self.last = row
