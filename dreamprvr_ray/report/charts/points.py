"""Trials as points of a chart, on a common SumR axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dreamprvr_ray.report.charts.style import BLACK, BLUE, GREEN, GREY, VAL_SUMR, VERMILION
from dreamprvr_ray.report.formatting import format_sumr, format_value
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.results import TrialRecord


def lowest_sumr(search: SearchRecord) -> float:
    """Return the lower end of the SumR axis.

    Trials that diverged or were pruned after a few epochs may lie below it, the baseline included: they must not
    squeeze the others into a line.
    """
    scores = _sumrs(search.scored)
    finished = _sumrs(search.in_state("finished"))
    quartile, high = float(np.quantile(finished if len(finished) >= 2 else scores, 0.25)), max(scores)
    low = quartile - 2 * (high - quartile)
    if search.finished_baseline is not None and search.finished_baseline.best_sumr is not None:
        low = min(low, search.finished_baseline.best_sumr)
    return max(min(scores), low)


def any_below(search: SearchRecord) -> bool:
    """Return whether some trials lie below the SumR axis."""
    return bool(search.scored) and min(_sumrs(search.scored)) < lowest_sumr(search)


def sumr_range(search: SearchRecord) -> list[float]:
    """Return both ends of the SumR axis, with some space around the points."""
    low, high = lowest_sumr(search), max(_sumrs(search.scored))
    space = max(0.06 * (high - low), 0.5)
    return [low - space, high + space]


def hover_text(parameters: Sequence[SearchedParameter], trial: TrialRecord) -> str:
    """Return the hover label of a trial, with its values of some parameters."""
    values = [
        f"{escape(parameter.key)} = {escape(format_value(trial.values[parameter.key]))}"
        for parameter in parameters
        if parameter.key in trial.values
    ]
    head = f"<b>trial {trial.number}</b>, {trial.state}"
    score = f"{VAL_SUMR} {format_sumr(trial.best_sumr)} at epoch {trial.best_epoch or '-'}"
    return "<br>".join([head, score, *values])


def add_trials(
    search: SearchRecord, figure: go.Figure, x: Callable[[TrialRecord], Any], only: SearchedParameter | None = None
) -> None:
    """Add each trial with a SumR as a point at its best one. Trials below the SumR axis are triangles on its lower end.

    With `only`, hover labels show only this parameter's value and there is no legend, which suits small charts. Trials
    that are not `detailed` have no labels.
    """
    low = lowest_sumr(search)
    groups = [
        (name, [trial for trial in trials if x(trial) is not None], marker) for name, trials, marker in _groups(search)
    ]
    below = [
        (trial, marker["color"]) for _, trials, marker in groups for trial in trials if (trial.best_sumr or 0.0) < low
    ]
    visible = [
        (name, [trial for trial in trials if (trial.best_sumr or 0.0) >= low], marker)
        for name, trials, marker in groups
    ]
    below = sorted(below, key=lambda pair: pair[0].number not in search.detailed)  # those with labels have the colours
    triangles = {"symbol": "triangle-down-open", "color": [colour for _, colour in below], "size": 7}
    for name, trials, marker in [("below the axis", [trial for trial, _ in below], triangles), *visible]:
        named = [trial for trial in trials if trial.number in search.detailed]
        if others := [trial for trial in trials if trial.number not in search.detailed]:
            positions = np.array([x(trial) for trial in others])
            figure.add_scatter(
                x=positions.astype(np.int32 if positions.dtype.kind == "i" else np.float32),
                y=np.array([max(trial.best_sumr or low, low) for trial in others], dtype=np.float32),
                mode="markers",
                name=name,
                legendgroup=name,
                marker=marker | {"size": 3, "opacity": 0.5, "color": GREY},
                hoverinfo="skip",
                showlegend=only is None and not named,
            )
        if named:
            figure.add_scatter(
                x=[x(trial) for trial in named],
                y=[max(trial.best_sumr or low, low) for trial in named],
                mode="markers",
                name=name,
                legendgroup=name,
                marker=marker,
                text=[hover_text([only] if only else search.parameters, trial) for trial in named],
                hovertemplate="%{text}<extra></extra>",
                showlegend=only is None,
            )


def _groups(search: SearchRecord) -> list[tuple[str, list[TrialRecord], dict[str, Any]]]:
    """Return the trials with a SumR by their style, best trial and baseline separately: (name, trials, marker)."""
    best, baseline = search.best, search.baseline
    apart = {trial.number for trial in (best, baseline) if trial is not None}
    others = [trial for trial in search.scored if trial.number not in apart]

    def in_state(*states: str) -> list[TrialRecord]:
        return [trial for trial in others if trial.state in states]

    groups: list[tuple[str, list[TrialRecord], dict[str, Any]]] = [
        ("pruned", in_state("pruned"), {"symbol": "circle-open", "color": GREY, "size": 7}),
        ("failed", in_state("failed"), {"symbol": "x-thin-open", "color": BLACK, "size": 7}),
        ("running", in_state("running", "waiting"), {"symbol": "triangle-up-open", "color": GREEN, "size": 8}),
        ("finished", in_state("finished"), {"symbol": "circle", "color": BLUE, "size": 7}),
    ]
    if baseline is not None and baseline is not best:
        groups.append((search.baseline_label, [baseline], {"symbol": "diamond", "color": BLACK, "size": 10}))
    if best is not None:
        name = f"best: {search.baseline_label}" if best is baseline else f"best (trial {best.number})"
        groups.append((name, [best], {"symbol": "star", "color": VERMILION, "size": 14}))
    return [group for group in groups if group[1]]


def _sumrs(trials: Sequence[TrialRecord]) -> list[float]:
    return [trial.best_sumr for trial in trials if trial.best_sumr is not None]
