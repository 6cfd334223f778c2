"""Conditions over configuration keys, such as `model.registers > 0 and loss.margin < 0.5`.

A condition is parsed into a syntax tree and interpreted; no code is executed.
"""

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
    """A condition; `keys` are the dotted configuration keys in it, sorted."""

    text: str
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition. Raises `ValueError` unless it has only keys, numbers, strings and supported operators."""
        keys = set(_keys(_parse_expression(text)))
        if not keys:
            raise ValueError(f"'{text}' names no key")
        return cls(text, tuple(sorted(keys)))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Evaluate the condition for values by dotted key. Raises `ValueError` if it cannot be evaluated."""
        try:
            return bool(_evaluate(_parse_expression(self.text), values))
        except (TypeError, ZeroDivisionError) as error:
            raise ValueError(f"'{self.text}' cannot be evaluated: {error}") from None

    def __str__(self) -> str:
        return self.text


def _parse_expression(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError(f"'{text}' is not a valid condition; write it like model.registers > 0") from None


def _dotted_key(node: ast.expr) -> str | None:
    """Return `a.b.c` if the node is a dotted key."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (prefix := _dotted_key(node.value)):
        return f"{prefix}.{node.attr}"
    return None


def _operands(node: ast.expr) -> list[ast.expr]:
    """Return the operands of a supported expression. Raises `ValueError` for any other expression."""
    if isinstance(node, ast.Compare) and all(type(comparison) in _OPERATORS for comparison in node.ops):
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
        f"'{ast.unparse(node)}' is not supported in a condition;"
        " use keys, numbers, + - * / %, < <= > >= == !=, and, or, not"
    )


def _keys(node: ast.expr) -> Iterator[str]:
    if key := _dotted_key(node):
        yield key
        return
    for operand in _operands(node):
        yield from _keys(operand)


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if key := _dotted_key(node):
        return values[key]
    operands = _operands(node)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BoolOp):  # lazily, like Python: later operands may only be valid if the earlier ones hold
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_evaluate(operand, values) for operand in operands)
    results = [_evaluate(operand, values) for operand in operands]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](*results)
    if isinstance(node, ast.UnaryOp):
        return not results[0] if isinstance(node.op, ast.Not) else -results[0]
    assert isinstance(node, ast.Compare)
    pairs = zip(node.ops, results, results[1:], strict=False)
    return all(_OPERATORS[type(comparison)](left, right) for comparison, left, right in pairs)
