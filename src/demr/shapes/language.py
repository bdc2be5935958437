"""Sentences about scenes: what they mean, how they are worded, and when they are true."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from demr.shapes.script import ACTIONS, COLORS, MOVES, SHAPES, Event, Scene, Split
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
# Sentences without a single moment, by the action they ask for; None asks for a thing.
VAGUE: dict[str | None, tuple[str, ...]] = {
    None: ("a shape", "something", "show me a shape", "some shapes", "there is a shape",
           "a coloured shape"),
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
# Opacity from which a shape that fades counts as visible.
VISIBLE = 0.25
_TEMPLATES = (
    "{np} {third}", "{np} {third}", "{np} {third}", "{np} {ing}", "{np} {ing}",
    "{np} is {ing}", "{np} that {third}", "{np} which is {ing}", "there is {np} {ing}",
    "find the moment when {np} {third}", "the moment when {np} {third}",
    "when {np} {third}", "when does {np} {base}?", "show me where {np} {third}",
    "look for {np} {ing}", "the part in which {np} {third}", "find {np} {ing}",
)  # fmt: skip
_THING_TEMPLATES = (
    "{np}", "{np}", "{np}", "{np}", "{np}", "show me {np}", "show me {np}", "find {np}",
    "where is {np}?", "there is {np}", "is there {np}?", "look for {np}", "{np} is visible",
    "{np} can be seen", "{np} in the picture", "{np} on the screen", "the part with {np}",
    "when can {np} be seen?", "the moment with {np}", "when {np} is visible",
)  # fmt: skip
_THINGS_TEMPLATES = (
    "{np}", "{np}", "{np}", "show me {np}", "find {np}", "where are {np}?", "are there {np}?",
    "look for {np}", "{np} in the picture", "the part with {np}", "{np} can be seen",
)  # fmt: skip


@dataclass(frozen=True)
class Semantics:
    """Meaning of a sentence; None leaves colour or shape open.

    ``action`` may name a group. A sentence without an action names a thing, and is true while
    such a thing is visible, whatever it does.
    """

    color: str | None
    shape: str | None
    action: str | None

    @property
    def actions(self) -> frozenset[str]:
        """The actions that the sentence accepts; none if it names a thing."""
        if self.action is None:
            return frozenset()
        return GROUPS.get(self.action) or frozenset({self.action})

    @property
    def name(self) -> str:
        """Canonical text, such as ``red circle bounce``, or ``red circle`` for a thing."""
        words = (self.color, self.shape, self.action)
        return " ".join(word for word in words if word is not None) or "shape"

    def names(self, color: str, shape: str) -> bool:
        """Tell whether a thing of this colour and shape is what the sentence speaks of."""
        return self.color in (None, color) and self.shape in (None, shape)

    def matches(self, event: Event) -> bool:
        """Tell whether the event is what the sentence asks for; never if it names a thing."""
        return self.names(event.color, event.shape) and event.action in self.actions

    def nearly_matches(self, event: Event) -> bool:
        """As ``matches``, but true also for the colour that a swap ends with."""
        return self.matches(event) or self.matches(replace(event, color=event.color_after))


@dataclass(frozen=True)
class Sighting:
    """A stretch in which a thing is visible in one colour, in seconds."""

    color: str
    shape: str
    start_s: float
    end_s: float


def sightings(scene: Scene) -> Iterator[Sighting]:
    """Yield when each shape is visible, and in which colour; see :data:`VISIBLE`.

    No shape ever hides another or leaves the picture, so only fading ends a sighting, and a swap
    of colours, half-way. A shape that blinks stays visible.
    """
    for actor in scene.actors:
        color = actor.color
        since: float | None = 0.0 if actor.first.alpha >= VISIBLE else None
        for event in (e for e in scene.events if e.object_id == actor.object_id):
            length = event.end_s - event.start_s
            if event.action == "fade_in":
                since = event.start_s + VISIBLE * length
            elif event.action in ("fade_out", "swap") and since is not None:
                share = 0.5 if event.action == "swap" else 1 - VISIBLE
                end = event.start_s + share * length
                yield Sighting(color, actor.shape, since, end)
                since = end if event.action == "swap" else None
            color = event.color_after
        if since is not None:
            yield Sighting(color, actor.shape, since, scene.duration_s)


def true_windows(scene: Scene, semantics: Semantics) -> tuple[Window, ...]:
    """Return the windows in seconds in which a sentence is true, overlapping ones merged.

    They are those of all matching events, or of all sightings of what the sentence names.
    """
    if semantics.action is None:
        return merge_windows(
            (seen.start_s, seen.end_s)
            for seen in sightings(scene)
            if semantics.names(seen.color, seen.shape)
        )
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


def sentence(semantics: Semantics, rng: np.random.Generator) -> str:
    """Word the semantics in one of many ways."""
    if semantics.action is None:
        return _thing_sentence(semantics, rng)
    base, _, rest = pick(rng, ACTION_PHRASES[semantics.action]).partition("|")
    template = pick(rng, _TEMPLATES)
    text = template.format(
        np=_noun_phrase(
            semantics, rng, relative="that" not in template and "which" not in template
        ),
        third=f"{_third(base)} {rest}".strip(),
        ing=f"{_ing(base)} {rest}".strip(),
        base=f"{base} {rest}".strip(),
    )
    return _dress(text, rng)


def _thing_sentence(semantics: Semantics, rng: np.random.Generator) -> str:
    """Word a sentence that names a thing, in one of five as many of its kind."""
    if rng.random() < 0.2:
        text = pick(rng, _THINGS_TEMPLATES).format(np=_plural_phrase(semantics, rng))
    else:
        text = pick(rng, _THING_TEMPLATES).format(np=_noun_phrase(semantics, rng, relative=True))
    return _dress(text, rng)


def unknown_sentence(split: Split, rng: np.random.Generator) -> str:
    """Word something that has no meaning in this world, with words of the split's half."""
    return _unknown(
        split,
        rng,
        (
            "{a} {noun} {verb}", "the {noun} {verb}", "{a} {noun} is {ing}",
            "the {adj} {noun} {verb}",
            "the {color} {noun} {verb}", "the {color} {noun} {known}", "a {color} {noun} {known}",
            "the {color} {shape} {verb}", "a {color} {shape} {verb}", "the {adj} {noun} {known}",
            "find the moment when the {noun} {verb}", "the {noun} {known}", "the {shape} is {ing}",
        ),
    )  # fmt: skip


