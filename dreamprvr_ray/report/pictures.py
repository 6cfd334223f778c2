"""The pictures of a search's trials, as plotly figures, and what all pictures of the report look like.

Colours are Okabe and Ito's, which the colour-blind can tell apart; shapes differ as well. Everywhere: the best trial is a vermilion star, the
configuration's own setting a black diamond or dashed line, finished trials are blue, pruned ones open grey circles. Too little data for a
figure is the page's to judge, not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dreamprvr_ray.report.experiment import Axis, SearchRecord, Trial
from dreamprvr_ray.report.formatting import short, sumr
from dreamprvr_ray.report.importance import Importance

BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
BLACK, GREY, PALE, GRID = "#222222", "#8c8c8c", "#c9ced3", "#ebeef1"
HIGHLIGHTED = 10  # lines of the parallel coordinates; more are a tangle
COSTS = {"gflop_per_video": "GFLOP per video and training step", "encode_ms": "milliseconds to encode a video"}
VAL = "val SumR"


def empty_figure(height: int, **layout: Any) -> go.Figure:
    """A figure without traces, as all of the report's look."""
    figure = go.Figure()
    figure.update_layout(
        template="none",  # plotly's default is seven kilobytes in each figure
        plot_bgcolor="white",
        height=height,
        margin={"l": 58, "r": 16, "t": 12, "b": 48},
        font={"family": "system-ui, sans-serif", "size": 13, "color": BLACK},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": None},
        hoverlabel={"align": "left"},
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(
        automargin=True,
        title={"standoff": 8, "font": {"size": 13}},
        zeroline=False,
        showline=True,
        linecolor=PALE,
        gridcolor=GRID,
    )
    figure.update_yaxes(
        automargin=True,
        title={"standoff": 8, "font": {"size": 13}},
        zeroline=False,
        showline=True,
        linecolor=PALE,
        gridcolor=GRID,
    )
    figure.update_layout(**layout)
    return figure


def _floor(search: SearchRecord) -> float:
    """The lowest SumR to show. Trials that were pruned after a few epochs, or diverged, must not squeeze the others into a line."""
    everything = [trial.sumr for trial in search.trials if trial.sumr is not None]
    finished = [trial.sumr for trial in search.in_state("finished") if trial.sumr is not None]
    values = finished if len(finished) >= 4 else everything
    quarter, high = float(np.quantile(values, 0.25)), max(everything)
    floor = quarter - 2 * (high - quarter)
    if search.first is not None and search.first.sumr is not None:
        floor = min(floor, search.first.sumr)
    return max(min(everything), floor)


def any_below(search: SearchRecord) -> bool:
    """Whether some trials lie below the SumR axis."""
    return any(trial.sumr < _floor(search) for trial in search.trials if trial.sumr is not None)


def _span(search: SearchRecord) -> list[float]:
    """The SumR axis from the floor up, with some room."""
    low, high = _floor(search), max(trial.sumr for trial in search.trials if trial.sumr is not None)
    room = max(0.06 * (high - low), 0.5)
    return [low - room, high + room]


def _told(axes: Sequence[Axis], trial: Trial) -> str:
    """A trial and its values in the words of a hover label."""
    values = [
        f"{escape(axis.key)} = {escape(short(trial.values[axis.key]))}" for axis in axes if axis.key in trial.values
    ]
    head = f"<b>trial {trial.number}</b>, {trial.state}"
    return "<br>".join([head, f"{VAL} {sumr(trial.sumr)} at epoch {trial.best_epoch or '-'}", *values])


def _groups(search: SearchRecord) -> list[tuple[str, list[Trial], dict[str, Any]]]:
    """Trials with a SumR by how they are drawn, the best trial and the own setting apart: (name, trials, marker)."""
    best, first = search.best, search.first
    apart = {trial.number for trial in (best, first) if trial is not None}
    rest = [trial for trial in search.trials if trial.sumr is not None and trial.number not in apart]

    def having(*states: str) -> list[Trial]:
        return [trial for trial in rest if trial.state in states]

    groups = [
        ("pruned", having("pruned"), {"symbol": "circle-open", "color": GREY, "size": 7}),
        ("failed", having("failed"), {"symbol": "x-thin-open", "color": BLACK, "size": 7}),
        ("running", having("running", "waiting"), {"symbol": "triangle-up-open", "color": GREEN, "size": 8}),
        ("finished", having("finished"), {"symbol": "circle", "color": BLUE, "size": 7}),
    ]
    if first is not None and first is not best:
        groups.append((search.own_short, [first], {"symbol": "diamond", "color": BLACK, "size": 10}))
    if best is not None:
        label = f"best (trial {best.number})" if best is not first else f"best: {search.own_short}"
        groups.append((label, [best], {"symbol": "star", "color": VERMILION, "size": 14}))
    return [group for group in groups if group[1]]


def _points(search: SearchRecord, figure: go.Figure, x: Callable[[Trial], Any], only: Axis | None = None) -> None:
    """Every trial with a SumR as a point at its best; what lies below the floor stands on it as a triangle.

    With `only` the labels tell this key's value alone, and there is no legend: slices are many.
    """
    floor = _floor(search)
    groups = [
        (name, [trial for trial in trials if x(trial) is not None], marker) for name, trials, marker in _groups(search)
    ]
    below = [
        (trial, marker["color"]) for _, trials, marker in groups for trial in trials if (trial.sumr or 0.0) < floor
    ]
    groups = [
        (name, [trial for trial in trials if (trial.sumr or 0.0) >= floor], marker) for name, trials, marker in groups
    ]
    triangles = {"symbol": "triangle-down-open", "color": [colour for _, colour in below], "size": 7}
    for name, shown, marker in [("below", [trial for trial, _ in below], triangles), *groups]:
        if shown:
            figure.add_scatter(
                x=[x(trial) for trial in shown],
                y=[max(trial.sumr or floor, floor) for trial in shown],
                mode="markers",
                name=name,
                marker=marker,
                text=[_told([only] if only else search.axes, trial) for trial in shown],
                hovertemplate="%{text}<extra></extra>",
                showlegend=only is None,
            )


def history(search: SearchRecord) -> go.Figure:
    """Each trial's best val SumR in order of proposal, and the best so far."""
    scored = [trial for trial in search.trials if trial.sumr is not None]
    values = [trial.sumr for trial in scored if trial.sumr is not None]
    figure = empty_figure(380, xaxis_title="trial", yaxis_title=VAL, dragmode="zoom", yaxis_range=_span(search))
    if search.trials[-1].number <= 12:
        figure.update_xaxes(dtick=1)
    so_far = np.maximum.accumulate(values)
    figure.add_scatter(
        x=[trial.number for trial in scored],
        y=so_far,
        mode="lines",
        line={"shape": "hv", "color": VERMILION, "width": 1.5},
        name="best so far",
        hoverinfo="skip",
    )
    if search.first_finished:
        figure.add_hline(y=search.first_finished.sumr, line={"dash": "dash", "color": BLACK, "width": 1})
    _points(search, figure, lambda trial: trial.number)
    return figure


def importance_bars(found: Sequence[Importance]) -> go.Figure:
    """A bar a key, and the mark that chance would reach."""
    shown = list(reversed(found))
    figure = empty_figure(70 + 30 * len(shown), xaxis_title="share of the differences between trials", bargap=0.35)
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    names = [importance.axis.name for importance in shown]
    figure.add_bar(
        x=[importance.share for importance in shown],
        y=names,
        orientation="h",
        name="share",
        showlegend=False,
        marker_color=[BLUE if importance.stands_out else PALE for importance in shown],
        customdata=[escape(importance.axis.key) for importance in shown],
        hovertemplate="%{customdata}: %{x:.0%}<extra></extra>",
    )
    figure.add_scatter(
        x=[importance.chance for importance in shown],
        y=names,
        mode="markers",
        name="reached by chance alone",
        marker={"symbol": "line-ns-open", "size": 16, "color": BLACK, "line": {"width": 2}},
        hovertemplate="chance reaches %{x:.0%}<extra></extra>",
        showlegend=True,
    )
    return figure


def ticks(axis: Axis) -> list[float]:
    """A handful of round values within a range."""
    if axis.choices is not None:
        return []
    if not axis.log:
        raw = (axis.high - axis.low) / 5
        size = 10 ** math.floor(math.log10(raw))
        step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
        step = max(1, round(step)) if axis.whole else step
        start = math.ceil(axis.low / step - 1e-9)
        return [float(f"{n * step:.6g}") for n in range(start, math.floor(axis.high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        found = [value for value in found if axis.low * 0.999 <= value <= axis.high * 1.001]
        if len(found) <= 6:
            return found
    return found


def slice_of(search: SearchRecord, axis: Axis) -> go.Figure:
    """Val SumR against one key. Every slice has the same SumR axis."""
    figure = empty_figure(240, dragmode="zoom", yaxis_range=_span(search), margin={"l": 44, "r": 10, "t": 6, "b": 30})
    if axis.choices is not None:
        labels = [escape(short(choice)) for choice in axis.choices]
        figure.update_xaxes(range=[-0.5, len(labels) - 0.5], tickvals=list(range(len(labels))), ticktext=labels)
    else:
        ends = [math.log10(end) for end in (axis.low, axis.high)] if axis.log else [axis.low, axis.high]
        room = 0.04 * (ends[1] - ends[0])
        marks = ticks(axis)
        figure.update_xaxes(type="log" if axis.log else "linear", range=[ends[0] - room, ends[1] + room])
        figure.update_xaxes(tickvals=marks, ticktext=[short(int(mark) if axis.whole else mark) for mark in marks])
    where = _place(axis, axis.own)
    if where is not None:
        figure.add_vline(x=where, line={"dash": "dash", "color": BLACK, "width": 1})
    _points(search, figure, lambda trial: _place(axis, trial.values.get(axis.key)), only=axis)
    return figure


def _place(axis: Axis, value: Any) -> float | None:
    """A value's coordinate on the axis of a slice."""
    if axis.choices is not None:
        return axis.choices.index(value) if value in axis.choices else None
    return value if axis.position(value) is not None else None


def parallel(search: SearchRecord, axes: Sequence[Axis]) -> go.Figure:
    """Parallel coordinates, drawn downwards: a row for each key, a line for each trial, val SumR first. A gap is a value that the trial
    did not have."""
    scored = [trial for trial in search.trials if trial.sumr is not None]
    low, high = _floor(search), max(trial.sumr or 0 for trial in scored)
    rows = [Axis(VAL, VAL, low, high), *axes]
    heights = [-row for row in range(len(rows))]
    figure = empty_figure(110 + 46 * len(rows), margin={"l": 10, "r": 10, "t": 12, "b": 4})
    figure.update_xaxes(visible=False, range=[-0.04, 1.04])
    figure.update_yaxes(
        showgrid=False,
        showline=False,
        range=[heights[-1] - 0.5, 0.35],
        tickvals=heights,
        ticktext=[axis.name for axis in rows],
    )
    for axis, height in zip(rows, heights, strict=True):
        figure.add_shape(type="line", x0=0, x1=1, y0=height, y1=height, line={"color": GREY, "width": 1}, layer="below")
        if axis.choices is not None:
            labels = [(axis.position(choice) or 0.0, escape(short(choice))) for choice in axis.choices]
        else:
            ends = [
                (sumr(end) if axis is rows[0] else short(int(end) if axis.whole else end))
                for end in (axis.low, axis.high)
            ]
            if axis is rows[0] and any((trial.sumr or 0.0) < low for trial in scored):
                ends[0] = f"{ends[0]} or less"
            labels = [(0.0, ends[0]), (1.0, ends[1])]
        for place, label in labels:
            figure.add_annotation(
                x=place,
                y=height,
                text=label,
                hovertext=escape(axis.key),
                showarrow=False,
                yshift=-10,
                xanchor="left" if place == 0 else "right" if place == 1 else "center",
                font={"size": 11, "color": "#5a5a5a"},
                bgcolor="rgba(255,255,255,0.8)",
                borderpad=0,
            )
    best, first, top = search.best, search.first, {trial.number for trial in search.best_quarter()[:HIGHLIGHTED]}
    apart = {trial.number for trial in (best, first) if trial is not None}
    others = [trial for trial in scored if trial.number not in apart]
    sets: list[tuple[str, Iterable[Trial], dict[str, Any]]] = [
        (
            "pruned",
            [t for t in others if t.state == "pruned" and t.number not in top],
            {"color": PALE, "width": 1, "dash": "dot"},
        ),
        (
            "others",
            [t for t in others if t.state != "pruned" and t.number not in top],
            {"color": "#aab2ba", "width": 1},
        ),
        (f"best {len(top)}", [t for t in others if t.number in top], {"color": BLUE, "width": 1.5}),
    ]
    if first is not None and first is not best:
        sets.append((search.own_short, [first], {"color": BLACK, "width": 2, "dash": "dash"}))
    if best is not None:
        sets.append((f"best (trial {best.number})", [best], {"color": VERMILION, "width": 3}))
    for name, trials, line in sets:
        for place, trial in enumerate(trials):
            at = [
                rows[0].position(max(trial.sumr or low, low)),
                *(axis.position(trial.values.get(axis.key)) for axis in axes),
            ]
            figure.add_scatter(
                x=at,
                y=heights,
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                line=line,
                marker={"size": 4, "color": line["color"]},
                hovertemplate=f"{_told(axes, trial)}<extra></extra>",
            )
    return figure


def learning_curves(search: SearchRecord) -> go.Figure:
    """Val SumR by epoch of every trial; a cross ends the curve of a pruned one."""
    best, first = search.best, search.first
    curves = [trial for trial in search.trials if trial.curve]
    finals = [max(value for _, value in trial.curve) for trial in curves]
    low = float(np.quantile([value for trial in curves for _, value in trial.curve], 0.02))
    room = max(0.04 * (max(finals) - low), 0.5)
    figure = empty_figure(
        420, xaxis_title="epoch", yaxis_title=VAL, dragmode="zoom", yaxis_range=[low - room, max(finals) + room]
    )
    last = max(trial.curve[-1][0] for trial in curves)
    figure.update_xaxes(range=[1 - 0.02 * last, 1.02 * last], tickformat="d")

    def kind(trial: Trial) -> tuple[int, str, dict[str, Any]]:
        if trial is best:
            return 5, f"best (trial {trial.number})", {"color": VERMILION, "width": 3}
        if trial is first:
            return 4, search.own_short, {"color": BLACK, "width": 2.5, "dash": "dash"}
        return {
            "pruned": (0, "pruned", {"color": "#b4b4b4", "width": 1}),
            "failed": (1, "failed", {"color": PURPLE, "width": 1, "dash": "dot"}),
            "finished": (2, "finished", {"color": SKY, "width": 1.2}),
        }.get(trial.state, (3, "running", {"color": GREEN, "width": 1.5}))

    named: set[str] = set()
    for trial in sorted(curves, key=lambda trial: kind(trial)[0]):
        _, name, line = kind(trial)
        ends_early = trial.state == "pruned"
        figure.add_scatter(
            x=[epoch for epoch, _ in trial.curve],
            y=[value for _, value in trial.curve],
            mode="lines+markers" if ends_early or len(trial.curve) == 1 else "lines",
            name=name,
            legendgroup=name,
            showlegend=name not in named,
            line=line,
            marker={"symbol": "x", "color": GREY, "size": [0] * (len(trial.curve) - 1) + [7], "line": {"width": 0}},
            text=[
                f"trial {trial.number}, {trial.state}: epoch {epoch}, {VAL} {sumr(value)}"
                for epoch, value in trial.curve
            ],
            hovertemplate="%{text}<extra></extra>",
        )
        named.add(name)
    return figure


def pareto(search: SearchRecord) -> go.Figure:
    """Val SumR against the second objective, with the trials that none beats in both."""
    scored = [trial for trial in search.trials if trial.sumr is not None and trial.cost is not None]
    front = pareto_front(scored)
    name = search.objectives[1]
    figure = empty_figure(
        400, xaxis_title=COSTS.get(name, name), yaxis_title=VAL, dragmode="zoom", yaxis_range=_span(search)
    )
    figure.add_scatter(
        x=[trial.cost for trial in front],
        y=[trial.sumr for trial in front],
        mode="lines",
        line={"shape": "hv", "color": ORANGE, "width": 2},
        name="Pareto front",
        hoverinfo="skip",
    )
    costs = [trial.cost for trial in scored if trial.cost is not None]
    if 0 < 20 * min(costs) < max(costs):
        figure.update_xaxes(type="log")
    _points(search, figure, lambda trial: trial.cost)
    return figure


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in SumR at the same or a lower cost, the cheapest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.cost or 0.0, -(trial.sumr or 0.0))):
        if not front or (trial.sumr or 0.0) > (front[-1].sumr or 0.0):
            front.append(trial)
    return front


def bins(axis: Axis, most: int = 4) -> list[tuple[int, int]]:
    """Whole numbers of a range in at most so many neighbouring groups, of equal width on the range's scale. None is a group of its own."""
    low, high = int(axis.low), int(axis.high)
    if high - low < most:
        return [(value, value) for value in range(low, high + 1)]
    groups = [(0, 0)] if low == 0 else []
    low = low or 1
    edges = np.geomspace(low, high + 1, most + 1) if axis.log else np.linspace(low, high + 1, most + 1)
    starts = sorted({round(edge) for edge in edges[:-1]})
    return groups + [(start, following - 1) for start, following in zip(starts, [*starts[1:], high + 1], strict=True)]


def heat_cells(search: SearchRecord, down: Axis, across: Axis) -> list[list[list[Trial]]]:
    """The ended trials by the groups of two keys. A trial without a value (steps without registers) is in no cell."""

    def inside(trial: Trial, axis: Axis, group: tuple[int, int]) -> bool:
        return axis.key in trial.values and group[0] <= trial.values[axis.key] <= group[1]

    columns = bins(across)
    return [
        [
            [trial for trial in search.ended if inside(trial, down, row) and inside(trial, across, column)]
            for column in columns
        ]
        for row in bins(down)
    ]


def heat_map(search: SearchRecord, down: Axis, across: Axis) -> go.Figure:
    """Mean val SumR of the finished trials by two keys. Pruned trials are counted but give no colour: they were trained less."""
    cells = heat_cells(search, down, across)
    filled = [place for place, row in enumerate(cells) if any(row)]
    cells = [cells[place] for place in filled]
    means: list[list[float | None]] = []
    words: list[list[str]] = []
    for row in cells:
        finished = [[trial.sumr or 0.0 for trial in cell if trial.state == "finished"] for cell in row]
        means.append([sum(values) / len(values) if values else None for values in finished])
        words.append(
            [
                _cell_words(len(values), len(cell) - len(values), mean)
                for values, cell, mean in zip(finished, row, means[-1], strict=True)
            ]
        )
    names = [_group_words(bins(down)[place]) for place in filled]
    scale = [mean for row in means for mean in row if mean is not None]
    low, high = max(min(scale), _floor(search)), max(scale)
    figure = empty_figure(110 + 56 * len(names), xaxis_title=across.name, yaxis_title=down.name)
    figure.add_heatmap(
        z=means,
        x=[_group_words(group) for group in bins(across)],
        y=names,
        colorscale="Cividis",
        zmin=low,
        zmax=high,
        showscale=False,
        xgap=3,
        ygap=3,
        hoverinfo="skip",
    )
    for name, row_words, row_means in zip(names, words, means, strict=True):
        for group, text, mean in zip(bins(across), row_words, row_means, strict=True):
            dark = mean is not None and mean < (low + high) / 2
            figure.add_annotation(
                x=_group_words(group),
                y=name,
                text=text,
                showarrow=False,
                font={"size": 11.5, "color": "white" if dark else BLACK},
            )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure


def _group_words(group: tuple[int, int]) -> str:
    return str(group[0]) if group[0] == group[1] else f"{group[0]} to {group[1]}"


def _cell_words(finished: int, pruned: int, mean: float | None) -> str:
    if mean is None:
        return f"{pruned} pruned" if pruned else ""
    return f"<b>{sumr(mean)}</b><br>{finished} finished" + (f",<br>{pruned} pruned" if pruned else "")
