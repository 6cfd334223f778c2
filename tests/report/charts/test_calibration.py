"""The numbers in the charts of a calibration."""

from __future__ import annotations

import pytest

from dreamprvr_ray.index.calibration import Calibration, CalibrationSource, Quality, ReliabilityBin
from dreamprvr_ray.report.charts.calibration import reliability_chart, roc_chart


def quality(videos: int) -> Quality:
    bins = (ReliabilityBin(0.3, 0.25, 80), ReliabilityBin(0.7, 0.75, 80), ReliabilityBin(0.95, 0.0, 3))
    return Quality(videos, 163, 0.7, 0.05, 0.6, 0.75, 0.5, ((0.0, 0.0), (0.25, 0.6), (1.0, 1.0)), bins)


CALIBRATION = Calibration(
    (0.0,) * 4, (1.0,) * 4, (1.0,) * 4, 0.0, 0.5, CalibrationSource("made", "val", 9, 9, "0"),
    (quality(100), quality(2000)),
)  # fmt: skip


def test_roc_curves_have_a_marker_at_the_threshold() -> None:
    diagonal, curve, marker, other, _ = roc_chart(CALIBRATION).data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    assert (list(curve.x), list(curve.y)) == ([0.0, 0.25, 1.0], [0.0, 0.6, 1.0])
    assert (list(marker.x), list(marker.y)) == ([pytest.approx(0.25)], [0.6])
    assert (curve.name, other.name) == ("100 videos: AUC 0.700", "2,000 videos: AUC 0.700")
    assert curve.line.dash != other.line.dash and curve.line.color != other.line.color


def test_reliability_leaves_out_bins_of_few_answers() -> None:
    _, first, second = reliability_chart(CALIBRATION).data
    assert (list(first.x), list(first.y)) == ([0.3, 0.7], [0.25, 0.75])
    assert first.name == "100 videos: error 0.050" and first.marker.symbol != second.marker.symbol
