"""The sections about parameters: when registers and diffusion steps are shown together."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from support.experiments import make_search

from dreamprvr_ray.report.content import Chart, Omission, Section
from dreamprvr_ray.report.parameter_sections import value_sections
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.report.search_record import SearchRecord

REGISTERS = SearchedParameter("model.registers", "registers", choices=(8, 2, 4), baseline=4)
STEPS = SearchedParameter("model.diffusion_steps", "diffusion steps", choices=(1, 10), baseline=10)
TITLE = "Registers and diffusion steps"


@pytest.fixture
def grid(tmp_path: Path) -> SearchRecord:
    """A search over every pair of three numbers of registers and two numbers of steps, and nothing else."""
    search = read_search(make_search(tmp_path / "grid", trials=6, pruning=False))
    trials = [
        replace(trial, values={REGISTERS.key: registers, STEPS.key: steps}, best_sumr=100.0 + registers + steps)
        for trial, (registers, steps) in zip(search.trials, product((2, 4, 8), (1, 10)), strict=True)
    ]
    return replace(search, trials=tuple(trials), parameters=(REGISTERS, STEPS))


def test_a_grid_of_registers_and_steps_is_shown_with_its_counts(grid: SearchRecord) -> None:
    section = value_sections(grid, [], grid.parameters)[-1]
    assert isinstance(section, Section) and section.title == TITLE
    (chart,) = section.parts
    assert isinstance(chart, Chart) and "varied as well" not in chart.caption
    (heat,) = chart.figure.data
    assert heat.x == ("1", "10") and heat.y == ("2", "4", "8")
    assert [list(row) for row in heat.z] == [[103, 112], [105, 114], [109, 118]]
    assert chart.figure.layout.annotations[-1].text == "<b>118.0</b><br>1 finished"


def test_few_trials_say_nothing_about_two_parameters_among_others(grid: SearchRecord) -> None:
    margin = SearchedParameter("loss.margin", "margin", 0.05, 0.5)
    trials = [replace(trial, values={**trial.values, margin.key: 0.1 + trial.number / 20}) for trial in grid.trials]
    searched = (REGISTERS, STEPS, margin)
    section = value_sections(replace(grid, trials=tuple(trials), parameters=searched), [], searched)[-1]
    assert section == Omission(f"{TITLE}: 6 finished trials; at least 12 in 4 different cells are needed.")
