"""How machines are allocate among trials."""

from __future__ import annotations

import pytest

from dreamprvr_ray.runtime.resources import Cluster, Node, WorkerGroup
from dreamprvr_ray.search.plan import TrialPlan, allocate
from dreamprvr_ray.search.space import TrialResources

GIB = 2**30


def of(cpus: int, gpus: int, gpu_memory: int | None = None) -> Cluster:
    """Cluster with so much together, one GPU each."""
    count = max(1, gpus)
    return Cluster((Node(cpus / count, gpus / count),) * count, gpu_memory)


AUTO = TrialResources(workers="auto")


@pytest.mark.parametrize(
    ("machines", "memory", "wanted"),
    [
        (of(16, 1, 80 * GIB), 10 * GIB, (1, 0.25, 4)),  # four trials share a GPU
        (of(16, 1, 80 * GIB), 30 * GIB, (1, 0.5, 2)),  # as many as its memory holds
        (of(16, 1, 80 * GIB), 70 * GIB, (1, 1.0, 1)),
        (of(16, 1, None), 10 * GIB, (1, 1.0, 1)),  # its memory is not known
        (of(32, 2, 80 * GIB), 10 * GIB, (1, 0.5, 4)),
        (of(32, 3, 80 * GIB), 10 * GIB, (1, 0.5, 4)),
        (of(64, 4, 80 * GIB), 10 * GIB, (1, 1.0, 4)),  # a GPU each
        (of(128, 16, 80 * GIB), 10 * GIB, (4, 1.0, 4)),  # four workers each
        (of(128, 6, 80 * GIB), 10 * GIB, (1, 1.0, 4)),
        (of(8, 0), 10 * GIB, (1, 0.0, 4)),
    ],
)
def test_auto_bounds_the_trials_at_a_time_and_gives_them_the_gpus(
    machines: Cluster, memory: int, wanted: tuple[int, float, int]
) -> None:
    assert allocate(AUTO, 40, machines, memory) == wanted


def test_what_the_file_asks_for_is_kept() -> None:
    one = of(16, 1, 80 * GIB)
    assert allocate(TrialResources(), 40, one, 0) == (1, 1.0, 1)
    assert allocate(TrialResources(workers=1, gpus_per_worker="auto", at_a_time=8), 40, one, 8 * GIB) == (1, 0.125, 8)
    assert allocate(TrialResources(workers=2), 40, of(32, 8), 0) == (2, 1.0, 4)
    assert allocate(TrialResources(workers=2), 40, one, 0) == (2, 0.0, 4)  # too few GPUs: on the CPUs
    assert allocate(TrialResources(gpus_per_worker=0.5), 40, one, 0) == (1, 0.5, 2)
    assert allocate(AUTO, 2, of(64, 16, 80 * GIB), 0) == (8, 1.0, 2)  # no more at a time than there are


def test_thirds_of_a_gpu_fit_three_times() -> None:
    _, each, at_a_time = allocate(AUTO.model_copy(update={"at_a_time": 3}), 40, of(16, 1, 80 * GIB), GIB)
    assert 3 * each <= 1 and at_a_time == 3


def test_a_trial_may_have_more_only_where_others_share_with_it() -> None:
    shared, whole, nested = WorkerGroup(1, 4.0, 0.25), WorkerGroup(1, 4.0, 1.0), WorkerGroup(2, 1.0, 0.0)
    assert TrialPlan(shared, 4).can_have_more and TrialPlan(WorkerGroup(1, 1.0, 0.0), 2).can_have_more
    assert not any(plan.can_have_more for plan in (TrialPlan(whole, 4), TrialPlan(nested, 2), TrialPlan(shared, 1)))
