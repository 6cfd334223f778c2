"""The shipped cluster files, what `cluster/check.py` reports of mistakes, and which nodes the autoscaler requests."""

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
    """Return a shipped file with its placeholders filled in; the home directory has a key and a token."""
    (tmp_path / ".ray").mkdir()
    for name in ("key", ".ray/auth_token"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def fill(name: str) -> Path:
        text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
        for placeholder, value in (FILLED | {"<KEY>": str(tmp_path / "key")}).items():
            text = text.replace(placeholder, value)
        path = tmp_path / name
        path.write_text(text)
        return path

    return fill


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_a_shipped_file_has_no_mistakes_once_its_placeholders_are_filled_in(
    name: str, filled: Callable[[str], Path]
) -> None:
    assert check.mistakes(filled(name)) == []
    mistakes = check.mistakes(ROOT / "cluster" / name)
    assert mistakes and all("fill in <" in mistake for mistake in mistakes)


def test_the_check_as_a_command(filled: Callable[[str], Path]) -> None:
    path = filled("onprem.yaml")
    words = [sys.executable, "cluster/check.py", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{path}: no mistakes found\n"
    path.write_text(path.read_text().replace("provider:", "provder:").replace("--head ", "--haed "))
    done = subprocess.run(words, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "unknown key provder; did you mean provider?" in done.stderr
        and "--haed; did you mean --head?" in done.stderr
    )
    assert "Traceback" not in done.stderr and all(line.startswith(f"{path}: ") for line in done.stderr.splitlines())


# The file, the correct text, what replaces it, and what the check reports.
WRONG = [
    (
        "gpu.yaml",
        "max_workers: 4\nidle",
        "max_wrokers: 4\nidle",
        "top level: unknown key max_wrokers; did you mean max_workers?",
    ),
    (
        "gpu.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minuts: 10",
        "unknown key idle_timeout_minuts; did you mean idle_timeout_minutes?",
    ),
    (
        "gpu.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minutes: ten",
        "idle_timeout_minutes: 'ten' is not of type 'number'",
    ),
    (
        "gpu.yaml",
        "head_node_type: head",
        "head_node_type: haed",
        "head_node_type: unknown node type haed; did you mean head?",
    ),
    (
        "gpu.yaml",
        "cache_stopped_nodes: false",
        "cache_stoped_nodes: false",
        "provider: unknown key cache_stoped_nodes; did you mean cache_stopped_nodes?",
    ),
    (
        "gpu.yaml",
        "region: eu-central-1",
        "region: eu-centrl-1",
        "provider.region: unknown region eu-centrl-1; did you mean eu-central-1?",
    ),
    (
        "gpu.yaml",
        "region: eu-central-1",
        "region: eu-central-1\n  availability_zone: us-west-2a",
        "us-west-2a is not in eu-central-1",
    ),
    ("gpu.yaml", "ssh_user: ubuntu", "ssh_usr: ubuntu", "auth: unknown key ssh_usr; did you mean ssh_user?"),
    (
        "gpu.yaml",
        "    min_workers: 0\n",
        "    min_worker: 0\n",
        "available_node_types.gpu_spot: unknown key min_worker; did you mean min_workers?",
    ),
    (
        "gpu.yaml",
        "    min_workers: 0\n",
        "    min_workers: 9\n",
        "available_node_types.gpu_spot: min_workers 9 must not exceed max_workers 4",
    ),
    ("gpu.yaml", "GPU: 1}", "GPU: one}", "available_node_types.gpu_spot.resources.GPU: 'one' is not of type 'integer'"),
    (
        "gpu.yaml",
        "InstanceType: g5.xlarge",
        "instanceType: g5.xlarge",
        "node_config: unknown EC2 key instanceType; did you mean InstanceType?",
    ),
    (
        "gpu.yaml",
        "InstanceType: g5.xlarge",
        "InstanceType: g5.xlrge",
        "node_config.InstanceType: unknown value g5.xlrge; did you mean g5.xlarge?",
    ),
    (
        "gpu.yaml",
        "VolumeSize: 250",
        "VolumSize: 250",
        "BlockDeviceMappings[0].Ebs: unknown EC2 key VolumSize; did you mean VolumeSize?",
    ),
    ("gpu.yaml", "VolumeSize: 250", "VolumeSize: 250GB", "VolumeSize, value: 250GB, type: <class 'str'>"),
    ("gpu.yaml", "MarketType: spot", "MarketType: sopt", "MarketType: unknown value sopt; did you mean spot?"),
    ("gpu.yaml", "ImageId: ami-0123456789abcdef0", "ImageId: 0123456789abcdef0", "ImageId: 0123456789abcdef0: "),
    (
        "gpu.yaml",
        "--dashboard-host=127.0.0.1",
        "--dashbord-host=127.0.0.1",
        "unknown option of ray start --dashbord-host; did you mean --dashboard-host?",
    ),
    ("gpu.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "opens the dashboard to the network"),
    ("gpu.yaml", " --autoscaling-config=~/ray_bootstrap_config.yaml", "", "no worker ever starts"),
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
        "file_mounts.~/dreamprvr-ray/Makefile: Makfile does not exist",
    ),
    ("gpu.yaml", "idle_timeout_minutes: 10", "max_workers: 8", "max_workers: given twice"),
    ("gpu.yaml", "    max_workers: 4", "    max_workers: [4", "line "),
    (
        "onprem.yaml",
        "type: local",
        "type: locl",
        "provider.type: unknown provider type (this check supports aws and local) locl; did you mean local?",
    ),
    ("onprem.yaml", "head_ip:", "head_pi:", "provider: unknown key head_pi; did you mean head_ip?"),
    ("onprem.yaml", "  head_ip: 192.0.2.10", "", "Ray: "),
    ("onprem.yaml", "  worker_ips:", "  Worker_ips:", "provider: unknown key Worker_ips; did you mean worker_ips?"),
    ("onprem.yaml", "    - 192.0.2.11", "    192.0.2.11", "is not of type 'array'"),
    (
        "onprem.yaml",
        "rsync_exclude: [",
        "rsync_excludes: [",
        "top level: unknown key rsync_excludes; did you mean rsync_exclude?",
    ),
    ("onprem.yaml", "/key", "/no-such-key", "/no-such-key does not exist"),
    ("onprem.yaml", "  - ray stop", "  ray stop", "head_start_ray_commands: must contain `ray start`"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "message"), WRONG)
def test_a_mistake_is_reported(name: str, right: str, wrong: str, message: str, filled: Callable[[str], Path]) -> None:
    path = filled(name)
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    mistakes = check.mistakes(path)
    assert any(message in mistake for mistake in mistakes), mistakes
    assert all("\n" not in mistake for mistake in mistakes)


def test_all_mistakes_are_reported_at_once(filled: Callable[[str], Path]) -> None:
    path = filled("gpu.yaml")
    text = path.read_text()
    chosen = [(right, wrong, message) for name, right, wrong, message in WRONG[:18:2] if name == "gpu.yaml"]
    for right, wrong, _ in chosen:
        text = text.replace(right, wrong, 1)
    path.write_text(text)
    mistakes = check.mistakes(path)
    assert len(mistakes) >= len(chosen)
    assert all(any(message in mistake for mistake in mistakes) for _, _, message in chosen), mistakes


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_a_file_holds_no_secret_and_opens_nothing_to_the_network(name: str) -> None:
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


def test_a_search_is_planned_for_the_maximum_size_of_the_cluster(filled: Callable[[str], Path]) -> None:
    config = yaml.safe_load(filled("gpu.yaml").read_text())
    assert autoscaled_nodes(config, "gpu.yaml") == [{"CPU": 0}, *[{"CPU": 4, "GPU": 1}] * 4]
    assert [
        f"{CLUSTER_FILE}=$HOME/ray_bootstrap_config.yaml" in command for command in config["head_start_ray_commands"]
    ] == [False, True]
    assert not any(
        CLUSTER_FILE in command for command in config["worker_start_ray_commands"]
    )  # only the head has that file


class OneHead:
    """What the autoscaler asks a provider about a cluster that consists of its head."""

    def node_tags(self, node: str) -> dict[str, str]:
        return {"ray-node-type": "head", "ray-user-node-type": "head"}

    def internal_ip(self, node: str) -> str:
        return node


def test_an_on_demand_machine_is_requested_while_spot_machines_are_refused(
    filled: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
    from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    config = yaml.safe_load(filled("gpu.yaml").read_text())
    now = [0.0]
    seen = NodeProviderAvailabilityTracker(timer=lambda: now[0])

    def requested(demand: dict[str, float]) -> dict[str, int]:
        """Return the nodes that Ray's older autoscaler requests for three of these demands."""
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
    assert requested(trial) == {"gpu_spot": 3}  # by default Ray requests what was refused
    # As on the head, where the cluster file names the scorer and its directory.
    start = next(command for command in config["head_start_ray_commands"] if "ray start" in command)
    given = dict(word.split("=", 1) for word in start.split() if "=" in word)
    assert given["RAY_enable_autoscaler_v2"] == "0" and given["PYTHONPATH"] == "$HOME/dreamprvr-ray/cluster"
    assert config["file_mounts"]["~/dreamprvr-ray/cluster"] == "cluster"
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", given["RAY_AUTOSCALER_UTILIZATION_SCORER"])
    assert requested(trial) == {"gpu_on_demand": 3}
    refuse("gpu_on_demand")
    assert requested(trial) == {"gpu_spot": 3}
    now[0] = 31 * 60  # the refusals are forgotten
    assert requested(trial) == {"gpu_spot": 3}
    assert requested({"CPU": 64.0}) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe", "not valid YAML"),
        (b"a: !!int ''", "not valid YAML"),
        (b"a: &a [*a]", "an anchor contains itself"),
        (b"[" * 9999, "not valid YAML"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    (mistake,) = check.mistakes(path)
    assert reason in mistake and "\n" not in mistake


def test_the_check_has_a_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 0 and "usage: python cluster/check.py" in capsys.readouterr().out
