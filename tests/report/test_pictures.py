"""What the figures show, where it can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.experiments import make_search

from dreamprvr_ray.report import pictures
from dreamprvr_ray.report.experiment import Axis, SearchRecord, read_search
from dreamprvr_ray.report.formatting import counted, duration, listed, short, signed


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchRecord:
    return read_search(
        make_search(tmp_path_factory.mktemp("search") / "made", trials=24, failed=(5,), refused=(7,), seed=3)
    )


def test_every_trial_with_a_result_is_in_the_history_once(search: SearchRecord) -> None:
    numbers = [int(x) for trace in pictures.history(search).data if trace.mode == "markers" for x in trace.x]
    assert sorted(numbers) == [trial.number for trial in search.trials] and 7 not in numbers


def test_the_history_measures_by_a_first_trial_that_finished_alone(search: SearchRecord, tmp_path: Path) -> None:
    assert search.first is not None
    assert [line.y0 for line in pictures.history(search).layout.shapes] == [search.first.sumr]
    stopped = read_search(make_search(tmp_path / "made", trials=4, first_pruned_after=2))
    assert stopped.first is not None and not pictures.history(stopped).layout.shapes


def test_a_slice_leaves_out_trials_without_the_value(search: SearchRecord) -> None:
    steps = next(axis for axis in search.axes if axis.name == "diffusion steps")
    figure = pictures.slice_of(search, steps)
    assert figure.layout.xaxis.type == "log" and figure.layout.shapes[0].x0 == 10  # the paper's
    shown = sum(len(trace.x) for trace in figure.data)
    assert shown == sum(steps.key in trial.values for trial in search.trials) < len(search.trials)


def test_a_slice_of_choices_names_them(search: SearchRecord) -> None:
    axis = pictures.slice_of(search, next(axis for axis in search.axes if axis.choices)).layout.xaxis
    assert list(axis.ticktext) == ["4", "8"] and list(axis.tickvals) == [0, 1]


def test_points_stay_on_the_axis(search: SearchRecord) -> None:
    figure = pictures.history(search)
    low, high = figure.layout.yaxis.range
    assert all(low <= y <= high for trace in figure.data if trace.mode == "markers" for y in trace.y)


def test_pruned_curves_end_with_a_cross(search: SearchRecord) -> None:
    traces = pictures.learning_curves(search).data
    pruned = [trace for trace in traces if trace.name == "pruned"]
    assert len(pruned) == len(search.in_state("pruned")) > 0
    assert all(trace.marker.size[-1] > 0 and not any(trace.marker.size[:-1]) for trace in pruned)


def test_the_pareto_front_holds_what_none_beats(tmp_path: Path) -> None:
    trials = read_search(make_search(tmp_path / "made", trials=20, two_objectives=True)).trials

    def beaten(number: int) -> bool:
        one = trials[number]
        return any(
            other.sumr >= one.sumr and other.cost <= one.cost and (other.sumr, other.cost) != (one.sumr, one.cost)
            for other in trials
        )  # type: ignore[operator]

    assert {trial.number for trial in pictures.pareto_front(trials)} == {
        number for number in range(20) if not beaten(number)
    }


@pytest.mark.parametrize(
    ("axis", "groups"),
    [
        (Axis("r", "r", 0, 16, whole=True), [(0, 0), (1, 4), (5, 8), (9, 12), (13, 16)]),
        (Axis("s", "s", 1, 50, log=True, whole=True), [(1, 2), (3, 6), (7, 18), (19, 50)]),
        (Axis("r", "r", 4, 6, whole=True), [(4, 4), (5, 5), (6, 6)]),
    ],
)
def test_heat_map_groups_cover_the_range(axis: Axis, groups: list[tuple[int, int]]) -> None:
    assert pictures.bins(axis) == groups


@pytest.mark.parametrize(
    ("axis", "marks"),
    [
        (Axis("a", "a", 1e-5, 1e-2, log=True), [1e-5, 1e-4, 1e-3, 1e-2]),
        (Axis("a", "a", 1e-4, 1e-3, log=True), [1e-4, 2e-4, 5e-4, 1e-3]),
        (Axis("a", "a", 1, 50, log=True, whole=True), [1, 2, 5, 10, 20, 50]),
        (Axis("a", "a", 0, 16, whole=True), [0, 5, 10, 15]),
        (Axis("a", "a", 0, 3, whole=True), [0, 1, 2, 3]),
        (Axis("a", "a", 0.05, 0.5), [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_ticks_are_few_and_round(axis: Axis, marks: list[float]) -> None:
    assert pictures.ticks(axis) == pytest.approx(marks)


def test_numbers_are_as_a_reader_wants_them() -> None:
    assert [short(value) for value in (3e-4, 0.0273412, 0.2, 0.0, 8, True, "tanh", 12345.6, 1e-5, None)] == [
        *("3e-4", "0.0273", "0.2", "0", "8", "true", "tanh", "12346", "1e-5", "-"),
    ]
    assert [signed(value) for value in (10.46, -0.04, -3.2)] == ["+10.5", "0.0", "-3.2"]
    assert [counted(1, "query"), counted(3, "query"), counted(2, "trial")] == ["1 query", "3 queries", "2 trials"]
    assert [listed(["a"]), listed(["a", "b", "c"])] == ["a", "a, b and c"]
    assert [duration(seconds) for seconds in (40, 600, 12240)] == ["40 seconds", "10 minutes", "3.4 hours"]
