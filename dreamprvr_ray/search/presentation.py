"""What `tune` prints: the plan of a search, and its outcome, as text and as JSON."""

from __future__ import annotations

from typing import Any

from dreamprvr_ray.config import baseline_name
from dreamprvr_ray.data.locations import shown_locations
from dreamprvr_ray.errors import redact_uri
from dreamprvr_ray.evaluation.metrics import table_lines
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.publication import SearchOutcome
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.summary import describe_final, format_table
from dreamprvr_ray.training.cost import Cost
from dreamprvr_ray.yaml_files import format_value


def plan_lines(search: Search, plan: TrialPlan, cost: Cost, sizes_from: str) -> list[str]:
    """Return the plan as lines of text; `cost` is that of the first trial, `sizes_from` the source of feature sizes."""
    settings, own_values = search.settings, search.experiment.flat()
    return [
        f"search {search.name}: {settings.trials} trials of at most {search.experiment.training.epochs} epochs,"
        f" config {settings.config}",
        f"shards: {shown_locations(settings.shards)}",
        f"out: {redact_uri(settings.out)}",
        f"objective: val SumR{f' against {settings.against}' if settings.against else ''};"
        f" sampler: {settings.sampler.kind}",
        f"resources: {plan}",
        f"pruning: {_describe_pruning(search)}",
        f"checkpoints: those of the best {settings.keep} trials are kept",
        f"after the search: {_describe_final(search)}",
        "search space, with the first trial's values:",
        *(
            f"  {parameter.key}: {parameter}; first {format_value(own_values[parameter.key])}"
            for parameter in search.parameters
        ),
        *(f"constraint: {constraint}" for constraint in search.constraints),
        "cost of the first trial:",
        f"  feature sizes: video {search.experiment.data.video_size}, text {search.experiment.data.text_size},"
        f" from {sizes_from}",
        *(f"  {line}" for line in cost.lines()),
        f"duration: {_describe_duration(search)}",
    ]


def _describe_duration(search: Search) -> str:
    hours = search.settings.hours
    limit = f"; no trial starts after {hours:g} hours" if hours else ""
    epochs = search.settings.trials * search.experiment.training.epochs
    return f"not known before the first epoch has been measured; the trials have at most {epochs:,} epochs{limit}"


def plan_dict(search: Search, plan: TrialPlan, cost: Cost) -> dict[str, Any]:
    """Return the plan as `--json` prints it."""
    trials = {"trials": search.settings.trials, "at_a_time": plan.at_a_time, "workers": plan.group.workers}
    return cost.to_dict() | trials


def outcome_lines(search: Search, outcome: SearchOutcome) -> list[str]:
    """Return the outcome as lines of text: the trials, the final runs, the selected model and its test result."""
    best = outcome.trials[0]
    model = f"trial {best.number}"
    if outcome.final:
        model = f"{outcome.final.candidates[0].shown_name}, seed {outcome.final.chosen.seed}"
    return [
        *format_table(outcome.trials, [parameter.key for parameter in search.parameters]),
        *(f"trial {trial.number} failed: {trial.error}" for trial in outcome.trials if trial.error),
        f"best trial: trial {best.number}, val SumR {best.best_sumr:.1f} at epoch {best.best_epoch}",
        *(describe_final(outcome.final) if outcome.final else ()),
        f"selected model: {outcome.best} ({model})",
        *(table_lines(outcome.tests) if outcome.tests else outcome.test.lines()),
        f"full report: python -m dreamprvr_ray.report {redact_uri(search.settings.out)}",
    ]


def outcome_dict(outcome: SearchOutcome) -> dict[str, Any]:
    """Return the outcome as `--json` prints it."""
    states = [trial.state for trial in outcome.trials]
    counts = {state: states.count(state) for state in ("finished", "pruned", "failed")}
    final = {"final": outcome.final.to_dict()} if outcome.final else {}
    best = _selected_model(outcome) | {"checkpoint": str(outcome.best)}
    tests = {"tests": [test.to_dict() for test in outcome.tests]} if outcome.tests else {}
    return {"trials": len(states)} | counts | {"best": best, "test": outcome.test.to_dict()} | tests | final


def _selected_model(outcome: SearchOutcome) -> dict[str, Any]:
    if outcome.final:
        candidate, run = outcome.final.candidates[0], outcome.final.chosen
        return {
            "trial": candidate.trial,
            "seed": run.seed,
            "val_SumR": run.val_sumr,
            "epoch": run.best_epoch,
            "values": candidate.values,
        }
    best = outcome.trials[0]
    return {"trial": best.number, "val_SumR": best.best_sumr, "epoch": best.best_epoch, "values": best.values}


def _describe_pruning(search: Search) -> str:
    if search.settings.against:
        return "none, because there are two objectives"
    pruning = search.settings.pruning
    rungs = pruning.rungs(search.experiment.training.epochs)
    if not rungs:
        return "none"
    return (
        f"after epochs {', '.join(map(str, rungs))} only the best 1/{pruning.reduction_factor} of the trials continue"
    )


def _describe_final(search: Search) -> str:
    final = search.settings.final
    if final is None:
        return "evaluate the best trial's checkpoint once on test"
    best = "the best trial's" if final.top == 1 else f"the best {final.top} trials'"
    data = " on train and val" if final.with_val else ""
    settings = f"{best} and {baseline_name(search.experiment)}"
    seeds = "1 seed" if final.seeds == 1 else f"{final.seeds} seeds"
    return f"retrain {settings} with {seeds} each{data}, evaluate each once on test"
