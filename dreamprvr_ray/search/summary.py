"""The records of a search as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from dreamprvr_ray.evaluation.metrics import below_zero_shot, zero_shot_line
from dreamprvr_ray.search.final_result import FinalResult
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.yaml_files import format_value

ONE_SEED = ": with one seed, how much other seeds would change is not known"


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
                *(format_value(trial.values[key], 3) if key in trial.values else "-" for key in keys),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def describe_final(result: FinalResult) -> list[str]:
    """Return a line for each candidate and each comparison."""
    lines = []
    names = {candidate.name: candidate.shown_name for candidate in result.candidates}
    for candidate in result.candidates:
        val = "trained on val too" if result.with_val else f"val {_format_sumr(candidate.val_mean)}"
        seeds = "1 seed" if len(candidate.runs) == 1 else f"{len(candidate.runs)} seeds"
        if candidate.std is not None:
            seeds = f"standard deviation {candidate.std:.1f}, {seeds}"
        means = [f"{name} {fmean(sumrs):.1f}" for name, sumrs in candidate.by_collection().items()]
        own = f": {', '.join(means)}" if means else ""
        lines.append(f"{candidate.shown_name}: test SumR {candidate.mean:.1f}{own} ({seeds}), {val}")
        if (best := candidate.best_zero_shot) and (warning := below_zero_shot(candidate.mean, best)):
            lines.append(warning)
        if candidate.moments is not None:
            lines += [f"  {line}" for line in candidate.moments.lines()]
    if moments := result.candidates[0].zero_shot_moments:
        lines += [f"zero-shot, {line}" for line in moments.lines()]
    if encoder := result.candidates[0].zero_shot:
        lines.append(zero_shot_line(encoder).strip())
    for comparison in (*result.comparisons, *result.by_collection):
        on = f" on {comparison.collection}" if comparison.collection else ""
        better, than = (names.get(name, name) for name in (comparison.better, comparison.than))
        lines.append(
            f"{better} against {than}: {comparison.difference:+.1f} test SumR{on}"
            f" ({comparison.confidence:.0%} interval {comparison.low:+.1f} to {comparison.high:+.1f},"
            f" {comparison.coverage}{'' if comparison.covers_seeds else ONE_SEED})"
        )
    if result.shared_seeds:
        lines.append(describe_shared_seeds(result.shared_seeds))
    if result.candidates[0].is_paper and not result.with_val:
        name = result.candidates[0].shown_name
        verb = "have" if name.endswith("settings") else "has"
        lines.append(f"{name} {verb} a higher val SumR than every retrained trial")
    return lines


def describe_shared_seeds(seeds: Sequence[int]) -> str:
    """Return why final runs with seeds of the search's trials are biased."""
    listed = ", ".join(map(str, seeds))
    return (
        f"seed {listed} was also a seed of the search: these results favour the trial that the search selected;"
        " retrain with other seeds for an unbiased comparison"
    )


def _format_sumr(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
