"""The resources of a cluster and how they are divided."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime.resources import (
    CLUSTER_FILE,
    Cluster,
    Node,
    WorkerCount,
    autoscaled_nodes,
    current_cluster,
)


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


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", WorkerCount(1)), ("4", WorkerCount(4)), ("2:8", WorkerCount(8, 2)), ("3:3", WorkerCount(3, 3))],
)
def test_worker_counts(text: str, count: WorkerCount) -> None:
    assert WorkerCount.parse(text) == count


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "8:2", "0:2", "2:", ":2", "1.5", "2:3:4"])
def test_an_invalid_worker_count_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match=r"^--workers .*: must be a positive integer or MIN:MAX, as in 2:8$"):
        WorkerCount.parse(text)
