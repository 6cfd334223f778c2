"""What a search will do before it does anything: how the machines are divided among trials, and what a trial costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from dreamprvr_ray.errors import UserError, redact
from dreamprvr_ray.runtime.resources import Cluster, WorkerGroup, current_cluster, plan_group
from dreamprvr_ray.search.space import Search, TrialResources
from dreamprvr_ray.training.cost import Cost, estimate

MAX_CONCURRENT_TRIALS = 4  # more trials at a time, and the sampler proposes them knowing too little
USABLE_MEMORY = 0.9  # of a GPU's
GPU_CONTEXT = 2**30  # bytes that every process on a GPU holds besides its tensors


@dataclass(frozen=True)
class TrialPlan:
    """What each trial gets, and how many run at a time."""

    group: WorkerGroup
    at_a_time: int
    most_cpus: float = math.inf  # that one process can have

    @property
    def can_have_more(self) -> bool:
        """Whether a trial that ran out of memory may get what two have: not where it has a whole GPU, or all of the machine."""
        return self.group.workers == 1 and self.at_a_time > 1 and self.group.gpus_per_worker < 1

    def __str__(self) -> str:
        group = self.group
        workers = "1 worker" if group.workers == 1 else f"{group.workers} workers"
        gpu = f" and {group.gpus_per_worker:g} GPU" if group.gpus_per_worker else ""
        return f"{self.at_a_time} at a time, {workers} a trial of {group.cpus_per_worker:g} CPU{gpu} each"


def plan_trials(search: Search, say: Callable[[str], None] | None = None) -> TrialPlan:
    """Divides what Ray has, or will have, among the trials. Raises `UserError` where not even one fits.

    `say` hears what it waits for; without it, as in a dry run, no machine is asked for that is not there.
    """
    wanted, there = search.settings.trial, current_cluster()
    memory = 0
    if "auto" in (wanted.workers, wanted.gpus_per_worker) and 0 < there.gpus < min(
        wanted.at_a_time or MAX_CONCURRENT_TRIALS, search.settings.trials
    ):
        come = "GPU" in ray.cluster_resources()
        if say and not come:
            say("asking for a machine with a GPU, to see how many trials its memory holds")
        there = replace(there, gpu_memory=_gpu_memory() if say or come else None)
        memory = _largest_memory(search)
    workers, gpus_each, at_a_time = allocate(wanted, search.settings.trials, there, memory)
    if workers > 1 and search.settings.against == "encode_ms":
        raise UserError("against: encode_ms is measured in trials of one worker: set trial.workers to 1")
    cpus_each = wanted.cpus_per_worker or there.cpus_per_process(workers * at_a_time, gpus_each)
    group = plan_group(workers, cpus_each, gpus_each)
    fits = there.capacity(cpus_each, gpus_each) // workers
    most_cpus = max(node.cpus for node in there.nodes if node.gpus >= gpus_each)
    return TrialPlan(group, max(1, min(at_a_time, fits)), most_cpus)


def allocate(wanted: TrialResources, trials: int, there: Cluster, memory: int) -> tuple[int, float, int]:
    """Workers of a trial, GPUs of a worker, and trials at a time; `memory` is what a trial may need of a GPU, in bytes.

    Few GPUs are shared by trials, as many as their memory allows; many go to several workers a trial.
    """
    most = wanted.at_a_time or MAX_CONCURRENT_TRIALS
    workers = wanted.workers if wanted.workers != "auto" else max(1, int(there.gpus) // min(most, trials))
    gpus_each = wanted.gpus_per_worker
    if gpus_each is None:
        gpus_each = "auto" if wanted.workers == "auto" else 1.0 if there.gpus >= workers else 0.0
    if gpus_each == "auto":
        gpus_each = 1.0 if there.gpus >= workers else 0.0
        if workers == 1 and 0 < there.gpus < min(most, trials) and there.gpu_memory:
            room = int(USABLE_MEMORY * there.gpu_memory // (memory + GPU_CONTEXT))
            on_one = max(1, min(math.ceil(min(most, trials) / there.gpus), room))
            gpus_each = math.floor(1e4 / on_one) / 1e4  # Ray counts GPUs to four places
    places = int(there.gpus / gpus_each + 1e-6) if gpus_each else there.cpus
    return workers, gpus_each, min(wanted.at_a_time or max(1, min(MAX_CONCURRENT_TRIALS, places // workers)), trials)


def _gpu_memory() -> int | None:
    """Bytes of memory of one of Ray's GPUs; the driver's own machine may have none."""

    @ray.remote(num_cpus=0, num_gpus=0.01)
    def total() -> int | None:
        import torch

        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None

    memory: int | None = ray.get(total.remote())
    return memory


def _largest_memory(search: Search) -> int:
    """Bytes that the trial of the largest model in the space may need."""
    highest = {
        space.key: max(space.ends())
        for space in search.ranges
        if space.key.startswith("model.") and space.choices is None
    }
    try:
        experiment = search.experiment.with_values(highest, "space")
    except UserError:  # ends that do not go together
        experiment = search.experiment
    return max(estimate(experiment).memory, estimate(search.experiment).memory)


def plan_lines(search: Search, plan: TrialPlan) -> tuple[list[str], Cost]:
    """The plan in lines for a person, and the cost of the first trial's values."""
    file, cost = search.settings, estimate(search.experiment)
    rungs = file.pruning.rungs(search.experiment.training.epochs)
    pruning = "none"
    if file.against:
        pruning = "none, with two objectives"
    elif rungs:
        pruning = (
            f"after epochs {', '.join(map(str, rungs))} the best 1/{file.pruning.reduction_factor} of the trials go on"
        )
    objective = "val SumR" + (f" against {file.against}" if file.against else "")
    final = "the winner's checkpoint, tested once"
    if file.final:
        best = "the winner's values" if file.final.top == 1 else f"the best {file.final.top} trials' values"
        final = f"{best} and the paper's, trained with {file.final.seeds} seeds each{' on train and val' if file.final.with_val else ''}, tested once"
    lines = [
        f"search {search.name}: {file.trials} trials of at most {search.experiment.training.epochs} epochs, config {file.config}",
        f"shards: {redact(file.shards)}",
        f"out: {redact(file.out)}",
        f"objective: {objective}; sampler: {file.sampler.kind}",
        f"resources: {plan}",
        f"pruning: {pruning}",
        f"kept: the checkpoints of the best {file.keep} trials",
        f"in the end: {final}",
        "ranges, and the first trial's value:",
        *(f"  {space.key}: {space}; first {_number(search.experiment.flat()[space.key])}" for space in search.ranges),
        *(f"constraint: {each}" for each in search.constraints),
        "a trial with the first one's values:",
        *(f"  {line}" for line in cost.lines()),
    ]
    return lines, cost


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
