"""Read YAML strictly, and convert between nested mappings and dotted keys (`model.registers`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from dreamprvr_ray.errors import UserError


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `3e-4` as a number (YAML 1.1 requires a dot) and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor` may appear more than once
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, str) and key in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key '{key}' (first given on line {lines[key]})",
                    problem_mark=key_node.start_mark,
                )
            if isinstance(key, str):
                lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text. Raises `UserError` naming `source` and the line if it is not valid YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: {getattr(error, 'problem', None) or 'not valid YAML'}") from None
    except ValueError as error:  # an impossible date, such as 2026-13-01
        raise UserError(f"{source}: not valid YAML: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises `UserError` if the file is missing, unreadable or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not {describe(values)}")
    return values


def describe(value: Any) -> str:
    """Return a YAML value as an error message shows it: scalars in full, everything else by its type."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


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
