"""Which machine Ray's autoscaler orders next: a spot one, and an on-demand one while spot machines are refused.

Ray 2.60 by itself orders the same kind of machine again and again when the cloud has none left
(github.com/ray-project/ray/issues/20774). Its older autoscaler remembers for half an hour what was refused, and takes a function of ours to
decide with; cluster/gpu.yaml names this one in RAY_AUTOSCALER_UTILIZATION_SCORER. It runs on the head, in Ray's environment.
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
    """Ray's own order, but what was refused lately comes after what was not, and of two that are alike spot comes first."""
    usual = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if usual is None:  # it has no room for what is asked
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    fits_kind, *rest = usual  # no GPU machine for what needs none
    return (fits_kind, record is None or record.is_available, *rest, "spot" in node_type)
