"""Which node type Ray's autoscaler requests next: spot machines, or on-demand machines while spot requests are refused.

When the cloud has no capacity left, Ray 2.60 requests the same node type again and again
(github.com/ray-project/ray/issues/20774). Its older autoscaler remembers refused requests for half an hour and accepts
a custom scoring function; cluster/gpu.yaml sets RAY_AUTOSCALER_UTILIZATION_SCORER to this one. It runs on the head, in
Ray's environment.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer


def score(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """Score a node type in Ray's order, but rank types refused recently last, and spot types first among equals."""
    default = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if default is None:  # the resources do not fit on this node type
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    avoids_gpus, *rest = default  # the first entry keeps work without GPUs off GPU machines
    return (avoids_gpus, record is None or record.is_available, *rest, "spot" in node_type)
