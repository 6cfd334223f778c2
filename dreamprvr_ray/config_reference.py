"""Documentation of configuration keys, read from the sections' fields: for `--help` and docs/configuration.md."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from dreamprvr_ray.config_sections import Section

HELP_WIDTH = 100  # columns of the list of keys in `--help`


@dataclass(frozen=True)
class KeyReference:
    """The documentation of one key."""

    name: str  # dotted
    allowed: str  # type and bounds
    default: str | None  # None: the key is required
    description: str

    @property
    def summary(self) -> str:
        """The description's first sentence."""
        return re.split(r"(?<=[a-z0-9)]\.)\s", self.description, maxsplit=1)[0]


def document_keys(section: type[Section], prefix: str = "") -> Iterator[KeyReference]:
    """Yield the documentation of each key of a section and the sections inside it, in the order of definition.

    Raises `ValueError` for a key without a description.
    """
    schemas = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        inner = inner_section(field.annotation)
        if inner is not None:
            yield from document_keys(inner, f"{key}.")
            continue
        if not field.description:
            raise ValueError(f"{section.__name__}.{name} has no description")
        default = None if field.default is PydanticUndefined else format_value(field.default)
        yield KeyReference(key, _allowed(schemas[name]), default, field.description)


def inner_section(annotation: Any) -> type[Section] | None:
    """Return the section that a field holds (`Final` or `Final | None`), or None if it holds a value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def help_text(heading: str, section: type[Section]) -> str:
    """Return the list of keys that ends a command's `--help`: each with its allowed values and its summary."""
    entries = []
    for key in document_keys(section):
        summary = textwrap.fill(key.summary, HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        default = "required" if key.default is None else f"default {key.default}"
        entries.append(f"  {key.name} ({key.allowed}; {default})\n{summary}")
    return "\n".join([heading, *entries])


def format_value(value: Any) -> str:
    """Format a value as one would write it in YAML, on one line."""
    if isinstance(value, float):
        return re.sub(r"e([-+])0", r"e\1", f"{value:g}" if value != int(value) else f"{value:.1f}")
    return json.dumps(value).strip('"')


def _allowed(schema: dict[str, Any]) -> str:
    """Describe the type and the bounds in a field's JSON schema."""
    if "anyOf" in schema:
        options = [_allowed(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(options)
    if "enum" in schema or "const" in schema:
        *others, last = schema.get("enum", [schema.get("const")])
        return f"{', '.join(others)} or {last}" if others else str(last)
    if schema["type"] == "array":
        items = schema["items"]
        return f"list of {_allowed(items)}" if "enum" in items else f"list of {_allowed(items)}s"
    names = {
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "string": "string",
        "object": "mapping",
    }
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{names[schema['type']]}, {_bound(low)} to {_bound(high)}"
    bounds = [
        *([f"at least {_bound(low)}"] if low is not None else []),
        *([f"above {_bound(above)}"] if above is not None else []),
        *([f"at most {_bound(high)}"] if high is not None else []),
        *([f"below {below}"] if below is not None else []),
    ]
    return ", ".join([names[schema["type"]], *bounds])


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
