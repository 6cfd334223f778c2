"""The sections of a page of figures."""

from __future__ import annotations

from html import escape
from statistics import fmean

from scipy.stats import binomtest

from dreamprvr_ray.report.charts.query_map import query_map_chart
from dreamprvr_ray.report.charts.similarity import similarity_chart
from dreamprvr_ray.report.content import Chart, ChartGrid, Omission, Part, Section, paragraph, table, tile_row
from dreamprvr_ray.report.figures.calibration_section import calibration_section
from dreamprvr_ray.report.figures.query_map import QUERIES_NEEDED
from dreamprvr_ray.report.figures.record import FigureRecord, FigureSettings
from dreamprvr_ray.report.figures.similarity import OVERLAPS, Curve, QueryExample, RetrievedVideo
from dreamprvr_ray.report.formatting import format_count, format_sumr

_MAP_TITLE = "Query embeddings by video"


def figure_sections(record: FigureRecord) -> list[Section | Omission]:
    """Return the sections of the page, and what is left out."""
    return [
        _summary_section(record),
        *_moment_section(record),
        _map_section(record),
        _example_section(record),
        calibration_section(record.calibration),
    ]


def _summary_section(record: FigureRecord) -> Section:
    model, recall = record.trained.experiment.model, record.evaluation.retrieval.recall
    split = record.settings.split
    tiles = [
        (format_sumr(recall.sumr), f"{split} SumR of {format_count(recall.queries, 'query')}"),
        (str(record.evaluation.retrieval.videos), f"videos in {split}"),
        (str(model.registers), "registers" if model.registers != 1 else "register"),
    ]
    if model.registers:
        tiles.append(
            (str(model.diffusion_steps), "diffusion steps" if model.diffusion_steps != 1 else "diffusion step")
        )
    if record.encoder_weight:
        tiles.append((f"{record.encoder_weight:g}", "weight of the encoder's own comparison in the scores"))
    parts: list[Part] = [tile_row(tiles)]
    if split == "train":
        parts.append(paragraph("The model was trained on these queries: expect worse results for others."))
    return Section("Summary", tuple(parts))


def _moment_section(record: FigureRecord) -> list[Section | Omission]:
    found = record.localisations
    if not found:
        return [
            Omission("Whether the most similar frame is in the annotated moment: no moments are known (--moments).")
        ]
    queries, chance = found[0].queries, found[0].chance
    rows = [
        [escape(each.label), str(each.inside), _percent(each.inside, queries), _interval(each.inside, queries)]
        for each in found
    ]
    rows.append(["a frame at random", f"{chance:.1f}", _percent(chance, queries), "-"])
    text = (
        f"For each of the {format_count(queries, 'query')} with a known moment: whether the frame of the query's own"
        " video that is most similar to the query is inside the moment."
    )
    heads = ["most similar frame", "inside the moment", "share", "95% interval"]
    found_text = (
        "The moment found in the query's own video, from the similarities of all its frames, against the annotated one:"
        " mean IoU (intersection over union), and the share of queries with at least this IoU."
    )
    found_rows = [
        [escape(each.label), f"{fmean(each.overlaps):.3f}"]
        + [_percent(each.overlapping(least), queries) for least in OVERLAPS]
        for each in found
    ]
    found_heads = ["moment found by", "mean IoU", *(f"IoU ≥ {least:g}" for least in OVERLAPS)]
    parts = (paragraph(text), table(heads, rows), paragraph(found_text), table(found_heads, found_rows))
    return [Section("Finding the moment", parts)]


def _percent(count: float, queries: int) -> str:
    return f"{100 * count / queries:.1f}%"


def _interval(count: int, queries: int) -> str:
    """Return the 95% interval of a share, by Wilson, which is right near 0 and 1 and for few queries too."""
    interval = binomtest(count, queries).proportion_ci(0.95, method="wilson")
    return f"{100 * interval.low:.1f}% to {100 * interval.high:.1f}%"


