"""Which queries are asked about a scene: about events and things in it, and about absent ones."""

from dataclasses import replace

import numpy as np

from demr.annotations import Annotation
from demr.shapes.language import (
    GROUPS,
    VAGUE,
    Semantics,
    Sighting,
    pick,
    sentence,
    sightings,
    true_windows,
    unknown_sentence,
    unknown_thing,
)
from demr.shapes.script import (
    ACTIONS,
    COLORS,
    MOVES,
    SHAPES,
    Scene,
    Split,
    may_be_asked,
    stable_rng,
)

# Below this a thing is gone before anybody could point at it.
_SHORTEST_SIGHT_S = 1.0


def scene_annotations(
    scene: Scene,
    n_present: int = 8,
    n_absent: int = 8,
    n_vague: int = 1,
    n_unknown: int = 1,
) -> list[Annotation]:
    """Write queries about a scene's events, present ones first.

    They are the same for the same scene and counts; fewer come back where the scene has not
    enough different events.
    """
    rng = stable_rng("queries", scene.split, scene.seed, scene.name)
    rows: list[tuple[str, str, Semantics | None]] = [
        *(("present", sentence(asked, rng), asked) for asked in _present(scene, n_present, rng)),
        *(("absent", sentence(asked, rng), asked) for asked in _absent(scene, n_absent, rng)),
    ]
    vague = [_vague(scene, rng) for _ in range(n_vague)]
    rows += [("vague", pick(rng, VAGUE[asked.action]), asked) for asked in vague]
    rows += [("unknown", unknown_sentence(scene.split, rng), None) for _ in range(n_unknown)]
    return [
        annotate(scene, f"{number:02d}", kind, text, asked)
        for number, (kind, text, asked) in enumerate(rows)
    ]


def thing_annotations(
    scene: Scene, n_present: int = 4, n_absent: int = 4, n_unknown: int = 1
) -> list[Annotation]:
    """Write queries that name a thing and no action, those about visible things first.

    They are the same for the same scene and counts. Nothing is held out of any split: what OOD
    videos are new in is who does what, and these do not say.
    """
    rng = stable_rng("things", scene.split, scene.seed, scene.name)
    rows: list[tuple[str, str, Semantics | None]] = [
        *(("thing", sentence(a, rng), a) for a in _present_things(scene, n_present, rng)),
        *(("absent thing", sentence(a, rng), a) for a in _absent_things(scene, n_absent, rng)),
    ]
    rows += [("unknown", unknown_thing(scene.split, rng), None) for _ in range(n_unknown)]
    return [
        annotate(scene, f"t{number:02d}", kind, text, asked)
        for number, (kind, text, asked) in enumerate(rows)
    ]


def annotate(
    scene: Scene, number: str, kind: str, text: str, asked: Semantics | None
) -> Annotation:
    """Make the annotation of one sentence; None stands for words without a meaning here."""
    return Annotation(
        qid=f"{scene.vid}_{number}",
        query=text,
        vid=scene.vid,
        duration_s=scene.duration_s,
        windows_s=() if asked is None else true_windows(scene, asked),
        event=text if asked is None else asked.name,
        kind=kind,
    )


def _present(scene: Scene, count: int, rng: np.random.Generator) -> list[Semantics]:
    """Draw different semantics of the scene's events, most of them with all attributes."""
    drawn: dict[Semantics, None] = {}
    events = [e for e in scene.events if may_be_asked(scene.split, e.color, e.shape, e.action)]
    for _ in range(count * 12):
        if len(drawn) == count or not events:
            break
        event = events[int(rng.integers(len(events)))]
        full = Semantics(event.color, event.shape, event.action)
        draw = rng.random()
        if draw < 0.15:
            asked = replace(full, shape=None)
        elif draw < 0.30:
            asked = replace(full, color=None)
        elif draw < 0.34:
            asked = replace(full, color=None, shape=None)
        elif draw < 0.40:
            group = "travel" if event.action in MOVES else "resize"
            asked = replace(full, action=group) if event.action in GROUPS[group] else full
        else:
            asked = full
        if sum(end - start for start, end in true_windows(scene, asked)) < 0.5 * scene.duration_s:
            drawn[asked] = None
    return list(drawn)


def _absent(scene: Scene, count: int, rng: np.random.Generator) -> list[Semantics]:
    """Draw semantics that no event of the scene meets, three quarters close to one that does."""
    drawn: dict[Semantics, None] = {}
    for _ in range(count * 40):
        if len(drawn) == count:
            break
        asked = _changed_event(scene, rng) if rng.random() < 0.75 else _any_semantics(rng)
        if not is_plausible(scene.split, asked):
            continue
        draw = rng.random()
        if draw < 0.08:
            asked = replace(asked, shape=None)
        elif draw < 0.16:
            asked = replace(asked, color=None)
        elif draw < 0.19:
            asked = replace(asked, color=None, shape=None)
        elif draw < 0.25:
            group = "travel" if rng.random() < 0.6 else "resize"
            asked = replace(asked, action=group)
        if not any(asked.nearly_matches(event) for event in scene.events):
            drawn[asked] = None
    return list(drawn)


