"""The report of a search: its sections, on one HTML page."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.report.content import Section, with_omissions
from dreamprvr_ray.report.final_sections import final_section, moment_section
from dreamprvr_ray.report.html_page import check_replaceable, write_page
from dreamprvr_ray.report.importance import importances
from dreamprvr_ray.report.overview_sections import reproduce_section, summary_section
from dreamprvr_ray.report.parameter_sections import importance_section, value_sections
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.report.summary import describe_status
from dreamprvr_ray.report.trial_sections import (
    curves_section,
    failure_section,
    history_section,
    leaderboard_section,
    pareto_section,
)


def write_report(search: SearchRecord, out: Path) -> list[str]:
    """Write the page atomically and return the titles of its sections.

    Raises `UserError` if `out` exists and is not a report, or cannot be written; `Failure` if the disk is full.
    """
    check_replaceable(out)  # before the importances, which take seconds
    sections = build_sections(search)
    write_page(out, f"Search {search.name}", describe_status(search), sections)
    return [section.title for section in sections]


def build_sections(search: SearchRecord) -> list[Section]:
    """Return the sections for which there is enough data, and last a list of what is left out."""
    found = importances(search)
    ranks = {importance.parameter.key: rank for rank, importance in enumerate(found)}
    parameters = sorted(search.parameters, key=lambda parameter: ranks.get(parameter.key, len(ranks)))
    return with_omissions(
        [
            summary_section(search, found),
            final_section(search),
            moment_section(search),
            *importance_section(search, found, parameters),
            leaderboard_section(search, parameters),
            history_section(search),
            curves_section(search),
            pareto_section(search),
            *value_sections(search, found, parameters),
            failure_section(search),
            reproduce_section(search),
        ]
    )
