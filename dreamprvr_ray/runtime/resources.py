"""The resources that Ray can offer, and how a group of workers divides them.

An autoscaled cluster counts at its maximum size: its nodes start when they are requested.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime.gpu_shares import refuse_gpus
from dreamprvr_ray.yaml_files import read_yaml

# The environment variable with the path of the cluster file that `ray up` copied to the head:
# ~/ray_bootstrap_config.yaml. Ray does not tell a driver how far the cluster can grow.
CLUSTER_FILE = "DREAMPRVR_RAY_CLUSTER_FILE"
MAX_DEFAULT_CPUS_WITH_GPU = 8.0  # CPUs of a worker with a GPU, unless requested otherwise


@dataclass(frozen=True)
class WorkerCount:
    """A number of data-parallel workers; with `minimum`, an elastic group of `minimum` to `maximum` workers."""

    maximum: int
    minimum: int | None = None

    @classmethod
    def parse(cls, text: str) -> WorkerCount:
        """Parse `4` (four workers) or `2:8` (two to eight workers). Raises `UserError` for anything else."""
        match = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6})", text)
        if match:
            maximum, minimum = int(match[2]), int(match[1]) if match[1] else None
            if maximum >= 1 and (minimum is None or 1 <= minimum <= maximum):
                return cls(maximum, minimum)
        raise UserError(f"--workers {text}: must be a positive integer or MIN:MAX, as in 2:8")


@dataclass(frozen=True)
class WorkerGroup:
    """The workers that train one model, and the resources of each.

    With `min_workers`, the group is elastic: it has `min_workers` to `workers` workers.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    min_workers: int | None = None


@dataclass(frozen=True)
class Node:
    """The resources that Ray can use on one node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """The nodes that Ray can use, and the memory of one GPU in bytes, None if unknown."""

    nodes: tuple[Node, ...]
    gpu_memory: int | None = None

    @property
    def cpus(self) -> int:
        return int(sum(node.cpus for node in self.nodes))

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    def capacity(self, cpus_per_process: float, gpus_per_process: float) -> int:
        """Return how many processes fit, each on a single node."""
        return sum(
            # The small addend makes three times a third of a GPU fit.
            int(
                min(node.cpus / cpus_per_process, node.gpus / gpus_per_process if gpus_per_process else math.inf) + 1e-6
            )
            for node in self.nodes
        )

    def cpus_per_process(self, processes: int, gpus_per_process: float) -> float:
        """Return the largest whole number of CPUs, at least 1, with which this many processes fit.

        If that many never fit, the number applies to as many as do.
        """
        processes = max(1, min(processes, self.capacity(1, gpus_per_process)))
        largest = int(max((node.cpus for node in self.nodes), default=1))
        return float(
            next((cpus for cpus in range(largest, 1, -1) if self.capacity(cpus, gpus_per_process) >= processes), 1)
        )


def current_cluster() -> Cluster:
    """Return the nodes that Ray has, or that it can start on request.

    Raises `UserError` if the cluster file is not valid.
    """
    path = os.environ.get(CLUSTER_FILE)
    if path is None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    else:
        nodes = autoscaled_nodes(read_yaml(Path(path).expanduser()), path)
    return Cluster(tuple(Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in nodes))


def autoscaled_nodes(cluster: Mapping[str, Any], path: str) -> list[Mapping[str, float]]:
    """Return the resources of the nodes of a cluster file at its maximum size: the head, then those with most GPUs.

    Raises `UserError` naming `path` if the file lacks what `ray up` writes.
    """
    try:
        head = cluster["head_node_type"]
        types = cluster["available_node_types"]
        workers = [
            node_type["resources"]
            for name, node_type in types.items()
            if name != head
            for _ in range(node_type.get("max_workers", 0))
        ]
        workers.sort(key=lambda resources: -resources.get("GPU", 0))
        return [types[head]["resources"], *workers[: cluster.get("max_workers", 2)]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{CLUSTER_FILE}={path}: not a cluster file of `ray up`: {error!r}") from None


def plan_group(
    workers: int,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    min_workers: int | None = None,
) -> WorkerGroup:
    """Divide the cluster among the workers of a group: one GPU each if there are enough, and equal shares of the CPUs.

    Raises `UserError` if the workers (for an elastic group, `min_workers` of them) do not fit and would wait for
    resources forever.
    """
    cluster = current_cluster()
    required = min_workers or workers
    gpus = (1.0 if cluster.gpus >= required else 0.0) if gpus_per_worker is None else gpus_per_worker
    if reason := refuse_gpus(workers, gpus):
        raise UserError(reason)
    cpus = cpus_per_worker
    if cpus is None:
        cpus = cluster.cpus_per_process(workers, gpus)
        if gpus:
            cpus = min(cpus, MAX_DEFAULT_CPUS_WITH_GPU)
    if cluster.capacity(cpus, gpus) < required:
        requested = f"{required} workers of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        raise UserError(
            f"{requested} do not fit: Ray has {cluster.cpus:g} CPU and {cluster.gpus:g} GPU"
            f" on {len(cluster.nodes)} node{'s' if len(cluster.nodes) != 1 else ''}"
        )
    return WorkerGroup(workers, cpus, gpus, min_workers)