def _present_things(scene: Scene, count: int, rng: np.random.Generator) -> list[Semantics]:
    """Draw different things that the scene shows, three in five of them with colour and shape."""
    drawn: dict[Semantics, None] = {}
    seen = list(sightings(scene))
    for _ in range(count * 12):
        if len(drawn) == count:
            break
        asked = _opened(seen[int(rng.integers(len(seen)))], rng)
        windows = true_windows(scene, asked)
        if sum(end - start for start, end in windows) >= _SHORTEST_SIGHT_S:
            drawn[asked] = None
    return list(drawn)


def _absent_things(scene: Scene, count: int, rng: np.random.Generator) -> list[Semantics]:
    """Draw things that the scene never shows, three quarters with a colour or shape that it does.

    Half of these put together a colour and a shape that are both there, but not in one.
    """
    drawn: dict[Semantics, None] = {}
    seen = list(sightings(scene))
    for _ in range(count * 40):
        if len(drawn) == count:
            break
        color, shape = pick(rng, tuple(COLORS)), pick(rng, SHAPES)
        draw = rng.random()
        if draw < 0.75:
            if draw < 0.55:
                color = seen[int(rng.integers(len(seen)))].color
            if draw < 0.35 or draw >= 0.55:
                shape = seen[int(rng.integers(len(seen)))].shape
        asked = _opened(Sighting(color, shape, 0.0, 0.0), rng)
        if not any(asked.names(one.color, one.shape) for one in seen):
            drawn[asked] = None
    return list(drawn)


def _opened(thing: Sighting, rng: np.random.Generator) -> Semantics:
    """Ask for colour and shape of a thing, or for one of them."""
    draw = rng.random()
    return Semantics(
        None if draw < 0.2 else thing.color, None if 0.2 <= draw < 0.4 else thing.shape, None
    )


def is_plausible(split: Split, asked: Semantics) -> bool:
    """Tell whether the split may ask for this; true wherever an attribute is open."""
    if asked.color is None or asked.shape is None or asked.action is None:
        return True
    return may_be_asked(split, asked.color, asked.shape, asked.action)


def _changed_event(scene: Scene, rng: np.random.Generator) -> Semantics:
    event = scene.events[int(rng.integers(len(scene.events)))]
    real = Semantics(event.color, event.shape, event.action)
    draw = rng.random()
    if draw < 0.4:
        return replace(real, action=pick(rng, ACTIONS))
    if draw < 0.7:
        # Rather a colour or shape that is on screen: its mere presence must not answer.
        seen = tuple(sorted({e.color for e in scene.events})) if rng.random() < 0.7 else ()
        return replace(real, color=pick(rng, seen or tuple(COLORS)))
    seen = tuple(sorted({e.shape for e in scene.events})) if rng.random() < 0.7 else ()
    return replace(real, shape=pick(rng, seen or SHAPES))


def _any_semantics(rng: np.random.Generator) -> Semantics:
    return Semantics(pick(rng, tuple(COLORS)), pick(rng, SHAPES), pick(rng, ACTIONS))


def _vague(scene: Scene, rng: np.random.Generator) -> Semantics:
    groups = list(VAGUE)
    for index in rng.permutation(len(groups)):
        asked = Semantics(None, None, groups[index])
        if true_windows(scene, asked):
            return asked
    return Semantics(None, None, "any")


def demo_annotations(scene: Scene) -> list[Annotation]:
    """Return the queries of the demo about ``world.demo_scene``, with their true windows."""
    event = {(e.shape, e.action): e for e in scene.events}
    color = {e.shape: e.color for e in reversed(scene.events)}

    def real(shape: str, action: str) -> Semantics:
        return Semantics(event[shape, action].color, shape, action)

    def changed(shape: str, action: str) -> Semantics:
        return Semantics(color[shape], shape, action)

    absent_color = next(name for name in COLORS if name not in set(color.values()))
    asked: tuple[tuple[str, str, Semantics | None], ...] = (
        ("present", "the {0} square moves to the right", real("square", "move_right")),
        ("present", "the {0} star spinning around", real("star", "spin")),
        ("present", "when does the {0} triangle get bigger?", real("triangle", "grow")),
        ("present", "the {0} circle bounces up and down", real("circle", "bounce")),
        ("present", "something {0} disappears", replace(real("cross", "fade_out"), shape=None)),
        ("thing", "the {0} cross", Semantics(color["cross"], "cross", None)),
        ("absent", "{0} bar moving to the left", Semantics(absent_color, "bar", "move_left")),
        ("absent", "the {0} star bounces up and down", changed("star", "bounce")),
        ("absent", "the {0} square moves down", changed("square", "move_down")),
        ("unknown", "a giraffe plays the trumpet", None),
        ("vague", "a shape moves", Semantics(None, None, "motion")),
    )
    return [
        annotate(scene, f"{number:02d}", kind, text.format(meant.color if meant else ""), meant)
        for number, (kind, text, meant) in enumerate(asked)
    ]
