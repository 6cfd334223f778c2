"""The encoder's weight in a training: chosen on val, recorded, used by every evaluation, never worse than the encoder.

The promise of `evaluation.encoder_weight: auto` is tested on five synthetic collections: val, by the criterion of the
choice, is never below the encoder alone, whatever training does to the model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dreamprvr_ray.checkpoints.checkpoint import export_checkpoint, load_model
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.encoder import encoder_scores
from dreamprvr_ray.evaluation.retrieval import score_split
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.evaluation.val import right_videos
from dreamprvr_ray.evaluation.weights import USUAL_WEIGHT, ScoreWeights, query_losses
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import Training, fit
from dreamprvr_ray.training.reporter import DirectoryReporter

SIZE, CPU = 16, torch.device("cpu")


def collection(
    directory: Path, *, noise: float = 1.0, train: str = "right", val_videos: int = 24, frames: int = 6, seed: int = 0
) -> ShardSet:
    """Write a collection whose queries resemble a frame of their video, with noise.

    Queries of `train` are `right`, `shuffled` between videos, or `opposite` to what they describe.
    """
    random = np.random.default_rng(seed)
    splits = {}
    for name, count in (("train", 48), ("val", val_videos), ("test", 24)):
        videos = {f"{name}{i}": random.standard_normal((frames, SIZE)) for i in range(count)}
        described = list(videos.values())
        if name == "train" and train == "shuffled":
            described = [described[place] for place in random.permutation(count)]
        sign = -1 if name == "train" and train == "opposite" else 1
        queries = [
            Query(f"{id}#{i}", id, "", sign * rows[i] + noise * random.standard_normal((4, SIZE)))
            for id, rows in zip(videos, described, strict=True)
            for i in range(2)
        ]
        splits[name] = FeatureSplit(videos, queries)
    return write_shards(directory, collection="made", splits=splits, one_encoder=True)


COLLECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a weak encoder": {"noise": 4.0},
    "with few queries on val": {"val_videos": 4},
    "with single frames": {"frames": 2, "noise": 0.5},
    "where training only hurts": {"train": "opposite"},
}


def experiment(**changes: Any) -> Experiment:
    small = {"model.hidden_size": 16, "model.heads": 2, "model.branches": 2, "model.registers": 1}
    small |= {"model.diffusion_steps": 1, "training.epochs": 2, "training.batch_videos": 16}
    small |= {"training.precision": "fp32", "optimizer.learning_rate": 3e-3}
    return load_experiment("demo", small | {"evaluation.encoder_weight": "auto"} | changes)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_val_is_never_below_the_encoder_alone(name: str, tmp_path: Path) -> None:
    shards = collection(tmp_path / "shards", **COLLECTIONS[name])
    val = shards.split("val")
    encoder, right = encoder_scores(val, CPU), right_videos(val, CPU)
    training = Training(experiment(), shards, Workers(), CPU)
    training.restore(None)
    for _ in range(2):
        result = training.run_epoch()
        assert result.encoder_weight is not None
        scores = score_split(training._model, val, ScoreWeights(0.5, result.encoder_weight))
        assert query_losses(scores, right).mean() <= query_losses(encoder, right).mean()
    if name == "where training only hurts":
        model = score_split(training._model, val, ScoreWeights(0.5))
        assert query_losses(model, right).mean() > query_losses(encoder, right).mean() + 0.2
        assert result.encoder_weight > 2 * USUAL_WEIGHT


def test_the_chosen_weight_is_recorded_and_used_everywhere(tmp_path: Path) -> None:
    shards = collection(tmp_path / "shards")
    reporter = DirectoryReporter(tmp_path / "run")
    fit(experiment(), shards, reporter)
    best = next(result for result in reporter.results if result.epoch == reporter.results[-1].best_epoch)
    metrics = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert (metrics["encoder_weight"], metrics["encoder_weight_chosen"]) == (best.encoder_weight, True)
    evaluation = evaluate_checkpoint(Storage.of(tmp_path / "run" / "best"), shards, "val")
    assert evaluation.retrieval.recall.sumr == best.sumr
    export_checkpoint(tmp_path / "run" / "best", tmp_path / "exported")
    exported = evaluate_checkpoint(Storage.of(tmp_path / "exported"), shards, "val")
    assert exported.retrieval == evaluation.retrieval
    assert next(iter(evaluation.zero_shot or {})) == "best frame" and "zero-shot SumR" in "\n".join(evaluation.lines())
    assert evaluation.best_zero_shot is not None
    assert evaluation.best_zero_shot[1].sumr == pytest.approx(best.zero_shot_sumr)


def test_without_a_val_that_chooses_the_weight_is_the_usual_one(tmp_path: Path) -> None:
    shards = collection(tmp_path / "shards")
    training = Training(experiment(**{"training.with_val": True}), shards, Workers(), CPU)
    training.restore(None)
    result = training.run_epoch()
    training.snapshot(result).write(tmp_path)
    metrics = load_model(tmp_path).metrics
    assert (metrics["encoder_weight"], metrics["encoder_weight_chosen"]) == (USUAL_WEIGHT, False)


def test_a_fixed_weight_does_not_change_the_training(tmp_path: Path) -> None:
    shards = collection(tmp_path / "shards")
    results = {}
    for weight in (0.0, 0.4):
        training = Training(experiment(**{"evaluation.encoder_weight": weight}), shards, Workers(), CPU)
        training.restore(None)
        results[weight] = (training.run_epoch(), training._model.state_dict())
    assert results[0.0][0].losses == results[0.4][0].losses
    assert all(torch.equal(results[0.0][1][name], results[0.4][1][name]) for name in results[0.0][1])
    assert results[0.0][0].encoder_weight is None and results[0.4][0].encoder_weight == 0.4


def test_features_of_two_encoders_are_refused(tmp_path: Path) -> None:
    shards = collection(tmp_path / "shards")
    shards.manifest = replace(shards.manifest, one_encoder=False)
    with pytest.raises(UserError, match="requires frames and queries of one encoder"):
        Training(experiment(), shards, Workers(), CPU)
    trained = Training(experiment(**{"evaluation.encoder_weight": 0.0}), shards, Workers(), CPU)
    trained.restore(None)
    assert trained.run_epoch().zero_shot_sumr is None


def _train(experiment: Experiment, shards: ShardSet, out: Path, workers: Workers) -> None:
    """Train an epoch with this worker, and write what was chosen."""
    training = Training(experiment, shards, workers, CPU)
    training.restore(None)
    result = training.run_epoch()
    values = {"weight": result.encoder_weight, "SumR": result.sumr}
    (out / f"{workers.count}-{workers.rank}.json").write_text(json.dumps(values))


def _worker(rank: int, experiment: Experiment, shards: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
    _train(experiment, ShardSet.open(shards), out, Workers(rank, 2))
    dist.destroy_process_group()


def test_two_workers_choose_what_one_chooses(tmp_path: Path) -> None:
    shards = collection(tmp_path / "shards", noise=2.0)
    small = experiment(**{"model.dropout": 0.0, "model.input_dropout": 0.0})
    _train(small, shards, tmp_path, Workers())
    mp.spawn(_worker, (small, shards.directory, tmp_path), nprocs=2)
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert two[0] == two[1] and 0 < one["weight"] < 1
    assert two[0]["weight"] == one["weight"] and two[0]["SumR"] == pytest.approx(one["SumR"])
