"""The best and the latest checkpoint exist and are complete, whatever happens to the writer."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from support import small_models
from support.object_store import S3

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, read_state, read_weights
from dreamprvr_ray.checkpoints.store import WRITER, CheckpointStore
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import Failure
from dreamprvr_ray.storage.location import Storage

EXPERIMENT = load_experiment("demo")


def checkpoint(epoch: int, best_epoch: int, entries: int = 1000) -> Callable[[Path], None]:
    """Return a function that writes a checkpoint whose entries all equal its epoch."""
    tensor, metrics = torch.full((entries,), float(epoch)), {"epoch": epoch, "best_epoch": best_epoch}
    return Checkpoint({"a": tensor}, {"b": tensor}, EXPERIMENT, metrics).write


@pytest.fixture(params=["disk", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    if request.param == "disk":
        return CheckpointStore(Storage.of(tmp_path / "checkpoints"))
    s3: S3 = request.getfixturevalue("s3")
    return CheckpointStore(Storage.of(s3.uri("run/checkpoints")))


def test_the_best_and_the_latest_are_kept(store: CheckpointStore) -> None:
    with store.latest() as latest, store.best() as best:
        assert latest is None and best is None
    for epoch, best_epoch in ((1, 1), (2, 2), (3, 2), (4, 2)):
        store.write(epoch, best_epoch, checkpoint(epoch, best_epoch))
    store.wait()
    assert store.epochs() == [2, 4]
    with store.latest() as latest, store.best() as best:
        assert latest and best
        assert read_weights(latest)["a"][0] == 4 and read_weights(best)["a"][0] == 2 and read_state(best)["b"][0] == 2
    store.write(5, 5, checkpoint(5, 5))
    store.wait()
    assert store.epochs() == [5] and store.storage.names() == ["epoch-0005", WRITER]


def test_all_checkpoints_but_one_can_be_deleted(store: CheckpointStore) -> None:
    assert store.metrics() is None
    for epoch in (1, 2, 3):
        store.write(epoch, 2 if epoch > 1 else 1, checkpoint(epoch, 2))
    store.wait()
    assert store.metrics() == {"epoch": 3, "best_epoch": 2}
    store.keep_only(2)
    assert store.storage.names() == ["epoch-0002", WRITER] and store.epochs() == [2]
    assert store.at(2).exists("metrics.json") and not store.at(3).exists("metrics.json")


def test_incomplete_files_of_a_killed_writer_are_not_a_checkpoint(store: CheckpointStore) -> None:
    store.write(1, 1, checkpoint(1, 1))
    store.wait()
    store.storage.write_text("epoch-0002/weights.safetensors", "half")  # an incomplete upload
    assert store.epochs() == [1]
    store.write(3, 3, checkpoint(3, 3))
    store.wait()
    assert store.storage.names() == ["epoch-0003", WRITER]  # the incomplete one is deleted


class Pause:
    """A checkpoint that stops halfway through writing until `go` is set."""

    def __init__(self, epoch: int) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.epoch = epoch

    def __call__(self, directory: Path) -> None:
        (directory / "weights.safetensors").write_text("half")
        self.reached.set()
        assert self.go.wait(30)
        checkpoint(self.epoch, self.epoch)(directory)


def test_a_writer_stops_and_deletes_nothing_once_another_has_claimed_the_store(store: CheckpointStore) -> None:
    store.write(1, 1, checkpoint(1, 1))
    late, half = Pause(2), Pause(2)
    store.write(2, 2, late)
    assert late.reached.wait(30)
    later = CheckpointStore(store.storage)
    writer = later.claim()
    with later.latest() as latest:
        assert latest and read_weights(latest)["a"][0] == 1
    later.write(2, 2, half)
    assert half.reached.wait(30)
    late.go.set()  # it is complete now, and its writer would delete all others
    with pytest.raises(Failure, match=r"another run has resumed this training; this one stops$"):
        store.wait()
    half.go.set()
    later.wait()
    assert later.epochs() == [2]

    store.write(9, 9, checkpoint(9, 9))
    with pytest.raises(Failure, match="another run has resumed this training"):
        store.wait()
    same = CheckpointStore(store.storage, writer)  # a restarted worker of the later run
    same.write(3, 3, checkpoint(3, 3))
    same.wait()
    assert store.storage.names() == ["epoch-0003", WRITER]


def test_a_writer_whose_unfinished_checkpoint_is_deleted_reports_why(tmp_path: Path) -> None:
    store, later = CheckpointStore(Storage.of(tmp_path)), CheckpointStore(Storage.of(tmp_path))
    late = Pause(2)
    store.write(2, 2, late)
    assert late.reached.wait(30)
    later.write(3, 3, checkpoint(3, 3))
    later.wait()
    late.go.set()
    with pytest.raises(Failure, match="another run has resumed this training"):
        store.wait()
    assert later.epochs() == [3]


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    store, go = CheckpointStore(Storage.of(tmp_path)), threading.Event()

    def slow(directory: Path) -> None:
        assert go.wait(30)
        checkpoint(1, 1)(directory)

    store.write(1, 1, slow)
    assert store.epochs() == []
    go.set()
    store.wait()
    assert store.epochs() == [1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_reported_and_keeps_the_last_good_checkpoint(small_disk: Path) -> None:
    store = CheckpointStore(Storage.of(small_disk / "checkpoints"))
    store.write(1, 1, checkpoint(1, 1))
    store.write(2, 1, checkpoint(2, 1, entries=20_000))  # 160 kB: weights and state of 80 kB each
    store.write(3, 1, checkpoint(3, 1, entries=20_000))
    message = (
        r"checkpoints: cannot write the checkpoint of epoch 3: No space left on device;"
        r" the latest checkpoint is of epoch 2$"
    )
    with pytest.raises(Failure, match=message):
        store.wait()
    assert store.epochs() == [1, 2] and store.storage.names() == ["epoch-0001", "epoch-0002", WRITER]
    with store.latest() as latest:
        assert latest and read_weights(latest)["a"].eq(2).all()


def write_forever(location: Path, written: Connection) -> None:
    store = CheckpointStore(Storage.of(location))
    for epoch in range(1, 10_000):
        best = epoch - epoch % 3 or 1
        store.write(epoch, best, checkpoint(epoch, best, entries=200_000))
        written.send(epoch)


def test_a_kill_at_any_moment_leaves_complete_checkpoints(tmp_path: Path) -> None:
    moments, context = random.Random(0), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dreamprvr_ray.checkpoints.store"])  # otherwise each process imports torch
    for run in range(12):
        receiver, sender = context.Pipe(duplex=False)
        writer = context.Process(target=write_forever, args=(tmp_path / str(run), sender))
        writer.start()
        sender.close()
        written = receiver.recv()
        time.sleep(moments.uniform(0, 0.05))
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        with suppress(EOFError):
            while True:
                written = receiver.recv()
        store = CheckpointStore(Storage.of(tmp_path / str(run)))
        epochs = store.epochs()
        assert written == 1 or epochs[-1] >= written - 1  # `write` waits for the previous checkpoint
        for epoch in epochs:
            with store.opened(epoch) as directory:
                assert read_weights(directory)["a"].eq(epoch).all() and read_state(directory)["b"].eq(epoch).all()
                assert json.loads((directory / "metrics.json").read_text())["epoch"] == epoch


def test_a_models_checkpoint_can_be_in_an_object_store(s3: S3) -> None:
    store, model = CheckpointStore(Storage.of(s3.uri("run"))), small_models.build().float()
    metrics = {"epoch": 1, "best_epoch": 1}
    store.write(1, 1, Checkpoint(model.state_dict(), None, EXPERIMENT, metrics).write)
    with store.best() as best:
        assert best is None  # not before it is complete
    store.wait()
    with store.best() as best:
        assert best and all(
            torch.equal(tensor, model.state_dict()[name]) for name, tensor in read_weights(best).items()
        )


def test_what_a_user_puts_next_to_checkpoints_stays(store: CheckpointStore) -> None:
    others = ["epoch-0001/plot.svg", "mine/metrics.json", "notes.txt"]
    store.write(1, 1, checkpoint(1, 1))
    store.wait()
    for name in others:
        store.storage.write_text(name, name)
    for epoch in (2, 3):
        store.write(epoch, epoch, checkpoint(epoch, epoch))
    store.wait()
    assert store.epochs() == [3] and set(others) < set(store.storage.files())
    store.keep_only(3)
    store.delete_all()
    assert store.storage.files() == sorted([*others, WRITER])
