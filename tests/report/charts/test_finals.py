"""The numbers in the charts of the test results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.experiments import add_final, make_search

from dreamprvr_ray.report.charts.finals import candidate_chart, difference_chart, moment_chart
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.search.final_result import FinalResult

NAMES = ["the winner", "without the rate", "the paper's"]


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> FinalResult:
    """Three settings of three seeds each, and two comparisons."""
    directory = make_search(tmp_path_factory.mktemp("search") / "synthetic", trials=3)
    add_final(directory, ablated=(-3.0, 12.0), trial=2)
    record = read_search(directory).final
    assert record is not None
    return record.result


def test_each_candidate_is_a_row_with_its_seeds_and_their_mean(final: FinalResult) -> None:
    figure = candidate_chart(final.candidates, NAMES)
    low, high = figure.layout.yaxis.range
    assert low > high  # the first candidate is on top
    for name, candidate, seeds, mean in zip(NAMES, final.candidates, figure.data[::2], figure.data[1::2], strict=True):
        assert list(seeds.y) == [name] * 3 and list(mean.y) == [name]
        assert list(seeds.x) == [run.test.retrieval.recall.sumr for run in candidate.runs] and list(mean.x) == [
            candidate.mean
        ]
        assert mean.error_x.visible and list(mean.error_x.array) == [candidate.std]


def test_one_seed_has_no_error_bar(final: FinalResult) -> None:
    candidate = replace(final.candidates[0], runs=final.candidates[0].runs[:1])
    seeds, mean = candidate_chart([candidate], NAMES[:1]).data
    assert list(seeds.x) == list(mean.x) and not mean.error_x.visible
    assert len(moment_chart([candidate], NAMES[:1]).data) == 1  # only the mean, which the seed would cover


def test_intervals_are_drawn_with_a_line_at_zero(final: FinalResult) -> None:
    assert final.comparison is not None
    comparisons = final.comparisons
    figure = difference_chart(comparisons, ["against the paper", "against the rate"])
    (drawn,) = figure.data
    assert [x + more for x, more in zip(drawn.x, drawn.error_x.array, strict=True)] == pytest.approx([14.9, 12.0])
    assert [x - less for x, less in zip(drawn.x, drawn.error_x.arrayminus, strict=True)] == pytest.approx([6.2, -3.0])
    low, high = figure.layout.xaxis.range
    assert figure.layout.shapes[0].x0 == 0 and low < -3.0 and high > 14.9
    assert difference_chart(comparisons[:1], ["against the paper"]).layout.xaxis.range[0] < 0


@pytest.mark.parametrize("older", [False, True], ids=["null", "zeros"])
def test_moment_groups_without_queries_are_left_out(older: bool, tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, ablated=(-3.0, 12.0), trial=2, older=older)
    record = read_search(directory).final
    assert record is not None
    final = record.result
    figure = moment_chart(final.candidates, NAMES)
    labels = ["0-0.2<br>292 queries", "0.2-0.4<br>119 queries"]
    for name, candidate, means, seeds in zip(NAMES, final.candidates, figure.data[::2], figure.data[1::2], strict=True):
        assert means.name == name and list(means.x) == labels
        assert list(means.y) == pytest.approx([candidate.mean + 4, candidate.mean - 3])
        sumrs = [run.test.retrieval.recall.sumr for run in candidate.runs]
        assert list(seeds.y) == pytest.approx([sumr + more for more in (4, -3) for sumr in sumrs])


def test_a_candidate_has_the_same_colour_in_all_charts(final: FinalResult) -> None:
    drawn = [candidate_chart(final.candidates, NAMES), moment_chart(final.candidates, NAMES)]
    results, moments = ([trace.marker.color for trace in figure.data] for figure in drawn)
    assert results[::2] == results[1::2] and len(set(results)) == 3
    assert moments[1::2] == results[::2] == [trace.line.color for trace in drawn[1].data[::2]]
