"""What the pictures of the final trainings show, where it can be counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.experiments import add_final, make_search

from dreamprvr_ray.report import final_pictures
from dreamprvr_ray.report.experiment import Final, read_search

NAMES = ["the winner", "without the rate", "the paper's"]


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Final:
    """Three settings of three seeds each, and two comparisons."""
    directory = make_search(tmp_path_factory.mktemp("search") / "made", trials=3)
    add_final(directory, ablated=(-3.0, 12.0), trial=2)
    read = read_search(directory).final
    assert read is not None
    return read


def test_each_setting_is_a_row_of_its_seeds_and_their_mean(final: Final) -> None:
    figure = final_pictures.results(final.candidates, NAMES)
    low, high = figure.layout.yaxis.range
    assert low > high  # the first on top
    for name, candidate, seeds, mean in zip(NAMES, final.candidates, figure.data[::2], figure.data[1::2], strict=True):
        assert list(seeds.y) == [name] * 3 and list(mean.y) == [name]
        assert list(seeds.x) == [run.test["SumR"] for run in candidate.runs] and list(mean.x) == [candidate.mean]
        assert mean.error_x.visible and list(mean.error_x.array) == [candidate.deviation]


def test_one_seed_has_no_deviation(final: Final) -> None:
    candidate = replace(final.candidates[0], runs=final.candidates[0].runs[:1])
    seeds, mean = final_pictures.results([candidate], NAMES[:1]).data
    assert list(seeds.x) == list(mean.x) and not mean.error_x.visible
    assert (
        len(final_pictures.by_moment([candidate], NAMES[:1]).data) == 1
    )  # the mean alone: the seed's circle would lie on it


def test_intervals_are_drawn_beside_zero(final: Final) -> None:
    assert final.comparison is not None
    comparisons = [final.comparison, *final.ablations]
    figure = final_pictures.differences(comparisons, ["against the paper", "against the rate"])
    (drawn,) = figure.data
    assert [x + more for x, more in zip(drawn.x, drawn.error_x.array, strict=True)] == pytest.approx([14.9, 12.0])
    assert [x - less for x, less in zip(drawn.x, drawn.error_x.arrayminus, strict=True)] == pytest.approx([6.2, -3.0])
    low, high = figure.layout.xaxis.range
    assert figure.layout.shapes[0].x0 == 0 and low < -3.0 and high > 14.9
    assert final_pictures.differences(comparisons[:1], ["against the paper"]).layout.xaxis.range[0] < 0


@pytest.mark.parametrize("older", [False, True], ids=["null", "zeros"])
def test_moments_without_queries_are_left_out(older: bool, tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=3)
    add_final(directory, ablated=(-3.0, 12.0), trial=2, older=older)
    final = read_search(directory).final
    assert final is not None
    figure = final_pictures.by_moment(final.candidates, NAMES)
    labels = ["0-0.2<br>292 queries", "0.2-0.4<br>119 queries"]
    for name, candidate, means, seeds in zip(NAMES, final.candidates, figure.data[::2], figure.data[1::2], strict=True):
        assert means.name == name and list(means.x) == labels
        assert list(means.y) == pytest.approx([candidate.mean + 4, candidate.mean - 3])
        sumrs = [run.test["SumR"] for run in candidate.runs]
        assert list(seeds.y) == pytest.approx([sumr + more for more in (4, -3) for sumr in sumrs])


def test_a_setting_keeps_its_colour(final: Final) -> None:
    drawn = [final_pictures.results(final.candidates, NAMES), final_pictures.by_moment(final.candidates, NAMES)]
    results, moments = ([trace.marker.color for trace in figure.data] for figure in drawn)
    assert results[::2] == results[1::2] and len(set(results)) == 3
    assert moments[1::2] == results[::2] == [trace.line.color for trace in drawn[1].data[::2]]
