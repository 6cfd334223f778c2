"""Numbers and lists as a reader wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def sumr(value: float | None) -> str:
    """A SumR or a recall: one decimal."""
    return "-" if value is None else f"{value:.1f}"


def signed(value: float) -> str:
    """A difference in SumR, with its sign. What rounds to nothing has none."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def short(value: Any) -> str:
    """A searched value: three digits of a number with a fraction, all digits of a whole one."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def counted(number: int, noun: str) -> str:
    """`1 trial`, `3 trials`, `3 queries`."""
    return (
        f"{number} {noun}" if number == 1 else f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
    )


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def duration(seconds: float) -> str:
    """`40 seconds`, `12 minutes`, `3.4 hours`."""
    if seconds < 90:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
