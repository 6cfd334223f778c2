"""Ray Train groups that lose workers, and runs that live in an object store."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from support.object_store import S3

from benchmarks import kills
from dreamprvr_ray.checkpoints.checkpoint import METRICS, read_weights
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.runtime.resources import WorkerCount
from dreamprvr_ray.runtime.train_run import FirstStep, Start, train
from dreamprvr_ray.storage.files import parse_json, read_json
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import DirectoryReporter

SETTINGS = {
    "training.batch_videos": 8,
    "training.patience": 20,
    "model.hidden_size": 16,
    "model.branches": 2,
    "model.dropout": 0.0,
    "model.input_dropout": 0.0,
}


def experiment(**changes: object) -> Experiment:
    return load_experiment("demo", SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


def test_a_run_in_an_object_store_survives_its_worker(
    local_ray: None, s3: S3, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", str(tmp_path / "cache"))
    remote, lines = Storage.of(s3.uri("data")), []
    remote.upload_directory("shards", demo_shards, last="manifest.json")
    shards, out = (remote / "shards").location, (remote / "runs").location
    killed = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 2/") and not killed.is_set():
            killed.set()
            (worker,) = kills.ray_processes("RayTrainWorker")
            worker.kill()

    metrics = train(
        experiment(training__epochs=6), shards, out, WorkerCount(1), resume=False, say=say, began=time.time()
    )
    assert killed.is_set() and any(line.startswith("1 worker trains again; ") for line in lines)
    epochs = [int(line.split("/")[0].removeprefix("epoch")) for line in lines if line.startswith("epoch")]
    assert (
        epochs[-1] == 6 and set(epochs) == set(range(1, 7)) and len(epochs) <= 7
    )  # at most one finished epoch was trained again
    assert metrics["finished"] or metrics["epoch"] == metrics["best_epoch"]
    storage = Storage.of(out)
    assert {"best", "checkpoints", "experiment.yaml", "tensorboard"} <= set(storage.names())

    undisturbed = DirectoryReporter(tmp_path / "undisturbed")
    fit(experiment(training__epochs=6), local_shards(str(demo_shards)), undisturbed)
    assert read_json(undisturbed.best / METRICS)["SumR"] == metrics["SumR"]
    with (storage / "best").local_directory() as directory:
        weights, theirs = read_weights(directory), read_weights(undisturbed.best)
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights.items())
    readings = [evaluate_checkpoint(storage / "best", local_shards(shards), "test") for _ in range(2)]
    assert [reading["test_reads"] for reading in readings] == [1, 2]
    assert parse_json(storage.read_text("best/test.json"), "test.json")["readings"] == readings

    # A finished run has nothing left to do; one of another experiment is refused, and so is one that is in the way.
    said = len(lines)
    resumed = train(
        experiment(training__epochs=6), shards, out, WorkerCount(1), resume=True, say=lines.append, began=time.time()
    )
    assert resumed["SumR"] == metrics["SumR"] and len(lines) == said
    for resume, wanted in (
        (True, "cannot resume: training.epochs was 6 and is 7 now"),
        (False, "already there; go on with --resume"),
    ):
        with pytest.raises(UserError, match=wanted):
            train(
                experiment(training__epochs=7),
                shards,
                out,
                WorkerCount(1),
                resume=resume,
                say=lines.append,
                began=time.time(),
            )


def test_what_failed_for_good_is_said_in_a_line(local_ray: None, demo_shards: Path, tmp_path: Path) -> None:
    hopeless = experiment(optimizer__learning_rate=1e6)
    with pytest.raises(
        Failure, match=r"^epoch 1: the loss is not finite \(.*\); a lower optimizer\.learning_rate may help$"
    ):
        train(
            hopeless,
            str(demo_shards),
            str(tmp_path / "run"),
            WorkerCount(1),
            resume=False,
            say=print,
            began=time.time(),
        )


def test_the_line_of_a_start() -> None:
    first = FirstStep(workers=2, entered=109.5, began=110.25)
    assert first.line(Start(100.0, 104.0)) == (
        "2 workers train 10.2 s after the start: Python and Ray 4.0 s, workers 5.5 s, model and data 0.8 s"
    )
    assert FirstStep(1, 109.5, 110.25).line(None) == "1 worker trains again; model and data 0.8 s"
