"""A trial's retries after failed object-store requests, without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import ObjectStoreError
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search import trial
from dreamprvr_ray.search.messages import TrialRequest, decode_report
from dreamprvr_ray.search.trial import TrialJob, run_trial
from dreamprvr_ray.training.failure import TrialFailure

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
    job = TrialJob(load_experiment("demo"), "shards", WorkerGroup(1, 1.0, 0.0), "s3://bucket/run", "runs")
    assert job.experiment.training.max_failures == 3
    run_trial(TrialRequest.for_trial(5, {"model.registers": 2}).to_config(), job)
    assert runs == ["trial_005"] * attempts and reports == reported
