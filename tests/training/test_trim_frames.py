"""`data.trim_frames: batch`: padding has no effect, and a video's score does not depend on the rest of its batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import reference_model, small_models
from torch import Tensor

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation import score_blocks
from dreamprvr_ray.evaluation.retrieval import evaluate, score_split
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.kernels import cpu
from dreamprvr_ray.model.scoring import token_scores
from dreamprvr_ray.training import losses
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.objective import StepRandomness, training_losses
from dreamprvr_ray.training.reporter import DirectoryReporter

SPLIT = small_models.MemorySplit([2, 1, 3, 1, 2, 1, 1, 2, 1])  # of 1, 2, 50, 127 and 128 frames


def scored(model: DreamPRVR, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return clip and frame cosines of all queries of the split, each (Q, B)."""
    everything = SPLIT.whole()
    queries = model.encode_queries(everything.tokens, everything.token_mask)
    encoding = model.encode_videos(batch.clips, batch.frames, batch.frame_mask)
    clip, frame = (
        token_scores(queries, encoding.clip_tokens),
        token_scores(queries, encoding.frame_tokens, encoding.frame_mask),
    )
    return clip.cosine, frame.cosine


def plain_scores(model: DreamPRVR) -> tuple[Tensor, Tensor]:
    """Return the same from the plain model, one video at a time and without padding."""
    weights, everything = reference_model.reference_weights(model), SPLIT.whole()
    queries = reference_model.encode_queries(weights, model.config, everything.tokens, everything.token_mask)
    columns = []
    for video, count in enumerate(SPLIT.frame_counts):
        frames = everything.frames[video : video + 1, :count]
        mask = torch.ones(1, count, dtype=torch.bool)
        encoding = reference_model.encode_videos(
            weights, model.config, everything.clips[video : video + 1], frames, mask
        )
        columns.append(
            [
                reference_model.best_scores_by_loop(queries, tokens)[0]
                for tokens in (encoding.clip_tokens, encoding.frame_tokens)
            ]
        )
    clip, frame = zip(*columns, strict=True)
    return torch.cat(clip, 1), torch.cat(frame, 1)


def test_the_split_has_short_and_long_videos() -> None:
    assert {1, 128} < set(SPLIT.frame_counts.tolist()) and len(set(SPLIT.frame_counts.tolist())) > 3


@pytest.mark.parametrize("registers", [3, 0])
@pytest.mark.parametrize("supports", [True, False], ids=["on the CPU", "stacked"])
def test_scores_of_a_video_do_not_depend_on_its_batch(
    registers: int, supports: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "supports", lambda x: supports)
    model = small_models.build(trim_frames="batch", registers=registers)
    clip, frame = plain_scores(model)
    random = np.random.default_rng(0)
    for size in (1, 2, 2, 4, 9):
        videos = random.permutation(len(SPLIT))[:size]
        batch = SPLIT.batch(videos, trimmed=True)
        assert batch.frames.shape[1] == batch.frame_mask.sum(1).max()
        for ours, theirs in zip(scored(model, batch), (clip, frame), strict=True):
            torch.testing.assert_close(ours, theirs[:, videos], rtol=1e-6, atol=1e-6)


def test_more_padding_changes_nothing_and_without_padding_both_settings_agree() -> None:
    model, exact = small_models.build(trim_frames="batch"), small_models.build()
    whole = SPLIT.whole()
    for ours, theirs in zip(scored(model, SPLIT.batch(np.arange(9), trimmed=True)), scored(model, whole), strict=True):
        torch.testing.assert_close(ours, theirs)
    longest = np.flatnonzero(SPLIT.frame_counts == 128)
    same = [scored(built, SPLIT.batch(longest, trimmed=True))[1] for built in (model, exact)]
    torch.testing.assert_close(*same, rtol=1e-12, atol=1e-12)
    differ = [scored(built, whole)[1] for built in (model, exact)]
    assert not torch.allclose(*differ)


