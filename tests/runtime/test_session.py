"""The Ray that a command uses."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from dreamprvr_ray.config import AUTO_PRECISION
from dreamprvr_ray.runtime import session
from dreamprvr_ray.runtime.ray_internals import started_cluster
from dreamprvr_ray.runtime.session import connect_to_cluster, worker_environment

if TYPE_CHECKING:
    from conftest import Driver


def test_a_local_ray_listens_on_loopback_only_and_runs_no_process_that_only_a_cluster_needs(
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
    training.wait_for_output("training started with 2 workers")
    processes = [psutil.Process(training.process.pid), *psutil.Process(training.process.pid).children(recursive=True)]
    commands = [" ".join(process.cmdline()) for process in processes]
    assert any("ray::RayTrainWorker" in command for command in commands)
    assert not [
        command for command in commands if "AutoscalingCoordinator" in command or "PlacementGroupCleaner" in command
    ]
    listening = {
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert len({name for name, _ in listening}) > 3  # otherwise this looked at the wrong processes
    assert not {(name, address) for name, address in listening if not is_loopback(address)}


def test_the_meaning_of_auto_precision_is_passed_on_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTO_PRECISION, raising=False)
    assert AUTO_PRECISION not in worker_environment()
    monkeypatch.setenv(AUTO_PRECISION, "fp32")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    environment = worker_environment()
    assert environment[AUTO_PRECISION] == "fp32" and environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_a_command_does_not_use_the_local_ray_of_another_command(
    demo_shards: Path,
    tmp_path: Path,
    drive: Callable[..., Driver],
    command: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    # A separate directory, with a short path: clusters of other tests, which run at the same time, are not found.
    folder = tempfile.mkdtemp(prefix="ray-")
    monkeypatch.setenv("RAY_TMPDIR", folder)

    def train(name: str, epochs: int) -> tuple[object, ...]:
        small = ("--set", "model.hidden_size=16", f"training.epochs={epochs}", f"training.patience={epochs}")
        return "train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / name, *small

    first = drive(*train("first", 1000))
    first.wait_for_output("1/1000 | loss")
    second = command(*train("second", 1), timeout=120)  # it would wait for the first one's resources forever
    assert second.returncode == 0 and "Failed to connect" not in second.stderr, second.stderr
    first.kill(with_its_ray=True)
    shutil.rmtree(folder, ignore_errors=True)


def test_an_address_that_does_not_answer_is_reported_at_once(
    demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    """Ray itself retries forever."""
    done = drive(
        "train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / "run", RAY_ADDRESS="127.0.0.1:9"
    )
    assert (
        done.end().startswith("error: RAY_ADDRESS=127.0.0.1:9: cannot connect to a Ray cluster: ")
        and done.process.returncode == 2
    )
    assert len("".join(done.output).splitlines()) == 1


def test_the_recorded_address_of_a_cluster_that_is_gone_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    assert started_cluster() == "127.0.0.1:9"  # otherwise this reads another file
    assert connect_to_cluster() is None


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_a_second_try_to_start_ray_has_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []
    with ExitStack() as stack:

        def connect(address: str, environment: dict[str, str], **options: Any) -> str:
            ports.append(options["dashboard_port"])
            assert environment[session.API_SERVER] == f"http://127.0.0.1:{ports[-1]}" == os.environ[session.API_SERVER]
            if len(ports) == 1:  # leaves a process behind that listens
                stack.enter_context(socket.create_server(("127.0.0.1", ports[0])))
                raise RuntimeError("timed out")
            return "context"

        monkeypatch.setattr(session, "_init", connect)
        assert session._start_local(False, print, stack) == "context"
    assert len(ports) == 2 and ports[1] > ports[0]
    assert session.API_SERVER not in os.environ
