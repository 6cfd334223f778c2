"""The shipped cluster files, what `cluster/check.py` says of files with mistakes, and which machines the autoscaler orders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dreamprvr_ray.runtime.resources import CLUSTER_FILE, autoscaled_nodes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))
import check  # type: ignore[import-not-found]  # noqa: E402

FILLED = {
    "<REGION>": "eu-central-1",
    "<BUCKET>": "our-bucket",
    "<IMAGE>": "ami-0123456789abcdef0",
    "<HEAD_PROFILE>": "cluster-head",
    "<WORKER_PROFILE>": "cluster-worker",
    "<HEAD>": "192.0.2.10",
    "<WORKER>": "192.0.2.11",
    "<USER>": "researcher",
}


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A shipped file with its places filled in, in a home that has a key and a token."""
    (tmp_path / ".ray").mkdir()
    for name in ("key", ".ray/auth_token"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def fill(name: str) -> Path:
        text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
        for place, value in (FILLED | {"<KEY>": str(tmp_path / "key")}).items():
            text = text.replace(place, value)
        path = tmp_path / name
        path.write_text(text)
        return path

    return fill


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_a_shipped_file_is_fine_once_its_places_are_filled_in(name: str, filled: Callable[[str], Path]) -> None:
    assert check.mistakes(filled(name)) == []
    said = check.mistakes(ROOT / "cluster" / name)
    assert said and all("fill in <" in each for each in said)


def test_as_a_command(filled: Callable[[str], Path]) -> None:
    path = filled("onprem.yaml")
    words = [sys.executable, "cluster/check.py", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{path}: fine\n"
    path.write_text(path.read_text().replace("provider:", "provder:").replace("--head ", "--haed "))
    done = subprocess.run(words, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "unknown key provder, near provider" in done.stderr
        and "--haed, near --head" in done.stderr
    )
    assert "Traceback" not in done.stderr and all(line.startswith(f"{path}: ") for line in done.stderr.splitlines())


# What is written wrongly, what it said before, and what is said about it.
WRONG = [
    ("gpu.yaml", "max_workers: 4\nidle", "max_wrokers: 4\nidle", "the file: unknown key max_wrokers, near max_workers"),
    (
        "gpu.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minuts: 10",
        "unknown key idle_timeout_minuts, near idle_timeout_minutes",
    ),
    (
        "gpu.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minutes: ten",
        "idle_timeout_minutes: 'ten' is not of type 'number'",
    ),
    ("gpu.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type: unknown node type haed, near head"),
    (
        "gpu.yaml",
        "cache_stopped_nodes: false",
        "cache_stoped_nodes: false",
        "provider: unknown key cache_stoped_nodes, near cache_stopped_nodes",
    ),
    (
        "gpu.yaml",
        "region: eu-central-1",
        "region: eu-centrl-1",
        "provider.region: unknown region eu-centrl-1, near eu-central-1",
    ),
    (
        "gpu.yaml",
        "region: eu-central-1",
        "region: eu-central-1\n  availability_zone: us-west-2a",
        "us-west-2a is not in eu-central-1",
    ),
    ("gpu.yaml", "ssh_user: ubuntu", "ssh_usr: ubuntu", "auth: unknown key ssh_usr, near ssh_user"),
    (
        "gpu.yaml",
        "    min_workers: 0\n",
        "    min_worker: 0\n",
        "available_node_types.gpu_spot: unknown key min_worker, near min_workers",
    ),
    (
        "gpu.yaml",
        "    min_workers: 0\n",
        "    min_workers: 9\n",
        "available_node_types.gpu_spot: min_workers 9 is more than max_workers 4",
    ),
    ("gpu.yaml", "GPU: 1}", "GPU: one}", "available_node_types.gpu_spot.resources.GPU: 'one' is not of type 'integer'"),
    (
        "gpu.yaml",
        "InstanceType: g5.xlarge",
        "instanceType: g5.xlarge",
        "node_config: unknown key of EC2's instanceType, near InstanceType",
    ),
    (
        "gpu.yaml",
        "InstanceType: g5.xlarge",
        "InstanceType: g5.xlrge",
        "node_config.InstanceType: unknown value g5.xlrge, near g5.xlarge",
    ),
    (
        "gpu.yaml",
        "VolumeSize: 250",
        "VolumSize: 250",
        "BlockDeviceMappings[0].Ebs: unknown key of EC2's VolumSize, near VolumeSize",
    ),
    ("gpu.yaml", "VolumeSize: 250", "VolumeSize: 250GB", "VolumeSize, value: 250GB, type: <class 'str'>"),
    ("gpu.yaml", "MarketType: spot", "MarketType: sopt", "MarketType: unknown value sopt, near spot"),
    ("gpu.yaml", "ImageId: ami-0123456789abcdef0", "ImageId: 0123456789abcdef0", "ImageId: 0123456789abcdef0: "),
    (
        "gpu.yaml",
        "--dashboard-host=127.0.0.1",
        "--dashbord-host=127.0.0.1",
        "unknown option of ray start --dashbord-host, near --dashboard-host",
    ),
    ("gpu.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "opens the dashboard to the network"),
    ("gpu.yaml", " --autoscaling-config=~/ray_bootstrap_config.yaml", "", "no worker is ever started"),
    (
        "gpu.yaml",
        "THREADS; RAY_AUTH_MODE=token RAY_USAGE",
        "THREADS; RAY_USAGE",
        "worker_start_ray_commands: RAY_AUTH_MODE=token is not set",
    ),
    ("gpu.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "file_mounts: ~/.ray/auth_token is missing"),
    (
        "gpu.yaml",
        "Makefile: Makefile",
        "Makefile: Makfile",
        "file_mounts.~/dreamprvr-ray/Makefile: there is no Makfile",
    ),
    ("gpu.yaml", "idle_timeout_minutes: 10", "max_workers: 8", "max_workers: there twice"),
    ("gpu.yaml", "    max_workers: 4", "    max_workers: [4", "line "),
    (
        "onprem.yaml",
        "type: local",
        "type: locl",
        "provider.type: unknown kind of provider (this check knows aws and local) locl, near local",
    ),
    ("onprem.yaml", "head_ip:", "head_pi:", "provider: unknown key head_pi, near head_ip"),
    ("onprem.yaml", "  head_ip: 192.0.2.10", "", "Ray: "),
    ("onprem.yaml", "  worker_ips:", "  Worker_ips:", "provider: unknown key Worker_ips, near worker_ips"),
    ("onprem.yaml", "    - 192.0.2.11", "    192.0.2.11", "is not of type 'array'"),
    (
        "onprem.yaml",
        "rsync_exclude: [",
        "rsync_excludes: [",
        "the file: unknown key rsync_excludes, near rsync_exclude",
    ),
    ("onprem.yaml", "/key", "/no-such-key", "auth.ssh_private_key: there is no "),
    ("onprem.yaml", "  - ray stop", "  ray stop", "head_start_ray_commands: no `ray start`"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "said"), WRONG)
def test_a_mistake_is_named(name: str, right: str, wrong: str, said: str, filled: Callable[[str], Path]) -> None:
    path = filled(name)
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    found = check.mistakes(path)
    assert any(said in each for each in found), found
    assert all("\n" not in each for each in found)


def test_all_mistakes_are_said_at_once(filled: Callable[[str], Path]) -> None:
    path = filled("gpu.yaml")
    text = path.read_text()
    chosen = [(right, wrong, said) for name, right, wrong, said in WRONG[:18:2] if name == "gpu.yaml"]
    for right, wrong, _ in chosen:
        text = text.replace(right, wrong, 1)
    path.write_text(text)
    found = check.mistakes(path)
    assert len(found) >= len(chosen) and all(any(said in each for each in found) for _, _, said in chosen), found


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_no_secret_is_in_a_file_and_nothing_listens_for_all(name: str) -> None:
    text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
    assert not any(
        word in text
        for word in ("AKIA", "aws_access_key", "aws_secret", "aws_credentials", "BEGIN", "password", "0.0.0.0")
    )
    config = yaml.safe_load(text)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    sent = [str(local) for local in config["file_mounts"].values()]
    assert "." not in sent and not any(
        word in path for path in sent for word in ("venv", ".git", "runs", "shards", "demo")
    )


def test_a_search_is_planned_for_the_machines_that_there_may_be(filled: Callable[[str], Path]) -> None:
    config = yaml.safe_load(filled("gpu.yaml").read_text())
    assert autoscaled_nodes(config, "gpu.yaml") == [{"CPU": 0}, *[{"CPU": 4, "GPU": 1}] * 4]
    assert [
        f"{CLUSTER_FILE}=$HOME/ray_bootstrap_config.yaml" in command for command in config["head_start_ray_commands"]
    ] == [False, True]
    assert not any(
        CLUSTER_FILE in command for command in config["worker_start_ray_commands"]
    )  # they do not have that file


class OneHead:
    """What the autoscaler asks a provider about the only machine that there is."""

    def node_tags(self, node: str) -> dict[str, str]:
        return {"ray-node-type": "head", "ray-user-node-type": "head"}

    def internal_ip(self, node: str) -> str:
        return node


def test_an_on_demand_machine_is_ordered_while_spot_ones_are_refused(
    filled: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
    from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    config = yaml.safe_load(filled("gpu.yaml").read_text())
    now = [0.0]
    seen = NodeProviderAvailabilityTracker(timer=lambda: now[0])

    def ordered(demand: dict[str, float]) -> dict[str, int]:
        """The machines for three of these, by Ray's older autoscaler."""
        scheduler = ResourceDemandScheduler(
            OneHead(), config["available_node_types"], config["max_workers"], config["head_node_type"], 1.0
        )
        here = {"192.0.2.1": {"CPU": 0.0}}
        nodes, _ = scheduler.get_nodes_to_launch(["192.0.2.1"], {}, [demand] * 3, here, [], here, [], seen.summary())
        return {name: count for name, count in nodes.items() if count}

    def refuse(name: str) -> None:
        seen.update_node_availability(name, 0, NodeLaunchException("InsufficientInstanceCapacity", "none left", None))

    trial = {"CPU": 1.0, "GPU": 1.0}
    refuse("gpu_spot")
    assert ordered(trial) == {"gpu_spot": 3}  # by itself Ray orders what was refused
    # As on the head, where the file says what decides, and where it is.
    start = next(command for command in config["head_start_ray_commands"] if "ray start" in command)
    given = dict(word.split("=", 1) for word in start.split() if "=" in word)
    assert given["RAY_enable_autoscaler_v2"] == "0" and given["PYTHONPATH"] == "$HOME/dreamprvr-ray/cluster"
    assert config["file_mounts"]["~/dreamprvr-ray/cluster"] == "cluster"
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", given["RAY_AUTOSCALER_UTILIZATION_SCORER"])
    assert ordered(trial) == {"gpu_on_demand": 3}
    refuse("gpu_on_demand")
    assert ordered(trial) == {"gpu_spot": 3}
    now[0] = 31 * 60  # nothing is held against them any more
    assert ordered(trial) == {"gpu_spot": 3}
    assert ordered({"CPU": 64.0}) == {}
