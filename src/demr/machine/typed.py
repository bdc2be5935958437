"""Typed settings: built from YAML as their types ask, and what does not fit named in plain words.

Settings are pydantic models and dataclasses. A setting that is a text takes what was written:
``precision: 32`` and ``name: on`` are texts, although YAML alone would see a number and a truth.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

from demr.machine.documents import YamlReader

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# Raised by checks of our own, whose words say what is right, and behind "; got" what came.
_OUR_WORDS = ("value_error", "assertion_error")
_LONGEST = 120
_PLAIN: Mapping[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


@dataclass(frozen=True)
class Expected:
    """Says in a type's annotation what is right, where the type alone does not."""

    text: str


@dataclass(frozen=True)
class Fault:
    """The first thing in some values that does not fit.

    Attributes:
        key: The setting's name with dots; empty for the whole.
        expected: What would fit.
        got: What was there.
        remedy: What to do.
    """

    key: str
    expected: str
    got: str
    remedy: str


def fields_of(kind: object) -> dict[str, Any] | None:
    """Names and types of the settings that a part consists of; None for a single setting."""
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            hints = typing.get_type_hints(part, include_extras=True)
            return {name: hints[name] for name in part.model_fields}
        if isinstance(part, type) and is_dataclass(part):
            hints = typing.get_type_hints(part, include_extras=True)
            return {field.name: hints[field.name] for field in fields(part)}
    return None


def kind_at(kind: object, key: str) -> object:
    """Type of a setting inside another, None where there is no such setting."""
    known = fields_of(kind)
    if known is not None:
        return known.get(key)
    for part in _union_parts(kind):
        if get_origin(part) in (dict, Mapping):
            return get_args(part)[1]
    return None


def build(reader: YamlReader, node: yaml.Node | None, kind: object) -> Any:
    """Plain values of a YAML node.

    Args:
        reader: Of the node.
        node: None of an empty text, which is null.
        kind: Type that is wanted; None of a setting that is not known.

    Raises:
        ValueError: If something in it is not plain data.
    """
    if node is None:
        return None
    if isinstance(node, yaml.MappingNode):
        return {key: build(reader, value, kind_at(kind, key)) for key, value in reader.pairs(node)}
    if isinstance(node, yaml.SequenceNode):
        inside = next(
            (get_args(p)[0] for p in _union_parts(kind) if get_origin(p) in (list, tuple)), None
        )
        return [build(reader, item, inside) for item in reader.items(node)]
    return reader.scalar(node, as_text=_wants_text(kind))


def first_fault(error: ValidationError, kind: object) -> Fault:
    """The first fault of a validation, in plain words whatever pydantic calls it.

    Args:
        error: What validation raised.
        kind: Type that was validated.
    """
    found = error.errors(include_url=False)
    first = found[0]
    # Where a setting may be of several types, each of them adds a word of its own to the place.
    place = _known_place(first["loc"], kind)
    key = ".".join(map(str, place))
    more = len({_known_place(fault["loc"], kind) for fault in found}) - 1
    tail = f" ({more} more like it)" if more else ""
    if first["type"] in _UNKNOWN:
        unknown = repr(str(place[-1]))[:_LONGEST]
        return Fault(key, "a known key", unknown, _nearest(place, kind) + tail)
    inner = kind
    for part in place:
        inner = kind_at(inner, str(part)) or _item(inner)
    expected, got, remedy = describe(inner), _shown(first["input"]), "mend it"
    if "[key]" in first["loc"]:
        expected, remedy = f"the key {_key_names(kind, place)}", "mend the key"
    elif first["type"] == "missing":
        got, remedy = "nothing", "add it"
    elif first["type"] in _OUR_WORDS:
        words = first["msg"].partition(", ")[2]
        expected, _, found_instead = words.partition("; got ")
        # A group says itself what of its settings does not fit.
        got = found_instead or got
    return Fault(key, expected, got, remedy + tail)


def describe(kind: object) -> str:
    """What a setting of a type can be, in words.

    >>> describe(Annotated[int, Ge(0), Lt(8)]), describe(Literal["on", "off"]), describe(bool)
    ('a whole number from 0 to below 8', "'on' or 'off'", 'true or false')
    """
    known = fields_of(kind)
    if known is not None:
        return f"a group of settings ({', '.join(known)})"
    parts = _union_parts(kind)
    if len(parts) > 1:
        return " or ".join(describe(part) for part in parts)
    if get_origin(kind) is Annotated:
        base, *notes = get_args(kind)
        for note in notes:
            if isinstance(note, Expected):
                return note.text
        return describe(base) + _bounds(notes, whole=base is int)
    return _describe_plain(kind)


