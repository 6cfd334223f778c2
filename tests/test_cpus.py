"""The number of cores that a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamprvr_ray.cpus import allowed_cpus

SCRIPT = """
import os
from dreamprvr_ray.convert import _parser
from dreamprvr_ray.cpus import allowed_cpus
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
workers = _parser().parse_args(["--source", "x", "--collection", "c", "--out", "out"]).workers
print(workers, allowed_cpus())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_affinity_limits_the_cores_and_the_processes_of_convert() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\n"


def _group(mount: Path, group: str, **files: str) -> None:
    (mount / group).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (mount / group / name.replace("__", ".")).write_text(text)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)


@pytest.mark.usefixtures("many_cores")
def test_control_groups_limit_the_cores(tmp_path: Path) -> None:
    membership, mount = tmp_path / "cgroup", tmp_path / "mount"
    assert allowed_cpus(membership, mount) == 32  # no control groups
    membership.write_text("0::/batch/job\n")
    _group(mount, "batch/job", cpu__max="max 100000\n")
    assert allowed_cpus(membership, mount) == 32
    _group(mount, "batch", cpu__max="250000 100000\n")  # of the parent: 2.5 cores
    assert allowed_cpus(membership, mount) == 3
    _group(mount, "batch/job", cpu__max="50000 100000\n")
    assert allowed_cpus(membership, mount) == 1


@pytest.mark.usefixtures("many_cores")
def test_control_groups_of_version_1_limit_the_cores(tmp_path: Path) -> None:
    membership, mount = tmp_path / "cgroup", tmp_path / "mount"
    membership.write_text("3:memory:/x\n2:cpu,cpuacct:/docker/x\n")
    _group(mount, "cpu,cpuacct/docker/x", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert allowed_cpus(membership, mount) == 32
    _group(mount, "cpu,cpuacct/docker/x", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    assert allowed_cpus(membership, mount) == 4
