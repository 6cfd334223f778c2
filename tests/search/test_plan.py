"""Dividing the resources of a cluster among trials."""

from __future__ import annotations

import pytest

from dreamprvr_ray.runtime.resources import Cluster, Node, WorkerGroup
from dreamprvr_ray.search.plan import Allocation, TrialPlan, allocate
from dreamprvr_ray.search.settings import TrialResources

GIB = 2**30


def of(cpus: int, gpus: int, gpu_memory: int | None = None) -> Cluster:
    """Return a cluster with these totals, one GPU each."""
    count = max(1, gpus)
    return Cluster((Node(cpus / count, gpus / count),) * count, gpu_memory)


AUTO = TrialResources(workers="auto")


@pytest.mark.parametrize(
    ("cluster", "memory", "expected"),
    [
        (of(16, 1, 80 * GIB), 10 * GIB, (1, 0.25, 4)),  # four trials share a GPU
        (of(16, 1, 80 * GIB), 30 * GIB, (1, 0.5, 2)),  # as many as fit into its memory
        (of(16, 1, 80 * GIB), 70 * GIB, (1, 1.0, 1)),
        (of(16, 1, None), 10 * GIB, (1, 1.0, 1)),  # unknown memory
        (of(32, 2, 80 * GIB), 10 * GIB, (1, 0.5, 4)),
        (of(32, 3, 80 * GIB), 10 * GIB, (1, 0.5, 4)),
        (of(64, 4, 80 * GIB), 10 * GIB, (1, 1.0, 4)),  # one GPU each
        (of(128, 16, 80 * GIB), 10 * GIB, (4, 1.0, 4)),  # four workers each
        (of(128, 6, 80 * GIB), 10 * GIB, (1, 1.0, 4)),
        (of(8, 0), 10 * GIB, (1, 0.0, 4)),
    ],
)
def test_auto_limits_concurrent_trials_and_divides_the_gpus_among_them(
    cluster: Cluster, memory: int, expected: tuple[int, float, int]
) -> None:
    assert allocate(AUTO, 40, cluster, memory) == Allocation(*expected)


def test_explicit_settings_are_respected() -> None:
    one = of(16, 1, 80 * GIB)
    assert allocate(TrialResources(), 40, one, 0) == Allocation(1, 1.0, 1)
    assert allocate(TrialResources(workers=1, gpus_per_worker="auto", at_a_time=8), 40, one, 8 * GIB) == Allocation(
        1, 0.125, 8
    )
    assert allocate(TrialResources(workers=2), 40, of(32, 8), 0) == Allocation(2, 1.0, 4)
    assert allocate(TrialResources(workers=2), 40, one, 0) == Allocation(
        2, 0.0, 4
    )  # too few GPUs: the workers use CPUs only
    assert allocate(TrialResources(gpus_per_worker=0.5), 40, one, 0) == Allocation(1, 0.5, 2)
    assert allocate(AUTO, 2, of(64, 16, 80 * GIB), 0) == Allocation(8, 1.0, 2)  # no more concurrent trials than trials


def test_three_trials_fit_on_one_gpu() -> None:
    allocation = allocate(AUTO.model_copy(update={"at_a_time": 3}), 40, of(16, 1, 80 * GIB), GIB)
    assert 3 * allocation.gpus_per_worker <= 1 and allocation.at_a_time == 3


def test_a_trial_can_have_more_memory_only_if_it_shares_with_others() -> None:
    shared, whole, nested = WorkerGroup(1, 4.0, 0.25), WorkerGroup(1, 4.0, 1.0), WorkerGroup(2, 1.0, 0.0)
    assert TrialPlan(shared, 4).can_have_more and TrialPlan(WorkerGroup(1, 1.0, 0.0), 2).can_have_more
    assert not any(plan.can_have_more for plan in (TrialPlan(whole, 4), TrialPlan(nested, 2), TrialPlan(shared, 1)))
