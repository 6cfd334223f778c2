"""The sections about the test split: the results of the candidates, and their results by moment length."""

from __future__ import annotations

from html import escape
from statistics import fmean, stdev

from dreamprvr_ray.evaluation.metrics import ENCODER, RECALL_RANKS, Recall
from dreamprvr_ray.evaluation.moment_metrics import OVERLAPS, MomentRecall
from dreamprvr_ray.report.charts.finals import candidate_chart, difference_chart, moment_chart
from dreamprvr_ray.report.content import Chart, Omission, Part, Section, paragraph, table
from dreamprvr_ray.report.formatting import format_count, format_difference, format_sumr
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.report.summary import candidate_title, describe_protocol
from dreamprvr_ray.search.final_result import Comparison, FinalRecord, FinalResult

_RECALL_HEADS = (*(f"R@{rank}" for rank in RECALL_RANKS), "SumR")


def final_section(search: SearchRecord) -> Section | None:
    """Return the test results, if there are any."""
    final = search.final
    if final is None or not final.result.candidates:
        return None
    result, names = final.result, _names(search, final.result)
    parts: list[Part] = [paragraph(describe_split(final)), _result_table(result, names)]
    parts += [*_list_parts(result, names), *moment_parts(result, names)]
    if result.candidates[0].by_collection():
        parts.append(_collection_table(result, names))
        parts += [paragraph(_describe_on(comparison, names)) for comparison in result.by_collection]
    if not result.retrained:
        parts.append(
            paragraph("A single training with a single seed: another seed may differ by several points.", soft=True)
        )
        return Section("Best trial on test", tuple(parts))
    has_seeds = any(len(candidate.runs) > 1 for candidate in result.candidates)
    if has_seeds:
        parts.append(paragraph("Means over the seeds; ± is their standard deviation.", soft=True))
    if has_seeds or len(result.candidates) > 1:
        parts.append(Chart(candidate_chart(result.candidates, list(names.values())), describe_seeds(has_seeds)))
    if result.comparisons:
        first = result.comparisons[0]
        pairs = [
            " against<br>".join(names.get(name, name) for name in (comparison.better, comparison.than))
            for comparison in result.comparisons
        ]
        caption = f"The {first.confidence:.0%} interval {describe_interval(first)}"
        parts.append(Chart(difference_chart(result.comparisons, pairs), caption))
    return Section("Final results", tuple(parts))


def moment_section(search: SearchRecord) -> Section | Omission | None:
    """Return the test results by moment length."""
    if search.final is None or not search.final.result.candidates:
        return None
    result, names = search.final.result, _names(search, search.final.result)
    groups = result.candidates[0].by_moment()
    if len(groups) < 2:
        reason = "all queries are in one group" if groups else "the collection has no positions of moments"
        if result.candidates[0].by_collection():
            reason = "the search is on several collections"
        return Omission(f"Results by moment length: {reason}.")
    rows = []
    for group, results in groups.items():
        for candidate in result.candidates:
            recalls = candidate.by_moment().get(group)
            shown = _recall_cells(Recall.mean(recalls)) if recalls else ["-"] * (len(RECALL_RANKS) + 1)
            rows.append([escape(cell) for cell in [group, names[candidate.name], str(results[0].queries), *shown]])
    heads = ["moment / video length", "", "queries", *_RECALL_HEADS]
    caption = (
        "Test SumR by the share of the video that the moment covers: the mean over the seeds (diamonds) and each seed"
        " (circles)."
    )
    chart = Chart(moment_chart(result.candidates, list(names.values())), caption)
    return Section("By moment length", (table(heads, rows, text_columns=(0, 1)), chart))


def describe_seeds(several: bool) -> str:
    """Return what the marks of `candidate_chart` are."""
    return f"A circle for each seed; the diamond is their mean{', and the bar their standard deviation' * several}."


def describe_interval(comparison: Comparison) -> str:
    """Return what an interval covers and how it was computed."""
    bootstrap = f"a paired bootstrap with {comparison.resamples} resamples"
    if not comparison.covers_seeds:
        return (
            f"over the test videos only, by {bootstrap}. With one seed, how much other seeds would change is not known."
        )
    if comparison.seeds is None:  # of version 0.1.0
        return f"over the test videos and the seeds, by {bootstrap}. With fewer than five seeds it is too narrow."
    return f"over the test videos, by {bootstrap}, and the seeds, by Student's t."


def _names(search: SearchRecord, result: FinalResult) -> dict[str, str]:
    """Return what tables call each candidate, by its name in the record."""
    return {candidate.name: candidate_title(search, candidate) for candidate in result.candidates}


def describe_split(final: FinalRecord) -> str:
    """Return the size of the split that was tested on, and how val and test were chosen."""
    test = final.result.candidates[0].runs[0].test.retrieval
    size = f"{format_count(test.videos, 'video')}, {format_count(test.recall.queries, 'query')}"
    tests = final.result.candidates[0].runs[0].tests
    if not tests:
        return f"The {final.split} split of {final.collection}: {size}. {describe_protocol(final.protocol)}"
    each = " ".join(
        f"{part.collection}: {format_count(part.retrieval.videos, 'video')},"
        f" {format_count(part.retrieval.recall.queries, 'query')}. {describe_protocol(part.protocol)}"
        for part in tests
    )
    return f"Means over the {final.split} splits of {len(tests)} collections, which count equally. {each}"


