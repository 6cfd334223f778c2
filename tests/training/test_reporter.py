"""The result of an epoch, on a line and on disk, and the directory that keeps the last and the best checkpoint."""

from __future__ import annotations

import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training import reporter as training_reporter
from dreamprvr_ray.training.reporter import DirectoryReporter, EpochResult, StepTraffic, duration, latest_result

EARLIER = Path(__file__).parents[1] / "golden" / "earlier" / "version_0.1.0.tar.xz"
RESULT = EpochResult(
    epoch=3,
    sumr=150.04,
    best_sumr=160.0,
    best_epoch=2,
    recall={1: 10.0, 5: 20.04, 10: 30.0, 100: 90.0},
    median_rank=7.5,
    ties=2,
    losses={"clip_nce": 2.0, "total": 1.23456},
    learning_rate=1e-3,
    videos_per_second=12.34,
    seconds=10.0,
    seconds_left=95.0,
    waited=0.1,
    finished=False,
    planned_epochs=12,
)
METRICS = {
    "epoch": 3,
    "SumR": 150.04,
    "best_SumR": 160.0,
    "best_epoch": 2,
    "R@1": 10.0,
    "R@5": 20.04,
    "R@10": 30.0,
    "R@100": 90.0,
    "median_rank": 7.5,
    "ties": 2,
    "loss/clip_nce": 2.0,
    "loss/total": 1.23456,
    "learning_rate": 1e-3,
    "videos_per_second": 12.34,
    "seconds": 10.0,
    "seconds_left": 95.0,
    "waited": 0.1,
    "finished": False,
}
TRAFFIC = StepTraffic(loss=1.9, gradients=140.2, video_tokens=63.0)


def test_the_line_of_an_epoch() -> None:
    assert RESULT.line() == (
        "epoch  3/12 | loss 1.2346 | val R 10.0 20.0 30.0 90.0 | SumR 150.0 (best 160.0 at 2)"
        " | 12.3 videos/s | 1 min 35 s left"
    )
    last = replace(RESULT, epoch=12, best_epoch=12, best_sumr=150.04, finished=True)
    assert "epoch 12/12" in last.line() and "(best so far)" in last.line() and last.line().endswith("| done")
    assert replace(RESULT, planned_epochs=None).line().startswith("epoch 3 | ")


def test_the_line_of_the_traffic() -> None:
    assert TRAFFIC.line() == (
        "each worker sends 1.9 MB per step for the loss (63.0 MB if video tokens were gathered)"
        " and 140.2 MB of gradients"
    )


def test_names_and_order_of_the_metrics() -> None:
    assert list(RESULT.to_dict().items()) == list(METRICS.items())
    optional = {
        "gpu_bytes": 2**30,
        "sent_MB/loss": 1.9,
        "sent_MB/gradients": 140.2,
        "sent_MB/video_tokens": 63.0,
        "encode_ms": 0.25,
        "zero_shot_SumR": 260.5,
        "encoder_weight": 0.3,
    }
    full = replace(RESULT, gpu_bytes=2**30, traffic=TRAFFIC, encode_ms=0.25, zero_shot_sumr=260.5, encoder_weight=0.3)
    assert full.to_dict() == METRICS | optional
    assert list(full.to_dict())[-8:] == [*list(optional)[:-3], "finished", *list(optional)[-3:]]
    assert "below the encoder alone" not in replace(full, zero_shot_sumr=full.sumr).line()
    assert ", below the encoder alone: 999.0)" in replace(full, zero_shot_sumr=999.0).line()


@pytest.mark.parametrize(
    "result", [RESULT, replace(RESULT, gpu_bytes=7, traffic=TRAFFIC, encode_ms=0.25, finished=True)]
)
def test_metrics_are_read_back_without_what_ray_tune_adds(result: EpochResult) -> None:
    added = {"config": {"model.registers": 4}, "training_iteration": 1, "time_total_s": 2.5, "done": False, "pid": 7}
    read = EpochResult.from_dict(result.to_dict() | added | {"collection": "tvr", "protocol": "own splits"})
    assert read == replace(result, planned_epochs=None)
    assert read.to_dict() == result.to_dict()


