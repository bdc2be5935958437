"""JSON and YAML of others, bounded before anything is made of them.

What is nested without end, refers to itself, or holds numbers that no computer counts with is a
:class:`ValueError` with the reason; callers name the file and the remedy.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from demr.machine.reading import SETTINGS_BYTES, read_text

# No file of settings comes near: the deepest of demr has five levels, of transformers ten.
_DEEPEST = 64
# Of a YAML text with its aliases written out, as whoever walks through it meets them.
_MOST_NODES = 20_000
_LONGEST_YAML = 1 << 20
_INT_BITS = 64
_TEXT_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "timestamp", "value", "merge")
)
_SHAPES = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
_MISREAD = re.compile(r"^[-+]?0[0-7_]+$|:")


def read_json(path: Path, most: int = SETTINGS_BYTES) -> Any:
    """Read a JSON file whole; see :func:`parse_json`.

    Raises:
        OSError: If it is no regular file, is larger, or cannot be read.
        ValueError: If it is no such JSON.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Parse JSON of finite numbers, at most 64 levels deep.

    Raises:
        ValueError: If it is anything else.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise _too_deep() from None
    level, depth = [value], 1
    while level := [part for whole in level for part in _parts(whole)]:
        depth += 1
        if depth > _DEEPEST:
            raise _too_deep()
    return value


def format_version(values: Mapping[str, Any], key: str, newest: int) -> int:
    """The version that a stored file gives for its format; newer ones are returned as well.

    Raises:
        ValueError: If it is no whole number from 1 on.
    """
    version = values.get(key)
    if type(version) is not int or version < 1:
        shown = "no version" if version is None else f"{str(version)[:40]!r}"
        raise ValueError(f"{shown} under {key}, where formats are numbered 1 to {newest}")
    return version


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for part in value.values() if isinstance(part, dict | list)]
    return [part for part in value if isinstance(part, dict | list)] if type(value) is list else []


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond all numbers of 64 bits")
    return value


def _int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 1 << _INT_BITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _too_deep() -> ValueError:
    return ValueError(f"nested deeper than {_DEEPEST} levels")


class YamlReader:
    """A YAML text as nodes, of which values are made one by one.

    Scalars are what YAML takes them for (``32`` a number, ``on`` true), or the text as it was
    written: who knows which is wanted decides.

    Args:
        text: The text; anchors and aliases may occur in it.

    Attributes:
        root: The node of it all; None if it is empty.

    Raises:
        ValueError: If it is no YAML, too deep, or too large.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST_YAML:
            raise ValueError(f"{len(text)} characters, more than any settings have")
        try:
            self._pairs: dict[int, list[tuple[str, yaml.Node]]] = {}
            self._loader = yaml.SafeLoader(text)
            self.root: yaml.Node | None = self._loader.get_single_node()
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        except RecursionError:
            raise _too_deep() from None
        if self.root is not None:
            _count_nodes(self.root)

    def scalar(self, node: yaml.Node, *, as_text: bool) -> Any:
        """Value of a scalar.

        Args:
            node: The scalar.
            as_text: Whether it is wanted as it was written, null excepted.

        Raises:
            ValueError: If it has a tag that is not plain data.
        """
        if as_text and node.tag in _TEXT_TAGS:
            return node.value
        try:
            value = self._loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        except (LookupError, AttributeError, ArithmeticError) as error:
            # A tag that says more than is true, such as !!bool maybe.
            raise ValueError(f"{node.value[:40]!r} under the tag {node.tag[:60]!r}") from error
        if isinstance(value, int) and value.bit_length() > _INT_BITS:
            raise ValueError(f"a whole number of {value.bit_length()} bits")
        if type(value) in (int, float) and _MISREAD.search(node.value):
            # To YAML 1.1 it is octal, or sixtieths: 010 is eight, 1:30 is ninety.
            raise ValueError(f"{node.value[:40]!r}, which is no plain number")
        return value

    def pairs(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
        """Keys as they were written, and the nodes of their values.

        Raises:
            ValueError: If a key is no scalar, or comes twice.
        """
        if id(node) in self._pairs:
            return self._pairs[id(node)]
        _check_shape(node)
        # What a mapping says itself comes last, and goes before what it merges.
        own = sum(key.tag != "tag:yaml.org,2002:merge" for key, _ in node.value)
        try:
            self._loader.flatten_mapping(node)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        found: dict[str, yaml.Node] = {}
        first_own = len(node.value) - own
        seen = set()
        for index, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key that is no word {_where(key)}")
            if index >= first_own:
                if key.value in seen:
                    raise ValueError(f"{key.value[:40]!r} a second time {_where(key)}")
                seen.add(key.value)
            found[key.value] = value
        self._pairs[id(node)] = list(found.items())
        return self._pairs[id(node)]

    @staticmethod
    def items(node: yaml.SequenceNode) -> list[yaml.Node]:
        """Nodes of a list.

        Raises:
            ValueError: If it has a tag that is not plain data.
        """
        _check_shape(node)
        return list(node.value)


def _check_shape(node: yaml.Node) -> None:
    if node.tag not in _SHAPES:
        raise ValueError(f"the tag {node.tag[:60]!r} {_where(node)}")


def _where(node: yaml.Node) -> str:
    return f"in line {node.start_mark.line + 1}"


def _count_nodes(root: yaml.Node) -> None:
    """Refuse what its aliases make endless, huge or too deep; each node is looked at once."""
    sizes: dict[int, int] = {}
    heights: dict[int, int] = {}
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    open_nodes: set[int] = set()
    while stack:
        node, is_done = stack.pop()
        key = id(node)
        parts = _node_parts(node)
        if is_done:
            open_nodes.discard(key)
            sizes[key] = 1 + sum(sizes[id(part)] for part in parts)
            heights[key] = 1 + max((heights[id(part)] for part in parts), default=0)
            if sizes[key] > _MOST_NODES:
                raise ValueError(f"more than {_MOST_NODES} values, with its aliases written out")
            if heights[key] > _DEEPEST:
                raise _too_deep()
        elif key in open_nodes:
            raise ValueError(f"an alias of what it stands in {_where(node)}")
        elif key not in sizes:
            open_nodes.add(key)
            stack.append((node, True))
            stack += [(part, False) for part in parts if id(part) not in sizes]


def _node_parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