def _map_section(record: FigureRecord) -> Section | Omission:
    mapped, split = record.mapped, record.settings.split
    if mapped is None:
        more = "" if split == "train" else "; train may have more (--split train)"
        return Omission(
            f"{_MAP_TITLE}: fewer than two videos of {split} have at least {QUERIES_NEEDED} queries each{more}."
        )
    headings = ("model", "encoder: sentence vectors")
    charts = [
        (
            heading,
            Chart(query_map_chart(found, mapped.videos, mapped.sentences), f"mean silhouette {found.silhouette:.2f}"),
        )
        for heading, found in zip(headings, mapped.maps, strict=True)
    ]
    videos = len(set(mapped.videos))
    text = (
        f"t-SNE (seed {record.settings.seed}) of the {format_count(len(mapped.videos), 'query')} of the {videos} videos"
        f" of {split} with the most queries; a colour and shape for each video (figure 4 of the paper). Distances"
        " between groups have no meaning. The silhouette is that of the embeddings, not of the points: 1 if queries are"
        " close to those of their own video only, 0 if they are as close to those of another."
    )
    return Section(_MAP_TITLE, (paragraph(text), ChartGrid(tuple(charts), wide=True)))


def _example_section(record: FigureRecord) -> Section:
    has_moments = any(each.moment and each.timeline.duration is not None for each in record.examples)
    text = (
        f"{_how_chosen(record.settings, len(record.examples), bool(record.localisations))} The curves are the cosines"
        " of the query with the frames of its own video; a marker is at the peak"
        f"{', and the annotated moment is shaded' if has_moments else ''} (figures 1 and 5 of the paper)."
    )
    parts: list[Part] = [paragraph(text)]
    if len(record.examples[0].curves) == 1:
        parts.append(
            paragraph(
                "Only the model's curve is shown: frames and queries have features of different encoders, so the"
                " encoder alone cannot compare them. --without adds a model without registers."
            )
        )
    for example in record.examples:
        parts += _example_parts(example, record.evaluation.retrieval.videos)
    return Section("Similarity along a video", tuple(parts))


def _how_chosen(settings: FigureSettings, count: int, has_moments: bool) -> str:
    if settings.queries:
        return f"{format_count(count, 'query')} chosen by hand."
    among = f"the queries of {settings.split}" + (" with a known moment" if has_moments else "")
    return f"{format_count(count, 'query')} drawn at random from {among} (seed {settings.seed}), not by their results."


def _example_parts(example: QueryExample, videos: int) -> list[Part]:
    sentence = example.sentence or example.query
    rank = f"Query {example.query}; its video {example.video} is at rank {example.rank} of {videos}."
    peaks = [_describe_peak(example, curve) for curve in example.curves]
    if example.timeline.duration is not None:
        scored = example.curves[example.scored]
        moment = example.timeline.found(scored)
        peaks.append(f"Moment found {scored.label}: {moment.start:.1f} s to {moment.end:.1f} s.")
    rows = [_retrieved_row(place, found) for place, found in enumerate(example.top, start=1)]
    heads = ["rank", "video", "score", "most similar frame", "what it shows"]
    if not any(found.caption for found in example.top):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return [
        f"<h3>{escape(sentence)}</h3>",
        paragraph(rank, soft=True),
        Chart(similarity_chart(example), " ".join(peaks)),
        table(heads, rows, ["best" if found.is_right else "" for found in example.top], text_columns=(1, 4)),
    ]


def _describe_peak(example: QueryExample, curve: Curve) -> str:
    timeline, moment, caption = example.timeline, example.moment, example.captions[curve.peak]
    text = f"Peak {curve.label}: {timeline.describe(curve.peak)}"
    if moment and timeline.duration is not None:
        text += f", {'inside' if timeline.inside(moment)[curve.peak] else 'outside'} the moment"
    if not caption:
        return f"{text}."
    return f"{text}, “{caption}”" + ("" if caption.endswith((".", "!", "?")) else ".")


def _retrieved_row(place: int, found: RetrievedVideo) -> list[str]:
    at, caption = found.timeline.describe(found.peak), found.caption or "-"
    return [str(place), escape(found.video), f"{found.score:.3f}", escape(at), escape(caption)]
