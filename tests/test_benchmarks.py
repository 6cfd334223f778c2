"""The step variants that benchmarks compare compute the same: without dropout, they lead to the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import reference_model
from support.indexes import small_checkpoint, small_shards

from benchmarks import evaluation, find, measured_process, opening, selection_bias
from benchmarks.ranking import Ranking
from benchmarks.synthetic import random_batch
from benchmarks.training_steps import FastSteps, ReferenceSteps
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.batches import collate_queries
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.index import index as searching
from dreamprvr_ray.index.building import update_index
from dreamprvr_ray.index.collections import ShardCollection
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.index.sentences import query_vectors
from dreamprvr_ray.training.objective import StepRandomness

SMALL = {
    "model.hidden_size": 32,
    "model.heads": 2,
    "model.branches": 3,
    "model.registers": 2,
    "model.diffusion_steps": 2,
    "optimizer.warmup_fraction": 0.0,
}


def test_fast_and_reference_steps_lead_to_the_same_weights() -> None:
    experiment = load_experiment(
        "demo", SMALL | {"model.dropout": 0.0, "model.input_dropout": 0.0, "optimizer.learning_rate": 0.01}
    )
    fast, reference = FastSteps(experiment, torch.device("cpu"), "fp32"), ReferenceSteps(experiment)
    before = {name: weight.clone() for name, weight in reference_model.reference_weights(fast.model).items()}
    for step in range(3):
        batch, randomness = random_batch(experiment.data, 6, 2, seed=step), StepRandomness.draw(0, step, 6, 12, 2, 32)
        for steps in (fast, reference):
            steps.step(batch, randomness)
    moved = []
    for name, weight in reference_model.reference_weights(fast.model).items():
        change = weight - before[name]
        difference = (weight - reference.weights[name]).abs().median()
        # Weights change by up to 0.03. The biases of keys have no gradient but rounding errors, hence the absolute
        # term.
        assert difference <= 1e-3 * change.abs().max() + 1e-5, name
        moved.append(bool(change.any()))
    assert sum(moved) > 0.9 * len(moved)


def test_a_benchmarks_shards_can_be_opened(tmp_path: Path) -> None:
    opening.write(tmp_path, videos=7, queries_per_video=2, videos_per_shard=3)
    split = ShardSet.open(tmp_path).split("train")
    assert len(split) == 7 and len(split.owner) == 14


def test_the_final_stage_does_not_favour_the_trial_that_the_search_selected(tmp_path: Path) -> None:
    """All settings are equally good; with the seeds of version 0.1.0, the selected one seems 1.4 SumR better."""
    search = selection_bias.example_search(tmp_path)
    found = selection_bias.simulate(search, trials=24, searches=250)
    assert abs(found.test) < 0.5 and 0.4 < found.preferred < 0.6
    biased = selection_bias.simulate(search, trials=24, searches=250, seeds=range(3))
    assert biased.test > 0.9 and biased.preferred > 0.7


def test_measured_processes_have_the_environment_of_rays_workers() -> None:
    """Benchmarks repeat these variables, since importing the session imports Ray."""
    from dreamprvr_ray.runtime.session import WORKER_ENVIRONMENT

    assert measured_process.ENVIRONMENT.items() <= WORKER_ENVIRONMENT.items()


def test_a_synthetic_index_is_searched_as_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="a compact index requires faiss")
    monkeypatch.setattr(find, "COMPACT_PART_ROWS", 200)
    shards = small_shards(tmp_path / "shards", [("train", 60), ("val", 20), ("test", 2)])
    model = small_checkpoint(tmp_path / "model", noise=0.0, **{"model.initialization": "aligned"})
    update_index(tmp_path / "real", ShardCollection(shards), model, compact=True)
    real = Index.open(tmp_path / "real")
    find.synthetic(tmp_path / "synthetic", real, 500, seed=0, noise=(0.5, 0.3))
    index, split = Index.open(tmp_path / "synthetic"), shards.split("val")
    assert [part.rows for part in index.record.parts] == [200, 200, 100]
    numbers = np.arange(12)
    queries = query_vectors(*collate_queries(split, numbers), split.sentences(numbers), real._network)
    exact = find.exact_best(index, queries, 10)
    monkeypatch.setattr(searching, "EXACT_ROWS", 0)
    assert find.measure(index, queries, exact)["recall@10"] == 1  # 1,000 candidates are all videos
    # More noise takes videos further away from each other.
    _, restored = find._restored(real)
    near, far = (
        find.nearest(find.perturbed(restored, 60, np.random.default_rng(0), noise)).mean()
        for noise in ((0.1, 0.1), (0.8, 0.4))
    )
    assert far < near < 1


def test_ranking_scores_and_ranks_in_both_ways() -> None:
    ranking = Ranking(queries=30, videos=12)
    assert ranking("fast", 8)[1] == ranking("plain", 8)[1]
    _, ranks, _ = ranking("score", 8)
    assert len(ranks) == 30 and min(ranks) >= 1


def test_encodings_in_a_file_are_ranked_like_the_whole_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "VIDEO_BLOCK", 7)
    encodings = evaluation.Encodings(tmp_path, queries=40, videos=30, size=8)
    encodings.write()
    ranks = evaluation.rank(encodings, Workers()).rank
    assert torch.equal(ranks, evaluation.rank_plainly(encodings).rank) and int(ranks.max()) > 1
