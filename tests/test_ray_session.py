"""The Ray that commands start by themselves."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from conftest import Driver


def test_a_local_ray_listens_on_loopback_alone_and_runs_no_process_that_only_a_cluster_needs(
    demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    training = drive("train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / "run", "--workers", 2, "--set", "model.hidden_size=16")
    training.wait_until_it_says("2 workers train")
    processes = [psutil.Process(training.process.pid), *psutil.Process(training.process.pid).children(recursive=True)]
    commands = [" ".join(process.cmdline()) for process in processes]
    assert any("ray::RayTrainWorker" in command for command in commands)
    assert not [command for command in commands if "AutoscalingCoordinator" in command or "PlacementGroupCleaner" in command]
    listening = {(process.name(), each.laddr.ip) for process in processes for each in process.net_connections("inet") if each.status == "LISTEN"}
    assert len({name for name, _ in listening}) > 3  # or this has looked at the wrong processes
    assert not {(name, address) for name, address in listening if not is_loopback(address)}


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
