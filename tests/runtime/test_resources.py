"""The resources of a cluster and how they are divided."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dreamprvr_ray.config import validated
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime import resources
from dreamprvr_ray.runtime.resources import (
    CLUSTER_FILE,
    Cluster,
    Node,
    WorkerCount,
    autoscaled_nodes,
    current_cluster,
    plan_group,
)
from dreamprvr_ray.search.settings import TrialResources


def test_a_process_never_spans_two_nodes() -> None:
    three = Cluster((Node(2), Node(2), Node(2)))
    assert three.cpus == 6
    assert [three.capacity(cpus, 0) for cpus in (1, 2, 3)] == [6, 3, 0]
    assert three.cpus_per_process(2, 0) == 2  # not 3, half of the six CPUs
    assert three.cpus_per_process(4, 0) == 1
    assert three.cpus_per_process(7, 0) == 1  # seven do not fit: the caller must start fewer
    assert Cluster((Node(4, 1),) * 4).cpus_per_process(8, 1) == 4  # eight do not fit: as many as there are GPUs


def test_gpu_processes_fit_on_nodes_with_a_gpu_only() -> None:
    head_and_two = Cluster((Node(16), Node(8, 1), Node(8, 1)))
    assert head_and_two.capacity(4, 1) == 2
    assert head_and_two.capacity(4, 0.25) == 4  # limited by the CPUs of the nodes with GPUs
    assert head_and_two.cpus_per_process(2, 1) == 8
    assert Cluster((Node(4, 1),)).capacity(1, 0.3333) == 3


CLUSTER = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2},
        "spot": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2},
    },
}


def test_an_autoscaled_cluster_counts_at_its_maximum_size() -> None:
    expected = [{"CPU": 0}, {"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 8}]
    assert autoscaled_nodes(CLUSTER, "file") == expected


def test_an_invalid_cluster_file_is_a_user_error() -> None:
    with pytest.raises(UserError, match=f"{CLUSTER_FILE}=cluster.yaml: .*head_node_type"):
        autoscaled_nodes({"max_workers": 3}, "cluster.yaml")


@pytest.mark.usefixtures("local_ray")
def test_the_cluster_file_replaces_the_current_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_cluster().gpus == 0 and len(current_cluster().nodes) == 1
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    monkeypatch.setenv(CLUSTER_FILE, str(tmp_path / "cluster.yaml"))
    assert current_cluster().gpus == 2 and current_cluster().cpus == 16


@pytest.mark.parametrize(("workers", "gpus"), [(2, 0.5), (4, 0.25), (3, 0.9999), (2, 1.5), (1, 2.5)])
def test_workers_of_a_training_do_not_share_a_gpu(workers: int, gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "current_cluster", lambda: Cluster((Node(32, 8),)))
    for minimum in (None, 1):
        with pytest.raises(UserError, match=rf"^gpus_per_worker {gpus:g}: ") as error:
            plan_group(workers, 1, gpus, minimum)
        assert len(error.value.mistakes) == 1
    with pytest.raises(UserError, match=rf"^search: .*gpus_per_worker {gpus:g}: "):
        validated(TrialResources, {"workers": workers, "gpus_per_worker": gpus}, "search")


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.5), (1, 1.0), (2, 1.0), (2, 0.0), (2, 2.0)])
def test_other_shares_of_gpus_are_allowed(workers: int, gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "current_cluster", lambda: Cluster((Node(32, 8),)))
    assert plan_group(workers, 1, gpus).gpus_per_worker == gpus
    assert TrialResources(workers=workers, gpus_per_worker=gpus).workers == workers


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", WorkerCount(1)), ("4", WorkerCount(4)), ("2:8", WorkerCount(8, 2)), ("3:3", WorkerCount(3, 3))],
)
def test_worker_counts(text: str, count: WorkerCount) -> None:
    assert WorkerCount.parse(text) == count


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "8:2", "0:2", "2:", ":2", "1.5", "2:3:4", "9" * 5000])
def test_an_invalid_worker_count_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match=r"^--workers .*: must be a positive integer or MIN:MAX, as in 2:8$"):
        WorkerCount.parse(text)
