"""Scripts of the embedded world: which shapes act when, deterministic by split and seed.

Lengths are in units of the frame height, so a scene is ``ASPECT`` wide and 1 high at every
resolution; times are in seconds. A scene is only a script; ``render`` turns it into pixels and
``language`` into sentences.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
# Moves need free room and often fail; the rest is damped so that all actions are common.
_APPETITE = {
    **dict.fromkeys(ACTIONS, 1.0),
    **dict.fromkeys(MOVES, 5.0),
    "grow": 2.0,
    "shrink": 1.5,
    "spin": 0.6,
    "blink": 0.35,
    "swap": 0.6,
}

REACH = 1.2  # bounding circle of the widest shape, in radii
GROWTH = 1.7
MIN_EVENT_S = 3.0
MAX_EVENT_S = 16.0
MIN_GAP_S = 1.5
_EDGE = 0.025  # room for the camera shake
_SMALLEST, _LARGEST = 0.055, 0.2  # radii that shrinking and growing may reach
_MIN_SPEED = 0.045  # heights per second; slower motion drowns in the camera shake
_PREFERENCE = 4.0
_LONGEST_S = {"fade_in": 8.0, "fade_out": 8.0, "swap": 10.0}


def stable_rng(*key: object) -> np.random.Generator:
    """Return a generator that depends on nothing but the key's text."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


@cache
def _class_of(kind: str, names: tuple[str, ...]) -> dict[str, int]:
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode()).digest())
    return {name: rank % 4 for rank, name in enumerate(ordered)}


def is_held_out(color: str, shape: str, action: str) -> bool:
    """Tell whether training never shows this combination.

    The names are ranked by a stable hash and the ranks added modulo 4, which holds out a quarter
    of all triples while each pair of attributes keeps about three quarters of its partners.
    """
    total = (
        _class_of("color", tuple(COLORS))[color]
        + _class_of("shape", SHAPES)[shape]
        + _class_of("action", ACTIONS)[action]
    )
    return total % 4 == 0


def is_allowed(split: Split, color: str, shape: str, action: str) -> bool:
    """Tell whether an event of this combination may occur in the split."""
    if shape == "circle" and action == "spin":
        return False  # nobody could see it
    return is_held_out(color, shape, action) == (split == "ood")


def time_weight(split: Split, action: str, fraction: float) -> float:
    """Return how welcome an action is at a fraction of the duration: 1 or 1/4; OOD is flipped."""
    early = (action in EARLY) != (split == "ood")
    return 1.0 if early == (fraction < 0.5) else 1.0 / _PREFERENCE


@dataclass(frozen=True)
class Pose:
    """How a shape lies in the picture: lengths in frame heights, opacity 0 to 1, colour 0 to 255."""

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
        return _evaluate(self.first, self.motions, times_s, blinking=blinking)


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


