"""Conditions over configuration keys, such as `model.registers > 0 and loss.margin < 0.5`.

A condition is parsed into a syntax tree and interpreted; no code is executed. Its length, its depth and the operands of
each operator are bounded, so that evaluating it takes no noticeable time or memory.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
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
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
MAX_CHARACTERS = 1000
MAX_TERMS = 100  # keys, constants and operators
MAX_DEPTH = 30
MAX_NUMBER = 1e15
_SHOWN = 100  # characters of a condition in a message


@dataclass(frozen=True)
class Condition:
    """A condition; `keys` are the dotted configuration keys in it, sorted."""

    text: str
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition.

        Raises `ValueError` unless it has only keys, numbers, strings and supported operators, and is short enough.
        """
        keys = set(_keys(_parse_expression(text)))
        if not keys:
            raise ValueError(f"'{_shorten(text)}' names no key")
        return cls(text, tuple(sorted(keys)))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Evaluate the condition for values by dotted key.

        Raises `ValueError` if it cannot be evaluated: a division by zero, a number compared with a string.
        """
        try:
            return bool(_evaluate(_parse_expression(self.text), values))
        except (TypeError, ArithmeticError) as error:
            raise ValueError(f"'{_shorten(self.text)}' cannot be evaluated: {error}") from None

    def __str__(self) -> str:
        return self.text


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@lru_cache(maxsize=256)  # a search evaluates the same conditions for every proposal
def _parse_expression(text: str) -> ast.expr:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"'{_shorten(text)}': a condition must have at most {MAX_CHARACTERS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, as for `1 is 1`, which is refused below
            expression = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for what is nested deeply
        raise ValueError(f"'{_shorten(text)}' is not a valid condition; write it like model.registers > 0") from None
    _check_size(expression, text)
    return expression


def _check_size(expression: ast.expr, text: str) -> None:
    """Raise `ValueError` if there are too many terms, or they are nested too deeply for the recursion below."""
    level, terms, depth = [expression], 0, 0
    while level:
        terms, depth = terms + len(level), depth + 1
        if terms > MAX_TERMS:
            raise ValueError(f"'{_shorten(text)}': a condition must have at most {MAX_TERMS} terms")
        if depth > MAX_DEPTH:
            raise ValueError(f"'{_shorten(text)}': a condition must be nested at most {MAX_DEPTH} levels deep")
        level = [
            child
            for node in level
            if not isinstance(node, ast.Attribute)  # the parts of a key count as one term
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.expr)
        ]


def _dotted_key(node: ast.expr) -> str | None:
    """Return `a.b.c` if the node is a dotted key."""
    if isinstance(node, ast.Name):
        return node.id
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


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
        if not isinstance(node.value, str) and not abs(node.value) <= MAX_NUMBER:
            raise ValueError(f"a number in a condition must be at most {MAX_NUMBER:g}")
        return []
    raise ValueError(
        f"'{_shorten(ast.unparse(node))}' is not supported in a condition;"
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
        return _OPERATORS[type(node.op)](*map(_number, results))
    if isinstance(node, ast.UnaryOp):
        return not results[0] if isinstance(node.op, ast.Not) else -_number(results[0])
    assert isinstance(node, ast.Compare)
    pairs = zip(node.ops, results, results[1:], strict=False)
    return all(_compare(comparison, left, right) for comparison, left, right in pairs)


def _compare(comparison: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(comparison, _ORDER) or isinstance(left, str) is not isinstance(right, str):
        left, right = _number(left), _number(right)
    return bool(_OPERATORS[type(comparison)](left, right))


def _number(value: Any) -> float:
    """Return the operand of a calculation. Raises `TypeError` for a string, which Python would repeat or join."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return value
