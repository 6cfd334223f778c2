"""Exporting a model for searches: its checkpoint without training state and, with shards, its calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import check_new_export, export_checkpoint
from dreamprvr_ray.checkpoints.locate import check_checkpoint
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.index.calibration import Calibration
from dreamprvr_ray.storage.files import writing
from dreamprvr_ray.storage.location import Storage


def export_model(
    checkpoint: Storage, out: Path, shards: ShardSet | None = None
) -> tuple[dict[str, Any], Calibration | None]:
    """Export a checkpoint to the new directory `out`, and return its metrics and its calibration.

    With shards, a calibration is learned from their val split and written too. It is made here because it depends on
    the model and on what searches need, which is an exported model.

    Raises `UserError` as `export_checkpoint` and `calibrate`, before anything is written; `Failure` if the disk is
    full.
    """
    check_checkpoint(checkpoint)
    calibration = None
    if shards is not None:
        from dreamprvr_ray.evaluation.test_record import load_fitting_model
        from dreamprvr_ray.index.calibrating import calibrate

        check_new_export(out)
        calibration = calibrate(load_fitting_model(checkpoint, shards), shards, str(checkpoint))
    with checkpoint.local_directory() as directory:
        metrics = export_checkpoint(directory, out)
    if calibration is not None:
        with writing(out):
            calibration.write(out)
    return metrics, calibration
