"""The numbers in the charts of the paper's figures: similarity along a video, query embeddings, registers by steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.experiments import make_search

from dreamprvr_ray.data.moments import Span
from dreamprvr_ray.report.charts.heat_map import heat_map
from dreamprvr_ray.report.charts.query_map import query_map_chart
from dreamprvr_ray.report.charts.similarity import similarity_chart
from dreamprvr_ray.report.figures.query_map import QueryMap
from dreamprvr_ray.report.figures.similarity import Curve, QueryExample, Timeline
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.reader import read_search

EXAMPLE = QueryExample(
    query="q",
    sentence="a door",
    video="v",
    rank=1,
    timeline=Timeline(4, 8.0),
    curves=(
        Curve("with 4 registers", np.array([0.1, 0.9, 0.2, 0.3])),
        Curve("without registers", np.array([0.5, 0.4, 0.1, 0.6])),
    ),
    moment=(Span(2.0, 4.0),),
    captions=("a room", "<b>a</b> door", None, "a room"),
    top=(),
)


def test_curves_have_their_values_at_their_times_and_a_marker_at_the_peak() -> None:
    figure = similarity_chart(EXAMPLE)
    curve, peak, other, other_peak = figure.data
    assert list(curve.x) == list(other.x) == [1.0, 3.0, 5.0, 7.0]
    assert list(curve.y) == [0.1, 0.9, 0.2, 0.3] and list(other.y) == [0.5, 0.4, 0.1, 0.6]
    assert (curve.name, other.name) == ("with 4 registers", "without registers")
    assert (list(peak.x), list(peak.y)) == ([3.0], [0.9]) and (list(other_peak.x), list(other_peak.y)) == ([7.0], [0.6])
    # Also without colours, the curves are told apart.
    assert curve.line.dash != other.line.dash and curve.line.color != other.line.color
    assert peak.marker.symbol != other_peak.marker.symbol and peak.marker.color == curve.line.color
    assert curve.text[1] == "<b>3.0 s</b>: 0.900 (with 4 registers)<br>&lt;b&gt;a&lt;/b&gt; door"
    assert curve.text[2] == "<b>5.0 s</b>: 0.200 (with 4 registers)"
    (shade,) = figure.layout.shapes
    assert (shade.x0, shade.x1) == (2.0, 4.0)
    two = similarity_chart(replace(EXAMPLE, moment=(Span(2.0, 4.0), Span(6.0, 7.0))))
    assert [(shade.x0, shade.x1) for shade in two.layout.shapes] == [(2.0, 4.0), (6.0, 7.0)]
    assert list(figure.layout.xaxis.range) == [0, 8] and figure.layout.xaxis.title.text == "seconds"


def test_without_known_times_the_axis_counts_frames_and_nothing_is_shaded() -> None:
    figure = similarity_chart(replace(EXAMPLE, timeline=Timeline(4, None)))
    assert list(figure.data[0].x) == [1, 2, 3, 4] and list(figure.data[1].x) == [2]
    assert not figure.layout.shapes and figure.layout.xaxis.title.text == "frame"
    assert not similarity_chart(replace(EXAMPLE, moment=())).layout.shapes


def test_the_points_of_a_map_are_those_of_their_video() -> None:
    points = np.arange(10.0).reshape(5, 2)
    videos, sentences = ["b", "a", "b", "a", "<i>"], ["one", "two", "three", "four", "five"]
    figure = query_map_chart(QueryMap("model", points, 0.5), videos, sentences)
    assert [trace.name for trace in figure.data] == ["b", "a", "&lt;i&gt;"]
    assert [list(trace.x) for trace in figure.data] == [[0.0, 4.0], [2.0, 6.0], [8.0]]
    assert [list(trace.y) for trace in figure.data] == [[1.0, 5.0], [3.0, 7.0], [9.0]]
    assert list(figure.data[0].text) == ["<b>b</b><br>one", "<b>b</b><br>three"]
    many = query_map_chart(QueryMap("model", np.zeros((10, 2)), 0.5), [str(n) for n in range(10)], [""] * 10)
    assert len({(trace.marker.color, trace.marker.symbol) for trace in many.data}) == 10


def test_a_cell_of_registers_by_steps_has_the_mean_of_its_finished_trials(tmp_path: Path) -> None:
    search = read_search(make_search(tmp_path / "synthetic", trials=6))
    registers = SearchedParameter("model.registers", "registers", 2, 4, is_integer=True)
    steps = SearchedParameter("model.diffusion_steps", "diffusion steps", 1, 2, is_integer=True)
    cells = [(2, 1, 250.0), (2, 1, 254.0), (4, 1, 260.0), (4, 2, 100.0), (3, None, 270.0)]
    trials = [
        replace(
            search.trials[number],
            values={registers.key: down} | ({steps.key: across} if across else {}),
            best_sumr=sumr,
            state="pruned" if sumr == 100.0 else "finished",
        )
        for number, (down, across, sumr) in enumerate(cells)
    ]
    figure = heat_map(replace(search, trials=tuple(trials)), registers, steps)
    (cells_drawn,) = figure.data
    assert list(cells_drawn.x) == ["1", "2"] and list(cells_drawn.y) == ["2", "4"]  # no trial is in the row of 3
    assert [list(row) for row in cells_drawn.z] == [[252.0, None], [260.0, None]]
    texts = {(note.x, note.y): note.text for note in figure.layout.annotations}
    assert texts[("1", "2")] == "<b>252.0</b><br>2 finished" and texts[("1", "4")] == "<b>260.0</b><br>1 finished"
    assert texts[("2", "4")] == "1 pruned" and texts[("2", "2")] == ""
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("diffusion steps", "registers")
    colours = {(note.x, note.y): note.font.color for note in figure.layout.annotations}
    assert colours[("1", "2")] == "white" != colours[("1", "4")]  # on dark cells


@pytest.mark.parametrize("state", ["finished", "pruned"])
def test_one_cell_can_be_drawn(state: str, tmp_path: Path) -> None:
    search = read_search(make_search(tmp_path / "synthetic", trials=6))
    registers = SearchedParameter("model.registers", "registers", choices=(0, 4))
    steps = SearchedParameter("model.diffusion_steps", "diffusion steps", choices=(1, 2))
    trial = replace(search.trials[0], values={registers.key: 4, steps.key: 2}, best_sumr=250.0, state="finished")
    other = replace(trial, number=9, values={registers.key: 0, steps.key: 1}, state=state)
    assert heat_map(replace(search, trials=(trial, other)), registers, steps).data[0].zmax == 250.0
