"""What trainings are divided among."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime.resources import CLUSTER_FILE, Machines, Node, largest, machines


def test_no_process_stretches_over_two_machines() -> None:
    three = Machines((Node(2), Node(2), Node(2)))
    assert three.cpus == 6
    assert [three.places(cpus, 0) for cpus in (1, 2, 3)] == [6, 3, 0]
    assert three.cpus_each(2, 0) == 2  # not the 3 that six CPUs are for two
    assert three.cpus_each(4, 0) == 1
    assert three.cpus_each(7, 0) == 1  # too many: it is for the caller to have fewer
    assert Machines((Node(4, 1),) * 4).cpus_each(8, 1) == 4  # likewise: as many as there are GPUs


def test_a_machine_without_a_gpu_is_no_place_for_a_gpu_trial() -> None:
    head_and_two = Machines((Node(16), Node(8, 1), Node(8, 1)))
    assert head_and_two.places(4, 1) == 2
    assert head_and_two.places(4, 0.25) == 4  # as many as the CPUs beside the GPUs
    assert head_and_two.cpus_each(2, 1) == 8
    assert Machines((Node(4, 1),)).places(1, 0.3333) == 3


CLUSTER = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2},
        "spot": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2},
    },
}


def test_an_autoscaled_cluster_counts_as_large_as_it_may_become() -> None:
    assert largest(CLUSTER, "file") == [{"CPU": 0}, {"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 8}]


def test_a_cluster_file_that_is_none_is_a_mistake_of_the_users() -> None:
    with pytest.raises(UserError, match=f"{CLUSTER_FILE}=here.yaml: .*head_node_type"):
        largest({"max_workers": 3}, "here.yaml")


@pytest.mark.usefixtures("local_ray")
def test_the_cluster_file_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machines().gpus == 0 and len(machines().nodes) == 1
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    monkeypatch.setenv(CLUSTER_FILE, str(tmp_path / "cluster.yaml"))
    assert machines().gpus == 2 and machines().cpus == 16
