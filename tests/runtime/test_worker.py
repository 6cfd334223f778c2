"""The job of a worker on its way through Ray Train."""

from __future__ import annotations

import json
import subprocess
import sys

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.runtime.worker import TrainJob

JOB = TrainJob(load_experiment("demo", {"model.registers": 3}), "/shards", "/runs/one", writer="abc")


def test_a_job_is_read_as_it_was_written() -> None:
    assert TrainJob.from_dict(JOB.to_dict()) == JOB
    assert (
        TrainJob.from_dict(TrainJob(JOB.experiment, "s3://bucket/shards", "s3://bucket/run").to_dict()).writer is None
    )


def test_a_job_holds_plain_values_only() -> None:
    """Ray Train's controller unpickles it, and would import torch for anything else."""
    assert json.loads(json.dumps(JOB.to_dict())) == JOB.to_dict()


def test_the_modules_that_the_controller_imports_do_not_import_torch() -> None:
    program = "import sys; import dreamprvr_ray.runtime.ray_internals.trainers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
