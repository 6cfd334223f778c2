"""Charts of the parameters: their importance, and val SumR against their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from dreamprvr_ray.report.charts.points import add_trials, hover_text, lowest_sumr, sumr_range
from dreamprvr_ray.report.charts.style import BLACK, BLUE, GREY, PALE, SOFT, VAL_SUMR, VERMILION, empty_figure
from dreamprvr_ray.report.formatting import format_sumr, format_value
from dreamprvr_ray.report.importance import Importance
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.results import TrialRecord

HIGHLIGHTED = 10  # trials in the parallel coordinates; more lines become a tangle
_OTHER_GREY = "#aab2ba"


def importance_bars(found: Sequence[Importance]) -> go.Figure:
    """Draw a bar for each parameter's importance, with a mark at what chance may reach."""
    bars = list(reversed(found))
    figure = empty_figure(70 + 30 * len(bars), xaxis_title="share of the differences between trials", bargap=0.35)
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    names = [importance.parameter.name for importance in bars]
    figure.add_bar(
        x=[importance.share for importance in bars],
        y=names,
        orientation="h",
        name="share",
        showlegend=False,
        marker_color=[BLUE if importance.stands_out else PALE for importance in bars],
        customdata=[escape(importance.parameter.key) for importance in bars],
        hovertemplate="%{customdata}: %{x:.0%}<extra></extra>",
    )
    figure.add_scatter(
        x=[importance.chance for importance in bars],
        y=names,
        mode="markers",
        name="reached by chance",
        marker={"symbol": "line-ns-open", "size": 16, "color": BLACK, "line": {"width": 2}},
        hovertemplate="chance reaches %{x:.0%}<extra></extra>",
        showlegend=True,
    )
    return figure


def slice_chart(search: SearchRecord, parameter: SearchedParameter) -> go.Figure:
    """Draw val SumR against one parameter. All slices have the same SumR axis."""
    figure = empty_figure(
        240,
        yaxis_title=VAL_SUMR,
        dragmode="zoom",
        yaxis_range=sumr_range(search),
        margin={"l": 52, "r": 10, "t": 6, "b": 30},
    )
    if parameter.choices is not None:
        labels = [escape(format_value(choice)) for choice in parameter.choices]
        figure.update_xaxes(range=[-0.5, len(labels) - 0.5], tickvals=list(range(len(labels))), ticktext=labels)
    else:
        low, high = (
            [math.log10(end) for end in (parameter.low, parameter.high)]
            if parameter.log
            else [parameter.low, parameter.high]
        )
        space = 0.04 * (high - low)
        marks = ticks(parameter)
        figure.update_xaxes(type="log" if parameter.log else "linear", range=[low - space, high + space])
        figure.update_xaxes(
            tickvals=marks, ticktext=[format_value(int(mark) if parameter.is_integer else mark) for mark in marks]
        )
    baseline = _coordinate(parameter, parameter.baseline)
    if baseline is not None:
        figure.add_vline(x=baseline, line={"dash": "dash", "color": BLACK, "width": 1})
    add_trials(search, figure, lambda trial: _coordinate(parameter, trial.values.get(parameter.key)), only=parameter)
    return figure


def _coordinate(parameter: SearchedParameter, value: Any) -> float | None:
    """Return where a value lies on the axis of a slice."""
    if parameter.choices is not None:
        return parameter.choices.index(value) if value in parameter.choices else None
    return value if parameter.position(value) is not None else None


