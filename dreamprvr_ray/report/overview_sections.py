"""The first and the last sections of the report: the summary, and how to reproduce the search."""

from __future__ import annotations

from collections.abc import Sequence

from dreamprvr_ray.report import reproduce
from dreamprvr_ray.report.content import Part, Section, Tile, code, details, paragraph, tile_row
from dreamprvr_ray.report.formatting import format_difference, format_sumr
from dreamprvr_ray.report.importance import Importance
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.report.summary import candidate_name, describe_stop, summarize
from dreamprvr_ray.search.final_result import FinalResult
from dreamprvr_ray.search.results import STATES


def summary_section(search: SearchRecord, found: Sequence[Importance]) -> Section:
    """Return the most important numbers as tiles, and the summary in sentences."""
    tiles = [*_score_tiles(search), *_test_tiles(search), (str(len(search.trials)), _count_states(search))]
    return Section("Summary", (tile_row(tiles), *map(paragraph, summarize(search, found))))


def _score_tiles(search: SearchRecord) -> list[Tile]:
    tiles = []
    best, baseline = search.best, search.baseline
    if best is not None:
        tiles.append((format_sumr(best.best_sumr), f"best val SumR (trial {best.number})"))
    if baseline is not None and baseline is not best:
        if search.finished_baseline:
            tiles.append((format_sumr(baseline.best_sumr), f"val SumR of {search.baseline_name}"))
        elif search.final is None or search.final.result.paper is None:  # otherwise its test result says more
            planned = f" of {search.epochs}" if search.epochs else ""
            text = f"trial 0 ({search.baseline_name}) {describe_stop(baseline)}"
            tiles.append((f"epoch {baseline.epochs}{planned}", text))
    return tiles


def _test_tiles(search: SearchRecord) -> list[Tile]:
    if search.final is None or not search.final.result.candidates:
        return []
    result: FinalResult = search.final.result
    candidates = [result.candidates[0]]
    if result.paper and result.paper is not result.candidates[0] and search.unfinished_baseline:
        candidates.append(result.paper)
    tiles = []
    for candidate in candidates:
        seeds = f", mean of {len(candidate.runs)} seeds" if len(candidate.runs) > 1 else ""
        tiles.append((format_sumr(candidate.mean), f"test SumR of {candidate_name(search, candidate)}{seeds}"))
    if comparison := result.comparison:
        than = search.baseline_name if comparison.than == "paper" else comparison.than
        low, high = format_difference(comparison.low), format_difference(comparison.high)
        coverage = "" if comparison.covers_seeds else f" {comparison.coverage}"
        text = f"test SumR against {than}, {comparison.confidence:.0%} interval{coverage} {low} to {high}"
        tiles.append((format_difference(comparison.difference), text))
    return tiles


def _count_states(search: SearchRecord) -> str:
    counts = {state: len(search.in_state(state)) for state in STATES.values()}
    return "trials: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def reproduce_section(search: SearchRecord) -> Section:
    """Return the commands, the space file and the versions."""
    parts: list[Part] = []
    if search.final is not None and search.final.commands:
        parts += [paragraph("The search was run by:"), code("\n".join(search.final.commands))]
    parts += [
        paragraph(f"To repeat the search, save its file (below) as {search.name}.yaml and run:"),
        code(reproduce.tune_command(search)),
    ]
    if search.best is not None:
        parts += [
            paragraph(f"To train the configuration of the best trial alone (trial {search.best.number}):"),
            code(reproduce.train_command(search, search.best, "runs/best")),
        ]
    parts.append(details(f"{search.name}.yaml", code(reproduce.space_file(search))))
    versions, recorded = reproduce.versions(search)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    label = "Versions" if recorded else "Versions on the machine that wrote this report"
    parts.append(paragraph(f"{label}: {listed}."))
    return Section("Reproduce", tuple(parts))
