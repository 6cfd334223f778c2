"""The figures of a checkpoint on one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.report.content import with_omissions
from dreamprvr_ray.report.figures.record import FigureRecord, FigureSettings, compute_figures
from dreamprvr_ray.report.figures.sections import figure_sections
from dreamprvr_ray.report.html_page import check_replaceable, write_page
from dreamprvr_ray.storage.location import Storage


def write_figures(
    checkpoint: Storage, shards: ShardSet, out: Path, settings: FigureSettings, log: Callable[[str], None]
) -> FigureRecord:
    """Write the page atomically and return what it shows. `log` receives a line before each step that may take long.

    Raises `UserError` as `compute_figures`, or if `out` exists and is not a report, or cannot be written; `Failure` if
    the disk is full.
    """
    check_replaceable(out)
    record = compute_figures(checkpoint, shards, settings, log)
    evaluation, epoch = record.evaluation, record.trained.metrics.get("epoch")
    about = (
        f"Checkpoint {record.checkpoint}{'' if epoch is None else f', epoch {epoch}'}; split {evaluation.split} of"
        f" {evaluation.collection} (protocol: {evaluation.protocol})."
    )
    write_page(out, "Figures", about, with_omissions(figure_sections(record)))
    return record
