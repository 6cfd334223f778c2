"""The kind of failure of an exception, and its record."""

from __future__ import annotations

import pytest
import torch

from dreamprvr_ray.errors import Failure, ObjectStoreError, UserError
from dreamprvr_ray.training.failure import FailureKind, TrainingDiverged, TrialFailure, WorkersFailed


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (UserError("first", "second"), "error", "first"),
        (Failure("disk full"), "error", "disk full"),
        (ObjectStoreError("s3://x: no answer"), "store", "s3://x: no answer"),
        (TrainingDiverged("epoch 1: not finite"), "diverged", "epoch 1: not finite"),
        (torch.OutOfMemoryError("CUDA out of memory\nmore"), "out_of_memory", "CUDA out of memory"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (WorkersFailed("training failed: killed", "out_of_memory"), "out_of_memory", "training failed: killed"),
        (RuntimeError("StoreError: out of memory, diverged"), "error", "StoreError: out of memory, diverged"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_kinds(error: Exception, kind: FailureKind, reason: str) -> None:
    failure = TrialFailure.from_error(error)
    assert failure == TrialFailure(kind, reason)
    assert TrialFailure.from_dict(failure.to_dict() | {"training_iteration": 1}) == failure


def test_a_cpu_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert TrialFailure.from_error(error.value).kind == "out_of_memory"


def test_an_epoch_is_not_a_failure() -> None:
    assert TrialFailure.from_dict({"epoch": 1, "SumR": 2.0}) is None