def _collection_table(result: FinalResult, names: dict[str, str]) -> str:
    """Return the mean test SumR on each of several collections, and its standard deviation over the seeds."""
    collections = list(result.candidates[0].by_collection())
    rows = []
    for candidate in result.candidates:
        own = candidate.by_collection()
        cells = [names[candidate.name]]
        for name in collections:
            sumrs = own.get(name, [])
            deviation = f" ± {stdev(sumrs):.1f}" if len(sumrs) > 1 else ""
            cells.append(f"{format_sumr(fmean(sumrs) if sumrs else None)}{deviation}")
        rows.append([escape(cell) for cell in cells])
    return table(["", *(f"test SumR on {escape(name)}" for name in collections)], rows)


def _describe_on(comparison: Comparison, names: dict[str, str]) -> str:
    """Return the difference on one of several collections, in a sentence."""
    better, than = (names.get(name, name) for name in (comparison.better, comparison.than))
    low, high = format_difference(comparison.low), format_difference(comparison.high)
    return (
        f"On {comparison.collection}, {better} against {than}: {format_difference(comparison.difference)} SumR"
        f" ({comparison.confidence:.0%} interval {low} to {high}, {comparison.coverage})."
    )


def _result_table(result: FinalResult, names: dict[str, str]) -> str:
    has_mean_rank = any(candidate.mean_mean_rank is not None for candidate in result.candidates)
    rows = []
    for candidate in result.candidates:
        deviation = "" if candidate.std is None else f" ± {candidate.std:.1f}"
        cells = [
            names[candidate.name],
            str(len(candidate.runs)),
            format_sumr(None if result.with_val else candidate.val_mean),
            format_sumr(candidate.mean) + deviation,
            *(format_sumr(candidate.mean_recall(rank)) for rank in RECALL_RANKS),
            f"{candidate.mean_median_rank:.3g}",
            *([format_sumr(candidate.mean_mean_rank)] if has_mean_rank else []),
        ]
        rows.append([escape(cell) for cell in cells])
    for name, recall in result.candidates[0].zero_shot.items():
        recalls = (format_sumr(recall.at[rank]) for rank in RECALL_RANKS)
        cells = [f"zero-shot: {name}", "", "", format_sumr(recall.sumr), *recalls, "", *([""] if has_mean_rank else [])]
        rows.append([escape(cell) for cell in cells])
    ranks = ["median rank", *(["mean rank"] if has_mean_rank else [])]
    return table(["", "seeds", "val SumR", "test SumR", *_RECALL_HEADS[:-1], *ranks], rows)


def _list_parts(result: FinalResult, names: dict[str, str]) -> list[Part]:
    """Return the recall of all right videos, if queries have several."""
    test = result.candidates[0].runs[0].test.retrieval
    if test.right_videos is None or not test.recall.queries:
        return []
    text = (
        f"A query has {test.right_videos / test.recall.queries:.1f} right videos on average. Above, it counts if any of"
        " them is found; below: the share of them that is found."
    )
    rows = [
        [escape(cell) for cell in [names[candidate.name], *_recall_cells(recall)]]
        for candidate in result.candidates
        if (recall := candidate.list_recall()) is not None
    ]
    return [paragraph(text), table(["", *_RECALL_HEADS], rows)]


def moment_parts(result: FinalResult, names: dict[str, str]) -> list[Part]:
    """Return how often moments are found, where annotated windows are known."""
    rows = [
        [names[candidate.name], *_moment_cells(moments)]
        for candidate in result.candidates
        if (moments := candidate.moments) is not None
    ]
    if not rows:
        return []
    encoder, known = result.candidates[0].zero_shot_moments, result.candidates[0].moments
    if encoder is not None:
        rows.append([f"zero-shot: {ENCODER}", *_moment_cells(encoder)])
    size = "" if known is None else f" of {format_count(known.queries, 'query')} with annotated windows"
    text = (
        f"Moments{size}: the moment found in the query's own video against the annotated window that it fits best. IoU"
        " is intersection over union; R@1 counts a query if its video is at rank 1 as well."
    )
    levels = [f"IoU ≥ {least:g}" for least in OVERLAPS]
    heads = ["", *levels, "mean IoU", *(f"R@1, {level}" for level in levels)]
    return [paragraph(text), table(heads, [[escape(cell) for cell in row] for row in rows])]


def _moment_cells(moments: MomentRecall) -> list[str]:
    found, first = ([format_sumr(values[least]) for least in OVERLAPS] for values in (moments.found, moments.first))
    return [*found, f"{moments.mean_iou:.2f}", *first]


def _recall_cells(recall: Recall) -> list[str]:
    return [*(format_sumr(recall.at[rank]) for rank in RECALL_RANKS), format_sumr(recall.sumr)]
