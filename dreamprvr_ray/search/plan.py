"""How Ray's resources are divided among the trials of a search, decided before any trial runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime.resources import Cluster, WorkerGroup, current_cluster, plan_group
from dreamprvr_ray.search.settings import TrialResources
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.training.cost import estimate

MAX_CONCURRENT_TRIALS = 4  # with more, the sampler proposes each trial from too few results
USABLE_MEMORY = 0.9  # fraction of a GPU's memory
GPU_CONTEXT = 2**30  # bytes that every process on a GPU takes in addition to its tensors


@dataclass(frozen=True)
class TrialPlan:
    """The workers of each trial, and the number of concurrent trials. `max_cpus`: the most that one process can get."""

    group: WorkerGroup
    at_a_time: int
    max_cpus: float = math.inf

    @property
    def can_have_more(self) -> bool:
        """Whether a trial that ran out of memory can get the resources of two.

        It cannot if it already has a whole GPU, or if it runs alone.
        """
        return self.group.workers == 1 and self.at_a_time > 1 and self.group.gpus_per_worker < 1

    def __str__(self) -> str:
        group = self.group
        workers = "1 worker" if group.workers == 1 else f"{group.workers} workers"
        gpu = f" and {group.gpus_per_worker:g} GPU" if group.gpus_per_worker else ""
        return f"{self.at_a_time} at a time, {workers} per trial with {group.cpus_per_worker:g} CPU{gpu} each"


@dataclass(frozen=True)
class Allocation:
    """Workers per trial, GPUs per worker and concurrent trials, as determined by the settings and the GPUs."""

    workers: int
    gpus_per_worker: float
    at_a_time: int


def plan_trials(search: Search, log: Callable[[str], None] | None = None) -> TrialPlan:
    """Divide the resources that Ray has, or will have, among the trials. Raises `UserError` if not even one trial fits.

    `log` receives what the plan waits for. Without it, as in a dry run, no node is requested from the autoscaler.
    """
    requested, available = search.settings.trial, current_cluster()
    memory = 0
    if "auto" in (requested.workers, requested.gpus_per_worker) and 0 < available.gpus < _max_concurrent(
        requested, search.settings.trials
    ):
        gpu_is_up = "GPU" in ray.cluster_resources()
        if log and not gpu_is_up:
            log("requesting a node with a GPU, to see how many trials fit into its memory")
        available = replace(available, gpu_memory=_gpu_memory() if log or gpu_is_up else None)
        memory = _largest_memory(search)
    allocation = allocate(requested, search.settings.trials, available, memory)
    workers, gpus = allocation.workers, allocation.gpus_per_worker
    if workers > 1 and search.settings.against == "encode_ms":
        raise UserError("against: encode_ms requires trials of one worker; set trial.workers to 1")
    cpus = requested.cpus_per_worker or available.cpus_per_process(workers * allocation.at_a_time, gpus)
    group = plan_group(workers, cpus, gpus)
    places = available.capacity(cpus, gpus) // workers
    max_cpus = max(node.cpus for node in available.nodes if node.gpus >= gpus)
    return TrialPlan(group, max(1, min(allocation.at_a_time, places)), max_cpus)


def allocate(requested: TrialResources, trials: int, available: Cluster, memory: int) -> Allocation:
    """Divide GPUs among `trials` trials: few GPUs are shared by trials, many give each trial several workers.

    `memory` is what one trial may need of a GPU, in bytes; it limits how many trials share one.
    """
    concurrent = _max_concurrent(requested, trials)
    workers = max(1, int(available.gpus) // concurrent) if requested.workers == "auto" else requested.workers
    gpus = requested.gpus_per_worker
    if gpus is None and requested.workers == "auto":
        gpus = "auto"
    if gpus == "auto" and workers == 1 and 0 < available.gpus < concurrent and available.gpu_memory:
        places = int(USABLE_MEMORY * available.gpu_memory // (memory + GPU_CONTEXT))
        trials_per_gpu = max(1, min(math.ceil(concurrent / available.gpus), places))
        gpus = math.floor(1e4 / trials_per_gpu) / 1e4  # Ray counts GPUs to four decimal places
    elif gpus == "auto" or gpus is None:
        gpus = 1.0 if available.gpus >= workers else 0.0
    places = int(available.gpus / gpus + 1e-6) if gpus else available.cpus
    at_a_time = requested.at_a_time or max(1, min(MAX_CONCURRENT_TRIALS, places // workers))
    return Allocation(workers, gpus, min(at_a_time, trials))


def _max_concurrent(requested: TrialResources, trials: int) -> int:
    return min(requested.at_a_time or MAX_CONCURRENT_TRIALS, trials)


def _gpu_memory() -> int | None:
    """Return the bytes of memory of one of Ray's GPUs. It is asked remotely, since the driver's node may have none."""

    @ray.remote(num_cpus=0, num_gpus=0.01)
    def total() -> int | None:
        import torch

        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None

    memory: int | None = ray.get(total.remote())
    return memory


def _largest_memory(search: Search) -> int:
    """Return the bytes that a trial of the largest model in the space may need."""
    highest = {
        parameter.key: max(parameter.extremes())
        for parameter in search.parameters
        if parameter.key.startswith("model.") and parameter.choices is None
    }
    try:
        experiment = search.experiment.with_values(highest, "space")
    except UserError:  # the highest values are not valid together
        experiment = search.experiment
    return max(estimate(experiment).memory, estimate(search.experiment).memory)
