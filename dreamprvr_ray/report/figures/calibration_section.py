"""The section about how well a search tells whether a collection holds what a sentence describes."""

from __future__ import annotations

from dreamprvr_ray.index.calibration import CALIBRATION, Calibration
from dreamprvr_ray.report.charts.calibration import LEAST_ANSWERS, reliability_chart, roc_chart
from dreamprvr_ray.report.content import Chart, ChartGrid, Omission, Section, paragraph, table

_HEADS = ("videos", "answers", "present kept", "absent refused", "right video first", "ROC AUC", "calibration error")


def calibration_section(calibration: Calibration | None) -> Section | Omission:
    """Return the section of a model's calibration, or why it is missing."""
    if calibration is None:
        return Omission(
            f"How probable it is that a collection holds what a sentence describes: the checkpoint has no {CALIBRATION}"
            " (export --shards)."
        )
    source, threshold = calibration.source, calibration.threshold
    text = (
        f"Each of {source.queries:,} queries of {source.split} of {source.collection} was put to collections with its"
        f" video and without it. A search gives every answer the probability that the collection holds the event at"
        f" all; below {threshold:g} the event is taken to be absent. Measured by cross-validation over the queries,"
        " half of whose events are absent."
    )
    rows = [
        [f"{each.videos:,}", f"{each.answers:,}"]
        + [f"{100 * share:.1f}%" for share in (each.kept, each.refused, each.right_first)]
        + [f"{each.auc:.3f}", f"{each.calibration_error:.3f}"]
        for each in calibration.quality
    ]
    roc = Chart(roc_chart(calibration), f"A marker is at the threshold of {threshold:g}.")
    caption = (
        "On the diagonal, probabilities are as often right as they say. Probabilities of fewer than"
        f" {LEAST_ANSWERS} answers are left out."
    )
    reliability = Chart(reliability_chart(calibration), caption)
    charts = ChartGrid((("Present and absent events", roc), ("Reliability", reliability)), wide=True)
    return Section("Nothing found", (paragraph(text), table(_HEADS, rows), charts))