def make_scene(split: Split, seed: int) -> Scene:
    """Script the video with this seed of this split.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    attempt = 0
    while True:
        rng = stable_rng("scene", split, seed, attempt)
        stage = _Stage(split, rng, _draw_duration(rng))
        stage.cast()
        stage.play()
        if len(stage.events) >= 4 and len({event.action for event in stage.events}) >= 3:
            return stage.scene(seed)
        attempt += 1


def _draw_duration(rng: np.random.Generator) -> float:
    return round(4 * math.exp(rng.uniform(math.log(30), math.log(120)))) / 4


def _evaluate(
    first: Pose, motions: Sequence[Motion], times_s: Floats, *, blinking: bool
) -> States:
    """Hold the latest pose between the motions, and follow each motion while it lasts."""
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


@dataclass
class _Draft:
    """An actor while its script is being written."""

    object_id: int
    shape: str
    color: str
    pose: Pose
    next_start_s: float
    first_color: str = ""
    first: Pose | None = None
    motions: list[Motion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first, self.first_color = self.pose, self.color

    @property
    def free_s(self) -> float:
        return self.motions[-1].end_s if self.motions else 0.0

    def states(self, times_s: Floats, extra: Motion | None = None) -> States:
        assert self.first is not None
        motions = [*self.motions, extra] if extra else self.motions
        return _evaluate(self.first, motions, times_s, blinking=False)

    def actor(self) -> Actor:
        assert self.first is not None
        return Actor(
            self.object_id, self.shape, self.first_color, self.first, tuple(self.motions)
        )


class _Stage:
    """Writes a scene: always the shape that is due next gets an event that fits, if any does."""

    def __init__(self, split: Split, rng: np.random.Generator, duration_s: float) -> None:
        self.split = split
        self.rng = rng
        self.duration_s = duration_s
        self.drafts: list[_Draft] = []
        self.events: list[Event] = []

    def cast(self) -> None:
        """Choose the shapes and their places."""
        visible = int(self.rng.integers(3, 6))
        total = visible + int(self.rng.integers(0, 3))
        colors = [str(name) for name in self.rng.permutation(list(COLORS))]
        shared = self.rng.random() < 0.25
        for number in range(total):
            color = colors[0] if shared and number == 1 else colors[number]
            hidden = number >= visible
            shape = self._draw_shape(color, hidden)
            if shape is not None:
                self.place(color, shape, alpha=0.0 if hidden else 1.0)

    def _draw_shape(self, color: str, hidden: bool) -> str | None:
        taken = {(draft.color, draft.shape) for draft in self.drafts}
        for name in self.rng.permutation(SHAPES):
            shape = str(name)
            actions = [a for a in ACTIONS if is_allowed(self.split, color, shape, a)]
            lively = [a for a in actions if not a.startswith("fade")]
            if hidden and "fade_in" not in actions:
                continue
            if (color, shape) not in taken and len(lively) >= 2:
                return shape
        return None

    def place(
        self,
        color: str,
        shape: str,
        *,
        alpha: float = 1.0,
        at: tuple[float, float] | None = None,
        radius: float | None = None,
    ) -> _Draft | None:
        """Add a shape; None if there is no room."""
        rgb = np.clip(np.array(COLORS[color]) + self.rng.normal(0, 5, 3), 15, 245)
        radius = radius if radius is not None else self.rng.uniform(0.08, 0.13)
        draft = _Draft(
            len(self.drafts),
            shape,
            color,
            Pose(0, 0, radius, self.rng.uniform(-12, 12), alpha, (rgb[0], rgb[1], rgb[2])),
            next_start_s=self.rng.uniform(0.5, 8.0),
        )
        spot = at if at is not None else self._free_spot(draft)
        if spot is None:
            return None
        draft.first = draft.pose = replace(draft.pose, x=spot[0], y=spot[1])
        self.drafts.append(draft)
        return draft

    def _free_spot(self, draft: _Draft) -> tuple[float, float] | None:
        pad = draft.pose.radius * REACH + _EDGE
        for _ in range(40):
            x, y = self.rng.uniform(pad, ASPECT - pad), self.rng.uniform(pad, 1 - pad)
            if all(
                other is draft
                or other.pose.alpha == 0
                or math.hypot(x - other.pose.x, y - other.pose.y)
                > REACH * (draft.pose.radius + other.pose.radius)
                for other in self.drafts
            ):
                return x, y
        return None

    def play(self) -> None:
        """Fill the duration with events."""
        latest = self.duration_s - 0.25 - MIN_EVENT_S
        while True:
            draft = min(self.drafts, key=lambda d: d.next_start_s)
            if draft.next_start_s > latest:
                return
            if not self._act(draft, draft.next_start_s):
                draft.next_start_s += self.rng.uniform(1.0, 3.0)

    def _act(self, draft: _Draft, start_s: float) -> bool:
        room = min(MAX_EVENT_S, self.duration_s - 0.25 - start_s)
        length = math.exp(self.rng.uniform(math.log(MIN_EVENT_S), math.log(room)))
        fraction = (start_s + length / 2) / self.duration_s
        done = {motion.action for motion in draft.motions}
        for name in self._shuffled(done):
            action = str(name)
            if not is_allowed(self.split, draft.color, draft.shape, action):
                continue
            if (action == "fade_in") != (draft.pose.alpha == 0.0):
                continue
            if self.rng.random() > time_weight(self.split, action, fraction):
                continue
            end_s = start_s + min(length, _LONGEST_S.get(action, MAX_EVENT_S))
            if self.perform(draft, action, start_s, end_s):
                return True
        return False

    def _shuffled(self, done: set[str]) -> list[str]:
        # What a shape did before comes first more often, so that moments happen twice.
        wish = np.array([_APPETITE[a] * (2.5 if a in done else 1.0) for a in ACTIONS])
        keys = self.rng.random(len(ACTIONS)) ** (1 / wish)
        return [ACTIONS[i] for i in np.argsort(-keys)]

    def perform(
        self,
        draft: _Draft,
        action: str,
        start_s: float,
        end_s: float,
        *,
        by: tuple[float, float] | None = None,
        partner: _Draft | None = None,
    ) -> bool:
        """Add the event if it fits; ``by`` fixes the displacement of a move."""
        start_s, end_s = round(start_s, 2), round(end_s, 2)
        if action == "swap":
            return self._swap(draft, start_s, end_s, partner)
        if action == "fade_out" and self._on_screen(end_s) <= 3:
            return False
        if action == "fade_in" and self._on_screen(end_s) >= 5:
            return False
        for _ in range(6):
            motion = self._draw_motion(draft, action, start_s, end_s, by)
            if motion is not None and self._fits(draft, motion):
                self._commit(draft, motion)
                return True
            if action in ("grow", "shrink", "spin", "blink", "fade_out"):
                return False
        return False

    def _on_screen(self, time_s: float) -> int:
        return sum(d.pose.alpha > 0 or d.free_s > time_s for d in self.drafts)

    def _draw_motion(
        self,
        draft: _Draft,
        action: str,
        start_s: float,
        end_s: float,
        by: tuple[float, float] | None,
    ) -> Motion | None:
        pose, length, rng = draft.pose, end_s - start_s, self.rng
        after, rate, amplitude = pose, 0.0, 0.0
        if action in MOVES:
            shift = by if by is not None else self._draw_shift(pose, action, length)
            if shift is None:
                return None
            after = replace(pose, x=pose.x + shift[0], y=pose.y + shift[1])
        elif action in ("grow", "shrink"):
            radius = pose.radius * (GROWTH if action == "grow" else 1 / GROWTH)
            if not _SMALLEST <= radius <= _LARGEST:
                return None
            after = replace(pose, radius=radius)
        elif action == "spin":
            rate = float(rng.choice((-1, 1)) * rng.uniform(90, 160))
            after = replace(pose, angle_deg=pose.angle_deg + rate * length)
        elif action == "bounce":
            rate = round(length * rng.uniform(0.85, 1.15))
            amplitude = rng.uniform(0.12, 0.25)
        elif action == "wobble":
            rate = round(length * rng.uniform(0.7, 1.1))
            amplitude = rng.choice((-1, 1)) * rng.uniform(0.07, 0.13)
        elif action == "blink":
            rate = round(length * rng.uniform(1.7, 2.3))
        elif action == "fade_out":
            after = replace(pose, alpha=0.0)
        elif action == "fade_in":
            spot = self._free_spot(draft)
            if spot is None:
                return None
            pose = replace(pose, x=spot[0], y=spot[1])
            after = replace(pose, alpha=1.0)
        return Motion(action, start_s, end_s, pose, after, rate, amplitude)

    def _draw_shift(self, pose: Pose, action: str, length: float) -> tuple[float, float] | None:
        right, down = MOVES[action]
        pad = pose.radius * REACH + _EDGE
        if right:
            size, room = ASPECT, (ASPECT - pad - pose.x if right > 0 else pose.x - pad)
        else:
            size, room = 1.0, (1 - pad - pose.y if down > 0 else pose.y - pad)
        least = max(0.25 * size, _MIN_SPEED * length)
        if room < least:
            return None
        distance = self.rng.uniform(least, min(room, max(least, 0.75 * size)))
        return right * distance, down * distance

    def _fits(self, draft: _Draft, motion: Motion) -> bool:
        """Check the frame's edge and every other shape, until all that is scripted has ended."""
        horizon = max(motion.end_s, *(d.free_s for d in self.drafts)) + 0.3
        times_s = np.arange(motion.start_s, horizon, 0.2)
        mine = draft.states(times_s, motion)
        pad = mine.radius * REACH + _EDGE - 1e-6
        if np.any((mine.x < pad) | (mine.x > ASPECT - pad) | (mine.y < pad) | (mine.y > 1 - pad)):
            return False
        for other in self.drafts:
            if other is draft:
                continue
            theirs = other.states(times_s)
            apart = np.hypot(mine.x - theirs.x, mine.y - theirs.y)
            # Bounding circles may touch a little: corners rarely meet.
            near = apart < 0.88 * REACH * (mine.radius + theirs.radius)
            if np.any(near & (mine.alpha > 0) & (theirs.alpha > 0)):
                return False
        return True

    def _swap(self, draft: _Draft, start_s: float, end_s: float, partner: _Draft | None) -> bool:
        taken = {(d.color, d.shape) for d in self.drafts}
        candidates = [partner] if partner is not None else self.drafts
        for index in self.rng.permutation(len(candidates)):
            other = candidates[index]
            if (
                other.color != draft.color
                and other.pose.alpha > 0
                and other.free_s + MIN_GAP_S <= start_s
                and is_allowed(self.split, other.color, other.shape, "swap")
                and (
                    other.shape == draft.shape
                    or not taken & {(other.color, draft.shape), (draft.color, other.shape)}
                )
            ):
                mine, theirs = draft.pose, other.pose
                colors = draft.color, other.color
                for who, pose, rgb, color in (
                    (draft, mine, theirs.rgb, colors[1]),
                    (other, theirs, mine.rgb, colors[0]),
                ):
                    after = replace(pose, rgb=rgb)
                    self._commit(who, Motion("swap", start_s, end_s, pose, after), color)
                return True
        return False

    def _commit(self, draft: _Draft, motion: Motion, color_after: str | None = None) -> None:
        color, draft.color = draft.color, color_after or draft.color
        self.events.append(
            Event(
                draft.object_id,
                color,
                draft.shape,
                motion.action,
                motion.start_s,
                motion.end_s,
                draft.color,
            )
        )
        draft.motions.append(motion)
        draft.pose = motion.after
        draft.next_start_s = motion.end_s + MIN_GAP_S + self.rng.exponential(4.0)

    def scene(self, seed: int, name: str | None = None) -> Scene:
        """Return the finished script."""
        events = tuple(sorted(self.events, key=lambda e: (e.start_s, e.object_id)))
        actors = tuple(draft.actor() for draft in self.drafts)
        return Scene(self.split, seed, self.duration_s, actors, events, name)
