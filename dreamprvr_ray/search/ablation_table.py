"""An ablation table and its plan as lines of text. Imports no Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamprvr_ray.data.locations import shown_locations
from dreamprvr_ray.errors import redact_uri
from dreamprvr_ray.evaluation.metrics import RECALL_RANKS
from dreamprvr_ray.search.final_result import FinalResult
from dreamprvr_ray.search.summary import ONE_SEED
from dreamprvr_ray.training.flops import specified_gflop
from dreamprvr_ray.yaml_files import format_value

if TYPE_CHECKING:
    from dreamprvr_ray.search.plan import TrialPlan
    from dreamprvr_ray.search.space import Search


MOMENT = 0.5  # least IoU of a found moment


def table_cells(result: FinalResult) -> list[list[str]]:
    """Return the cells of the table, its head first. Means are over the seeds; ± is their standard deviation.

    How often moments are found has a column where annotated windows are known.
    """
    against = {comparison.better: comparison for comparison in result.ablations}
    first = result.ablations[0].than if result.ablations else ""
    confidence = f" ({result.ablations[0].confidence:.0%} interval)" if result.ablations else ""
    head = ["", *(f"R@{rank}" for rank in RECALL_RANKS), "SumR", f"against {first}{confidence}" if first else ""]
    has_moments = all(row.moments is not None for row in result.candidates)
    rows = [[*head, *([f"IoU>={MOMENT:g}"] if has_moments else []), "val SumR", "seeds"]]
    for row in result.candidates:
        deviation = "" if row.std is None else f" ± {row.std:.1f}"
        difference = ""
        if comparison := against.get(row.name):
            difference = f"{comparison.difference:+.1f} ({comparison.low:+.1f} to {comparison.high:+.1f})"
        val = "-" if row.val_mean is None else f"{row.val_mean:.1f}"
        recall = [f"{row.mean_recall(rank):.1f}" for rank in RECALL_RANKS]
        moments = [f"{row.moments.found[MOMENT]:.1f}"] if has_moments and row.moments is not None else []
        rows.append([row.name, *recall, f"{row.mean:.1f}{deviation}", difference, *moments, val, str(len(row.runs))])
    return rows


def table_lines(result: FinalResult) -> list[str]:
    """Return the table as lines of text: test results, each row's difference from the first, and val SumR."""
    rows = table_cells(result)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        " | ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if result.ablations:
        comparison = result.ablations[0]
        lines.append(f"intervals {comparison.coverage}{'' if comparison.covers_seeds else ONE_SEED}")
    return lines


def outcome_lines(search: Search, result: FinalResult) -> list[str]:
    """Return what `tune` prints when all rows are finished."""
    test = result.candidates[0].runs[0].test
    return [
        f"{test.collection}, {test.split}: {test.retrieval.videos} videos, {test.retrieval.recall.queries} queries;"
        " means over the seeds, ± standard deviation",
        *table_lines(result),
        f"full report: python -m dreamprvr_ray.report {redact_uri(search.settings.out)}",
    ]


def plan_lines(search: Search, plan: TrialPlan, sizes_from: str) -> list[str]:
    """Return what `tune --dry-run` prints; `sizes_from` is the source of the feature sizes."""
    settings, data = search.settings, search.experiment.data
    listed = search.table.seeds
    return [
        f"ablations {search.name}: {len(search.table.rows)} rows, seeds {', '.join(map(str, listed))},"
        f" {len(search.table.rows) * len(listed)} trainings of at most {search.experiment.training.epochs} epochs,"
        f" config {settings.config}",
        f"shards: {shown_locations(settings.shards)}",
        f"out: {redact_uri(settings.out)}",
        f"resources: {plan}",
        f"feature sizes: video {data.video_size}, text {data.text_size}, from {sizes_from}",
        "rows, with the cost of training on a video; the others are compared with the first:",
        *(
            f"  {row.name}: {_changes(row.values)}; "
            f"{specified_gflop(row.experiment(search.experiment, listed[0])):.1f} GFLOP"
            for row in search.table.rows
        ),
        *search.table.left_out,
        "after each row: evaluate each of its models once on test",
    ]


def plan_dict(search: Search, plan: TrialPlan) -> dict[str, Any]:
    """Return the plan as `--json` prints it."""
    return {
        "rows": {row.name: row.values for row in search.table.rows},
        "seeds": list(search.table.seeds),
        "trainings": search.settings.trials,
        "at_a_time": plan.at_a_time,
        "workers": plan.group.workers,
    }


def _changes(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {format_value(value)}" for key, value in values.items()) or "the configuration itself"
