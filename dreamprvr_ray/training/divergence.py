"""Whether an epoch's losses, weights and scores are finite, and what was not finite first: features, losses, weights.

Losses are recorded at every step without waiting for the device. Weights are checked once an epoch, after its last
step, so that an epoch that ends with weights that are not finite is never evaluated or kept as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dreamprvr_ray.data.finite import find_not_finite
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.training.failure import TrainingDiverged

ADVICE = "a lower optimizer.learning_rate may help"


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every value of tensors on one device is finite. Waits for the device once."""
    return bool(torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all())


def losses_diverged(
    epoch: int, losses: Tensor, names: Sequence[str], split: Split, directory: Path | str
) -> TrainingDiverged:
    """Return the error for an epoch (from 1) whose mean loss is not finite.

    `losses` (S, L) are the values of each step, in the order of `names`; `split` of the shards in `directory` is what
    they were computed from.
    """
    if features := _features_diverged(epoch, split, directory):
        return features
    finite = losses.isfinite()
    bad = (~finite).any(1).nonzero()
    if not len(bad):  # their sum is not finite
        return TrainingDiverged(f"epoch {epoch}: the mean loss is not finite; {ADVICE}")
    first = int(bad[0])
    # A single term overflows by itself. All of them at once have the weights in common, which the step before changed;
    # terms that are always zero, such as those of the registers in a model without any, tell nothing.
    used = (losses[:first] != 0).any(0)
    if first > 0 and not finite[first][used].any():
        terms = f"every term: the weights are not finite since step {first}"
    else:
        terms = ", ".join(name for name, holds in zip(names, finite[first].tolist(), strict=True) if not holds)
    return TrainingDiverged(
        f"epoch {epoch}, step {first + 1} of {len(losses)}: the loss is not finite ({terms}); {ADVICE}"
    )


def weights_diverged(epoch: int) -> TrainingDiverged:
    """Return the error for an epoch (from 1) that ends with weights that are not finite."""
    return TrainingDiverged(f"epoch {epoch}: the weights are not finite after the last step; {ADVICE}")


def scores_diverged(epoch: int, split: Split, directory: Path | str) -> TrainingDiverged:
    """Return the error for an epoch (from 1) after which the scores on `split` are not finite."""
    return _features_diverged(epoch, split, directory) or TrainingDiverged(
        f"epoch {epoch}: the scores on {split.name} are not finite, although the weights are; {ADVICE}"
    )


def _features_diverged(epoch: int, split: Split, directory: Path | str) -> TrainingDiverged | None:
    owner = find_not_finite(split)
    if owner is None:
        return None
    return TrainingDiverged(
        f"epoch {epoch}: the features of {owner} in split {split.name} of {directory} are not finite; convert again"
    )
