"""Read YAML strictly, and convert between nested mappings and dotted keys (`model.registers`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.user_files import read_user_text

MAX_BYTES = 2**18  # PyYAML reads about 100,000 characters per second
MAX_VALUES = 10_000  # keys and values, counting those of an anchor again for each alias
MAX_DEPTH = 40
MAX_DIGITS = 18
_STANDARD = "tag:yaml.org,2002:"
_UNSUPPORTED = tuple(_STANDARD + name for name in ("set", "omap", "pairs", "binary"))
_LONGEST_VALUE = 200  # characters of a value in a message


class _Loader(yaml.SafeLoader):
    """A safe loader for small files of plain values.

    It reads `3e-4` as a number (YAML 1.1 requires a dot). It rejects duplicate keys, keys that are not strings, numbers
    in a notation that surprises (in YAML 1.1, `190:20:30` is a number to base 60 and `010` one to base 8), anchors that
    contain themselves, and files that grow beyond all bounds as their aliases are expanded.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0  # read so far, with those that aliases repeat
        self._open: list[tuple[str | None, int]] = []  # anchor and height so far of each node that encloses this one
        self._extents: dict[str, tuple[int, int]] = {}  # values and height of each anchor's node

    def compose_node(self, parent: Any, index: Any) -> Any:
        node: Any
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor, before = event.anchor, self._values
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == enclosing for enclosing, _ in self._open):
                _refuse(event, f"anchor '{anchor}' contains itself")
            node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
            values, height = self._extents[anchor]
        else:
            self._check(event, 0, 0)
            self._open.append((anchor, 0))
            node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
            height = self._open.pop()[1] + 1
            values = 1
            if node.tag in _UNSUPPORTED:
                _refuse(event, f"tag !!{node.tag.removeprefix(_STANDARD)} is not supported")
            if isinstance(node, yaml.ScalarNode):
                _check_characters(node)
        self._check(event, values, height)
        self._values += values
        if self._open:
            enclosing, highest = self._open[-1]
            self._open[-1] = enclosing, max(highest, height)
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._extents[anchor] = self._values - before, height
        return node

    def _check(self, event: Any, values: int, height: int) -> None:
        if self._values + values > MAX_VALUES:
            _refuse(event, f"more than {MAX_VALUES:,} values, counting those that aliases repeat")
        if len(self._open) + height > MAX_DEPTH:
            _refuse(event, f"nested more than {MAX_DEPTH} levels deep")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError):
            # PyYAML's own constructors, such as `!!int ''` or the date 2026-13-01
            kind = node.tag.removeprefix(_STANDARD)
            value = describe(node.value) if isinstance(node, yaml.ScalarNode) else "a collection"
            _refuse(node, f"not valid YAML: {value} is not a valid {kind}")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == f"{_STANDARD}merge":  # `<<: *anchor` may appear more than once
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(key_node, "a key must be a string, not a list or a mapping")
            key = key_node.value
            if key_node.tag != f"{_STANDARD}str":
                _refuse(key_node, f"a key must be a string: write '{key}' in quotes")
            if key in lines:
                _refuse(key_node, f"duplicate key '{key}' (first given on line {lines[key]})")
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = str(self.construct_scalar(node)).lstrip("+-").replace("_", "")
        if ":" in digits:
            _refuse(node, f"{node.value} is a number to base 60 in YAML; write it to base 10, or text in quotes")
        if re.fullmatch("0[0-9]+", digits):
            _refuse(node, f"{node.value} is a number to base 8 in YAML; leave out the leading 0, or use quotes")
        if len(digits) > MAX_DIGITS:
            _refuse(node, f"an integer must have at most {MAX_DIGITS} digits, not {len(digits)}")
        return super().construct_yaml_int(node)  # type: ignore[no-any-return,no-untyped-call]

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" in str(self.construct_scalar(node)):
            _refuse(node, f"{node.value} is a number to base 60 in YAML; write it to base 10, or text in quotes")
        return super().construct_yaml_float(node)  # type: ignore[no-any-return,no-untyped-call]


def _refuse(at: yaml.Node | yaml.Event, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)  # type: ignore[arg-type]


def _check_characters(node: yaml.ScalarNode) -> None:
    """Refuse characters that no path, no file in UTF-8 and no name can hold."""
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
        _refuse(node, "a text must hold neither NUL nor half of a surrogate pair")


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


# PyYAML registers its constructors as functions, not by name: overriding the methods is not enough.
_Loader.yaml_constructors = yaml.SafeLoader.yaml_constructors | {
    f"{_STANDARD}int": _Loader.construct_yaml_int,
    f"{_STANDARD}float": _Loader.construct_yaml_float,
}


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text. Raises `UserError` naming `source` and the line if it is not valid YAML."""
    if len(text) > MAX_BYTES:
        raise UserError(f"{source}: too large: must have at most {MAX_BYTES:,} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{source}, line {line}: contains the character U+{error.character:04X}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {first_line(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises `UserError` if the file is missing, unreadable or not a mapping."""
    values = parse_yaml(read_user_text(path, MAX_BYTES), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not {describe(values)}")
    return values


def describe(value: Any) -> str:
    """Return a YAML value as an error message shows it: scalars in full unless long, everything else by its type."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, int) and not -(10**MAX_DIGITS) < value < 10**MAX_DIGITS:
        return f"an integer of more than {MAX_DIGITS} digits"
    if not isinstance(value, (str, int, float)):
        return f"a {type(value).__name__}"
    shown = format_value(value) if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}..."


def format_value(value: Any, digits: int = 6) -> str:
    """Return a value as text that a YAML file may have: `true`, `null`, `0.3`; numbers with at most `digits` digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert `{"model": {"registers": 8}}` to `{"model.registers": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(key: str, value: Any) -> dict[str, Any]:
    """Convert `("model.registers", 8)` to `{"model": {"registers": 8}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested `base` updated with nested `changes`; neither is validated or modified."""
    merged = dict(base)
    for key, value in changes.items():
        current = merged.get(key)
        merged[key] = merge(current, value) if isinstance(current, Mapping) and isinstance(value, Mapping) else value
    return merged
