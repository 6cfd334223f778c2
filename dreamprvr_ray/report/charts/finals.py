"""Charts of the test results of the retrained candidates. Each candidate has one colour in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from dreamprvr_ray.report.charts.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, empty_figure
from dreamprvr_ray.report.formatting import format_count, format_difference, format_sumr
from dreamprvr_ray.search.final_result import Candidate, Comparison

CANDIDATE_COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)


def candidate_chart(candidates: Sequence[Candidate], names: Sequence[str]) -> go.Figure:
    """Draw test SumR: a circle for each seed, and a diamond with the standard deviation for their mean."""
    figure = empty_figure(90 + 44 * len(candidates), xaxis_title="test SumR", showlegend=False)
    for place, (candidate, name) in enumerate(zip(candidates, names, strict=True)):
        colour = CANDIDATE_COLOURS[place % len(CANDIDATE_COLOURS)]
        figure.add_scatter(
            x=[run.test.retrieval.recall.sumr for run in candidate.runs],
            y=[name] * len(candidate.runs),
            mode="markers",
            marker={"color": colour, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
            text=[f"seed {run.seed}: {format_sumr(run.test.retrieval.recall.sumr)}" for run in candidate.runs],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_scatter(
            x=[candidate.mean],
            y=[name],
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": "diamond"},
            error_x={
                "type": "data",
                "array": [candidate.std or 0],
                "visible": candidate.std is not None,
                "thickness": 1.5,
            },
            hovertemplate=f"mean {format_sumr(candidate.mean)}<extra></extra>",
        )
    figure.update_yaxes(range=[len(candidates) - 0.5, -0.5], showgrid=False)
    return figure


def difference_chart(comparisons: Sequence[Comparison], names: Sequence[str]) -> go.Figure:
    """Draw the differences between pairs of candidates with their intervals, and a line at zero."""
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
        text=[
            f"{format_difference(comparison.difference)}"
            f" ({format_difference(comparison.low)} to {format_difference(comparison.high)})"
            for comparison in comparisons
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    ends = [0.0, *(end for comparison in comparisons for end in comparison.interval)]
    space = 0.05 * (max(ends) - min(ends))
    figure.update_xaxes(range=[min(ends) - space, max(ends) + space])
    figure.update_yaxes(range=[len(comparisons) - 0.5, -0.5], showgrid=False, showline=False)
    return figure


def moment_chart(candidates: Sequence[Candidate], names: Sequence[str]) -> go.Figure:
    """Draw test SumR by moment length: the mean over the seeds, and a circle for each seed."""
    figure = empty_figure(320, xaxis_title="moment length / video length", yaxis_title="test SumR")
    labels = {
        group: f"{group}<br>{format_count(recalls[0].queries, 'query')}"
        for candidate in candidates
        for group, recalls in candidate.by_moment().items()
    }
    for place, (candidate, name) in enumerate(zip(candidates, names, strict=True)):
        colour, groups = CANDIDATE_COLOURS[place % len(CANDIDATE_COLOURS)], candidate.by_moment()
        x = [labels[group] for group in groups]
        figure.add_scatter(
            x=x,
            y=[float(np.mean([recall.sumr for recall in recalls])) for recalls in groups.values()],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2},
            marker={"symbol": "diamond", "size": 10},
            hovertemplate="%{y:.1f}<extra></extra>",
        )
        if len(candidate.runs) > 1:
            seeds = [
                (label, recall.sumr) for label, recalls in zip(x, groups.values(), strict=True) for recall in recalls
            ]
            figure.add_scatter(
                x=[label for label, _ in seeds],
                y=[sumr for _, sumr in seeds],
                mode="markers",
                marker={"color": colour, "size": 7, "symbol": "circle-open"},
                showlegend=False,
                hovertemplate="%{y:.1f}<extra></extra>",
            )
    return figure
