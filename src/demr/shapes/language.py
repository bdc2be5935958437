"""Sentences about scenes: what they mean, how they are worded, and where they are true."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from demr.annotations import Annotation
from demr.shapes.script import (
    ACTIONS,
    COLORS,
    MOVES,
    SHAPES,
    Event,
    Scene,
    Split,
    may_be_asked,
    stable_rng,
)
from demr.shapes.words import unknown_words

Window = tuple[float, float]

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green",),
    "cyan": ("cyan", "cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "rosy"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "wedge", "pyramid"),
    "star": ("star", "star", "five-pointed star"),
    "cross": ("cross", "cross", "plus sign", "plus"),
    "bar": ("bar", "bar", "stick", "thin rectangle"),
}
# Verb in its base form | the rest of the phrase.
ACTION_PHRASES: dict[str, tuple[str, ...]] = {
    "move_left": ("move|to the left", "slide|left", "travel|leftwards", "go|to the left",
                  "drift|towards the left"),
    "move_right": ("move|to the right", "slide|right", "travel|rightwards", "go|to the right",
                   "drift|towards the right"),
    "move_up": ("move|up", "rise|", "climb|upwards", "go|up", "slide|to the top"),
    "move_down": ("move|down", "sink|", "descend|", "go|down", "slide|to the bottom"),
    "bounce": ("bounce|", "bounce|up and down", "hop|", "jump|up and down", "keep|jumping"),
    "spin": ("spin|", "rotate|", "turn|around", "spin|around", "twirl|", "revolve|"),
    "grow": ("grow|", "get|bigger", "become|larger", "expand|", "grow|bigger", "swell|"),
    "shrink": ("shrink|", "get|smaller", "become|smaller", "contract|", "shrink|in size"),
    "blink": ("blink|", "flash|", "flicker|", "blink|on and off", "flash|on and off"),
    "wobble": ("wobble|", "sway|", "wobble|from side to side", "swing|from side to side",
               "shake|sideways"),
    "fade_in": ("fade|in", "appear|", "show|up", "come|into view", "emerge|"),
    "fade_out": ("fade|out", "disappear|", "vanish|", "fade|away", "leave|the picture"),
    "swap": ("swap|colours", "exchange|its colour with another shape", "trade|colours",
             "switch|colours with another shape", "swap|colours with something"),
    "travel": ("change|its place", "move|somewhere else", "travel|across the picture",
               "glide|to another spot"),
    "resize": ("change|its size", "change|in size"),
}  # fmt: skip
GROUPS: dict[str, frozenset[str]] = {
    "travel": frozenset(MOVES),
    "resize": frozenset({"grow", "shrink"}),
    "motion": frozenset({*MOVES, "bounce", "wobble", "spin"}),
    "any": frozenset(ACTIONS),
}
_VAGUE = {
    "any": ("something happens", "anything happening", "a shape does something",
            "find something that happens", "something changes"),
    "motion": ("a shape moves", "something is moving", "there is some movement",
               "one of the shapes is in motion"),
    "resize": ("something changes its size", "a shape changes in size"),
    "travel": ("something goes to another place", "a shape moves somewhere else"),
}  # fmt: skip
_DOUBLED = frozenset({"clap", "swim", "run", "knit", "chop", "dig", "sip", "get", "spin", "hop",
                      "swap", "travel"})  # fmt: skip
_IRREGULAR_THIRD = {"go": "goes", "do": "does"}
_TEMPLATES = (
    "{np} {third}", "{np} {third}", "{np} {third}", "{np} {ing}", "{np} {ing}",
    "{np} is {ing}", "{np} that {third}", "{np} which is {ing}", "there is {np} {ing}",
    "find the moment when {np} {third}", "the moment when {np} {third}",
    "when {np} {third}", "when does {np} {base}?", "show me where {np} {third}",
    "look for {np} {ing}", "the part in which {np} {third}", "find {np} {ing}",
)  # fmt: skip


@dataclass(frozen=True)
class Semantics:
    """Meaning of a sentence; None leaves an attribute open, ``action`` may name a group."""

    color: str | None
    shape: str | None
    action: str

    @property
    def actions(self) -> frozenset[str]:
        """The actions that the sentence accepts."""
        return GROUPS.get(self.action) or frozenset({self.action})

    @property
    def name(self) -> str:
        """Canonical text, such as ``red circle bounce``."""
        words = (self.color, self.shape, self.action)
        return " ".join(word for word in words if word is not None)

    def matches(self, event: Event) -> bool:
        """Tell whether the event is what the sentence asks for."""
        return (
            self.color in (None, event.color)
            and self.shape in (None, event.shape)
            and event.action in self.actions
        )

    def nearly_matches(self, event: Event) -> bool:
        """As ``matches``, but true also for the colour that a swap ends with."""
        return self.matches(event) or self.matches(replace(event, color=event.color_after))


def true_windows(scene: Scene, semantics: Semantics) -> tuple[Window, ...]:
    """Return the windows in seconds of all matching events, overlapping ones merged."""
    return merge_windows((e.start_s, e.end_s) for e in scene.events if semantics.matches(e))


def merge_windows(windows: Iterable[Window]) -> tuple[Window, ...]:
    """Return the union of windows as sorted windows that do not touch."""
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def scene_annotations(
    scene: Scene,
    n_present: int = 8,
    n_absent: int = 8,
    n_vague: int = 1,
    n_unknown: int = 1,
) -> list[Annotation]:
    """Write queries about a scene, present ones first; the same for the same scene and counts.

    Fewer come back where the scene has not enough different events.
    """
    rng = stable_rng("queries", scene.split, scene.seed, scene.name)
    rows: list[tuple[str, str, Semantics | None]] = [
        *(("present", sentence(asked, rng), asked) for asked in _present(scene, n_present, rng)),
        *(("absent", sentence(asked, rng), asked) for asked in _absent(scene, n_absent, rng)),
    ]
    vague = [_vague(scene, rng) for _ in range(n_vague)]
    rows += [("vague", _pick(rng, _VAGUE[asked.action]), asked) for asked in vague]
    rows += [("unknown", unknown_sentence(scene.split, rng), None) for _ in range(n_unknown)]
    return [
        annotate(scene, number, kind, text, asked)
        for number, (kind, text, asked) in enumerate(rows)
    ]


def annotate(
    scene: Scene, number: int, kind: str, text: str, asked: Semantics | None
) -> Annotation:
    """Make the annotation of one sentence; None stands for words without a meaning here."""
    return Annotation(
        qid=f"{scene.vid}_{number:02d}",
        query=text,
        vid=scene.vid,
        duration_s=scene.duration_s,
        windows_s=() if asked is None else true_windows(scene, asked),
        event=text if asked is None else asked.name,
        kind=kind,
    )


def sentence(semantics: Semantics, rng: np.random.Generator) -> str:
    """Word the semantics in one of many ways."""
    base, _, rest = _pick(rng, ACTION_PHRASES[semantics.action]).partition("|")
    template = _pick(rng, _TEMPLATES)
    text = template.format(
        np=_noun_phrase(
            semantics, rng, relative="that" not in template and "which" not in template
        ),
        third=f"{_third(base)} {rest}".strip(),
        ing=f"{_ing(base)} {rest}".strip(),
        base=f"{base} {rest}".strip(),
    )
    return _dress(text, rng)


def unknown_sentence(split: Split, rng: np.random.Generator) -> str:
    """Word something that has no meaning in this world, with words of the split's half."""
    part = "test" if split in ("iid", "ood") else "train"
    noun = _pick(rng, unknown_words("noun", part))
    verb = _pick(rng, unknown_words("verb", part))
    adjective = _pick(rng, unknown_words("adjective", part))
    color = _pick(rng, COLOR_WORDS[_pick(rng, tuple(COLORS))])
    shape = _pick(rng, SHAPE_WORDS[_pick(rng, SHAPES)])
    known, _, rest = _pick(rng, ACTION_PHRASES[_pick(rng, ACTIONS)]).partition("|")
    template = _pick(
        rng,
        (
            "{a} {noun} {verb}", "the {noun} {verb}", "{a} {noun} is {ing}",
            "the {adj} {noun} {verb}",
            "the {color} {noun} {verb}", "the {color} {noun} {known}", "a {color} {noun} {known}",
            "the {color} {shape} {verb}", "a {color} {shape} {verb}", "the {adj} {noun} {known}",
            "find the moment when the {noun} {verb}", "the {noun} {known}", "the {shape} is {ing}",
        ),
    )  # fmt: skip
    text = template.format(
        a="an" if noun[0] in "aeiou" else "a",
        noun=noun,
        adj=adjective,
        color=color,
        shape=shape,
        verb=_third(verb),
        ing=_ing(verb),
        known=f"{_third(known)} {rest}".strip(),
    )
    return _dress(text, rng)


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


