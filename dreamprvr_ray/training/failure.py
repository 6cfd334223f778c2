"""Failures of a training, and the record of one that a trial reports in place of an epoch."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from dreamprvr_ray.errors import Failure, ObjectStoreError, StorageFailure, first_line

FailureKind = Literal["error", "out_of_memory", "store", "storage", "diverged"]
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.ENODEV)
REASON, KIND = "failure", "failure_kind"


class TrainingDiverged(Failure):
    """The loss is no longer a finite number."""


class WorkersFailed(Failure):
    """The workers of a group failed more often than `training.max_failures` allows.

    `kind` classifies the error of the first worker that failed.
    """

    def __init__(self, message: str, kind: FailureKind) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[WorkersFailed], tuple[str, FailureKind]]:
        # Exception's own version would pass the message only.
        return type(self), (str(self), self.kind)


@dataclass(frozen=True)
class TrialFailure:
    """Why a trial could not be trained.

    `kind` is `out_of_memory` if a GPU or the machine ran out of memory, `store` if an object store failed and a retry
    may help, `storage` if a file system of the machine did (full, not mounted), `diverged` if the loss was not finite,
    else `error`.
    """

    kind: FailureKind
    reason: str  # one line

    @classmethod
    def from_error(cls, error: BaseException) -> TrialFailure:
        """Classify an exception."""
        kind: FailureKind = "error"
        if is_out_of_memory(error):
            kind = "out_of_memory"
        elif isinstance(error, ObjectStoreError):
            kind = "store"
        elif isinstance(error, StorageFailure) or is_storage_error(error):
            kind = "storage"
        elif isinstance(error, TrainingDiverged):
            kind = "diverged"
        elif isinstance(error, WorkersFailed):
            kind = error.kind
        return cls(kind, first_line(error))

    def to_dict(self) -> dict[str, Any]:
        """Return what a trial reports to Ray Tune."""
        return {REASON: self.reason, KIND: self.kind}

    @classmethod
    def from_dict(cls, metrics: Mapping[str, Any]) -> TrialFailure | None:
        """Read a trial's report; None if it reports an epoch."""
        if REASON not in metrics:
            return None
        return cls(cast(FailureKind, metrics.get(KIND, "error")), metrics[REASON])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU or the machine ran out of memory."""
    # torch has no type for the CPU's allocator: it raises a RuntimeError that names it.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def is_storage_error(error: BaseException) -> bool:
    """Return whether a file system failed, as a full disk does: any other training would fail there too."""
    return isinstance(error, OSError) and error.errno in STORAGE_ERRORS
