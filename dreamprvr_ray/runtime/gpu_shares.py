"""Which shares of GPUs the workers of one training can have. Imports no Ray, since a search's settings check it too."""

from __future__ import annotations


def refuse_gpus(workers: int, gpus_per_worker: float) -> str | None:
    """Return why a group cannot have this many GPUs per worker, or None if it can.

    NCCL refuses two workers of a group on one GPU, and Ray divides single GPUs only.
    """
    if gpus_per_worker == int(gpus_per_worker):
        return None
    if gpus_per_worker > 1:
        return f"gpus_per_worker {gpus_per_worker:g}: must be a whole number above 1, or a fraction of one GPU"
    if workers > 1:
        return (
            f"gpus_per_worker {gpus_per_worker:g}: {workers} workers of a training cannot share a GPU (NCCL needs one"
            " one for each; use 1, or one worker per trial"
        )
    return None
