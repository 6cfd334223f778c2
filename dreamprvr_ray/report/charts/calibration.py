"""How well a search tells whether a collection holds what a sentence describes: ROC and reliability."""

from __future__ import annotations

import plotly.graph_objects as go

from dreamprvr_ray.index.calibration import Calibration, Quality
from dreamprvr_ray.report.charts.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, empty_figure

LEAST_ANSWERS = 20  # of a bin that is drawn: the share of fewer says nothing
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")


def roc_chart(calibration: Calibration) -> go.Figure:
    """Draw the share of present events kept by that of absent ones kept; a marker is at the threshold."""
    figure = _square("absent events not refused", "present events kept")
    for place, quality in enumerate(calibration.quality):
        colour, dash, symbol = _style(place)
        figure.add_scatter(
            x=[absent for absent, _ in quality.roc],
            y=[present for _, present in quality.roc],
            mode="lines",
            name=f"{_name(quality)}: AUC {quality.auc:.3f}",
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="%{y:.0%} kept, %{x:.0%} of absent ones<extra></extra>",
        )
        figure.add_scatter(
            x=[1 - quality.refused],
            y=[quality.kept],
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": symbol, "line": {"color": "white", "width": 1}},
            hovertemplate=f"threshold {calibration.threshold:g}: %{{y:.0%}} kept, %{{x:.0%}} of absent ones"
            "<extra></extra>",
            showlegend=False,
        )
    return figure


def reliability_chart(calibration: Calibration) -> go.Figure:
    """Draw the share of answers whose event is present by the probability that they were given."""
    figure = _square("probability", "share present")
    for place, quality in enumerate(calibration.quality):
        colour, dash, symbol = _style(place)
        bins = [each for each in quality.reliability if each.answers >= LEAST_ANSWERS]
        figure.add_scatter(
            x=[each.probability for each in bins],
            y=[each.present for each in bins],
            mode="lines+markers",
            name=f"{_name(quality)}: error {quality.calibration_error:.3f}",
            line={"color": colour, "width": 1.5, "dash": dash},
            marker={"color": colour, "size": 8, "symbol": symbol},
            text=[f"{each.answers:,} answers" for each in bins],
            hovertemplate="probability %{x:.2f}, present %{y:.0%}, %{text}<extra></extra>",
        )
    return figure


def _square(x: str, y: str) -> go.Figure:
    """Return a figure of two shares with its diagonal."""
    figure = empty_figure(420, xaxis_title=x, yaxis_title=y)
    figure.update_layout(legend={"x": 0.98, "y": 0.02, "xanchor": "right", "yanchor": "bottom", "orientation": "v"})
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "width": 1, "dash": "dash"}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1], tickformat=".0%", tickfont={"color": BLACK})
    figure.update_yaxes(range=[0, 1.01], tickformat=".0%", tickfont={"color": BLACK})
    return figure


def _style(place: int) -> tuple[str, str, str]:
    return tuple(values[place % len(values)] for values in (_COLOURS, _DASHES, _SYMBOLS))  # type: ignore[return-value]


def _name(quality: Quality) -> str:
    return f"{quality.videos:,} videos"