def _describe_plain(kind: object) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        names = [repr(name) for name in inside]
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    if origin is dict:
        return f"a mapping of {describe(inside[0])} to {describe(inside[1])}"
    if origin in (list, tuple):
        return f"a list, each {describe(inside[0])}"
    if isinstance(kind, type) and issubclass(kind, Path):
        return "a path"
    return _PLAIN.get(kind, "something else")


def _bounds(notes: list[Any], *, whole: bool) -> str:
    low = high = ""
    for note in notes:
        if isinstance(note, Ge):
            low = f" from {note.ge}"
        elif isinstance(note, Gt):
            low = f" from {note.gt + 1}" if whole else f" above {note.gt}"  # type: ignore[operator]
        elif isinstance(note, Le):
            high = f" to {note.le:,}" if whole else f" to {note.le:g}"
        elif isinstance(note, Lt) and note.lt != float("inf"):
            high = f" to below {note.lt}"
    return (low or (" up" if high else "")) + (high or (" on" if low.startswith(" from") else ""))


def _union_parts(kind: object) -> list[object]:
    """Types that a setting may be of, one where it is no union."""
    if get_origin(kind) in (Union, types.UnionType):
        return [part for inner in get_args(kind) for part in _union_parts(inner)]
    return [kind]


def _wants_text(kind: object) -> bool:
    """Whether a setting is a text, whatever the text looks like."""
    bare = [get_args(p)[0] if get_origin(p) is Annotated else p for p in _union_parts(kind)]
    bare = [part for part in bare if part is not type(None)]
    return bool(bare) and all(_is_text(part) for part in bare)


def _is_text(kind: object) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(name, str) for name in get_args(kind))
    return isinstance(kind, type) and issubclass(kind, str | Path)


def _item(kind: object) -> object:
    return next(
        (get_args(p)[0] for p in _union_parts(kind) if get_origin(p) in (list, tuple)), kind
    )


def _known_place(loc: tuple[int | str, ...], kind: object) -> tuple[int | str, ...]:
    """The part of a place that names settings: unions and dictionaries add words to it."""
    place: list[int | str] = []
    for part in loc:
        known = fields_of(kind)
        is_mapping = any(get_origin(p) is dict for p in _union_parts(kind))
        is_list = _item(kind) is not kind
        if (
            known is None
            and not (is_mapping and part != "[key]")
            and not (is_list and isinstance(part, int))
        ):
            break
        place.append(part)
        if known is not None and str(part) not in known:
            break
        kind = _item(kind) if is_list and isinstance(part, int) else kind_at(kind, str(part))
    return tuple(place)


def _key_names(kind: object, place: tuple[int | str, ...]) -> str:
    """What the keys of the mapping are called in which a place lies."""
    for part in place[:-1]:
        kind = kind_at(kind, str(part))
    return next(
        (describe(get_args(p)[0]) for p in _union_parts(kind) if get_origin(p) is dict), "of a text"
    )


def _nearest(place: tuple[int | str, ...], kind: object) -> str:
    """What an unknown key may have been meant to be."""
    group = kind
    for part in place[:-1]:
        group = kind_at(group, str(part))
    siblings = list(fields_of(group) or {})
    word = str(place[-1])
    every = {name.rpartition(".")[2]: [] for name in _names(kind)}  # type: dict[str, list[str]]
    for name in _names(kind):
        every[name.rpartition(".")[2]].append(name)
    path = ".".join(map(str, place[:-1]))
    close = difflib.get_close_matches(word, siblings, 1)
    guesses = [f"{path}.{near}" if path else near for near in close] or [
        name for near in difflib.get_close_matches(word, every, 1) for name in every[near]
    ]
    did_you_mean = f"did you mean {' or '.join(guesses[:3])}? " if guesses else ""
    return f"{did_you_mean}known keys here: {', '.join(siblings)}"


def _names(kind: object, prefix: str = "") -> Iterator[str]:
    for name, inner in (fields_of(kind) or {}).items():
        yield prefix + name
        yield from _names(inner, f"{prefix}{name}.")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
