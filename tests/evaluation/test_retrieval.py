"""Evaluation in blocks against all videos and queries in one batch, and with several right videos per query."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import reference_model, small_models

from dreamprvr_ray.evaluation import retrieval, score_blocks
from dreamprvr_ray.evaluation.metrics import Retrieval
from dreamprvr_ray.evaluation.ranks import Ranks, summarise
from dreamprvr_ray.evaluation.retrieval import evaluate, score_split
from dreamprvr_ray.evaluation.weights import ScoreWeights

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
    rank = [1 + sum(row > row[video]).item() for row, video in zip(fused, SPLIT.owner, strict=True)]
    assert len(set(rank)) > 4  # otherwise the test could not detect a wrong order
    return summarise(Ranks(torch.tensor(rank), torch.zeros(len(rank), dtype=torch.bool)), 7, SPLIT.moment_fractions)


@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize(("query_block", "video_block"), [(512, 64), (1, 1), (3, 2), (14, 7), (5, 6)])
def test_evaluation_equals_one_batch(
    query_block: int, video_block: int, kept: int, expected: Retrieval, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (retrieval, score_blocks):
        monkeypatch.setattr(module, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(score_blocks, "VIDEO_BLOCK", video_block)
    monkeypatch.setattr(score_blocks, "SORTED_VIDEOS", 4)
    monkeypatch.setattr(retrieval, "KEPT_SCORES", kept)
    assert evaluate(small_models.build().float(), SPLIT, ScoreWeights(0.7)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_has_no_dropout_and_restores_the_training_mode(training: bool, expected: Retrieval) -> None:
    model = small_models.build(dropout=0.5, input_dropout=0.5).float().train(training)
    assert evaluate(model, SPLIT, ScoreWeights(0.7)) == expected  # type: ignore[arg-type]
    assert model.training is training and model.clip_fusion.training is training


def test_a_failed_evaluation_restores_the_training_mode() -> None:
    model = small_models.build().float().train()
    broken = small_models.MemorySplit([1, 1])
    broken._tokens = []
    with pytest.raises((RuntimeError, ValueError)):
        evaluate(model, broken, ScoreWeights(0.5))  # type: ignore[arg-type]
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
        half = score_split(model, split, ScoreWeights(0.5))  # type: ignore[arg-type]
    full = score_split(model, split, ScoreWeights(0.5))  # type: ignore[arg-type]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.05)


def test_other_right_videos_do_not_count_against_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = small_models.build().float(), small_models.MemorySplit([2, 1, 4, 1, 3, 2, 1])
    alone = evaluate(model, split, ScoreWeights(0.7))  # type: ignore[arg-type]
    queries, videos = len(split.owner), len(split)
    # Every video but the one with the lowest score is right: each query then finds one at rank 1.
    worst = score_split(model, split, ScoreWeights(0.7)).argmin(1).tolist()  # type: ignore[arg-type]
    right = np.array([video for query in range(queries) for video in range(videos) if video != worst[query]])
    split.right_videos = (np.arange(queries + 1) * (videos - 1), right)
    several = evaluate(model, split, ScoreWeights(0.7))  # type: ignore[arg-type]
    assert alone.recall.at[1] < 100 and alone.list_recall is None and alone.right_videos is None
    assert several.recall.at[1] == 100 and several.mean_rank == 1 and several.right_videos == len(right)
    assert several.list_recall is not None
    assert several.list_recall.at == pytest.approx({1: 100 / 6, 5: 500 / 6, 10: 100, 100: 100})
