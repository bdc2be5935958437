"""Writes the scripts of the embedded world, deterministic by split and seed."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from demr.shapes.script import (
    ACTIONS,
    ASPECT,
    COLORS,
    MOVES,
    REACH,
    SHAPES,
    SPLITS,
    Actor,
    Event,
    Floats,
    Motion,
    Pose,
    Scene,
    Split,
    States,
    event_table,
    follow,
    is_held_out,
    may_happen,
    stable_rng,
    time_weight,
)

__all__ = ["Scene", "Split", "demo_scene", "event_table", "make_scene"]

GROWTH = 1.7
MIN_VISIBLE, MAX_VISIBLE = 3, 5
MIN_EVENT_S = 3.0
MAX_EVENT_S = 16.0
MIN_GAP_S = 1.5
# A quarter of all combinations is held out; this makes them a good third of the events.
_OOD_WEIGHT = 3.0
_REPEAT_GAP_S = 4.0  # a shorter pause would not make two moments of the same thing
_EDGE = 0.025  # room for the camera shake
_SMALLEST, _LARGEST = 0.055, 0.2  # radii that shrinking and growing may reach
_MIN_SPEED = 0.045  # heights per second; slower motion drowns in the camera shake
_LONGEST_S = {"fade_in": 8.0, "fade_out": 8.0, "swap": 10.0}
# Moves need free room and often fail; the rest is damped so that all actions are common.
_ACTION_WEIGHT = {
    **dict.fromkeys(ACTIONS, 1.0),
    **dict.fromkeys(MOVES, 5.0),
    "grow": 2.0,
    "shrink": 1.5,
    "spin": 0.6,
    "bounce": 0.7,
    "blink": 0.35,
    "swap": 0.6,
}


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
        if sum(draft.pose.alpha > 0 for draft in stage.drafts) < MIN_VISIBLE:
            attempt += 1
            continue
        stage.play()
        if len(stage.events) >= 4 and len({event.action for event in stage.events}) >= 3:
            return stage.scene(seed)
        attempt += 1


def _draw_duration(rng: np.random.Generator) -> float:
    return round(4 * math.exp(rng.uniform(math.log(30), math.log(120)))) / 4


@dataclass
class _Draft:
    """An actor while its script is being written."""

    object_id: int
    shape: str
    color: str
    pose: Pose
    next_start_s: float
    motions: list[Motion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first, self.first_color = self.pose, self.color

    @property
    def free_s(self) -> float:
        return self.motions[-1].end_s if self.motions else 0.0

    def states(self, times_s: Floats, extra: Motion | None = None) -> States:
        motions = [*self.motions, extra] if extra else self.motions
        return follow(self.first, motions, times_s, blinking=False)

    def actor(self) -> Actor:
        return Actor(self.object_id, self.shape, self.first_color, self.first, tuple(self.motions))


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
        visible = int(self.rng.integers(MIN_VISIBLE, MAX_VISIBLE + 1))
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
            actions = [a for a in ACTIONS if may_happen(self.split, color, shape, a)]
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
    ) -> None:
        """Add a shape if there is room."""
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
        if spot is not None:
            draft.first = draft.pose = replace(draft.pose, x=spot[0], y=spot[1])
            self.drafts.append(draft)

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
        done = [motion.action for motion in draft.motions]
        for name in self._shuffled(draft, done):
            action = str(name)
            if not may_happen(self.split, draft.color, draft.shape, action):
                continue
            if done.count(action) >= 3 or (
                action in done[-1:] and start_s - draft.free_s < _REPEAT_GAP_S
            ):
                continue
            if (action == "fade_in") != (draft.pose.alpha == 0.0):
                continue
            if self.rng.random() > time_weight(self.split, action, fraction):
                continue
            end_s = start_s + min(length, _LONGEST_S.get(action, MAX_EVENT_S))
            if self.perform(draft, action, start_s, end_s):
                return True
        return False

    def _shuffled(self, draft: _Draft, done: list[str]) -> list[str]:
        # What a shape did before comes first more often, so that moments happen twice.
        weight = np.array([_ACTION_WEIGHT[a] * (2.0 if a in done else 1.0) for a in ACTIONS])
        if self.split == "ood":
            held_out = [is_held_out(draft.color, draft.shape, a) for a in ACTIONS]
            weight[held_out] *= _OOD_WEIGHT
        keys = self.rng.random(len(ACTIONS)) ** (1 / weight)
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
        staying = sum(d.pose.alpha > 0 for d in self.drafts)
        if action == "fade_out" and staying <= MIN_VISIBLE:
            return False
        leaving = sum(d.pose.alpha == 0 and d.free_s > start_s for d in self.drafts)
        if action == "fade_in" and staying + leaving >= MAX_VISIBLE:
            return False
        for _ in range(6):
            motion = self._draw_motion(draft, action, start_s, end_s, by)
            if motion is not None and self._fits(draft, motion):
                self._commit(draft, motion)
                return True
            if action in ("grow", "shrink", "spin", "blink", "fade_out"):
                return False
        return False

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
            near = apart < 0.95 * REACH * (mine.radius + theirs.radius)
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
                and may_happen(self.split, other.color, other.shape, "swap")
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


# The demo's cast: shape, place, radius; the colours come from the seed.
_DEMO_CAST = (
    ("circle", (0.30, 0.72), 0.105),
    ("square", (0.30, 0.24), 0.100),
    ("star", (1.48, 0.30), 0.110),
    ("triangle", (0.86, 0.70), 0.095),
    ("cross", (1.46, 0.74), 0.100),
)
# Who does what from when to when, by how much; the circle bounces twice.
_DEMO_SCRIPT: tuple[tuple[int, str, float, float, tuple[float, float] | None], ...] = (
    (1, "move_right", 3.0, 9.0, (0.66, 0.0)),
    (0, "bounce", 6.5, 12.0, None),
    (2, "spin", 12.0, 18.0, None),
    (3, "grow", 16.5, 22.0, None),
    (4, "fade_out", 22.0, 26.0, None),
    (0, "bounce", 25.0, 30.5, None),
    (1, "swap", 29.0, 34.0, None),
    (3, "wobble", 33.0, 38.0, None),
)
_DEMO_SWAP = 2  # the square's partner


def demo_scene(seed: int = 0) -> Scene:
    """Return the hand-written scene of the demo, 40 s; the seed varies colours and rhythm.

    All its events are combinations that training knows.
    """
    attempt = 0
    while True:
        rng = stable_rng("demo", seed, attempt)
        stage = _Stage("iid", rng, 40.0)
        colors = [str(name) for name in rng.permutation(list(COLORS))]
        for color, (shape, at, radius) in zip(colors, _DEMO_CAST, strict=False):
            stage.place(color, shape, at=at, radius=radius)
        if all(_play_line(stage, line) for line in _DEMO_SCRIPT):
            return stage.scene(seed, f"demo_{seed:04d}")
        attempt += 1


def _play_line(
    stage: _Stage, line: tuple[int, str, float, float, tuple[float, float] | None]
) -> bool:
    number, action, start_s, end_s, by = line
    draft, partner = stage.drafts[number], stage.drafts[_DEMO_SWAP]
    return may_happen(stage.split, draft.color, draft.shape, action) and stage.perform(
        draft, action, start_s, end_s, by=by, partner=partner
    )
