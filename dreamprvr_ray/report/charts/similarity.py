"""The similarity of a query along a video, with the moment that annotators marked."""

from __future__ import annotations

import textwrap
from html import escape

import plotly.graph_objects as go

from dreamprvr_ray.report.charts.style import BLUE, GREEN, PALE, VERMILION, empty_figure
from dreamprvr_ray.report.figures.similarity import Curve, QueryExample, Timeline

_COLOURS = (BLUE, VERMILION, GREEN)
_DASHES = ("solid", "dot", "dash")
_SYMBOLS = ("star", "diamond", "circle")
_HOVER_WIDTH = 60  # characters of a line


def similarity_chart(example: QueryExample) -> go.Figure:
    """Draw a query's curves along its own video; a marker is at the peak of each."""
    timeline = example.timeline
    unit = "frame" if timeline.duration is None else "seconds"
    figure = empty_figure(230, xaxis_title=unit, yaxis_title="cosine", margin={"l": 58, "r": 16, "t": 12, "b": 42})
    for span in example.moment if timeline.duration is not None else ():
        # Thin moments stay visible by their edges.
        figure.add_vrect(x0=span.start, x1=span.end, fillcolor=PALE, opacity=0.45, line_width=1, layer="below")
    times = timeline.times
    for place, curve in enumerate(example.curves):
        colour, dash, symbol = _COLOURS[place % 3], _DASHES[place % 3], _SYMBOLS[place % 3]
        texts = [_hover_text(example, curve, frame) for frame in range(timeline.frames)]
        figure.add_scatter(
            x=times,
            y=curve.cosines,
            mode="lines+markers",  # a video of one frame has no line
            name=escape(curve.label),
            line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 3},
            text=texts,
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_scatter(
            x=[times[curve.peak]],
            y=[curve.cosines[curve.peak]],
            mode="markers",
            marker={"color": colour, "size": 13, "symbol": symbol, "line": {"color": "white", "width": 1}},
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_xaxes(range=_time_range(timeline), showgrid=False)
    return figure


def _time_range(timeline: Timeline) -> list[float]:
    if timeline.duration is None:
        return [0.5, timeline.frames + 0.5]
    return [0, timeline.duration]


def _hover_text(example: QueryExample, curve: Curve, frame: int) -> str:
    lines = [f"<b>{example.timeline.describe(frame)}</b>: {curve.cosines[frame]:.3f} ({escape(curve.label)})"]
    if caption := example.captions[frame]:
        lines += [escape(line) for line in textwrap.wrap(caption, _HOVER_WIDTH)]
    return "<br>".join(lines)
