"""Training on several collections at once: their vals choose together, and everything else is as with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamprvr_ray.checkpoints.checkpoint import METRICS, load_model, read_weights
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.training import loop
from dreamprvr_ray.training.loop import Training, fit
from dreamprvr_ray.training.reporter import DirectoryReporter, EpochResult, Snapshot

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "model.hidden_size": 16,
    "model.heads": 2,
    "model.branches": 1,
    "model.registers": 1,
    "model.diffusion_steps": 1,
    "training.epochs": 3,
    "training.batch_videos": 12,
    "training.precision": "fp32",
    "data.trim_frames": "batch",
}
TIMES = ("videos_per_second", "seconds", "seconds_left", "waited")


def experiment(**changes: Any) -> Experiment:
    return load_experiment("demo", TINY | {name.replace("__", "."): value for name, value in changes.items()})


def timeless(results: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, **dict.fromkeys(TIMES, 0.0)) for result in results]


@pytest.fixture
def both(demo_shards: Path, other_shards: Path) -> Collections:
    return Collections.open((str(demo_shards), str(other_shards)))


@pytest.fixture(scope="module")
def trained(demo_shards: Path, other_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> DirectoryReporter:
    reporter = DirectoryReporter(tmp_path_factory.mktemp("trained"))
    fit(experiment(), Collections.open((str(demo_shards), str(other_shards))), reporter, device=CPU)
    return reporter


def test_each_val_is_reported_and_their_mean_chooses(
    trained: DirectoryReporter, demo_shards: Path, other_shards: Path
) -> None:
    for result in trained.results:
        assert result.sumr == pytest.approx(np.mean(list(result.collections.values())))
        assert f"(demo {result.collections['demo']:.1f}, other {result.collections['other']:.1f}, " in result.line()
    best = max(trained.results, key=lambda result: result.sumr)
    assert best.epoch == trained.results[-1].best_epoch

    model = load_model(trained.best)
    for name, directory in (("demo", demo_shards), ("other", other_shards)):
        val, weights = ShardSet.open(directory).split("val"), ScoreWeights(model.experiment.evaluation.clip_weight)
        retrieval = evaluate(model.model, val, weights)
        assert retrieval.recall.sumr == best.collections[name] == model.metrics[f"SumR/{name}"]
    metrics = json.loads((trained.best / METRICS).read_text())
    assert metrics["collection"] == "demo + other" == metrics["shards"]["collection"]
    assert metrics["protocols"] == {"demo": "own splits", "other": "own splits"}
    assert replace(EpochResult.from_dict(metrics), planned_epochs=3) == best


class Stopping(DirectoryReporter):
    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        super().report(result, snapshot)
        if result.epoch == 1:
            raise ConnectionError("the node is gone")


def test_a_resumed_training_equals_an_uninterrupted_one(
    trained: DirectoryReporter, demo_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    turned = Collections.open((str(other_shards), str(demo_shards)))  # the order of the shards does not matter
    stopped, resumed = Stopping(tmp_path), DirectoryReporter(tmp_path)
    with pytest.raises(ConnectionError):
        fit(experiment(), turned, stopped, device=CPU)
    fit(experiment(), turned, resumed, device=CPU)
    assert timeless(stopped.results + resumed.results) == timeless(trained.results)
    ours, theirs = read_weights(resumed.last), read_weights(trained.last)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_shards_and_other_weights_are_refused(
    trained: DirectoryReporter, both: Collections, demo_shards: Path
) -> None:
    with pytest.raises(UserError, match=r"was trained on other shards: the shards' collection was 'demo \+ other'"):
        fit(experiment(), ShardSet.open(demo_shards), DirectoryReporter(trained.last.parent), device=CPU)
    changed = experiment(data__weights={"other": 0.5})
    with pytest.raises(UserError, match=r"data\.weights\.other was 1\.0 and is 0\.5 now"):
        fit(changed, both, DirectoryReporter(trained.last.parent), device=CPU)
    with pytest.raises(UserError, match=r"data\.weights\.qvh: no such collection; the shards are of demo, other"):
        Training(experiment(data__weights={"qvh": 0.5}), both, loop.Workers(), CPU)


def test_weights_change_which_videos_an_epoch_has(both: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(experiment(data__weights={"demo": 0.5, "other": 1.0}), both, loop.Workers(), CPU)
    seen: list[int] = []
    collate = loop.collate

    def watched(split: Any, videos: np.ndarray, *arguments: Any) -> Any:
        seen.extend(videos.tolist())
        return collate(split, videos, *arguments)

    monkeypatch.setattr(loop, "collate", watched)
    trained = training.run_epoch()
    assert len(seen) == len(set(seen)) == 12 + 16 and sum(video >= 24 for video in seen) == 16
    assert trained.learning_rate > 0  # the schedule's last step is that of the shorter epochs
    assert training._steps_per_epoch == 3


def test_with_val_it_trains_on_the_vals_of_all(both: Collections) -> None:
    training = Training(experiment(training__with_val=True), both, loop.Workers(), CPU)
    assert len(training._train) == 24 + 10 + 16 + 8
