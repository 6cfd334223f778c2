"""`ray up cluster/onprem.yaml`, a search with `ray job submit`, and `ray down`, on hosts with real SSH servers.

The hosts are namespaces. `pytest -s tests/cluster/test_up.py` prints the commands and their output; docs/ray-up.md is
such a transcript.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from support.hosts import ROOT, Hosts, missing

ADDRESSES = {"head": "10.77.0.2", "worker": "10.77.0.3"}
CPUS = psutil.cpu_count() or 1
PLAIN = "--log-style pretty --log-color false"
TINY = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "model.diffusion_steps": 1,
    "model.registers": {"int": [1, 4]},
    "training.batch_videos": 8,
    "training.epochs": 2,
}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Start a head and a worker on which `make install` has nothing to do.

    They have this Python environment, and import the package from the checkout that `ray up` copies to them.
    """
    if why := missing():
        pytest.skip(why)
    with Hosts(tmp_path / "hosts", ADDRESSES) as hosts:
        for name in ADDRESSES:
            installed = hosts.home(name) / "dreamprvr-ray" / ".venv"
            installed.mkdir(parents=True)
            for path in Path(sys.prefix).iterdir():
                if path.name != "installed":
                    (installed / path.name).symlink_to(path)
            (installed / "installed").touch()
            (hosts.home(name) / ".bashrc").write_text("export PYTHONPATH=$HOME/dreamprvr-ray\n")
        yield hosts


def network() -> str:
    """Return this machine's network interfaces and named namespaces."""
    return "".join(
        subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
        for words in (["-br", "link"], ["netns"])
    )


def test_hosts_are_isolated_and_leave_nothing_behind(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    before = network()
    with Hosts(tmp_path / "hosts", ADDRESSES) as hosts:
        for name, address in ADDRESSES.items():
            output = hosts.ssh(name, "hostname; echo ~; ls -A /tmp /dev/shm; ip -br -4 address; ps ax -o comm=").stdout
            assert output.startswith(f"{name}\n{hosts.home(name)}\n") and f"{address}/24" in output
            assert "sshd" in output and "python" not in output
        assert (
            "Permission denied" in hosts.run(f"ssh -o StrictHostKeyChecking=no root@{ADDRESSES['head']} true").stdout
        )  # without the key
        processes = hosts.processes()
    assert len(processes) >= 7
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive and network() == before


def call(hosts: Hosts, command: str, fails: bool = False, **environment: str) -> str:
    """Run a command that must succeed, or fail with `fails`; print and return its output."""
    started = time.monotonic()
    done = hosts.run(command, timeout=240, **environment)
    print(f"\n$ {command}   # {time.monotonic() - started:.0f} s\n{done.stdout}")
    assert (done.returncode != 0) is fails, done.stdout
    return done.stdout


def test_ray_up_a_search_and_ray_down(hosts: Hosts, demo_shards: Path) -> None:
    head, shared = ADDRESSES["head"], hosts.shared
    text = (ROOT / "cluster" / "onprem.yaml").read_text(encoding="utf-8")
    for placeholder, value in {
        "<HEAD>": head,
        "<WORKER>": ADDRESSES["worker"],
        "<USER>": "root",
        "<KEY>": str(hosts.key),
    }.items():
        text = text.replace(placeholder, value)
    (hosts.home("user") / "onprem.yaml").write_text(text)
    spaces = hosts.home("user") / "spaces"
    spaces.mkdir()
    # The job reserves the head's CPUs and a trial needs as many, so trials run on the worker.
    reserve = f"--entrypoint-num-cpus {CPUS} --entrypoint-resources '{{\"node:__internal_head__\": 0.001}}'"
    trial = {"workers": 1, "cpus_per_worker": CPUS, "at_a_time": 1}
    (spaces / "small.yaml").write_text(yaml.safe_dump({"config": "demo", "trials": 2, "space": TINY, "trial": trial}))
    shutil.copytree(demo_shards, shared / "shards")

    call(hosts, "ray get-auth-token --generate > /dev/null")
    assert "no mistakes found" in call(hosts, "python cluster/check.py ~/onprem.yaml")
    call(hosts, f"ray up --yes {PLAIN} ~/onprem.yaml")
    listens = hosts.ssh("head", "ss -ltnH 'sport = :8265'").stdout.split()
    assert listens[3] == "127.0.0.1:8265"

    tunnel = subprocess.Popen(
        hosts.words("ray dashboard ~/onprem.yaml"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    call(hosts, "until (echo > /dev/tcp/localhost/8265) 2>/dev/null; do sleep 0.2; done")
    search = "python -m dreamprvr_ray.tune --space small.yaml"
    submit = f"ray job submit {PLAIN} --address http://localhost:8265 {reserve} --working-dir ~/spaces -- {search}"
    submit += f" --shards {shared}/shards --out {shared}/search"
    assert "Unauthorized" in call(hosts, submit, fails=True) and not (shared / "search").exists()

    status = call(
        hosts, f"ray exec {PLAIN} ~/onprem.yaml 'until ray status | grep -q \" 2 local\"; do sleep 4; done; ray status'"
    )
    assert "2 local.cluster.node" in status and f"{2 * CPUS}.0 CPU" in status
    output = call(hosts, f"{submit} --json", RAY_AUTH_MODE="token")
    assert "succeeded" in output and "1 at a time" in output
    tunnel.kill()
    tunnel.wait()

    result = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    leaderboard = json.loads((shared / "search" / "leaderboard.json").read_text())
    assert result["trials"] == result["finished"] == 2 and [entry["state"] for entry in leaderboard] == ["finished"] * 2
    trained = {
        name: hosts.ssh(name, "grep -hi actor_name:.*trial /tmp/ray/session_latest/logs/worker-*.out").stdout
        for name in ADDRESSES
    }
    assert trained["worker"] and not trained["head"]

    assert "No nodes remaining" in call(hosts, f"ray down --yes {PLAIN} ~/onprem.yaml")
    assert "raylet" not in hosts.ssh("head", "ps ax -o args=").stdout
