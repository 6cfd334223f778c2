"""The records of a search as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamprvr_ray.search.final_result import PAPER, FinalResult
from dreamprvr_ray.search.results import TrialRecord


def format_table(trials: Sequence[TrialRecord], keys: Sequence[str]) -> list[str]:
    """Return the lines of a table of trials. Each searched key has a column, headed by the key's last part."""
    rows = [["trial", "state", "epochs", "SumR", "at", "last", *(key.rsplit(".", 1)[-1] for key in keys)]]
    for trial in trials:
        rows.append(
            [
                str(trial.number),
                trial.state,
                str(trial.epochs),
                _format_sumr(trial.best_sumr),
                str(trial.best_epoch or "-"),
                _format_sumr(trial.last_sumr),
                *(_format_value(trial.values.get(key)) for key in keys),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def describe_final(result: FinalResult) -> list[str]:
    """Return a line for each candidate and each comparison."""
    lines = []
    for candidate in result.candidates:
        val = "trained on val too" if result.with_val else f"val {_format_sumr(candidate.val_mean)}"
        seeds = "1 seed"
        if candidate.std is not None:
            seeds = f"standard deviation {candidate.std:.1f}, {len(candidate.runs)} seeds"
        lines.append(f"{candidate.name}: test SumR {candidate.mean:.1f} ({seeds}), {val}")
    for comparison in result.comparisons:
        lines.append(
            f"{comparison.better} against {comparison.than}: {comparison.difference:+.1f} test SumR"
            f" ({comparison.confidence:.0%} interval {comparison.low:+.1f} to {comparison.high:+.1f},"
            " paired bootstrap over videos and seeds)"
        )
    if result.candidates[0].name == PAPER and not result.with_val:
        lines.append("the paper's settings have a higher val SumR than every retrained trial")
    return lines


def _format_sumr(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