def test_metrics_may_lack_all_but_epochs_and_sumr() -> None:
    read = EpochResult.from_dict({"epoch": 1, "SumR": 2.0, "best_SumR": 2.0, "best_epoch": 1})
    assert (read.epoch, read.sumr, read.best_sumr, read.best_epoch, read.finished) == (1, 2.0, 2.0, 1, False)
    assert math.isnan(read.seconds) and math.isnan(read.recall[10]) and read.losses == {} and read.traffic is None
    with pytest.raises(KeyError, match="best_epoch"):
        EpochResult.from_dict({"epoch": 1, "SumR": 2.0, "best_SumR": 2.0})


def test_results_of_the_earlier_version_are_read() -> None:
    with tarfile.open(EARLIER) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        metrics = json.load(files["run/best/metrics.json"] or pytest.fail("missing"))
        epochs = (files["search/runs/trial_000/epochs.jsonl"] or pytest.fail("missing")).read().splitlines()
    for written in (metrics, *map(json.loads, epochs)):
        read = EpochResult.from_dict(written)
        added = {"collection", "protocol", "time_this_iter_s", "time_total_s"}
        assert read.to_dict() == {name: value for name, value in written.items() if name not in added}


def test_the_latest_result_of_a_store(tmp_path: Path) -> None:
    store = CheckpointStore(Storage.of(tmp_path))
    assert latest_result(store) is None
    for epoch in (1, 2):
        metrics = replace(RESULT, epoch=epoch).to_dict() | {"collection": "demo"}
        store.write(epoch, 2, Checkpoint({"a": torch.zeros(1)}, None, load_experiment("demo"), metrics).write)
    store.wait()
    assert latest_result(store) == replace(RESULT, epoch=2, planned_epochs=None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_directory_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    lines: list[str] = []
    reporter = DirectoryReporter(tmp_path / "run", lines.append)
    with reporter.latest_checkpoint() as nothing:
        assert nothing is None
    for epoch, best in ((1, 1), (2, 2), (3, 2)):
        checkpoint = Checkpoint({"a": torch.zeros(1)}, None, load_experiment("demo"), {"epoch": epoch})
        reporter.report(replace(RESULT, epoch=epoch, best_epoch=best), lambda checkpoint=checkpoint: checkpoint)
    for name, epoch in (("last", 3), ("best", 2)):
        assert json.loads((tmp_path / "run" / name / "metrics.json").read_text()) == {"epoch": epoch}
    with reporter.latest_checkpoint() as latest:
        assert latest == tmp_path / "run" / "last"
    assert [result.epoch for result in reporter.results] == [1, 2, 3]
    assert lines == [result.line() for result in reporter.results]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last"]


def test_a_kill_between_the_two_checkpoints_repeats_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`last` alone would let training continue after an epoch that never becomes the best checkpoint."""

    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    reporter = DirectoryReporter(tmp_path)
    best = replace(RESULT, best_epoch=3, best_sumr=RESULT.sumr)
    content = Checkpoint({"weight": torch.ones(2)}, {"step": 1}, load_experiment("demo"), best.to_dict())
    monkeypatch.setattr(training_reporter, "copy_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        reporter.report(best, lambda: content)
    with reporter.latest_checkpoint() as latest:
        assert latest is None
    assert json.loads((reporter.best / "metrics.json").read_text())["epoch"] == 3


@pytest.mark.parametrize(
    "changes", [{"epoch": "3"}, {"best_epoch": None}, {"SumR": [1]}, {"best_SumR": True}, {"sent_MB/none": 1}], ids=str
)
def test_damaged_metrics_are_reported(changes: dict[str, object], tmp_path: Path) -> None:
    storage = Storage.of(tmp_path)
    storage.write_text("epoch-0003/metrics.json", json.dumps(RESULT.to_dict() | changes))
    with pytest.raises(UserError) as error:
        latest_result(CheckpointStore(storage))
    assert str(error.value).startswith(f"{tmp_path}") and "damaged: " in str(error.value)
