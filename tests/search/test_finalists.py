"""The comparison of what a search found with the paper's setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.searches import make_search_settings

from dreamprvr_ray.search.comparison import compared
from dreamprvr_ray.search.finalists import candidates_of, training_values
from dreamprvr_ray.search.results import Candidate, Entry, FinalResult, FinalRun

OWNER = np.repeat(np.arange(200), 3)  # 200 videos of 3 queries


def test_equal_ranks_differ_by_nothing() -> None:
    ranks = np.random.default_rng(0).integers(1, 200, (3, len(OWNER)))
    same = compared("trial 5", ranks, "paper", ranks, OWNER)
    assert same.difference == 0 and same.interval == (0, 0)


def test_the_difference_is_of_sumr_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(1)
    paper = random.integers(1, 200, (3, len(OWNER)))
    better = np.maximum(1, paper - random.integers(0, 30, paper.shape))

    def sumr(ranks: np.ndarray) -> float:
        return sum(100 * float((ranks <= k).mean()) for k in (1, 5, 10, 100))

    found = compared("trial 5", better, "paper", paper, OWNER)
    assert found.difference == pytest.approx(sumr(better) - sumr(paper))
    low, high = found.interval
    assert 0 < low < found.difference < high < 2 * found.difference
    assert compared("trial 5", better, "paper", paper, OWNER) == found  # the same every time


def test_videos_are_resampled_not_queries() -> None:
    """Queries that all rise and fall with their video know less than as many of videos of their own."""
    random = np.random.default_rng(2)
    by_video = np.where(random.random(200) < 0.5, 1, 50)
    paper = np.full((1, 600), 20)
    clustered = compared("a", by_video[OWNER][None], "paper", paper, OWNER).interval
    alone = compared("a", by_video[OWNER][None], "paper", paper, np.arange(600)).interval
    assert clustered[1] - clustered[0] > 1.5 * (alone[1] - alone[0])


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(3), 0
    for _ in range(100):
        paper, other = random.integers(1, 300, (2, 1, 150))
        low, high = compared("a", other, "paper", paper, np.arange(150)).interval
        covered += low <= 0 <= high
    assert 88 <= covered <= 100


def test_candidates_are_the_best_finished_trials_and_the_papers_setting(tmp_path: Path) -> None:
    search = make_search_settings(tmp_path, final={"top": 2})
    entries = [
        Entry(4, "pruned", 90.0, 2, 2, {"model.registers": 1}),
        Entry(0, "finished", 80.0, 9, 9, search.paper_setting),
        Entry(2, "finished", 70.0, 9, 9, {"model.registers": 2}),
        Entry(3, "finished", 60.0, 9, 9, {"model.registers": 3}),
        Entry(1, "failed", None, None, 0, {"model.registers": 5}),
    ]
    assert [each.name for each in candidates_of(search, entries)] == ["trial 2", "trial 3", "paper"]
    assert [each.name for each in candidates_of(search, entries[:2])] == ["trial 4", "paper"]
    assert training_values(search, candidates_of(search, entries)[0], 1) == {"model.registers": 2, "training.seed": 1}
    assert [each.name for each in candidates_of(search, entries[1:2])] == ["paper"]


def test_ablated_candidates_are_the_best_trials_with_one_value_of_the_papers(tmp_path: Path) -> None:
    search = make_search_settings(tmp_path, final={"top": 2, "ablate": ["optimizer.learning_rate", "model.registers"]})
    entries = [
        Entry(2, "finished", 70.0, 9, 9, {"model.registers": 2, "optimizer.learning_rate": 1e-3}),
        Entry(0, "finished", 65.0, 9, 9, search.paper_setting),
        Entry(3, "finished", 60.0, 9, 9, {"model.registers": 3, "optimizer.learning_rate": 2e-3}),
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
            Entry(1, "finished", 70.0, 6, 9, {"model.registers": 2}),
            Entry(0, "finished", 60.0, 8, 9, search.paper_setting),
        ],
    )
    assert training_values(search, found[0], 2) == {
        "model.registers": 2,
        "training.seed": 2,
        "training.with_val": True,
        "training.epochs": 6,
    }
    assert training_values(search, found[1], 0)["training.epochs"] == 8


def test_the_lines_say_what_val_prefers() -> None:
    def run(val: float) -> FinalRun:
        return FinalRun(0, val, 3, "checkpoint", {"SumR": 200.0})

    def candidate(name: str, val: float) -> Candidate:
        runs = [run(val)] * 2
        return Candidate(name, 0, {}, 3, runs, 200.0, 1.0)

    comparison = compared("trial 5", np.ones((1, 3)), "paper", np.full((1, 3), 7), np.arange(3))
    found = FinalResult([candidate("trial 5", 250.0), candidate("paper", 240.0)], comparison)
    assert found.lines()[0] == "trial 5: test SumR 200.0 (standard deviation 1.0, 2 seeds), val 250.0"
    assert (
        found.lines()[2]
        == "trial 5 against paper: +200.0 test SumR (95% interval +200.0 to +200.0, videos and seeds resampled)"
    )
    assert FinalResult([replace(candidate("a", 1.0), runs=list(map(run, (3.0, 5.0))))], None).chosen.val_SumR == 5.0
    assert (
        FinalResult(
            [replace(candidate("a", 1.0), runs=list(map(run, (3.0, 5.0))))], None, with_val=True
        ).chosen.val_SumR
        == 3.0
    )
    other = FinalResult(found.candidates[::-1], comparison)
    assert other.lines()[-1] == "val prefers the paper's setting to what the search found"
