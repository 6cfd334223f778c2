"""Conditions over the configuration's keys, as in `model.registers > 0 and loss.margin < 0.5`: read, checked and evaluated as data."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Condition:
    """One condition; `keys` are the dotted keys in it."""

    text: str
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ValueError, saying why, where the text is more than comparisons of keys and numbers."""
        keys = set(_keys(_parsed(text)))
        if not keys:
            raise ValueError(f"'{text}' names no key")
        return cls(text, tuple(sorted(keys)))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds for these values by dotted key. Raises ValueError where they cannot be compared."""
        try:
            return bool(_value(_parsed(self.text), values))
        except (TypeError, ZeroDivisionError) as error:
            raise ValueError(f"'{self.text}' cannot be worked out: {error}") from None

    def __str__(self) -> str:
        return self.text


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError(f"'{text}' is no condition; write one as in model.registers > 0") from None


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` where the node is a dotted key."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := _dotted(node.value)):
        return f"{front}.{node.attr}"
    return None


def _parts(node: ast.expr) -> list[ast.expr]:
    """The expressions in one that is understood. Raises ValueError for any other."""
    if isinstance(node, ast.Compare) and all(type(each) in _OPERATORS for each in node.ops):
        return [node.left, *node.comparators]
    if isinstance(node, ast.BoolOp):
        return list(node.values)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        return [node.operand]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
        return []
    raise ValueError(
        f"'{ast.unparse(node)}' is not understood; keys, numbers, + - * / %, < <= > >= == !=, and, or, not are"
    )


def _keys(node: ast.expr) -> Iterator[str]:
    if key := _dotted(node):
        yield key
        return
    for part in _parts(node):
        yield from _keys(part)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if key := _dotted(node):
        return values[key]
    parts = _parts(node)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_value(part, values) for part in parts)
    worked_out = [_value(part, values) for part in parts]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](*worked_out)
    if isinstance(node, ast.UnaryOp):
        return not worked_out[0] if isinstance(node.op, ast.Not) else -worked_out[0]
    assert isinstance(node, ast.Compare)
    pairs = zip(node.ops, worked_out, worked_out[1:], strict=False)
    return all(_OPERATORS[type(each)](left, right) for each, left, right in pairs)
