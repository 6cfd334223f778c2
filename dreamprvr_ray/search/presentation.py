"""What `tune` prints: the plan of a search, and its outcome."""

from __future__ import annotations

from dreamprvr_ray.errors import redact
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.training.cost import Cost


def plan_lines(search: Search, plan: TrialPlan, cost: Cost) -> list[str]:
    """Return the plan as lines of text; `cost` is that of the first trial."""
    settings, own_values = search.settings, search.experiment.flat()
    return [
        f"search {search.name}: {settings.trials} trials of at most {search.experiment.training.epochs} epochs,"
        f" config {settings.config}",
        f"shards: {redact(settings.shards)}",
        f"out: {redact(settings.out)}",
        f"objective: val SumR{f' against {settings.against}' if settings.against else ''};"
        f" sampler: {settings.sampler.kind}",
        f"resources: {plan}",
        f"pruning: {_describe_pruning(search)}",
        f"checkpoints: those of the best {settings.keep} trials are kept",
        f"after the search: {_describe_final(search)}",
        "search space, with the first trial's values:",
        *(
            f"  {parameter.key}: {parameter}; first {_number(own_values[parameter.key])}"
            for parameter in search.parameters
        ),
        *(f"constraint: {constraint}" for constraint in search.constraints),
        "cost of the first trial:",
        *(f"  {line}" for line in cost.lines()),
    ]


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
    return f"retrain {best} and the paper's settings with {final.seeds} seeds each{data}, evaluate each once on test"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
