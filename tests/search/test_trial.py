"""How a trial reports its failures, without Ray."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import ObjectStoreError, StorageFailure, UserError
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search import trial
from dreamprvr_ray.search.messages import TrialRequest, decode_report
from dreamprvr_ray.search.trial import TrialJob, run_trial
from dreamprvr_ray.training.failure import TrainingDiverged, TrialFailure

JOB = TrialJob(load_experiment("demo"), "shards", WorkerGroup(1, 1.0, 0.0), "s3://bucket/run", "runs")
CONFIG = TrialRequest.for_trial(5, {"model.registers": 2}).to_config()
FAILURE = "s3://bucket/run: object-store request failed: timeout"


@pytest.mark.parametrize(("failing", "attempts", "reported"), [(2, 3, []), (99, 4, [TrialFailure("store", FAILURE)])])
def test_a_failed_object_store_request_is_retried_and_then_reported_with_its_kind(
    monkeypatch: pytest.MonkeyPatch, failing: int, attempts: int, reported: list[TrialFailure]
) -> None:
    runs, reports = list[str](), list[Any]()

    def train(request: TrialRequest, job: TrialJob) -> None:
        runs.append(request.run)
        if len(runs) <= failing:
            raise ObjectStoreError(FAILURE)

    monkeypatch.setattr(trial, "STORE_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(trial, "train_trial", train)
    monkeypatch.setattr(trial.tune, "report", lambda metrics: reports.append(decode_report(metrics)))
    assert JOB.experiment.training.max_failures == 3
    run_trial(CONFIG, JOB)
    assert runs == ["trial_005"] * attempts and reports == reported


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("no memory left"), "out_of_memory"),
        (torch.OutOfMemoryError("no memory left"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (TrainingDiverged("the loss is not finite"), "diverged"),
        (UserError("the shards have other sizes"), "error"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage"),
        (StorageFailure("runs/trial_005/checkpoints: cannot write the checkpoint of epoch 3"), "storage"),
    ],
)
def test_a_failure_that_a_retry_would_not_fix_is_reported(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    reports = list[Any]()

    def train(request: TrialRequest, job: TrialJob) -> None:
        raise error

    monkeypatch.setattr(trial, "train_trial", train)
    monkeypatch.setattr(trial.tune, "report", lambda metrics: reports.append(decode_report(metrics)))
    run_trial(CONFIG, JOB)
    (report,) = reports
    assert (report.kind, report.reason) == (kind, str(error))


def test_any_other_error_is_left_to_ray_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(request: TrialRequest, job: TrialJob) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(trial, "train_trial", train)
    with pytest.raises(RuntimeError, match="broken"):
        run_trial(CONFIG, JOB)


def test_what_is_wrong_with_a_node_is_not_the_trials_own_failure(
    monkeypatch: pytest.MonkeyPatch, demo_shards: Path, tmp_path: Path
) -> None:
    """Before, a node without the mount, or with a full cache, failed each trial that it got."""
    reports = list[Any]()
    monkeypatch.setattr(trial.tune, "report", lambda metrics: reports.append(decode_report(metrics)))
    job = replace(JOB, search_location=str(tmp_path / "out"), shards=str(demo_shards))
    run_trial(CONFIG, job)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "search.yaml").touch()

    def refuse(location: str) -> None:
        raise UserError("/cache: cannot cache s3://bucket/tvr here: No space left on device")

    monkeypatch.setattr(trial.Collections, "open", refuse)
    run_trial(CONFIG, job)
    assert [report.kind for report in reports] == ["storage"] * 2
    assert "is not visible from every node" in reports[0].reason and "No space left on device" in reports[1].reason
