"""Ray Train groups that lose workers, and runs that live in an object store."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import ray.train
import torch
from support.object_store import S3

from benchmarks import kills
from dreamprvr_ray.checkpoints.checkpoint import METRICS, load_model, read_weights
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import Failure, ObjectStoreError, UserError
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.runtime.ray_internals.trainers import Trainer
from dreamprvr_ray.runtime.resources import WorkerCount
from dreamprvr_ray.runtime.train_run import publishing_if_it_ends_early, run_group, train
from dreamprvr_ray.storage import lease
from dreamprvr_ray.storage.files import parse_json, read_json
from dreamprvr_ray.storage.lease import LeaseLost
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import WorkersFailed
from dreamprvr_ray.training.loop import Training, fit, with_feature_sizes
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

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 2/") and not killed.is_set():
            killed.set()
            (worker,) = kills.ray_processes("RayTrainWorker")
            worker.kill()

    metrics = train(
        experiment(training__epochs=6),
        shards,
        out,
        WorkerCount(1),
        resume=False,
        log=log,
    )
    assert killed.is_set() and any(line.startswith("training restarted with 1 worker (") for line in lines)
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
    assert [reading.reading and reading.reading.number for reading in readings] == [1, 2]
    assert parse_json(storage.read_text("best/test.json"), "test.json")["readings"] == [
        reading.to_dict() for reading in readings
    ]

    # A finished run trains no further. Another experiment is refused, and so is a run without `resume`.
    line_count = len(lines)
    resumed = train(
        experiment(training__epochs=6),
        shards,
        out,
        WorkerCount(1),
        resume=True,
        log=lines.append,
    )
    assert resumed["SumR"] == metrics["SumR"] and len(lines) == line_count
    for resume, message in (
        (True, "cannot resume: training.epochs was 6 and is 7 now"),
        (False, "already exists; use --resume to continue"),
    ):
        with pytest.raises(UserError, match=message):
            train(
                experiment(training__epochs=7),
                shards,
                out,
                WorkerCount(1),
                resume=resume,
                log=lines.append,
            )


def test_a_diverged_training_fails_with_one_line(local_ray: None, demo_shards: Path, tmp_path: Path) -> None:
    diverging = experiment(optimizer__learning_rate=1e6)
    with pytest.raises(
        Failure,
        match=r"^epoch 1, step \d+ of \d+: the loss is not finite \(.*\); a lower optimizer\.learning_rate may help$",
    ):
        train(
            diverging,
            str(demo_shards),
            str(tmp_path / "run"),
            WorkerCount(1),
            resume=False,
            log=print,
        )


def failing_trainer(*errors: Exception) -> Trainer:
    def fit() -> None:
        raise ray.train.WorkerGroupError("workers failed", dict(enumerate(errors)))

    return cast(Trainer, SimpleNamespace(fit=fit))


@pytest.mark.parametrize("error", [UserError("a mistake"), ObjectStoreError("no answer"), Failure("a full disk")])
def test_a_workers_own_error_keeps_its_type(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run_group(failing_trainer(RuntimeError("connection closed by peer"), error), Storage("/run"))
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RuntimeError("first\nthe worker died"), "error"), (MemoryError("the worker died"), "out_of_memory")],
)
def test_any_other_error_has_a_kind_and_one_line(error: Exception, kind: str) -> None:
    with pytest.raises(WorkersFailed) as raised:
        run_group(failing_trainer(error), Storage("/run"))
    for failure in (raised.value, pickle.loads(pickle.dumps(raised.value))):  # noqa: S301
        assert failure.kind == kind
        assert str(failure) == (
            "/run: training failed: the worker died; use --resume to continue from the last checkpoint"
        )


def test_a_group_without_errors_of_workers_still_fails() -> None:
    with pytest.raises(WorkersFailed, match="unknown reason"):
        run_group(failing_trainer(), Storage("/run"))


def run_with_checkpoints(tmp_path: Path, demo_shards: Path, *epochs: int) -> tuple[Storage, CheckpointStore]:
    """A run whose checkpoints are of these epochs; the last one is the best."""
    storage, shards = Storage.of(tmp_path / "run"), ShardSet.open(demo_shards)
    tiny = with_feature_sizes(experiment(), shards.manifest)
    storage.write_text("experiment.yaml", tiny.to_yaml())
    training = Training(tiny, shards, Workers(), torch.device("cpu"))
    training.restore(None)
    store, result = CheckpointStore(storage / "checkpoints"), training.run_epoch()
    for epoch in epochs:
        best = replace(result, epoch=epoch, best_epoch=epoch)
        store.write(epoch, epoch, training.snapshot(best).write)
    store.wait()
    return storage, store


def test_a_run_does_not_resume_on_other_shards(tmp_path: Path, demo_shards: Path) -> None:
    """It is refused before Ray starts."""
    storage, _ = run_with_checkpoints(tmp_path, demo_shards, 1)
    shutil.copytree(demo_shards, tmp_path / "shards")
    manifest = Manifest.open(demo_shards)
    train_split = replace(manifest.splits["train"], queries=7)
    replace(manifest, splits=dict(manifest.splits) | {"train": train_split}).write(tmp_path / "shards")
    with pytest.raises(UserError) as error:
        train(experiment(), str(tmp_path / "shards"), storage.location, WorkerCount(1), resume=True, log=print)
    queries = manifest.splits["train"].queries
    assert error.value.mistakes == (
        f"{storage}: cannot resume on other shards: the shards' number of queries in train was {queries} and is 7 now",
    )
    metrics = storage / "checkpoints" / "epoch-0001"
    metrics.write_text(METRICS, metrics.read_text(METRICS).replace('"fingerprint"', '"fingerprnt"'))
    with pytest.raises(UserError, match=r"checkpoints: the latest metrics\.json is damaged: not a record of shards"):
        train(experiment(), str(demo_shards), storage.location, WorkerCount(1), resume=True, log=print)


@pytest.mark.parametrize("text", ["", "[1, 2]", "tvr"])
def test_a_run_whose_configuration_is_damaged_does_not_resume(text: str, tmp_path: Path, demo_shards: Path) -> None:
    storage, _ = run_with_checkpoints(tmp_path, demo_shards, 1)
    storage.write_text("experiment.yaml", text)
    with pytest.raises(UserError, match=r"^\S+run/experiment.yaml: must be a mapping of keys to values, not "):
        train(experiment(), str(demo_shards), storage.location, WorkerCount(1), resume=True, log=print)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Failure("a worker is lost"), RuntimeError("a bug")], ids=repr)
def test_a_run_that_ends_early_publishes_its_best_checkpoint(
    error: BaseException, tmp_path: Path, demo_shards: Path
) -> None:
    storage, store = run_with_checkpoints(tmp_path, demo_shards, 1, 2)
    lines: list[str] = []
    for _ in range(2):
        with pytest.raises(type(error)), publishing_if_it_ends_early(store, storage, lines.append):
            raise error
        assert lines.pop() == f"best epoch so far: 2, checkpoint {storage / 'best'}"
        assert load_model(tmp_path / "run" / "best").metrics["epoch"] == 2
        (storage / "best").write_text("test.json", '{"readings": []}')
    assert (storage / "best").exists("test.json")  # the same checkpoint keeps the record of its readings


def test_a_published_checkpoint_gets_what_the_training_learned_later(tmp_path: Path, demo_shards: Path) -> None:
    storage, store = run_with_checkpoints(tmp_path, demo_shards, 1, 2)
    best = storage / "best"
    for learned in (False, True):
        if learned:
            best.write_text("test.json", '{"readings": []}')
            store.add_moments(2, lambda checkpoint: MomentNetwork())
        with pytest.raises(KeyboardInterrupt), publishing_if_it_ends_early(store, storage, print):
            raise KeyboardInterrupt
        assert (load_model(tmp_path / "run" / "best").moments is not None) == learned
    assert best.exists("test.json")
    assert best.read_text("checksums.json") == store.at(2).read_text("checksums.json")


def test_an_earlier_published_checkpoint_is_replaced_when_a_finished_run_is_resumed(
    local_ray: None, tmp_path: Path, demo_shards: Path
) -> None:
    """As after a kill between the last epoch and the copy of the best checkpoint."""
    out = tmp_path / "run"
    best = train(experiment(training__epochs=2), str(demo_shards), str(out), WorkerCount(1), resume=False, log=print)
    published = read_json(out / "best" / METRICS)
    (out / "best" / METRICS).write_text(json.dumps(published | {"SumR": 0.0}))
    again = train(experiment(training__epochs=2), str(demo_shards), str(out), WorkerCount(1), resume=True, log=print)
    assert again == best == read_json(out / "best" / METRICS) and load_model(out / "best")


def test_another_best_checkpoint_replaces_its_files_only(tmp_path: Path, demo_shards: Path) -> None:
    storage, store = run_with_checkpoints(tmp_path, demo_shards, 1, 2)
    (storage / "checkpoints" / "epoch-0002").write_text("notes.txt", "of a checkpoint")
    best = storage / "best"
    for name in ("metrics.json", "test.json", "notes.txt", "plots/curve.svg"):
        best.write_text(name, "earlier")
    with pytest.raises(KeyboardInterrupt), publishing_if_it_ends_early(store, storage, print):
        raise KeyboardInterrupt
    assert load_model(tmp_path / "run" / "best").metrics["epoch"] == 2 and not best.exists("test.json")
    assert best.read_text("notes.txt") == best.read_text("plots/curve.svg") == "earlier"


def test_a_run_that_another_command_has_followed_is_left_to_it(tmp_path: Path, demo_shards: Path) -> None:
    """Workers of a suspended driver fail when another one resumes its run. Its end must not claim the run back."""
    storage, store = run_with_checkpoints(tmp_path, demo_shards, 1, 2)
    follower = CheckpointStore(storage / "checkpoints").claim()

    def check() -> None:
        raise LeaseLost("another process has taken over")

    with pytest.raises(Failure, match="a worker is lost"), publishing_if_it_ends_early(store, storage, print, check):
        raise Failure("a worker is lost")
    assert (storage / "checkpoints").read_text("owner") == follower and not (storage / "best").exists(METRICS)


def test_a_run_in_a_bucket_has_one_driver_on_all_machines(
    s3: S3, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.LEASE_SECONDS, "1.2")
    storage = Storage.of(s3.uri("run"))
    with storage.lock():
        monkeypatch.setattr(lease, "_machine", lambda: "another machine")
        with pytest.raises(UserError, match="is using this directory; wait for it to finish, or stop it"):
            train(experiment(), str(demo_shards), storage.location, WorkerCount(1), resume=False, log=print)
    assert storage.names() == []


def test_a_run_that_ends_before_its_first_checkpoint_ends_as_it_did(tmp_path: Path, demo_shards: Path) -> None:
    storage, store = run_with_checkpoints(tmp_path, demo_shards)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt), publishing_if_it_ends_early(store, storage, lines.append):
        raise KeyboardInterrupt
    assert lines == [] and not (storage / "best").exists(METRICS)
