"""Ranks against sorted lists and numbers by hand, with one and with several right videos, and their metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dreamprvr_ray.evaluation import score_blocks
from dreamprvr_ray.evaluation.metrics import Recall, Retrieval
from dreamprvr_ray.evaluation.ranks import Ranks, exact_ranks, rank_blocks, summarise
from dreamprvr_ray.evaluation.score_blocks import ScoreBlock

NAN, INF = math.nan, math.inf


def naive_rank(scores: list[float], own: int) -> int:
    """Return the own video's position in a sorted list: after equal scores, and last if its score is nan."""
    if math.isnan(scores[own]):
        return len(scores)
    order = sorted(range(len(scores)), key=lambda video: (math.isnan(scores[video]), -scores[video], video == own))
    return order.index(own) + 1


def test_ranks_equal_those_of_sorting_with_ties_counted_against_the_query() -> None:
    random = np.random.default_rng(0)
    values = np.array([NAN, -INF, -1.0, 0.0, 0.5, 0.5 + 1e-7, 2.0, INF], dtype=np.float32)
    scores = values[random.integers(len(values), size=(300, 9))]
    own = random.integers(9, size=300)
    ranks = exact_ranks(torch.from_numpy(scores), torch.from_numpy(own))
    assert ranks.rank.tolist() == [naive_rank(row.tolist(), video) for row, video in zip(scores, own, strict=True)]
    equals = [sum(score == row[video] for score in row) > 1 for row, video in zip(scores, own, strict=True)]
    assert ranks.tied.tolist() == equals


@pytest.mark.parametrize(
    ("scores", "rank", "tied"),
    [
        ([3.0, 2.0, 1.0], 1, False),
        ([2.0, 3.0, 1.0], 2, False),
        ([2.0, 2.0, 1.0], 2, True),
        ([2.0, 2.0, 2.0], 3, True),
        ([NAN, 2.0, 1.0], 3, False),
        ([NAN, NAN, NAN], 3, False),
        ([1.0, NAN, 2.0], 2, False),
        ([1.0, NAN, NAN], 1, False),
        ([-INF, NAN, 0.0], 2, False),
        ([INF, INF, 0.0], 2, True),
    ],
)
def test_ranks_by_hand(scores: list[float], rank: int, tied: bool) -> None:
    ranks = exact_ranks(torch.tensor([scores]), torch.tensor([0]))
    assert (ranks.rank.item(), ranks.tied.item()) == (rank, tied)


def naive_positions(scores: list[float], right: list[int]) -> list[int]:
    """Return the places of right videos in a sorted list: after wrong videos with equal scores; nan is last."""

    def key(video: int) -> tuple[bool, float, bool]:
        score = scores[video]
        return math.isnan(score), 0.0 if math.isnan(score) else -score, video in right

    order = sorted(range(len(scores)), key=key)
    return sorted(order.index(video) + 1 for video in right)


@pytest.mark.parametrize("block", [1, 40, 2**22])
def test_positions_of_several_right_videos_equal_those_of_sorting(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "BLOCK_SCORES", block)
    random = np.random.default_rng(1)
    values = np.array([NAN, -INF, -1.0, 0.0, -0.0, 0.5, 2.0, INF], dtype=np.float32)
    scores = values[random.integers(len(values), size=(200, 9))]
    right = [random.permutation(9)[: random.integers(1, 10)].tolist() for _ in range(200)]
    offsets = np.cumsum([0, *map(len, right)])
    ranks = exact_ranks(torch.from_numpy(scores), torch.tensor(np.concatenate(right)), torch.from_numpy(offsets))
    expected = [naive_positions(row.tolist(), videos) for row, videos in zip(scores, right, strict=True)]
    assert ranks.positions is not None and ranks.positions.tolist() == np.concatenate(expected).tolist()
    assert ranks.rank.tolist() == [positions[0] for positions in expected]
    for row, videos, tied in zip(scores, right, ranks.tied.tolist(), strict=True):
        best = max((row[video] for video in videos if not np.isnan(row[video])), default=NAN)
        assert tied == any(score == best for video, score in enumerate(row) if video not in videos)


