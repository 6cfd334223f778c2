"""What a Ray Train worker runs: the training loop, with this process's place in the worker group."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device
from ray.util.queue import Queue

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.locations import Locations
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.runtime.reporting import FollowerReporter, RayTrainReporter
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrainingDiverged
from dreamprvr_ray.training.loop import fit


@dataclass(frozen=True)
class TrainJob:
    """What every worker of a group trains.

    Ray Train takes a dictionary, which its controller unpickles: `to_dict` holds plain values only, or the controller
    would import torch.
    """

    experiment: Experiment
    shards: Locations  # directories, absolute, or URIs
    run: str  # the location of the run's directory
    writer: str | None = None  # the id from `CheckpointStore.claim`; None: the worker claims the store itself
    messages: Queue | None = None  # to the driver; None: they are not read

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.model_dump(),
            "shards": self.shards,
            "run": self.run,
            "writer": self.writer,
            "messages": self.messages,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainJob:
        return cls(**{**values, "experiment": Experiment.model_validate(values["experiment"])})


def train_worker(values: dict[str, Any]) -> str | None:
    """Train a `TrainJob`, given as its dictionary, in one worker of a Ray Train run.

    Returns the message of `TrainingDiverged`, None if training ended well: after an exception Ray Train would restart
    the group, which cannot help here.
    """
    entered = time.time()
    job = TrainJob.from_dict(values)
    storage = Storage(job.run)
    storage.check_visible(EXPERIMENT)
    try:
        with process_group() as workers:
            if workers.rank == 0:
                store = CheckpointStore(storage / CHECKPOINTS, job.writer)
                reporter: RayTrainReporter | FollowerReporter = RayTrainReporter(store, job.messages, entered)
            else:
                reporter = FollowerReporter()
            fit(job.experiment, Collections.open(job.shards), reporter, workers)
    except TrainingDiverged as diverged:  # in every worker: they all compute the same loss
        return str(diverged)
    return None


@contextmanager
def process_group() -> Iterator[Workers]:
    """Connect the workers of this Ray Train group through torch.distributed: NCCL if there is a GPU, else gloo."""
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    if workers.count == 1:
        yield workers
        return
    if workers.rank == 0:
        # A TCPStore that opens its own socket listens on every address of the node.
        host = ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port = listener.getsockname()[1]
        store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        broadcast_from_rank_zero((host, port))
    else:
        store = dist.TCPStore(*broadcast_from_rank_zero(None))
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", store=store, rank=workers.rank, world_size=workers.count
    )
    yield workers
    dist.destroy_process_group()  # not after an exception: NCCL would wait for a lost worker; Ray ends the process
