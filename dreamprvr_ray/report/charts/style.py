"""The look that all charts share.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; shapes differ as well. In every chart the
best trial is a vermilion star, the baseline a black diamond or a dashed line, finished trials are blue dots, and pruned
trials open grey circles.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
BLACK, GREY, PALE, GRID, SOFT = "#222222", "#8c8c8c", "#c9ced3", "#ebeef1", "#5a5a5a"
VAL_SUMR = "val SumR"


def tick_whole_numbers(figure: go.Figure, last: int) -> None:
    """Set ticks of the x axis at about ten whole numbers up to `last`.

    Plotly's own ticks lie between them as well when a reader zooms in, as in 1, 2, 2, 3, 3.
    """
    step = next(
        size * factor for size in (10**n for n in range(10)) for factor in (1, 2, 5) if last <= 12 * size * factor
    )
    figure.update_xaxes(tickmode="array", tickvals=list(range(0, last + 1, step)), tickformat="d")


def empty_figure(height: int, **layout: Any) -> go.Figure:
    """Return a figure without traces. `layout` is passed on to plotly."""
    figure = go.Figure()
    figure.update_layout(
        template="none",  # plotly's default adds seven kilobytes to each figure
        plot_bgcolor="white",
        height=height,
        margin={"l": 58, "r": 16, "t": 12, "b": 48},
        font={"family": "system-ui, sans-serif", "size": 13, "color": BLACK},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": None},
        hoverlabel={"align": "left"},
        hovermode="closest",
        dragmode=False,
    )
    axis = {
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
        "zeroline": False,
        "showline": True,
        "linecolor": PALE,
        "gridcolor": GRID,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(**layout)
    return figure
