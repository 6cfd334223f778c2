"""A heat map of val SumR by two integer parameters, for which it shows registers and diffusion steps."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from dreamprvr_ray.report.charts.points import lowest_sumr
from dreamprvr_ray.report.charts.style import BLACK, empty_figure
from dreamprvr_ray.report.formatting import format_sumr
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.results import TrialRecord

Bin = tuple[int, int]  # the first and the last integer in it
MAX_BINS = 4


def bins(parameter: SearchedParameter) -> list[Bin]:
    """Divide an integer range into at most `MAX_BINS` bins of equal width on its scale, besides one for zero.

    Of a choice between integers, each is a bin.
    """
    if parameter.choices is not None:
        return [(value, value) for value in sorted(map(int, parameter.choices))]
    low, high = int(parameter.low), int(parameter.high)
    if high - low < MAX_BINS:
        return [(value, value) for value in range(low, high + 1)]
    zero = [(0, 0)] if low == 0 else []
    low = low or 1
    edges = np.geomspace(low, high + 1, MAX_BINS + 1) if parameter.log else np.linspace(low, high + 1, MAX_BINS + 1)
    starts = sorted({round(edge) for edge in edges[:-1]})
    return zero + [(start, following - 1) for start, following in zip(starts, [*starts[1:], high + 1], strict=True)]


def heat_cells(
    search: SearchRecord, down: SearchedParameter, across: SearchedParameter
) -> list[list[list[TrialRecord]]]:
    """Return the finished and pruned trials in each cell, row by row.

    A trial that does not have both parameters (diffusion steps without registers) is in no cell.
    """

    def is_inside(trial: TrialRecord, parameter: SearchedParameter, bounds: Bin) -> bool:
        return parameter.key in trial.values and bounds[0] <= trial.values[parameter.key] <= bounds[1]

    return [
        [
            [trial for trial in search.trained if is_inside(trial, down, row) and is_inside(trial, across, column)]
            for column in bins(across)
        ]
        for row in bins(down)
    ]


def heat_map(search: SearchRecord, down: SearchedParameter, across: SearchedParameter) -> go.Figure:
    """Draw the mean val SumR of the finished trials by two parameters.

    Pruned trials are counted but do not affect the colour, since they trained for fewer epochs.
    """
    rows = [(bounds, row) for bounds, row in zip(bins(down), heat_cells(search, down, across), strict=True) if any(row)]
    means: list[list[float | None]] = []
    texts: list[list[str]] = []
    for _, row in rows:
        finished = [[trial.best_sumr or 0.0 for trial in cell if trial.state == "finished"] for cell in row]
        row_means = [sum(values) / len(values) if values else None for values in finished]
        means.append(row_means)
        texts.append(
            [
                _cell_text(len(values), len(cell) - len(values), mean)
                for values, cell, mean in zip(finished, row, row_means, strict=True)
            ]
        )
    row_names = [_bin_name(bounds) for bounds, _ in rows]
    column_names = [_bin_name(bounds) for bounds in bins(across)]
    known = [mean for row_means in means for mean in row_means if mean is not None]
    low, high = max(min(known), lowest_sumr(search)), max(known)
    figure = empty_figure(110 + 56 * len(rows), xaxis_title=across.name, yaxis_title=down.name)
    figure.add_heatmap(
        z=means,
        x=column_names,
        y=row_names,
        colorscale="Cividis",
        zmin=low,
        zmax=high,
        showscale=False,
        xgap=3,
        ygap=3,
        hoverinfo="skip",
    )
    for row_name, row_texts, row_means in zip(row_names, texts, means, strict=True):
        for column_name, text, mean in zip(column_names, row_texts, row_means, strict=True):
            is_dark = mean is not None and mean < (low + high) / 2
            figure.add_annotation(
                x=column_name,
                y=row_name,
                text=text,
                showarrow=False,
                font={"size": 11.5, "color": "white" if is_dark else BLACK},
            )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure


def _bin_name(bounds: Bin) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


def _cell_text(finished: int, pruned: int, mean: float | None) -> str:
    if mean is None:
        return f"{pruned} pruned" if pruned else ""
    return f"<b>{format_sumr(mean)}</b><br>{finished} finished" + (f",<br>{pruned} pruned" if pruned else "")