def unknown_thing(split: Split, rng: np.random.Generator) -> str:
    """Name a thing that this world does not have, with words of the split's half."""
    return _unknown(
        split,
        rng,
        (
            "{a} {noun}", "the {noun}", "the {color} {noun}", "a {color} {noun}",
            "the {adj} {noun}", "show me the {noun}", "show me the {color} {noun}",
            "is there {a} {noun}?", "where is the {noun}?", "something {adj}", "find the {noun}",
        ),
    )  # fmt: skip


def _unknown(split: Split, rng: np.random.Generator, templates: Sequence[str]) -> str:
    part = "test" if split in ("iid", "ood") else "train"
    noun = pick(rng, unknown_words("noun", part))
    verb = pick(rng, unknown_words("verb", part))
    adjective = pick(rng, unknown_words("adjective", part))
    color = pick(rng, COLOR_WORDS[pick(rng, tuple(COLORS))])
    shape = pick(rng, SHAPE_WORDS[pick(rng, SHAPES)])
    known, _, rest = pick(rng, ACTION_PHRASES[pick(rng, ACTIONS)]).partition("|")
    text = pick(rng, templates).format(
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


def _noun_phrase(semantics: Semantics, rng: np.random.Generator, *, relative: bool) -> str:
    color = pick(rng, COLOR_WORDS[semantics.color]) if semantics.color else None
    noun = pick(rng, SHAPE_WORDS[semantics.shape]) if semantics.shape else None
    article = pick(rng, ("the", "the", "a"))
    if color and noun:
        if relative and rng.random() < 0.12:
            return f"{article} {noun} that is {color}"
        return _with_article(article, f"{color} {noun}")
    if color:
        return pick(
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
    return pick(rng, ("something", "a shape", "one of the shapes"))


def _plural_phrase(semantics: Semantics, rng: np.random.Generator) -> str:
    color = f"{pick(rng, COLOR_WORDS[semantics.color])} " if semantics.color else ""
    nouns = SHAPE_WORDS[semantics.shape] if semantics.shape else ("shape", "thing", "object")
    # Verbs and nouns take their s by the same rule.
    return f"{pick(rng, ('', '', 'the '))}{color}{_third(pick(rng, nouns))}"


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


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]