def is_plausible(split: Split, asked: Semantics) -> bool:
    """Tell whether the split may ask for this; true wherever an attribute is open."""
    if asked.color is None or asked.shape is None:
        return True
    return may_be_asked(split, asked.color, asked.shape, asked.action)


def _changed_event(scene: Scene, rng: np.random.Generator) -> Semantics:
    event = scene.events[int(rng.integers(len(scene.events)))]
    real = Semantics(event.color, event.shape, event.action)
    draw = rng.random()
    if draw < 0.4:
        return replace(real, action=_pick(rng, ACTIONS))
    if draw < 0.7:
        # Rather a colour or shape that is on screen: its mere presence must not answer.
        seen = tuple(sorted({e.color for e in scene.events})) if rng.random() < 0.7 else ()
        return replace(real, color=_pick(rng, seen or tuple(COLORS)))
    seen = tuple(sorted({e.shape for e in scene.events})) if rng.random() < 0.7 else ()
    return replace(real, shape=_pick(rng, seen or SHAPES))


def _any_semantics(rng: np.random.Generator) -> Semantics:
    return Semantics(_pick(rng, tuple(COLORS)), _pick(rng, SHAPES), _pick(rng, ACTIONS))


def _vague(scene: Scene, rng: np.random.Generator) -> Semantics:
    for group in rng.permutation(list(_VAGUE)):
        asked = Semantics(None, None, str(group))
        if true_windows(scene, asked):
            return asked
    return Semantics(None, None, "any")


