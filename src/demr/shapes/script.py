"""The script of a video: shapes, poses, motions, events.

Lengths are in units of the frame height, so a scene is ``ASPECT`` wide and 1 high at every
resolution; times are in seconds. A scene is only a script; ``world`` writes it, ``render`` turns
it into pixels and ``language`` into sentences.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "iid", "ood"]
Floats = NDArray[np.float64]
Rgb = tuple[float, float, float]

SPLITS: tuple[str, ...] = get_args(Split)
ASPECT = 16 / 9
COLORS: dict[str, Rgb] = {
    "red": (214, 40, 44),
    "orange": (240, 132, 22),
    "yellow": (236, 214, 48),
    "green": (52, 164, 62),
    "cyan": (44, 198, 208),
    "blue": (42, 84, 214),
    "purple": (134, 52, 184),
    "pink": (242, 112, 182),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "bar")
MOVES: dict[str, tuple[int, int]] = {
    "move_left": (-1, 0),
    "move_right": (1, 0),
    "move_up": (0, -1),
    "move_down": (0, 1),
}
# The actions that training shows mostly in the first half of a video; the others come late.
EARLY = ("move_left", "move_up", "spin", "grow", "blink", "fade_in")
LATE = ("move_right", "move_down", "bounce", "shrink", "wobble", "fade_out", "swap")
ACTIONS = (*EARLY, *LATE)

# Of many deals of the held-out combinations one that leaves every pair at least three partners.
_DEAL = 1389
REACH = 1.2  # bounding circle of the widest shape, in radii


def stable_rng(*key: object) -> np.random.Generator:
    """Return a generator that depends on nothing but the key's text."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


@cache
def _classes(kind: str, names: tuple[str, ...]) -> dict[str, int]:
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode()).digest())
    return {name: rank % 4 for rank, name in enumerate(ordered)}


def is_held_out(color: str, shape: str, action: str) -> bool:
    """Tell whether training never shows this combination.

    For each shape a stable hash deals colours and actions into four classes, and the triples whose
    classes match are held out: a quarter, spread so that each pair of attributes keeps most of
    its partners in training.
    """
    colors = _classes(f"{_DEAL}/color/{shape}", tuple(COLORS))
    return colors[color] == _classes(f"{_DEAL}/action/{shape}", ACTIONS)[action]


def may_happen(split: Split, color: str, shape: str, action: str) -> bool:
    """Tell whether an event of this combination may occur in the split.

    OOD videos show everything, so that they are as full as the others: with held-out events
    alone they would have a third fewer, and be easier.
    """
    if shape == "circle" and action == "spin":
        return False  # nobody could see it
    return split == "ood" or not is_held_out(color, shape, action)


def may_be_asked(split: Split, color: str, shape: str, action: str) -> bool:
    """Tell whether a query of the split may ask for this; OOD asks for held-out ones alone."""
    if split == "ood" and not is_held_out(color, shape, action):
        return False
    return may_happen(split, color, shape, action)


def time_weight(split: Split, action: str, fraction: float) -> float:
    """Return how welcome an action is at a fraction of the duration: 1 or 1/4; OOD is flipped."""
    early = (action in EARLY) != (split == "ood")
    return 1.0 if early == (fraction < 0.5) else 0.25


@dataclass(frozen=True)
class Pose:
    """How a shape lies in the picture: lengths in heights, opacity 0 to 1, colour 0 to 255."""

    x: float
    y: float
    radius: float
    angle_deg: float
    alpha: float
    rgb: Rgb


@dataclass(frozen=True)
class Motion:
    """One shape's part in one event: the pose before and after, and the rhythm between.

    ``rate`` counts hops, swings or blinks over the whole event, or degrees per second of a spin;
    ``amplitude`` is the height of a hop or the width of a swing.
    """

    action: str
    start_s: float
    end_s: float
    before: Pose
    after: Pose
    rate: float = 0.0
    amplitude: float = 0.0


@dataclass(frozen=True)
class States:
    """Poses of one shape at many times: every array is ``(T,)``, ``rgb`` is ``(T, 3)``."""

    x: Floats
    y: Floats
    radius: Floats
    angle_deg: Floats
    alpha: Floats
    rgb: Floats


