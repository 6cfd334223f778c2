"""What Ray has to train on. An autoscaled cluster is planned for as large as it may become: its nodes come when they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.yaml_files import read_yaml

# The file that `ray up` was given, as Ray keeps it on the head: ~/ray_bootstrap_config.yaml. Ray does not tell a driver how far it may grow.
CLUSTER_FILE = "DREAMPRVR_RAY_CLUSTER_FILE"


@dataclass(frozen=True)
class Node:
    """What Ray may use of one machine."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Machines:
    """The machines that trainings are divided among, and the bytes of memory of one GPU, None where unknown."""

    nodes: tuple[Node, ...]
    gpu_memory: int | None = None

    @property
    def cpus(self) -> int:
        return int(sum(node.cpus for node in self.nodes))

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    def places(self, cpus_each: float, gpus_each: float) -> int:
        """How many processes find room, none of them across two machines."""
        return sum(
            int(min(node.cpus / cpus_each, node.gpus / gpus_each if gpus_each else math.inf) + 1e-6)
            for node in self.nodes
        )

    def cpus_each(self, processes: int, gpus_each: float) -> float:
        """The most whole CPUs that each of so many processes can have, or of as many as there is room for."""
        processes = max(1, min(processes, self.places(1, gpus_each)))
        most = int(max((node.cpus for node in self.nodes), default=1))
        return float(next((cpus for cpus in range(most, 1, -1) if self.places(cpus, gpus_each) >= processes), 1))


def machines() -> Machines:
    """The machines that Ray has, or will have when it is asked for them. Raises `UserError` where the cluster's file is not one."""
    here = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    path = os.environ.get(CLUSTER_FILE)
    found = here if path is None else largest(read_yaml(Path(path).expanduser()), path)
    return Machines(tuple(Node(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in found))


def largest(cluster: Mapping[str, Any], where: str) -> list[Mapping[str, float]]:
    """The resources of the nodes of an autoscaled cluster when it has as many workers as it may, those with the most GPUs first."""
    try:
        head = cluster["head_node_type"]
        types = cluster["available_node_types"]
        workers = [
            each["resources"] for name, each in types.items() if name != head for _ in range(each.get("max_workers", 0))
        ]
        workers.sort(key=lambda resources: -resources.get("GPU", 0))
        return [types[head]["resources"], *workers[: cluster.get("max_workers", 2)]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{CLUSTER_FILE}={where}: is not a cluster's file as `ray up` keeps it: {error!r}") from None
