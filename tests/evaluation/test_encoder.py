"""The encoder's own scores against loops over float64 rows, and their part in the score of a split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import small_models

from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation import encoder, score_blocks
from dreamprvr_ray.evaluation.encoder import COMPARISONS, compare, encoder_scores, window_sums
from dreamprvr_ray.evaluation.retrieval import score_split
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR

CPU, SIZE = torch.device("cpu"), 12


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Nine videos of 1 to 200 frames, all with two queries, of one size."""
    random = np.random.default_rng(0)
    splits = {}
    for name in ("train", "val", "test"):
        counts = [1, 2, 40, 200, 9, 9, 128, 5, 3]
        videos = {f"{name}{i}": random.standard_normal((count, SIZE)) for i, count in enumerate(counts)}
        queries = [
            Query(f"{id}#{i}", id, "a sentence", random.standard_normal((random.integers(1, 8), SIZE)))
            for id in videos
            for i in range(2)
        ]
        splits[name] = FeatureSplit(videos, queries)
    directory = tmp_path_factory.mktemp("shards") / "one"
    shards = write_shards(directory, collection="one", splits=splits, dtype="float32")
    return shards.split("val")


def window_starts(frames: int, length: int) -> list[int]:
    """The first frames of windows: every quarter of their length, and the last one ends with the video."""
    if frames <= length:
        return [0]
    return [*range(0, frames - length, max(length // 4, 1)), frames - length]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(("query_block", "video_block"), [(512, 64), (1, 1), (5, 4)])
def test_scores_equal_loops(split: Split, query_block: int, video_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(score_blocks, "VIDEO_BLOCK", video_block)
    sentences = split.sentences(np.arange(len(split.owner))).double().numpy()
    expected = {comparison: np.empty((len(sentences), len(split))) for comparison in COMPARISONS}
    for query, sentence in enumerate(sentences):
        for video in range(len(split)):
            frames, clips = split.frames(video).double().numpy(), split.clips(video).double().numpy()
            expected["best frame"][query, video] = max(unit(frame) @ sentence for frame in frames)
            expected["best clip"][query, video] = max(unit(clip) @ sentence for clip in clips)
            expected["pooled video"][query, video] = unit(frames.mean(0)) @ sentence
            expected["best windows"][query, video] = np.mean(
                [
                    max(
                        unit(frames[start : start + length].mean(0)) @ sentence
                        for start in window_starts(len(frames), length)
                    )
                    for length in (1, 5, 15, 31)
                ]
            )
    for comparison, scores in zip(COMPARISONS, compare(split, COMPARISONS, CPU), strict=True):
        np.testing.assert_allclose(scores, expected[comparison], atol=1e-5)
    np.testing.assert_allclose(encoder_scores(split, CPU), expected["best windows"], atol=1e-5)


def test_equal_windows_of_two_videos_tie_exactly() -> None:
    torch.manual_seed(0)
    part = torch.nn.functional.normalize(torch.randn(31, SIZE), dim=1)
    first = torch.cat([part, torch.randn(40, SIZE)])
    second = torch.cat([torch.randn(42, SIZE), part[:29]])  # 42: a window of each length begins there
    for length in (1, 5, 15):
        sums = window_sums(torch.stack([first, second]), torch.tensor([71, 71]), length)
        assert any(torch.equal(sums[0, 0], row) for row in sums[1]), length


def test_sentences_are_unit_vectors_in_any_order(split: Split) -> None:
    queries = np.array([7, 0, 0, 17])
    every = split.sentences(np.arange(len(split.owner))).numpy()
    np.testing.assert_allclose(np.linalg.norm(every, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(split.sentences(queries), every[queries])
    assert split.sentences(np.arange(0)).shape == (0, SIZE)


def test_the_encoders_weight_mixes_its_score_with_the_models(split: Split) -> None:
    torch.manual_seed(0)
    model = DreamPRVR(small_models.model_config(), SIZE, SIZE, "exact").eval()
    alone, own = score_split(model, split, ScoreWeights(0.6)), encoder_scores(split, CPU)
    assert not torch.equal(alone, own)
    torch.testing.assert_close(score_split(model, split, ScoreWeights(0.6, 0.25)), 0.75 * alone + 0.25 * own)
    assert torch.equal(score_split(model, split, ScoreWeights(0.6, 0.0)), alone)
    assert torch.equal(score_split(model, split, ScoreWeights(0.6, 1.0)), own)
