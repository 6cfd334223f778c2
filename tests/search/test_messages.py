"""What the driver and its trials tell each other through Ray Tune."""

from __future__ import annotations

from typing import Any

import pytest
from support.searches import trial_epoch

from dreamprvr_ray.search.messages import TrialRequest, decode_report
from dreamprvr_ray.training.failure import TrialFailure

VALUES = {"model.registers": 4, "optimizer.learning_rate": 3e-4}
# What Ray Tune adds to a report.
ADDED = {
    "training_iteration": 1,
    "done": False,
    "trial_id": "a1b2",
    "pid": 77,
    "hostname": "node",
    "timestamp": 1.0,
    "time_since_restore": 2.5,
    "iterations_since_restore": 1,
    "config/model.registers": 4,
}


def test_a_request_is_read_from_the_config_that_it_wrote() -> None:
    for request in (
        TrialRequest.for_trial(7, VALUES),
        TrialRequest.for_trial(7, VALUES, share=2),
        TrialRequest(0, 1, "paper-seed_1", VALUES),
    ):
        assert TrialRequest.from_config(request.to_config()) == request


def test_a_config_holds_the_values_and_the_trials_number() -> None:
    assert TrialRequest.for_trial(7, VALUES).to_config() == VALUES | {"trial_number": 7, "share": 1}
    assert TrialRequest(0, 1, "paper-seed_1", VALUES).to_config()["run"] == "paper-seed_1"


def test_an_epoch_is_read_without_what_ray_tune_adds() -> None:
    epoch = trial_epoch(3, 250.0, best=260.0)
    assert decode_report(epoch.to_dict() | ADDED) == epoch
    assert not set(epoch.to_dict()) & set(ADDED)


def test_a_failure_is_read_with_its_kind() -> None:
    failure = TrialFailure("out_of_memory", "CUDA out of memory")
    assert decode_report(failure.to_dict() | ADDED) == failure


@pytest.mark.parametrize("report", [None, {}, ADDED])
def test_a_trial_that_has_reported_nothing_has_neither(report: dict[str, Any] | None) -> None:
    assert decode_report(report) is None
