"""The sections about the trials: the leaderboard, their history and learning curves, the Pareto front, and failures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dreamprvr_ray.report.charts.points import any_below
from dreamprvr_ray.report.charts.style import GREY
from dreamprvr_ray.report.charts.trials import (
    cost_name,
    learning_curves,
    optimization_history,
    pareto_chart,
    pareto_front,
)
from dreamprvr_ray.report.content import Chart, Omission, Section, details, paragraph, parameter_name, table
from dreamprvr_ray.report.formatting import format_count, format_duration, format_sumr, format_value
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.search_record import DETAILED, SearchRecord
from dreamprvr_ray.report.summary import describe_stop
from dreamprvr_ray.search.results import TrialRecord

LEADERBOARD_ROWS = 20  # shown; the others are folded away
HISTORY_NEEDED = 2  # trials
CURVES_NEEDED = 2  # trials
PARETO_NEEDED = 3  # trials
_HARD_NEGATIVES = "loss.hard_negative_start_epoch"


def leaderboard_section(search: SearchRecord, parameters: Sequence[SearchedParameter]) -> Section:
    """Return the table of the ranked trials and their stored checkpoints."""
    has_cost = len(search.objectives) > 1
    has_time = any(trial.seconds for trial in search.trials)
    heads = [
        *("trial", "state", "epochs", "val SumR", "at epoch"),
        *([escape(search.objectives[1])] if has_cost else []),
        *map(parameter_name, parameters),
        *(["time"] if has_time else []),
    ]

    def cells(trial: TrialRecord) -> list[str]:
        texts = [
            str(trial.number),
            trial.state,
            str(trial.epochs),
            format_sumr(trial.best_sumr),
            format_value(trial.best_epoch),
            *([format_value(trial.cost)] if has_cost else []),
            *(format_value(trial.values.get(parameter.key)) for parameter in parameters),
        ]
        if has_time:
            texts.append(format_duration(trial.seconds) if trial.seconds else "-")
        return [escape(text) for text in texts]

    def trial_table(trials: Sequence[TrialRecord]) -> str:
        classes = [_row_class(search, trial) for trial in trials]
        return table(heads, [cells(trial) for trial in trials], classes, text_columns=(1,))

    parts = [trial_table(search.ranked[:LEADERBOARD_ROWS])]
    if others := search.ranked[LEADERBOARD_ROWS:DETAILED]:
        left_out = len(search.ranked) - DETAILED
        which = "next" if left_out > 0 else "other"
        parts.append(details(f"the {which} {format_count(len(others), 'trial')}", trial_table(others)))
        if left_out > 0:
            parts.append(paragraph(f"{format_count(left_out, 'further trial')} in leaderboard.json.", soft=True))
    is_grey = search.baseline is not None and search.baseline is not search.best
    baseline = f" Grey: {search.baseline_name}." if is_grey else ""
    parts.append(paragraph(f"Ranked by val SumR, at the best epoch of each trial.{baseline}", soft=True))
    checkpoints = [(trial.number, trial.checkpoint) for trial in search.ranked if trial.checkpoint]
    if checkpoints:
        items = "".join(f"<li>trial {number}: <code>{escape(path)}</code></li>" for number, path in checkpoints)
        parts.append(f"<h3>Stored checkpoints</h3><ul>{items}</ul>")
    return Section("Leaderboard", tuple(parts))


def _row_class(search: SearchRecord, trial: TrialRecord) -> str:
    """Return the CSS class of a trial's row."""
    if trial is search.best:
        return "best"
    if trial.number == 0:
        return "baseline"
    return "pale" if trial.state in ("pruned", "failed") else ""


def history_section(search: SearchRecord) -> Section | Omission:
    """Return the val SumR of the trials in the order of proposal."""
    if len(search.scored) < HISTORY_NEEDED:
        count = format_count(len(search.scored), "trial")
        return Omission(f"History: {count} with a val SumR; at least {HISTORY_NEEDED} are needed.")
    caption = "Best val SumR of each trial."
    if search.finished_baseline:
        caption += f" Dashed: {search.baseline_name}."
    elif search.unfinished_baseline:
        caption += f" Trial 0 ({search.baseline_name}) {describe_stop(search.unfinished_baseline)}."
    if any_below(search):
        caption += " Triangles on the lower edge: below the axis."
    return Section("History", (Chart(optimization_history(search), caption),))


def curves_section(search: SearchRecord) -> Section | Omission:
    """Return the learning curves, with the epoch from which hard negatives are used."""
    if sum(len(trial.curve) > 1 for trial in search.trials) < CURVES_NEEDED:
        return Omission(f"Learning curves: fewer than {CURVES_NEEDED} trials have two epochs.")
    figure = learning_curves(search)
    caption = "Val SumR after each epoch."
    if any(trial.curve and trial.number not in search.detailed for trial in search.trials):
        caption += f" Lines: the best {DETAILED} trials; shaded: the others."
    if search.in_state("pruned"):
        caption += " A cross ends the curve of a pruned trial."
    start = search.experiment.get("loss", {}).get("hard_negative_start_epoch")
    is_searched = any(parameter.key == _HARD_NEGATIVES for parameter in search.parameters)
    if start and search.epochs and 1 < start <= search.epochs and not is_searched:
        figure.add_vline(x=start, line={"dash": "dot", "color": GREY, "width": 1})
        caption += f" Dotted: epoch {start}, from which the losses use hard negatives."
    return Section("Learning curves", (Chart(figure, caption),))


def pareto_section(search: SearchRecord) -> Section | Omission | None:
    """Return the Pareto front of a search with two objectives."""
    if len(search.objectives) < 2:
        return None
    trials = [trial for trial in search.scored if trial.cost is not None]
    if len(trials) < PARETO_NEEDED or len({trial.cost for trial in trials}) < 2:
        count = format_count(len(trials), "trial")
        return Omission(
            f"Pareto front: {count} with both objectives; at least {PARETO_NEEDED} with different costs are needed."
        )
    name = cost_name(search)
    caption = f"Trials on the line: none of the others has a higher SumR at the same or a lower cost ({name})."
    rows = [
        [str(trial.number), format_sumr(trial.best_sumr), format_value(trial.cost)]
        for trial in reversed(pareto_front(trials))
    ]
    return Section(
        "Pareto front",
        (Chart(pareto_chart(search), caption), table(["trial", "val SumR", escape(name)], rows)),
    )


def failure_section(search: SearchRecord) -> Section | None:
    """Return the failed trials and why they failed."""
    failed = search.in_state("failed")
    if not failed:
        return None
    rows = [
        [str(trial.number), str(trial.epochs), escape(trial.error or "no reason recorded")]
        for trial in failed[:DETAILED]
    ]
    parts = [table(["trial", "epochs", "reason"], rows, text_columns=(2,))]
    if left_out := len(failed) - len(rows):
        parts.append(paragraph(f"{format_count(left_out, 'further failed trial')} in leaderboard.json.", soft=True))
    return Section("Failed trials", tuple(parts))
