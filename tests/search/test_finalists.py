"""The comparison of what a search found with the paper's setting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.searches import make_search_settings

from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.finalists import candidates_of, training_values
from dreamprvr_ray.search.results import Candidate, FinalResult, FinalRun, TrialRecord
from dreamprvr_ray.search.summary import describe_final

OWNER = np.repeat(np.arange(200), 3)  # 200 videos of 3 queries


def test_equal_ranks_differ_by_nothing() -> None:
    ranks = np.random.default_rng(0).integers(1, 200, (3, len(OWNER)))
    same = compare_on_test("trial 5", ranks, "paper", ranks, OWNER)
    assert same.difference == 0 and same.interval == (0, 0)


def test_the_difference_is_of_sumr_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(1)
    paper = random.integers(1, 200, (3, len(OWNER)))
    better = np.maximum(1, paper - random.integers(0, 30, paper.shape))

    def sumr(ranks: np.ndarray) -> float:
        return sum(100 * float((ranks <= k).mean()) for k in (1, 5, 10, 100))

    found = compare_on_test("trial 5", better, "paper", paper, OWNER)
    assert found.difference == pytest.approx(sumr(better) - sumr(paper))
    low, high = found.interval
    assert 0 < low < found.difference < high < 2 * found.difference
    assert compare_on_test("trial 5", better, "paper", paper, OWNER) == found  # the same every time


def test_videos_are_resampled_not_queries() -> None:
    """Queries that all rise and fall with their video know less than as many of videos of their own."""
    random = np.random.default_rng(2)
    by_video = np.where(random.random(200) < 0.5, 1, 50)
    paper = np.full((1, 600), 20)
    clustered = compare_on_test("a", by_video[OWNER][None], "paper", paper, OWNER).interval
    alone = compare_on_test("a", by_video[OWNER][None], "paper", paper, np.arange(600)).interval
    assert clustered[1] - clustered[0] > 1.5 * (alone[1] - alone[0])


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(3), 0
    for _ in range(100):
        paper, other = random.integers(1, 300, (2, 1, 150))
        low, high = compare_on_test("a", other, "paper", paper, np.arange(150)).interval
        covered += low <= 0 <= high
    assert 88 <= covered <= 100


def test_candidates_are_the_best_finished_trials_and_the_papers_setting(tmp_path: Path) -> None:
    search = make_search_settings(tmp_path, final={"top": 2})
    entries = [
        TrialRecord(4, "pruned", 90.0, 2, 2, {"model.registers": 1}),
        TrialRecord(0, "finished", 80.0, 9, 9, search.paper_setting),
        TrialRecord(2, "finished", 70.0, 9, 9, {"model.registers": 2}),
        TrialRecord(3, "finished", 60.0, 9, 9, {"model.registers": 3}),
        TrialRecord(1, "failed", None, None, 0, {"model.registers": 5}),
    ]
    assert [each.name for each in candidates_of(search, entries)] == ["trial 2", "trial 3", "paper"]
    assert [each.name for each in candidates_of(search, entries[:2])] == ["trial 4", "paper"]
    assert training_values(search, candidates_of(search, entries)[0], 1) == {"model.registers": 2, "training.seed": 1}
    assert [each.name for each in candidates_of(search, entries[1:2])] == ["paper"]


def test_ablated_candidates_are_the_best_trials_with_one_value_of_the_papers(tmp_path: Path) -> None:
    search = make_search_settings(tmp_path, final={"top": 2, "ablate": ["optimizer.learning_rate", "model.registers"]})
    entries = [
        TrialRecord(2, "finished", 70.0, 9, 9, {"model.registers": 2, "optimizer.learning_rate": 1e-3}),
        TrialRecord(0, "finished", 65.0, 9, 9, search.paper_setting),
        TrialRecord(3, "finished", 60.0, 9, 9, {"model.registers": 3, "optimizer.learning_rate": 2e-3}),
    ]
    found = candidates_of(search, entries)
    assert [each.name for each in found] == [
        "trial 2",
        "trial 3",
        "trial 2 with the paper's model.registers",
        "paper",
    ]  # the rate is the paper's
    assert (
        found[2].values == {"model.registers": 4, "optimizer.learning_rate": 1e-3}
        and found[2].ablated == "model.registers"
    )
    assert [each.name for each in candidates_of(search, entries[1:2])] == ["paper"]


def test_with_val_a_training_is_as_long_as_val_said_was_best(tmp_path: Path) -> None:
    search = make_search_settings(tmp_path, final={"with_val": True})
    found = candidates_of(
        search,
        [
            TrialRecord(1, "finished", 70.0, 6, 9, {"model.registers": 2}),
            TrialRecord(0, "finished", 60.0, 8, 9, search.paper_setting),
        ],
    )
    assert training_values(search, found[0], 2) == {
        "model.registers": 2,
        "training.seed": 2,
        "training.with_val": True,
        "training.epochs": 6,
    }
    assert training_values(search, found[1], 0)["training.epochs"] == 8


def test_the_final_result_is_described_in_lines() -> None:
    def run(sumr: float, val: float) -> FinalRun:
        return FinalRun(0, val, 3, "checkpoint", {"SumR": sumr})

    def candidate(name: str, *vals: float) -> Candidate:
        deviations = np.array([-1, 1]) / np.sqrt(2)  # with a sample standard deviation of 1
        runs = tuple(run(200.0 + deviation, val) for deviation, val in zip(deviations, vals, strict=True))
        return Candidate(name, 0, {}, 3, runs)

    comparison = compare_on_test("trial 5", np.ones((1, 3)), "paper", np.full((1, 3), 7), np.arange(3))
    found = FinalResult((candidate("trial 5", 250.0, 250.0), candidate("paper", 240.0, 240.0)), comparison)
    assert describe_final(found)[0] == "trial 5: test SumR 200.0 (standard deviation 1.0, 2 seeds), val 250.0"
    assert describe_final(found)[2] == (
        "trial 5 against paper: +200.0 test SumR"
        " (95% interval +200.0 to +200.0, paired bootstrap over videos and seeds)"
    )
    assert FinalResult((candidate("a", 3.0, 5.0),)).chosen.val_sumr == 5.0
    assert FinalResult((candidate("a", 3.0, 5.0),), with_val=True).chosen.val_sumr == 3.0
    other = FinalResult(found.candidates[::-1], comparison)
    assert describe_final(other)[-1] == "the paper's setting has a higher val SumR than every trial that was retrained"
