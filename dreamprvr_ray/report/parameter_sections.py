"""The sections about the parameters: their ranges and importance, and val SumR against their values."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dreamprvr_ray.report.charts.heat_map import heat_cells, heat_map
from dreamprvr_ray.report.charts.parameters import importance_bars, parallel_coordinates, slice_chart
from dreamprvr_ray.report.charts.points import any_below
from dreamprvr_ray.report.content import Chart, ChartGrid, Omission, Part, Section, paragraph, parameter_name, table
from dreamprvr_ray.report.formatting import format_count, format_sumr, format_value
from dreamprvr_ray.report.importance import FINISHED_NEEDED, TRAINED_NEEDED, Importance, typical_range
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.search_record import DETAILED, SearchRecord
from dreamprvr_ray.report.summary import describe_stop

SLICES_NEEDED = 5  # trials
HEAT_NEEDED, HEAT_CELLS_NEEDED = 12, 4  # finished trials, and cells with one: fewer say nothing about two parameters
_HEAT_TITLE = "Registers and diffusion steps"


def importance_section(
    search: SearchRecord, found: Sequence[Importance], parameters: Sequence[SearchedParameter]
) -> list[Section | Omission]:
    """Return the searched parameters with their importance or, if that is not known, without."""
    if not search.parameters:
        return []
    has_typical = len(search.trained) >= TRAINED_NEEDED
    best = search.best
    shares = {importance.parameter.key: importance for importance in found}
    rows = []
    for parameter in parameters:
        row = [
            parameter_name(parameter),
            escape(_describe_range(parameter)),
            escape(format_value(parameter.baseline)),
            escape(format_value(best.values.get(parameter.key)) if best else "-"),
        ]
        if has_typical:
            typical = typical_range(search, parameter)
            row.append(escape(" to ".join(map(format_value, typical)) if typical else "-"))
        if found:
            row.append(_format_share(shares.get(parameter.key)))
        rows.append(row)
    heads = ["", "searched", search.baseline_label, "best trial" if best is None else f"trial {best.number}"]
    heads += ["best quarter"] * has_typical + ["share"] * bool(found)
    parts: list[Part] = [table(heads, rows)]
    if has_typical:
        text = "Best quarter: the middle 80% of the values in the best quarter of the trials."
        parts.append(paragraph(text, soft=True))
    if not found:
        return [Section("Searched parameters", tuple(parts)), Omission(f"Importances: {_why_no_importances(search)}.")]
    caption = (
        "The share of the differences between trials that a parameter explains by itself (fANOVA). Each pair of trials"
        " is compared at the last epoch that both reached, so that pruned trials count too. The mark is what shuffled"
        " results reach in 95 of 100 cases: a bar that ends before it, drawn pale, means nothing."
    )
    parts.append(Chart(importance_bars(found), caption))
    return [Section("Which parameters matter", tuple(parts))]


def _describe_range(parameter: SearchedParameter) -> str:
    if parameter.choices is not None:
        return ", ".join(map(format_value, parameter.choices))
    return " to ".join(map(format_value, parameter.ends)) + (", log" if parameter.log else "")


def _format_share(importance: Importance | None) -> str:
    if importance is None:
        return "-"
    return f"{importance.share:.0%}" + ("" if importance.stands_out else " (chance)")


def _why_no_importances(search: SearchRecord) -> str:
    if len(search.parameters) < 2:
        return "only one parameter was searched"
    trained, finished = len(search.trained), len(search.in_state("finished"))
    return (
        f"{format_count(trained, 'trial')} finished or pruned, {finished} of them finished;"
        f" at least {TRAINED_NEEDED} and {FINISHED_NEEDED} are needed"
    )


def varied_parameters(search: SearchRecord, parameters: Sequence[SearchedParameter]) -> list[SearchedParameter]:
    """Return the parameters whose values differ between the trials with a SumR."""
    return [
        parameter
        for parameter in parameters
        if len({str(trial.values[parameter.key]) for trial in search.scored if parameter.key in trial.values}) > 1
    ]


def value_sections(
    search: SearchRecord, found: Sequence[Importance], parameters: Sequence[SearchedParameter]
) -> list[Section | Omission]:
    """Return val SumR against one parameter, against all of them, and against registers and steps together."""
    varied = varied_parameters(search, parameters)
    sections: list[Section | Omission] = []
    constant = [parameter.name for parameter in parameters if parameter not in varied]
    if constant and search.scored:
        sections.append(Omission(f"Slices of {', '.join(constant)}: all trials have the same value."))
    if len(search.scored) < SLICES_NEEDED or not varied:
        count = format_count(len(search.scored), "trial")
        reason = f"{count} with a val SumR; at least {SLICES_NEEDED} are needed."
        return [*sections, Omission(f"Slices and parallel coordinates: {reason}")]
    sections.append(_slice_section(search, varied, ordered=bool(found)))
    if len(varied) > 1:
        which = "each trial" if len(search.scored) <= DETAILED else f"each of the best {DETAILED} trials"
        caption = f"A line for {which}. Click a name in the legend to hide its lines."
        chart = Chart(parallel_coordinates(search, varied), caption)
        sections.append(Section("Parallel coordinates", (chart,)))
    return [*sections, _heat_section(search)]


def _slice_section(search: SearchRecord, varied: Sequence[SearchedParameter], ordered: bool) -> Section:
    charts = []
    for parameter in varied:
        missing = sum(parameter.key not in trial.values for trial in search.scored)
        caption = f"not in {format_count(missing, 'trial')}" if missing else ""
        charts.append((parameter_name(parameter), Chart(slice_chart(search, parameter), caption)))
    stop = f" (trial 0 {describe_stop(search.unfinished_baseline)})" if search.unfinished_baseline else ""
    marks = [
        "Blue: finished",
        *(["open grey: pruned, at the best epoch"] if search.in_state("pruned") else []),
        "star: the best trial",
        f"diamond and dashed line: {search.baseline_name}{stop}",
        *(["triangles on the lower edge: below the axis"] if any_below(search) else []),
    ]
    order = ", the most important first" if ordered else ""
    text = f"Val SumR against each parameter{order}. {'; '.join(marks)}."
    return Section("Slices", (paragraph(text), ChartGrid(tuple(charts))))


def _heat_section(search: SearchRecord) -> Section | Omission:
    keys = {parameter.key: parameter for parameter in search.parameters}
    down, across = keys.get("model.registers"), keys.get("model.diffusion_steps")
    if down is None or across is None:
        return Omission(f"{_HEAT_TITLE}: the two were not searched together.")
    finished = search.in_state("finished")
    cells = [cell for row in heat_cells(search, down, across) for cell in row]
    filled = sum(any(trial.state == "finished" for trial in cell) for cell in cells)
    others_varied = any(parameter not in (down, across) for parameter in varied_parameters(search, search.parameters))
    needed = HEAT_NEEDED if others_varied else HEAT_CELLS_NEEDED
    if len(finished) < needed or filled < HEAT_CELLS_NEEDED:
        count = format_count(len(finished), "finished trial")
        return Omission(f"{_HEAT_TITLE}: {count}; at least {needed} in {HEAT_CELLS_NEEDED} different cells are needed.")
    caption = "Mean val SumR of the finished trials in each cell, and how many they are (figure 3 of the paper)."
    if others_varied:
        caption += " The other parameters varied as well, so small differences mean nothing."
    without = [
        trial.best_sumr
        for trial in finished
        if trial.values.get(down.key) == 0 and across.key not in trial.values and trial.best_sumr is not None
    ]
    if without:
        mean = format_sumr(sum(without) / len(without))
        count = format_count(len(without), "finished trial")
        caption += f" Without registers there are no diffusion steps: {count}, mean {mean}."
    return Section(_HEAT_TITLE, (Chart(heat_map(search, down, across), caption),))
