"""Numbers and lists as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def format_sumr(value: float | None) -> str:
    """Format a SumR or a recall with one decimal."""
    return "-" if value is None else f"{value:.1f}"


def format_difference(value: float) -> str:
    """Format a difference in SumR with its sign, or as `0.0` if it rounds to zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def format_value(value: Any) -> str:
    """Format the value of a parameter: integers in full, other numbers with three significant digits."""
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


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun: `1 trial`, `3 trials`, `3 queries`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def format_list(words: Sequence[str]) -> str:
    """Join words as in `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def format_duration(seconds: float) -> str:
    """Format a duration: `40 seconds`, `12 minutes`, `3.4 hours`."""
    if seconds < 90:
        return format_count(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
