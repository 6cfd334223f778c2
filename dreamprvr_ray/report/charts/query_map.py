"""A map of query embeddings, with a colour and a shape for each video."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from dreamprvr_ray.report.charts.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, empty_figure
from dreamprvr_ray.report.figures.query_map import QueryMap

# Colours repeat with other shapes, so each of the ten videos looks different.
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK, GREY, BLUE, VERMILION)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "pentagon", "star", "hexagram", "cross", "triangle-down")
_HOVER_WIDTH = 50  # characters of a line


def query_map_chart(found: QueryMap, videos: Sequence[str], sentences: Sequence[str]) -> go.Figure:
    """Draw a map. `videos` and `sentences` (n,) are those of its points."""
    figure = empty_figure(400, showlegend=False, margin={"l": 8, "r": 8, "t": 8, "b": 8})
    for place, video in enumerate(dict.fromkeys(videos)):
        rows = [row for row, name in enumerate(videos) if name == video]
        figure.add_scatter(
            x=found.points[rows, 0],
            y=found.points[rows, 1],
            mode="markers",
            name=escape(video),
            marker={
                "color": _COLOURS[place % len(_COLOURS)],
                "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                "size": 9,
                "opacity": 0.85,
            },
            text=[_hover_text(video, sentences[row]) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    for update in (figure.update_xaxes, figure.update_yaxes):  # the axes have no meaning
        update(showticklabels=False, ticks="", showgrid=False, mirror=True)
    return figure


def _hover_text(video: str, sentence: str) -> str:
    return "<br>".join([f"<b>{escape(video)}</b>", *map(escape, textwrap.wrap(sentence, _HOVER_WIDTH))])
