"""The pictures of what test said of the final trainings, as plotly figures: a row or a colour for each setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from dreamprvr_ray.report.experiment import Candidate, Comparison
from dreamprvr_ray.report.formatting import counted, signed, sumr
from dreamprvr_ray.report.pictures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, empty_figure

CANDIDATE_COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)


def results(candidates: Sequence[Candidate], names: Sequence[str]) -> go.Figure:
    """Test SumR: a dot for each seed, a diamond with the standard deviation for their mean."""
    figure = empty_figure(90 + 44 * len(candidates), xaxis_title="test SumR", showlegend=False)
    for place, (candidate, name) in enumerate(zip(candidates, names, strict=True)):
        colour = CANDIDATE_COLOURS[place % len(CANDIDATE_COLOURS)]
        figure.add_scatter(
            x=[run.test["SumR"] for run in candidate.runs],
            y=[name] * len(candidate.runs),
            mode="markers",
            marker={"color": colour, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
            text=[f"seed {run.seed}: {sumr(run.test['SumR'])}" for run in candidate.runs],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_scatter(
            x=[candidate.mean],
            y=[name],
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": "diamond"},
            error_x={
                "type": "data",
                "array": [candidate.deviation or 0],
                "visible": candidate.deviation is not None,
                "thickness": 1.5,
            },
            hovertemplate=f"mean {sumr(candidate.mean)}<extra></extra>",
        )
    figure.update_yaxes(range=[len(candidates) - 0.5, -0.5], showgrid=False)
    return figure


def differences(comparisons: Sequence[Comparison], names: Sequence[str]) -> go.Figure:
    """The differences of pairs of candidates and their intervals beside zero."""
    figure = empty_figure(70 + 44 * len(comparisons), xaxis_title="difference in test SumR", showlegend=False)
    figure.add_vline(x=0, line={"color": BLACK, "width": 1, "dash": "dash"})
    figure.add_scatter(
        x=[comparison.difference for comparison in comparisons],
        y=names,
        mode="markers",
        marker={"color": VERMILION, "size": 11, "symbol": "diamond"},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [comparison.high - comparison.difference for comparison in comparisons],
            "arrayminus": [comparison.difference - comparison.low for comparison in comparisons],
            "thickness": 2,
        },
        text=[f"{signed(each.difference)} ({signed(each.low)} to {signed(each.high)})" for each in comparisons],
        hovertemplate="%{text}<extra></extra>",
    )
    ends = [0.0, *(end for each in comparisons for end in (each.low, each.high))]
    room = 0.05 * (max(ends) - min(ends))
    figure.update_xaxes(range=[min(ends) - room, max(ends) + room])
    figure.update_yaxes(range=[len(comparisons) - 0.5, -0.5], showgrid=False, showline=False)
    return figure


def by_moment(candidates: Sequence[Candidate], names: Sequence[str]) -> go.Figure:
    """Test SumR by moment length: the mean over seeds, and a dot a seed."""
    figure = empty_figure(320, xaxis_title="moment / video length", yaxis_title="test SumR")
    labels = {
        group: f"{group}<br>{counted(evaluations[0]['queries'], 'query')}"
        for candidate in candidates
        for group, evaluations in candidate.moments().items()
    }
    for place, (candidate, name) in enumerate(zip(candidates, names, strict=True)):
        colour, moments = CANDIDATE_COLOURS[place % len(CANDIDATE_COLOURS)], candidate.moments()
        x = [labels[group] for group in moments]
        figure.add_scatter(
            x=x,
            y=[float(np.mean([one["SumR"] for one in groups])) for groups in moments.values()],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2},
            marker={"symbol": "diamond", "size": 10},
            hovertemplate="%{y:.1f}<extra></extra>",
        )
        if len(candidate.runs) > 1:
            seeds = [(label, one["SumR"]) for label, groups in zip(x, moments.values(), strict=True) for one in groups]
            figure.add_scatter(
                x=[label for label, _ in seeds],
                y=[value for _, value in seeds],
                mode="markers",
                marker={"color": colour, "size": 7, "symbol": "circle-open"},
                showlegend=False,
                hovertemplate="%{y:.1f}<extra></extra>",
            )
    return figure
