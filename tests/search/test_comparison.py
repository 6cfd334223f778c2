"""The comparison of two candidates on test."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import interval_coverage
from dreamprvr_ray.search.comparison import RanksOnTest, compare_on_test, compare_on_tests

OWNER = np.repeat(np.arange(200), 3)  # 200 videos with 3 queries each


def test_equal_ranks_have_no_difference() -> None:
    ranks = np.random.default_rng(0).integers(1, 200, (3, len(OWNER)))
    same = compare_on_test("trial 5", ranks, "paper", ranks, OWNER)
    assert same.difference == 0 and same.interval == (0, 0)


def test_the_interval_contains_the_difference_in_sumr() -> None:
    random = np.random.default_rng(1)
    paper = random.integers(1, 200, (3, len(OWNER)))
    better = np.maximum(1, paper - random.integers(0, 30, paper.shape))

    def sumr(ranks: np.ndarray) -> float:
        return sum(100 * float((ranks <= k).mean()) for k in (1, 5, 10, 100))

    comparison = compare_on_test("trial 5", better, "paper", paper, OWNER)
    assert comparison.difference == pytest.approx(sumr(better) - sumr(paper))
    low, high = comparison.interval
    assert 0 < low < comparison.difference < high < 2 * comparison.difference
    assert compare_on_test("trial 5", better, "paper", paper, OWNER) == comparison  # deterministic


def test_several_collections_count_equally() -> None:
    random = np.random.default_rng(4)
    paper, small = random.integers(1, 200, (3, 600)), random.integers(1, 50, (3, 40))
    better, worse = np.maximum(1, paper - 20), small + 10
    large = RanksOnTest(better, paper, OWNER)
    other = RanksOnTest(worse, small, np.repeat(np.arange(20), 2))
    alone = [compare_on_tests("a", "b", [each]) for each in (large, other)]
    assert alone[0] == compare_on_test("a", better, "b", paper, OWNER)
    both = compare_on_tests("a", "b", [large, other])
    assert both.difference == pytest.approx((alone[0].difference + alone[1].difference) / 2)
    assert both.low < both.difference < both.high
    # Two independent means have a narrower interval than the wider one of them.
    assert both.high - both.low < max(each.high - each.low for each in alone)


def test_videos_are_resampled_and_not_queries() -> None:
    """Queries of the same video are correlated, so their interval is wider than that of independent queries."""
    random = np.random.default_rng(2)
    by_video = np.where(random.random(200) < 0.5, 1, 50)
    paper = np.full((1, 600), 20)
    clustered = compare_on_test("a", by_video[OWNER][None], "paper", paper, OWNER).interval
    independent = compare_on_test("a", by_video[OWNER][None], "paper", paper, np.arange(600)).interval
    assert clustered[1] - clustered[0] > 1.5 * (independent[1] - independent[0])


def test_the_interval_covers_the_true_difference_as_often_as_its_confidence_says() -> None:
    random, covered = np.random.default_rng(3), 0
    for _ in range(100):
        paper, other = random.integers(1, 300, (2, 1, 150))
        low, high = compare_on_test("a", other, "paper", paper, np.arange(150)).interval
        covered += low <= 0 <= high
    assert 88 <= covered <= 100


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_covers_the_choice_of_the_seeds(seeds: int) -> None:
    """Resampling two or three seeds, as version 0.1.0 did, covers a true difference of 0 in 68 to 87 of 100 cases."""
    for spread in (0.1, 0.3):
        now = interval_coverage.coverage(interval_coverage.own_interval, seeds, videos=40, spread=spread, repeats=150)
        assert now.covered >= 0.91
    resampled = interval_coverage.coverage(
        interval_coverage.resampled_interval, seeds, videos=40, spread=spread, repeats=150
    )
    assert resampled.covered < 0.93


def test_one_seed_says_nothing_about_others() -> None:
    """Its interval covers the choice of the videos only, and the record says so."""
    found = interval_coverage.coverage(interval_coverage.own_interval, 1, videos=40, spread=0.3, repeats=150)
    assert found.covered < 0.6
    ranks = np.ones((1, 600))
    one = compare_on_test("a", ranks, "b", ranks + 5, OWNER)
    assert not one.covers_seeds and one.to_dict()["covers"] == "videos"
    two = compare_on_test("a", ranks.repeat(2, 0), "b", ranks.repeat(2, 0) + 5, OWNER)
    assert two.covers_seeds and two.to_dict()["covers"] == "videos and seeds" and two.to_dict()["seeds"] == 2


def test_the_spread_of_the_seeds_counts_by_students_t() -> None:
    better = np.full((3, 600), 20.0)
    better[1], better[2] = 5.0, 1.0  # 100, 200 and 300 SumR above
    found = compare_on_test("a", better, "b", np.full((3, 600), 200.0), OWNER)
    assert found.difference == pytest.approx((100 + 300 + 400) / 3)
    distance = 4.3027 * np.std([100, 300, 400], ddof=1) / np.sqrt(3)  # all videos are alike
    assert found.interval == pytest.approx((found.difference - distance, found.difference + distance), rel=1e-4)
