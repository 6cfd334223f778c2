"""Charts of the trials: their order, their epochs, and the trade-off between two objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dreamprvr_ray.report.charts.points import add_trials, sumr_range
from dreamprvr_ray.report.charts.style import (
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VAL_SUMR,
    VERMILION,
    empty_figure,
    tick_whole_numbers,
)
from dreamprvr_ray.report.formatting import format_sumr
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.results import TrialRecord

COSTS = {"gflop_per_video": "GFLOP per video and training step", "encode_ms": "milliseconds to encode a video"}
_PRUNED_GREY = "#b4b4b4"
_DENSITY_ROWS = 60
_WIDE_COSTS = 20  # the ratio of the largest cost to the smallest from which their axis is logarithmic


def optimization_history(search: SearchRecord) -> go.Figure:
    """Draw each trial's best val SumR in the order of proposal, and the best so far."""
    scored = search.scored
    figure = empty_figure(
        380, xaxis_title="trial", yaxis_title=VAL_SUMR, dragmode="zoom", yaxis_range=sumr_range(search)
    )
    tick_whole_numbers(figure, search.trials[-1].number)
    best = np.maximum.accumulate([trial.best_sumr for trial in scored if trial.best_sumr is not None])
    changes = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best) - 1]
    figure.add_scatter(
        x=[scored[place].number for place in changes],
        y=best[changes],
        mode="lines",
        line={"shape": "hv", "color": VERMILION, "width": 1.5},
        name="best so far",
        hoverinfo="skip",
    )
    if search.finished_baseline:
        figure.add_hline(y=search.finished_baseline.best_sumr, line={"dash": "dash", "color": BLACK, "width": 1})
    add_trials(search, figure, lambda trial: trial.number)
    return figure


def learning_curves(search: SearchRecord) -> go.Figure:
    """Draw val SumR by epoch for every trial. A cross ends the curve of a pruned one.

    Behind the `detailed` trials, the others are shaded: the darker, the more of them have a SumR at an epoch.
    """
    curves = [trial for trial in search.trials if trial.curve]
    bests = [max(value for _, value in trial.curve) for trial in curves]
    # Without the lowest 2% of all values: the first epochs, or a trial that diverged, would squeeze the others.
    low = float(np.quantile([value for trial in curves for _, value in trial.curve], 0.02))
    space = max(0.04 * (max(bests) - low), 0.5)
    figure = empty_figure(
        420,
        xaxis_title="epoch",
        yaxis_title=VAL_SUMR,
        dragmode="zoom",
        yaxis_range=[low - space, max(bests) + space],
    )
    last = max(trial.curve[-1][0] for trial in curves)
    figure.update_xaxes(range=[1 - 0.02 * last, 1.02 * last])
    tick_whole_numbers(figure, last)
    if others := [trial for trial in curves if trial.number not in search.detailed]:
        _add_density(figure, others, low - space, max(bests) + space, last)
    in_legend: set[str] = set()
    for trial in sorted(
        (trial for trial in curves if trial.number in search.detailed), key=lambda trial: _curve_style(search, trial)[0]
    ):
        _, name, line = _curve_style(search, trial)
        is_pruned = trial.state == "pruned"
        figure.add_scatter(
            x=[epoch for epoch, _ in trial.curve],
            y=[value for _, value in trial.curve],
            mode="lines+markers" if is_pruned or len(trial.curve) == 1 else "lines",
            name=name,
            legendgroup=name,
            showlegend=name not in in_legend,
            line=line,
            marker={"symbol": "x", "color": GREY, "size": [0] * (len(trial.curve) - 1) + [7], "line": {"width": 0}},
            text=[
                f"trial {trial.number}, {trial.state}: epoch {epoch}, {VAL_SUMR} {format_sumr(value)}"
                for epoch, value in trial.curve
            ],
            hovertemplate="%{text}<extra></extra>",
        )
        in_legend.add(name)
    return figure


def _add_density(figure: go.Figure, trials: Sequence[TrialRecord], low: float, high: float, last: int) -> None:
    """Shade how many trials have a val SumR in each of `_DENSITY_ROWS` ranges after each epoch."""
    points = np.array([point for trial in trials for point in trial.curve])
    counts, _, edges = np.histogram2d(
        points[:, 0],
        points[:, 1].clip(low, high),
        bins=[np.arange(0.5, last + 1), np.linspace(low, high, _DENSITY_ROWS + 1)],
    )
    figure.add_heatmap(
        x=np.arange(1, last + 1, dtype=np.int32),
        y=((edges[1:] + edges[:-1]) / 2).astype(np.float32),
        z=np.where(counts > 0, np.log1p(counts), np.nan).T.astype(np.float32),
        customdata=counts.T.astype(np.int32),
        colorscale=[[0, "#f0f2f4"], [1, GREY]],
        showscale=False,
        hovertemplate=f"epoch %{{x}}, {VAL_SUMR} about %{{y:.1f}}: %{{customdata}} of the other trials<extra></extra>",
    )


def _curve_style(search: SearchRecord, trial: TrialRecord) -> tuple[int, str, dict[str, Any]]:
    """Return a curve's order of drawing, its name in the legend, and its line."""
    if trial is search.best:
        return 5, f"best (trial {trial.number})", {"color": VERMILION, "width": 3}
    if trial is search.baseline:
        return 4, search.baseline_label, {"color": BLACK, "width": 2.5, "dash": "dash"}
    styles: dict[str, tuple[int, str, dict[str, Any]]] = {
        "pruned": (0, "pruned", {"color": _PRUNED_GREY, "width": 1}),
        "failed": (1, "failed", {"color": PURPLE, "width": 1, "dash": "dot"}),
        "finished": (2, "finished", {"color": SKY, "width": 1.2}),
    }
    return styles.get(trial.state, (3, "running", {"color": GREEN, "width": 1.5}))


def pareto_chart(search: SearchRecord) -> go.Figure:
    """Draw val SumR against the second objective, with the Pareto front."""
    trials = [trial for trial in search.scored if trial.cost is not None]
    front = pareto_front(trials)
    figure = empty_figure(
        400, xaxis_title=cost_name(search), yaxis_title=VAL_SUMR, dragmode="zoom", yaxis_range=sumr_range(search)
    )
    figure.add_scatter(
        x=[trial.cost for trial in front],
        y=[trial.best_sumr for trial in front],
        mode="lines",
        line={"shape": "hv", "color": ORANGE, "width": 2},
        name="Pareto front",
        hoverinfo="skip",
    )
    costs = [trial.cost for trial in trials if trial.cost is not None]
    if 0 < _WIDE_COSTS * min(costs) < max(costs):
        figure.update_xaxes(type="log")
    add_trials(search, figure, lambda trial: trial.cost)
    return figure


def pareto_front(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials for which no other has a higher SumR at the same or a lower cost, the cheapest first."""
    front: list[TrialRecord] = []
    for trial in sorted(trials, key=lambda trial: (trial.cost or 0.0, -(trial.best_sumr or 0.0))):
        if not front or (trial.best_sumr or 0.0) > (front[-1].best_sumr or 0.0):
            front.append(trial)
    return front


def cost_name(search: SearchRecord) -> str:
    """Return the second objective in words."""
    return COSTS.get(search.objectives[1], search.objectives[1])