def _noun_phrase(semantics: Semantics, rng: np.random.Generator, *, relative: bool) -> str:
    color = _pick(rng, COLOR_WORDS[semantics.color]) if semantics.color else None
    noun = _pick(rng, SHAPE_WORDS[semantics.shape]) if semantics.shape else None
    article = _pick(rng, ("the", "the", "a"))
    if color and noun:
        if relative and rng.random() < 0.12:
            return f"{article} {noun} that is {color}"
        return _with_article(article, f"{color} {noun}")
    if color:
        return _pick(
            rng,
            (
                f"something {color}",
                _with_article(article, f"{color} shape"),
                _with_article(article, f"{color} thing"),
                _with_article(article, f"{color} object"),
            ),
        )
    if noun:
        return f"{article} {noun}"
    return _pick(rng, ("something", "a shape", "one of the shapes"))


def _with_article(article: str, words: str) -> str:
    return f"an {words}" if article == "a" and words[0] in "aeiou" else f"{article} {words}"


def _dress(text: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < 0.15:
        ending = "" if text.endswith("?") else "."
        return text[0].upper() + text[1:] + ending
    if draw < 0.25 and text.startswith(("the ", "a ", "an ")):
        return text.partition(" ")[2]  # typed in a hurry: no article
    return text


def _third(verb: str) -> str:
    if verb in _IRREGULAR_THIRD:
        return _IRREGULAR_THIRD[verb]
    if verb.endswith(("s", "sh", "ch", "x", "z")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


def _ing(verb: str) -> str:
    if verb in _DOUBLED:
        return f"{verb}{verb[-1]}ing"
    if verb.endswith("e") and not verb.endswith(("ee", "ye", "oe")):
        return f"{verb[:-1]}ing"
    return f"{verb}ing"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


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
        ("absent", "{0} bar moving to the left", Semantics(absent_color, "bar", "move_left")),
        ("absent", "the {0} star bounces up and down", changed("star", "bounce")),
        ("absent", "the {0} square moves down", changed("square", "move_down")),
        ("unknown", "a giraffe plays the trumpet", None),
        ("vague", "a shape moves", Semantics(None, None, "motion")),
    )
    return [
        annotate(scene, number, kind, text.format(meant.color if meant else ""), meant)
        for number, (kind, text, meant) in enumerate(asked)
    ]
