"""Ranks and recall against loops and numbers by hand; evaluation against all videos and queries in one batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import reference_model, small_models

from dreamprvr_ray.evaluation import retrieval
from dreamprvr_ray.evaluation.metrics import Recall, Retrieval
from dreamprvr_ray.evaluation.retrieval import Ranks, evaluate, exact_ranks, score_split, summarise

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


def ranks_of(*rank: int, tied: int = 0) -> Ranks:
    return Ranks(torch.tensor(rank), torch.arange(len(rank)) < tied)


def test_summary_by_hand() -> None:
    summary = summarise(ranks_of(1, 2, 7, 200, tied=3), 250)
    assert summary == Retrieval(
        250, Recall(4, {1: 25.0, 5: 50.0, 10: 75.0, 100: 75.0}, 225.0), 4.5, 3, None, np.array([1, 2, 7, 200])
    )
    assert summarise(ranks_of(9, 1, 4), 9).median_rank == 4.0
    assert summary.ranks is not None and summary.ranks.tolist() == [1, 2, 7, 200]


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


SPLIT = small_models.MemorySplit([2, 1, 4, 1, 3, 2, 1])


@pytest.fixture(scope="module")
def expected() -> Retrieval:
    """The split's metrics from the plain model in one batch, ranked by sorting."""
    model, batch = small_models.build(), SPLIT.whole()
    with torch.no_grad():
        weights = reference_model.reference_weights(model)
        queries = reference_model.encode_queries(weights, model.config, batch.tokens, batch.token_mask)
        encoding = reference_model.encode_videos(weights, model.config, batch.clips, batch.frames, batch.frame_mask)
        clip, frame = (
            reference_model.best_scores_by_loop(queries, tokens)[0]
            for tokens in (encoding.clip_tokens, encoding.frame_tokens)
        )
    fused = 0.7 * clip + 0.3 * frame
    rank = [naive_rank(row.tolist(), video) for row, video in zip(fused, SPLIT.owner, strict=True)]
    assert len(set(rank)) > 4  # otherwise the test could not detect a wrong order
    return summarise(ranks_of(*rank), 7, SPLIT.moment_fractions)


@pytest.mark.parametrize(("query_block", "video_block"), [(512, 64), (1, 1), (3, 2), (14, 7), (5, 6)])
def test_evaluation_equals_one_batch(
    query_block: int, video_block: int, expected: Retrieval, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(retrieval, "VIDEO_BLOCK", video_block)
    assert evaluate(small_models.build().float(), SPLIT, 0.7) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_has_no_dropout_and_restores_the_training_mode(training: bool, expected: Retrieval) -> None:
    model = small_models.build(dropout=0.5, input_dropout=0.5).float().train(training)
    assert evaluate(model, SPLIT, 0.7) == expected  # type: ignore[arg-type]
    assert model.training is training and model.clip_fusion.training is training


def test_a_failed_evaluation_restores_the_training_mode() -> None:
    model = small_models.build().float().train()
    broken = small_models.MemorySplit([1, 1])
    broken._tokens = []
    with pytest.raises((RuntimeError, ValueError)):
        evaluate(model, broken, 0.5)  # type: ignore[arg-type]
    assert model.training


def test_evaluation_reads_float16_features_under_bf16() -> None:
    split = small_models.MemorySplit([2, 1, 2])
    split._clips, split._frames, split._tokens = (
        split._clips.half(),
        [f.half() for f in split._frames],
        [t.half() for t in split._tokens],
    )
    model = small_models.build().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = score_split(model, split, 0.5)  # type: ignore[arg-type]
    full = score_split(model, split, 0.5)  # type: ignore[arg-type]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.05)