@dataclass(frozen=True)
class Actor:
    """A shape and all that it does in a scene, in order of time."""

    object_id: int
    shape: str
    color: str
    first: Pose
    motions: tuple[Motion, ...]

    def states(self, times_s: Floats, *, blinking: bool = True) -> States:
        """Evaluate the script at the given times.

        Args:
            times_s: Times ``(T,)``.
            blinking: False keeps a blinking shape visible, as collisions need it.
        """
        return follow(self.first, self.motions, times_s, blinking=blinking)


@dataclass(frozen=True)
class Event:
    """Something that one shape does; a swap of colours makes two events, one for each shape.

    ``color`` is the colour when the event starts and ``color_after`` the one when it ends.
    """

    object_id: int
    color: str
    shape: str
    action: str
    start_s: float
    end_s: float
    color_after: str


@dataclass(frozen=True)
class Scene:
    """The script of one video."""

    split: Split
    seed: int
    duration_s: float
    actors: tuple[Actor, ...]
    events: tuple[Event, ...]
    name: str | None = None

    @property
    def vid(self) -> str:
        """Name of the video, such as ``train_0012``."""
        return self.name if self.name is not None else f"{self.split}_{self.seed:04d}"


def event_table(scene: Scene) -> list[dict[str, str | float | int]]:
    """Return the events as plain rows, in order of start."""
    return [
        {
            "color": event.color,
            "shape": event.shape,
            "action": event.action,
            "start_s": event.start_s,
            "end_s": event.end_s,
            "object_id": event.object_id,
        }
        for event in scene.events
    ]


def follow(first: Pose, motions: Sequence[Motion], times_s: Floats, *, blinking: bool) -> States:
    """Hold the latest pose between the motions, and follow each motion while it lasts.

    Args:
        first: The pose until the first motion.
        motions: In order of time.
        times_s: Increasing times ``(T,)``.
        blinking: False keeps a blinking shape visible, as collisions need it.
    """
    table = np.empty((8, times_s.size))
    table[:] = _vector(first)[:, None]
    for motion in motions:
        begin, end = np.searchsorted(times_s, (motion.start_s, motion.end_s))
        table[:, end:] = _vector(motion.after)[:, None]
        if end > begin:
            table[:, begin:end] = _during(motion, times_s[begin:end], blinking=blinking)
    return States(table[0], table[1], table[2], table[3], table[4], table[5:].T)


def _vector(pose: Pose) -> Floats:
    return np.array([pose.x, pose.y, pose.radius, pose.angle_deg, pose.alpha, *pose.rgb])


def _during(motion: Motion, times_s: Floats, *, blinking: bool) -> Floats:
    elapsed = times_s - motion.start_s
    length = motion.end_s - motion.start_s
    fraction = elapsed / length
    if motion.action in MOVES:
        fraction = _eased(fraction, 0.25 / length)
    before, after = _vector(motion.before)[:, None], _vector(motion.after)[:, None]
    table = before + fraction * (after - before)
    cycles = motion.rate * elapsed / length
    if motion.action == "bounce":
        table[1] -= motion.amplitude * np.abs(np.sin(np.pi * cycles))
    elif motion.action == "wobble":
        table[0] += motion.amplitude * np.sin(2 * np.pi * cycles)
    elif motion.action == "blink" and blinking:
        table[4] *= cycles % 1.0 >= 0.5
    elif motion.action in ("grow", "shrink"):
        table[2] = motion.before.radius * (motion.after.radius / motion.before.radius) ** fraction
    return table


def _eased(fraction: Floats, ramp: float) -> Floats:
    """Constant speed with a short start and stop, from 0 to 1."""
    speed = 1.0 / (1.0 - ramp)
    start = speed * fraction**2 / (2 * ramp)
    stop = 1.0 - speed * (1.0 - fraction) ** 2 / (2 * ramp)
    middle = speed * (fraction - ramp / 2)
    return np.where(fraction < ramp, start, np.where(fraction > 1 - ramp, stop, middle))