@pytest.mark.parametrize("hard", [False, True])
def test_losses_and_gradients_do_not_depend_on_the_padded_length(hard: bool) -> None:
    model, randomness = small_models.build(trim_frames="batch"), StepRandomness.draw(0, 0, 9, len(SPLIT.owner), 3, 16)
    results = []
    for trimmed in (True, False):
        batch = SPLIT.batch(np.arange(9), trimmed=trimmed)
        total = training_losses(
            model, batch, small_models.loss_config(), hard_negatives=hard, randomness=randomness
        ).total
        results.append((total, *torch.autograd.grad(total, list(model.parameters()))))
    assert all(tensor.isfinite().all() for tensor in results[0])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_frame_losses_use_the_trimmed_scores() -> None:
    model, batch = small_models.build(trim_frames="batch"), SPLIT.batch(np.arange(9), trimmed=True)
    randomness = StepRandomness.draw(0, 0, 9, len(SPLIT.owner), 3, 16)
    ours = training_losses(model, batch, small_models.loss_config(), hard_negatives=True, randomness=randomness)
    encoding = model.encode_videos(batch.clips, batch.frames, batch.frame_mask)
    dots = token_scores(
        model.encode_queries(batch.tokens, batch.token_mask), encoding.frame_tokens, batch.frame_mask
    ).dot
    own = batch.owner.unsqueeze(1) == torch.arange(9)
    torch.testing.assert_close(ours.frame_nce, losses.nce(dots, own))


@pytest.mark.parametrize("block", [1, 2, 64])
def test_evaluation_equals_that_of_one_video_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "VIDEO_BLOCK", block)
    model = small_models.build(trim_frames="batch")
    clip, frame = plain_scores(model)
    with torch.no_grad():
        scores = score_split(model.float(), SPLIT, ScoreWeights(0.7))  # type: ignore[arg-type]
    torch.testing.assert_close(scores, (0.7 * clip + 0.3 * frame).float(), rtol=1e-4, atol=1e-5)
    assert evaluate(model, SPLIT, ScoreWeights(0.7)).videos == 9  # type: ignore[arg-type]


def test_a_checkpoint_keeps_its_trim_frames_setting(demo_shards: Path, tmp_path: Path) -> None:
    small = {
        "model.hidden_size": 16,
        "model.heads": 2,
        "model.branches": 2,
        "model.registers": 1,
        "model.diffusion_steps": 1,
        "training.epochs": 1,
    }
    tests = []
    for way in ("exact", "batch"):
        reporter = DirectoryReporter(tmp_path / way)
        fit(load_experiment("demo", small | {"data.trim_frames": way}), ShardSet.open(demo_shards), reporter)
        trained = load_model(reporter.last)
        assert trained.experiment.data.trim_frames == way and trained.model.trimmed == (way == "batch")
        tests.append(evaluate(trained.model, ShardSet.open(demo_shards).split("val"), ScoreWeights(0.5)).recall.sumr)
        assert tests[-1] == reporter.results[-1].sumr
    with pytest.raises(UserError, match=r"trim_frames"):
        fit(
            load_experiment("demo", small | {"data.trim_frames": "exact"}),
            ShardSet.open(demo_shards),
            DirectoryReporter(tmp_path / "batch"),
        )


def test_padding_is_never_the_best_token() -> None:
    query, tokens = torch.tensor([[1.0, 0.0]]), torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    scores = token_scores(query, tokens, mask)
    assert scores.cosine.item() == scores.dot.item() == -1
    assert token_scores(query, tokens).cosine.item() == 0
    (scores.cosine + scores.dot).sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all() and not tokens.grad[0, 1].any()


def test_the_content_of_padding_has_no_effect() -> None:
    model, batch = small_models.build(trim_frames="batch"), SPLIT.whole()
    noise = torch.randn_like(batch.frames).masked_fill(batch.frame_mask.unsqueeze(-1), 0)
    for ours, theirs in zip(
        scored(model, batch), scored(model, replace(batch, frames=batch.frames + noise)), strict=True
    ):
        assert torch.equal(ours, theirs)