def ticks(parameter: SearchedParameter) -> list[float]:
    """Return at most a handful of round numbers within a range."""
    if parameter.choices is not None:
        return []
    if parameter.log:
        return _log_ticks(parameter)
    raw = (parameter.high - parameter.low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    step = max(1, round(step)) if parameter.is_integer else step
    first, last = math.ceil(parameter.low / step - 1e-9), math.floor(parameter.high / step + 1e-9)
    return [float(f"{n * step:.6g}") for n in range(first, last + 1)]


def _log_ticks(parameter: SearchedParameter) -> list[float]:
    decades = range(math.floor(math.log10(parameter.low)), math.ceil(math.log10(parameter.high)) + 1)
    found: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        found = [value for value in found if parameter.low * 0.999 <= value <= parameter.high * 1.001]
        if len(found) <= 6:
            break
    return found


def parallel_coordinates(search: SearchRecord, parameters: Sequence[SearchedParameter]) -> go.Figure:
    """Draw a line for each `detailed` trial across a row for each parameter, val SumR on top.

    Where a trial does not have a parameter, its line has a gap.
    """
    low, high = lowest_sumr(search), max(trial.best_sumr or 0 for trial in search.scored)
    score = SearchedParameter(VAL_SUMR, VAL_SUMR, low, high)
    rows = [score, *parameters]
    heights = [-row for row in range(len(rows))]
    figure = empty_figure(110 + 46 * len(rows), margin={"l": 10, "r": 10, "t": 12, "b": 4})
    figure.update_xaxes(visible=False, range=[-0.04, 1.04])
    figure.update_yaxes(
        showgrid=False,
        showline=False,
        range=[heights[-1] - 0.5, 0.35],
        tickvals=heights,
        ticktext=[parameter.name for parameter in rows],
    )
    for parameter, height in zip(rows, heights, strict=True):
        figure.add_shape(type="line", x0=0, x1=1, y0=height, y1=height, line={"color": GREY, "width": 1}, layer="below")
        labels = _score_labels(search, score) if parameter is score else _row_labels(parameter)
        for place, label in labels:
            figure.add_annotation(
                x=place,
                y=height,
                text=label,
                hovertext=escape(parameter.key),
                showarrow=False,
                yshift=-10,
                xanchor="left" if place == 0 else "right" if place == 1 else "center",
                font={"size": 11, "color": SOFT},
                bgcolor="rgba(255,255,255,0.8)",
                borderpad=0,
            )
    for name, trials, line in _line_groups(search):
        for place, trial in enumerate(trials):
            positions = [parameter.position(trial.values.get(parameter.key)) for parameter in parameters]
            figure.add_scatter(
                x=[score.position(max(trial.best_sumr or low, low)), *positions],
                y=heights,
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                line=line,
                marker={"size": 4, "color": line["color"]},
                hovertemplate=f"{hover_text(parameters, trial)}<extra></extra>",
            )
    return figure


def _row_labels(parameter: SearchedParameter) -> list[tuple[float, str]]:
    """Return the labels along a row: (position, text)."""
    if parameter.choices is not None:
        return [(parameter.position(choice) or 0.0, escape(format_value(choice))) for choice in parameter.choices]
    low, high = map(format_value, parameter.ends)
    return [(0.0, low), (1.0, high)]


def _score_labels(search: SearchRecord, score: SearchedParameter) -> list[tuple[float, str]]:
    """Return the labels along the row of val SumR, at whose left end all lower values stand."""
    low, high = format_sumr(score.low), format_sumr(score.high)
    if any((trial.best_sumr or 0.0) < score.low for trial in search.scored):
        low = f"{low} or less"
    return [(0.0, low), (1.0, high)]


def _line_groups(search: SearchRecord) -> list[tuple[str, Iterable[TrialRecord], dict[str, Any]]]:
    """Return the trials by the style of their lines, in drawing order: (name, trials, line)."""
    best, baseline = search.best, search.baseline
    top = {trial.number for trial in search.best_quarter()[:HIGHLIGHTED]}
    apart = {trial.number for trial in (best, baseline) if trial is not None}
    others = [trial for trial in search.scored if trial.number not in apart and trial.number in search.detailed]
    low = [trial for trial in others if trial.number not in top]
    groups: list[tuple[str, Iterable[TrialRecord], dict[str, Any]]] = [
        (
            "pruned",
            [trial for trial in low if trial.state == "pruned"],
            {"color": PALE, "width": 1, "dash": "dot"},
        ),
        (
            "others",
            [trial for trial in low if trial.state != "pruned"],
            {"color": _OTHER_GREY, "width": 1},
        ),
        (
            f"best {len(top)}",
            [trial for trial in others if trial.number in top],
            {"color": BLUE, "width": 1.5},
        ),
    ]
    if baseline is not None and baseline is not best:
        groups.append((search.baseline_label, [baseline], {"color": BLACK, "width": 2, "dash": "dash"}))
    if best is not None:
        groups.append((f"best (trial {best.number})", [best], {"color": VERMILION, "width": 3}))
    return groups
