"""A Ray that is lost ends the command within seconds, with one line that says how to continue."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from ray.cluster_utils import Cluster

from dreamprvr_ray.runtime.lost_ray import PATIENCE, Probe

if TYPE_CHECKING:
    from conftest import Driver

SMALL = ("--set", "model.hidden_size=16", "model.branches=1", "training.epochs=1000", "training.patience=1000")


def test_a_lost_process_of_ray_ends_the_command_with_one_line() -> None:
    program = (
        "import time\nfrom dreamprvr_ray.runtime import lost_ray\n"
        "lost_ray.ray_internals.ended_processes = lambda: ['raylet']\n"
        "with lost_ray.watched(lost_ray.lost_process):\n  time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert line.startswith("failed: Ray has lost its process raylet") and "--resume" in line


@pytest.mark.parametrize(("patience", "expected"), [("0.3", 0.3), ("", 8.0), ("x", 8.0)])
def test_a_cluster_is_lost_once_it_has_not_answered_for_a_while(
    patience: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, patience)
    clock = [100.0]
    monkeypatch.setattr("dreamprvr_ray.runtime.lost_ray.time.monotonic", lambda: clock[0])
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        probe = Probe("the Ray cluster", address, "start it again")
        clock[0] += 1000.0
        assert probe() is None
    clock[0] += expected - 0.1
    assert probe() is None  # a GCS that is restarted
    clock[0] += 0.2
    line = probe()
    assert line is not None and line.startswith(
        f"the Ray cluster at {address} no longer answers (Connection refused): "
    )
    with socket.create_server(("127.0.0.1", int(address.partition(":")[2])), reuse_port=False):
        assert probe() is None
    assert probe() is None


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_run_whose_ray_is_lost_ends_within_seconds(
    demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver], process: str
) -> None:
    driver = drive("train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / "run", *SMALL)
    driver.wait_for_output("starting Ray ...")
    driver.wait_for_output("1/1000 | loss")
    children = psutil.Process(driver.process.pid).children(recursive=True)
    (lost,) = [child for child in children if child.name() == process]
    lost.kill()
    driver.process.wait(timeout=20)
    *_, last = driver.end().splitlines()
    assert driver.process.returncode == 1 and last.startswith(f"failed: Ray has lost its process {process}")


@pytest.mark.parametrize(
    ("process", "name"), [("gcs_server", "the Ray cluster"), ("raylet", "the raylet of this node")]
)
def test_a_run_whose_cluster_is_lost_ends_within_seconds(
    demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver], process: str, name: str
) -> None:
    """Before, it waited for a minute or forever, and ended with lines of Ray's."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        arguments = ("--config", "demo", "--shards", demo_shards, "--out", tmp_path / "run", *SMALL)
        driver = drive("train", *arguments, RAY_ADDRESS=cluster.address)
        driver.wait_for_output("1/1000 | loss")
        os.kill(cluster.head_node.all_processes[process][0].process.pid, signal.SIGKILL)
        killed = time.monotonic()
        driver.process.wait(timeout=40)
        seconds = time.monotonic() - killed
        *_, last = driver.end().splitlines()
        assert driver.process.returncode == 1 and seconds < 30  # 11 s on a quiet machine
        assert last.startswith(f"failed: {name} at ") and "no longer answers (Connection refused): " in last
        assert last.endswith(" again and add --resume to the same command")
    finally:
        cluster.shutdown()
