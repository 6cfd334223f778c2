"""The numbers in the charts of the trials and parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.experiments import make_search

from dreamprvr_ray.report.charts.heat_map import bins
from dreamprvr_ray.report.charts.parameters import slice_chart, ticks
from dreamprvr_ray.report.charts.style import empty_figure, tick_whole_numbers
from dreamprvr_ray.report.charts.trials import learning_curves, optimization_history, pareto_front
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.report.search_record import SearchRecord


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchRecord:
    return read_search(
        make_search(tmp_path_factory.mktemp("search") / "synthetic", trials=24, failed=(5,), refused=(7,), seed=3)
    )


def test_every_trial_with_a_result_is_in_the_history_once(search: SearchRecord) -> None:
    numbers = [int(x) for trace in optimization_history(search).data if trace.mode == "markers" for x in trace.x]
    assert sorted(numbers) == [trial.number for trial in search.trials] and 7 not in numbers


def test_the_history_marks_the_baseline_only_if_it_finished(search: SearchRecord, tmp_path: Path) -> None:
    assert search.baseline is not None
    assert [line.y0 for line in optimization_history(search).layout.shapes] == [search.baseline.best_sumr]
    stopped = read_search(make_search(tmp_path / "synthetic", trials=4, first_pruned_after=2))
    assert stopped.baseline is not None and not optimization_history(stopped).layout.shapes


def test_a_slice_leaves_out_trials_without_the_parameter(search: SearchRecord) -> None:
    steps = next(parameter for parameter in search.parameters if parameter.name == "diffusion steps")
    figure = slice_chart(search, steps)
    assert figure.layout.xaxis.type == "log" and figure.layout.shapes[0].x0 == 10  # the baseline's value
    shown = sum(len(trace.x) for trace in figure.data)
    assert shown == sum(steps.key in trial.values for trial in search.trials) < len(search.trials)


def test_a_slice_of_choices_labels_them(search: SearchRecord) -> None:
    axis = slice_chart(search, next(parameter for parameter in search.parameters if parameter.choices)).layout.xaxis
    assert list(axis.ticktext) == ["4", "8"] and list(axis.tickvals) == [0, 1]


def test_points_are_inside_the_axis(search: SearchRecord) -> None:
    figure = optimization_history(search)
    low, high = figure.layout.yaxis.range
    assert all(low <= y <= high for trace in figure.data if trace.mode == "markers" for y in trace.y)


def test_pruned_curves_end_with_a_cross(search: SearchRecord) -> None:
    traces = learning_curves(search).data
    pruned = [trace for trace in traces if trace.name == "pruned"]
    assert len(pruned) == len(search.in_state("pruned")) > 0
    assert all(trace.marker.size[-1] > 0 and not any(trace.marker.size[:-1]) for trace in pruned)


def test_the_pareto_front_has_the_trials_that_no_other_dominates(tmp_path: Path) -> None:
    trials = read_search(make_search(tmp_path / "synthetic", trials=20, two_objectives=True)).trials

    def is_dominated(number: int) -> bool:
        sumr, cost = trials[number].best_sumr, trials[number].cost
        return any(
            other.best_sumr >= sumr and other.cost <= cost and (other.best_sumr, other.cost) != (sumr, cost)
            for other in trials
        )  # type: ignore[operator]

    assert {trial.number for trial in pareto_front(trials)} == {
        number for number in range(20) if not is_dominated(number)
    }


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (SearchedParameter("r", "r", 0, 16, is_integer=True), [(0, 0), (1, 4), (5, 8), (9, 12), (13, 16)]),
        (SearchedParameter("s", "s", 1, 50, log=True, is_integer=True), [(1, 2), (3, 6), (7, 18), (19, 50)]),
        (SearchedParameter("r", "r", 4, 6, is_integer=True), [(4, 4), (5, 5), (6, 6)]),
        (SearchedParameter("r", "r", choices=(16, 0, 4)), [(0, 0), (4, 4), (16, 16)]),
    ],
)
def test_the_bins_of_the_heat_map_cover_the_range(
    parameter: SearchedParameter, expected: list[tuple[int, int]]
) -> None:
    assert bins(parameter) == expected


@pytest.mark.parametrize(
    ("parameter", "marks"),
    [
        (SearchedParameter("a", "a", 1e-5, 1e-2, log=True), [1e-5, 1e-4, 1e-3, 1e-2]),
        (SearchedParameter("a", "a", 1e-4, 1e-3, log=True), [1e-4, 2e-4, 5e-4, 1e-3]),
        (SearchedParameter("a", "a", 1, 50, log=True, is_integer=True), [1, 2, 5, 10, 20, 50]),
        (SearchedParameter("a", "a", 0, 16, is_integer=True), [0, 5, 10, 15]),
        (SearchedParameter("a", "a", 0, 3, is_integer=True), [0, 1, 2, 3]),
        (SearchedParameter("a", "a", 0.05, 0.5), [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_ticks_are_few_and_round(parameter: SearchedParameter, marks: list[float]) -> None:
    assert ticks(parameter) == pytest.approx(marks)


def test_pruned_trials_do_not_squash_the_others(tmp_path: Path) -> None:
    """Neither do they if they are the baseline, or if few trials have finished."""
    search = read_search(make_search(tmp_path / "synthetic", trials=8, first_pruned_after=2, pruning=False))
    first, *others = search.trials
    finished = [replace(trial, best_sumr=250.0 + place) for place, trial in enumerate(others[:3])]
    pruned = [replace(trial, state="pruned", best_sumr=100.0 + trial.number) for trial in others[3:]]
    for trials in ((first, *finished, *pruned), (first, *finished), (*finished, *pruned)):
        low, high = slice_chart(replace(search, trials=trials), search.parameters[0]).layout.yaxis.range
        assert 244 < low < 250 and 252 < high < 258


def test_slices_name_their_axis(search: SearchRecord) -> None:
    assert slice_chart(search, search.parameters[0]).layout.yaxis.title.text == "val SumR"


@pytest.mark.parametrize(("last", "step"), [(3, 1), (12, 1), (13, 2), (100, 10), (130, 20)])
def test_epochs_and_trials_have_whole_ticks_at_every_zoom(last: int, step: int) -> None:
    figure = empty_figure(100)
    tick_whole_numbers(figure, last)
    assert list(figure.layout.xaxis.tickvals) == list(range(0, last + 1, step))


def test_learning_curves_and_history_have_whole_ticks(search: SearchRecord) -> None:
    for figure in (learning_curves(search), optimization_history(search)):
        assert figure.layout.xaxis.tickmode == "array"
