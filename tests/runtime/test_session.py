"""The Ray that commands start by themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from ray._private.utils import read_ray_address

from dreamprvr_ray.runtime import session as ray_session

if TYPE_CHECKING:
    from conftest import Driver


def test_a_local_ray_listens_on_loopback_alone_and_runs_no_process_that_only_a_cluster_needs(
    demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    training = drive(
        "train",
        "--config",
        "demo",
        "--shards",
        demo_shards,
        "--out",
        tmp_path / "run",
        "--workers",
        2,
        "--set",
        "model.hidden_size=16",
    )
    training.wait_until_it_says("2 workers train")
    processes = [psutil.Process(training.process.pid), *psutil.Process(training.process.pid).children(recursive=True)]
    commands = [" ".join(process.cmdline()) for process in processes]
    assert any("ray::RayTrainWorker" in command for command in commands)
    assert not [
        command for command in commands if "AutoscalingCoordinator" in command or "PlacementGroupCleaner" in command
    ]
    listening = {
        (process.name(), each.laddr.ip)
        for process in processes
        for each in process.net_connections("inet")
        if each.status == "LISTEN"
    }
    assert len({name for name, _ in listening}) > 3  # or this has looked at the wrong processes
    assert not {(name, address) for name, address in listening if not is_loopback(address)}


def test_a_command_does_not_join_the_ray_of_another(
    demo_shards: Path,
    tmp_path: Path,
    drive: Callable[..., Driver],
    command: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")

    def train(name: str, epochs: int) -> tuple[object, ...]:
        small = ("--set", "model.hidden_size=16", f"training.epochs={epochs}", f"training.patience={epochs}")
        return "train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / name, *small

    drive(*train("first", 1000)).wait_until_it_says("1/1000 | loss")
    second = command(*train("second", 1), timeout=120)  # to join the other would be to wait for ever
    assert second.returncode == 0 and "Failed to connect" not in second.stderr, second.stderr


def test_an_address_where_nobody_answers_is_said_at_once(
    demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    """Ray by itself tries again for ever."""
    done = drive(
        "train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / "run", RAY_ADDRESS="127.0.0.1:9"
    )
    assert (
        done.end().startswith("error: RAY_ADDRESS=127.0.0.1:9: no Ray cluster answers there: ")
        and done.process.returncode == 2
    )
    assert len("".join(done.said).splitlines()) == 1


def test_the_record_of_a_cluster_that_is_gone_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    assert read_ray_address() == "127.0.0.1:9"  # or this looks elsewhere
    assert ray_session._cluster() is None


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
