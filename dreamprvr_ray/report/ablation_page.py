"""The report of an ablation table on one HTML page: the finished rows, their differences from the first, the settings.

It reads the directory of `tune` for a file with `ablations`, whether or not all rows are finished. Nothing in it is
written except the page.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.charts.finals import candidate_chart, difference_chart
from dreamprvr_ray.report.content import Chart, Part, Section, code, paragraph, table
from dreamprvr_ray.report.final_sections import describe_interval, describe_seeds, describe_split, moment_parts
from dreamprvr_ray.report.formatting import format_count, format_value
from dreamprvr_ray.report.html_page import check_replaceable, write_page
from dreamprvr_ray.report.record_files import AblationFile, FinalFile, check, read_json_record
from dreamprvr_ray.search.ablation_table import table_cells
from dreamprvr_ray.search.final_result import FinalRecord
from dreamprvr_ray.search.layout import ABLATIONS, SEARCH
from dreamprvr_ray.yaml_files import read_yaml


@dataclass(frozen=True)
class AblationRecord:
    """The state of an ablation table on disk."""

    name: str
    settings: dict[str, Any]  # the search's file
    rows: dict[str, dict[str, Any]]  # by name: the values that differ from the configuration's
    seeds: int
    final: FinalRecord | None  # the finished rows; None before the first


def is_ablation_table(directory: Path) -> bool:
    """Return whether a directory was written by `tune` for a table of ablations and not for a search."""
    path = directory / SEARCH
    if not path.is_file():
        return False
    settings = read_yaml(path).get("search")
    return isinstance(settings, dict) and settings.get("ablations") is not None


def read_ablations(directory: Path) -> AblationRecord:
    """Read a table of ablations. Raises `UserError` if its files are damaged."""
    path = directory / SEARCH
    contents = read_yaml(path)
    check(AblationFile, contents, str(path))
    settings = contents["search"]
    values = read_json_record(directory / ABLATIONS, FinalFile)
    ablations = settings["ablations"]
    return AblationRecord(
        name=str(contents.get("name") or directory.name),
        settings=settings,
        rows=ablations["rows"],
        seeds=int(ablations["seeds"]),
        final=FinalRecord.from_dict(values) if values is not None else None,
    )


def write_ablation_report(record: AblationRecord, out: Path) -> list[str]:
    """Write the page atomically and return the titles of its sections.

    Raises `UserError` if no row is finished, or if `out` exists and is not a report, or cannot be written; `Failure` if
    the disk is full.
    """
    check_replaceable(out)
    sections = build_sections(record)
    finished = len(record.final.result.candidates) if record.final else 0
    about = f"{finished} of {format_count(len(record.rows), 'row')} are finished."
    write_page(out, f"Ablations {record.name}", about, sections)
    return [section.title for section in sections]


def build_sections(record: AblationRecord) -> list[Section]:
    """Return the sections. Raises `UserError` if no row is finished."""
    if record.final is None or not record.final.result.candidates:
        raise UserError(f"{record.name}: nothing to report yet: no row of the table is finished")
    return [_results(record.final), _rows(record), _reproduce(record, record.final)]


def _results(final: FinalRecord) -> Section:
    result = final.result
    head, *rows = table_cells(result)
    parts: list[Part] = [
        paragraph(describe_split(final)),
        table([escape(cell) for cell in head], [[escape(cell) for cell in row] for row in rows]),
        paragraph("Means over the seeds; ± is their standard deviation. Each model was evaluated once on test."),
    ]
    if result.ablations:
        comparison = result.ablations[0]
        caption = (
            f"Difference in test SumR from '{comparison.than}'. The {comparison.confidence:.0%} interval"
            f" {describe_interval(comparison)}"
        )
        names = [comparison.better for comparison in result.ablations]
        parts.append(Chart(difference_chart(result.ablations, names), caption))
    names = [row.name for row in result.candidates]
    parts += moment_parts(result, {name: name for name in names})
    has_seeds = any(len(row.runs) > 1 for row in result.candidates)
    parts.append(Chart(candidate_chart(result.candidates, names), describe_seeds(has_seeds)))
    return Section("Results", tuple(parts))


def _rows(record: AblationRecord) -> Section:
    finished = {row.name for row in record.final.result.candidates} if record.final else set()
    cells = [
        [
            escape(name),
            escape(", ".join(f"{key} = {format_value(value)}" for key, value in values.items()) or "nothing"),
            "yes" if name in finished else "no",
        ]
        for name, values in record.rows.items()
    ]
    return Section("Rows", (table(["", "changed", "finished"], cells, text_columns=(0, 1, 2)),))


def _reproduce(record: AblationRecord, final: FinalRecord) -> Section:
    kept = {key: value for key, value in record.settings.items() if key in ("config", "shards", "out", "ablations")}
    command = f"python -m dreamprvr_ray.tune --space {shlex.quote(record.name + '.yaml')}"
    versions = ", ".join(f"{package} {version}" for package, version in final.versions.items())
    return Section(
        "Reproduce",
        (
            code("\n".join(final.commands) or command),
            code(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)),
            paragraph(f"Versions: {versions}." if versions else "", soft=True),
        ),
    )
