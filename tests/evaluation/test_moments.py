"""The moment found from similarities along a video."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamprvr_ray.data.moments import Span
from dreamprvr_ray.evaluation.moments import MIDPOINT, SLOPE, SMOOTHING, find_moment, overlap, to_seconds
from dreamprvr_ray.model.moment_network import smoothed

CURVES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40).map(np.array)


@given(CURVES)
def test_the_run_has_the_largest_expected_overlap_of_all(curve: np.ndarray) -> None:
    start, end = find_moment(curve)
    assert 0 <= start < end <= len(curve)
    smooth = smoothed(curve, SMOOTHING)
    median, peak = np.median(smooth), smooth.max()
    if peak - median <= 1e-9:
        assert (start, end) == (0, len(curve))
        return
    chances = 1 / (1 + np.exp(-SLOPE * ((smooth - median) / (peak - median) - MIDPOINT)))

    def expected(first: int, last: int) -> float:
        inside = chances[first:last].sum()
        return float(inside / (last - first + chances.sum() - inside))

    best = max(expected(a, b) for a in range(len(curve)) for b in range(a + 1, len(curve) + 1))
    assert expected(start, end) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_scale_of_similarities_does_not_matter(seed: int) -> None:
    curve = np.random.default_rng(seed).standard_normal(1 + 4 * seed)
    assert find_moment(curve) == find_moment(0.01 * curve) == find_moment(3 * curve + 5)


def test_smoothing_averages_the_surroundings_and_keeps_constants() -> None:
    distances = np.arange(20)[:, None] - np.arange(20)
    weights = np.where(abs(distances) <= 4 * SMOOTHING, np.exp(-0.5 * (distances / SMOOTHING) ** 2), 0)
    curve = np.random.default_rng(0).standard_normal(20)
    np.testing.assert_allclose(smoothed(curve, SMOOTHING), weights @ curve / weights.sum(1))
    np.testing.assert_allclose(smoothed(np.full(5, 0.3), SMOOTHING), 0.3)


def test_gaps_are_bridged_and_single_frames_elsewhere_left_out() -> None:
    curve = np.zeros(60)
    curve[20:35] = 0.8
    curve[27] = 0.1
    curve[50] = 1.0
    start, end = find_moment(curve)
    assert abs(start - 20) <= 2 and abs(end - 35) <= 2


def test_frames_that_are_all_alike_are_the_whole_video() -> None:
    assert find_moment(np.full(12, 0.4)) == (0, 12)
    assert find_moment(np.array([-0.2])) == (0, 1)


@pytest.mark.parametrize("curve", [np.zeros(0), np.zeros((2, 2)), np.array([0.1, np.nan]), np.array([np.inf])])
def test_what_is_no_curve_is_refused(curve: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite and of shape"):
        find_moment(curve)


def test_times_and_overlaps() -> None:
    assert to_seconds((5, 10), 75, 150.0) == Span(10.0, 20.0)
    assert overlap(Span(0, 10), Span(5, 15)) == pytest.approx(1 / 3)
    assert overlap(Span(0, 1), Span(2, 3)) == 0 == overlap(Span(1, 1), Span(1, 1))
    assert overlap(Span(2, 4), Span(2, 4)) == 1