@pytest.mark.parametrize("several", [False, True])
def test_ranks_by_blocks_of_videos_equal_those_of_all(several: bool) -> None:
    random = np.random.default_rng(3)
    scores = torch.from_numpy(random.integers(6, size=(90, 23)).astype(np.float32))
    scores[random.integers(90, size=20), random.integers(23, size=20)] = NAN
    right = [random.permutation(23)[: random.integers(1, 5 if several else 2)] for _ in range(90)]
    offsets = torch.from_numpy(np.cumsum([0, *map(len, right)])) if several else None
    order = torch.from_numpy(random.permutation(23))
    blocks = [ScoreBlock(videos, scores[:, videos].__getitem__) for videos in order.split([4, 1, 9, 0, 9])]
    numbers = torch.from_numpy(np.concatenate(right))
    all_at_once, by_blocks = exact_ranks(scores, numbers, offsets), rank_blocks(blocks, numbers, offsets)
    assert torch.equal(by_blocks.rank, all_at_once.rank) and torch.equal(by_blocks.tied, all_at_once.tied)
    if several:
        assert by_blocks.positions is not None and all_at_once.positions is not None
        assert torch.equal(by_blocks.positions, all_at_once.positions)


def test_one_right_video_given_as_a_list_has_the_same_ranks() -> None:
    random = np.random.default_rng(2)
    scores = torch.from_numpy(random.integers(4, size=(50, 7)).astype(np.float32))
    own = torch.from_numpy(random.integers(7, size=50))
    alone, listed = exact_ranks(scores, own), exact_ranks(scores, own, torch.arange(51))
    assert torch.equal(alone.rank, listed.rank) and torch.equal(alone.tied, listed.tied)
    assert alone.positions is None and listed.positions is not None and torch.equal(listed.positions, alone.rank)


def test_no_queries_have_no_ranks() -> None:
    ranks = exact_ranks(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert ranks.rank.tolist() == [] and ranks.tied.tolist() == []


def ranks_of(*rank: int, tied: int = 0) -> Ranks:
    return Ranks(torch.tensor(rank), torch.arange(len(rank)) < tied)


def test_summary_by_hand() -> None:
    summary = summarise(ranks_of(1, 2, 7, 200, tied=3), 250)
    recall = Recall(4, {1: 25.0, 5: 50.0, 10: 75.0, 100: 75.0}, 225.0)
    assert summary == Retrieval(250, recall, 4.5, 3, None, mean_rank=52.5)
    assert summarise(ranks_of(9, 1, 4), 9).median_rank == 4.0
    none = summarise(ranks_of(), 9)
    assert none.mean_rank is None and math.isnan(none.median_rank)
    assert summary.ranks is not None and summary.ranks.tolist() == [1, 2, 7, 200]


def test_recall_of_all_right_videos_by_hand() -> None:
    positions, offsets = torch.tensor([1, 3, 6, 12, 150, 2, 4]), torch.tensor([0, 3, 5, 6, 7])
    summary = summarise(Ranks(torch.tensor([1, 12, 2, 4]), torch.zeros(4).bool(), positions, offsets), 200)
    assert summary.recall.at == {1: 25.0, 5: 75.0, 10: 75.0, 100: 100.0}
    assert summary.list_recall is not None and summary.list_recall.queries == 4 and summary.right_videos == 7
    # The four queries have 3, 2, 1 and 1 right videos.
    assert summary.list_recall.at == pytest.approx(
        {1: 100 / 12, 5: 100 * (2 / 3 + 0 + 1 + 1) / 4, 10: 75.0, 100: 100 * (1 + 1 / 2 + 1 + 1) / 4}
    )
    assert summary.list_recall.sumr == pytest.approx(sum(summary.list_recall.at.values()))


def test_groups_by_moment_include_their_upper_bound_and_omit_unknown_moments() -> None:
    fractions = np.array([0.01, 0.2, 0.2001, 0.4, 0.41, 1.0, NAN])
    summary = summarise(ranks_of(1, 2, 3, 1, 50, 1, 1), 60, fractions)
    assert summary.by_moment is not None and summary.recall.queries == 7
    assert {name: (group.queries, group.at[1], group.at[10]) for name, group in summary.by_moment.items()} == {
        "0-0.2": (2, 50.0, 100.0),
        "0.2-0.4": (2, 50.0, 100.0),
        "0.4-1": (2, 50.0, 50.0),
    }


def test_without_known_moments_there_are_no_groups() -> None:
    assert summarise(ranks_of(1, 2), 5, np.array([NAN, NAN])).by_moment is None
    only_long = summarise(ranks_of(1, 2), 5, np.array([0.9, NAN])).by_moment
    assert only_long is not None and [group.queries for group in only_long.values()] == [0, 0, 1]
