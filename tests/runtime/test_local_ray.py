"""A local Ray that does not start: one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.runtime import local_ray
from dreamprvr_ray.runtime.local_ray import check_machine, start
from dreamprvr_ray.runtime.ray_internals.tune import without_access_keys
from dreamprvr_ray.runtime.session import ray_session


def start_ray() -> None:
    """Start Ray as a command does; its environment must be as it was afterwards."""
    before = dict(os.environ)
    try:
        with ray_session(dashboard=False):
            pass
    finally:
        assert before.items() <= dict(os.environ).items()


def test_a_directory_that_is_too_long_for_sockets_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    check_machine()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "d" * 60)
    with pytest.raises(UserError, match=r"^TMPDIR=/tmp/d+: too long for .* set RAY_TMPDIR to a shorter directory"):
        start_ray()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_machine()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_directory_that_cannot_be_written_is_reported(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "/proc/none")
    with pytest.raises(UserError, match=f"^{variable}=/proc/none: cannot be written: .* set RAY_TMPDIR"):
        start_ray()


def test_a_home_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/proc")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^HOME=/proc: cannot be written: .* set HOME to another directory"):
        start_ray()
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))  # Ray creates it
    check_machine()


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="a network without loopback needs root")
def test_a_machine_without_loopback_is_reported_at_once() -> None:
    program = "from dreamprvr_ray.runtime.session import ray_session; ray_session(dashboard=False).__enter__()"
    words = ["unshare", "-n", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr:
        pytest.skip(done.stderr)
    assert "Failure: Ray cannot start: 127.0.0.1 does not answer" in done.stderr and "ip link set lo up" in done.stderr


def test_the_log_of_a_process_of_ray_that_does_not_start_is_not_printed() -> None:
    program = (
        "from dreamprvr_ray.runtime.session import ray_session\nwith ray_session(dashboard=False): print('started')"
    )
    environment = os.environ | {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "0"}  # as on a machine that is too busy
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "started\n" and done.stderr == "", done.stderr


def test_a_start_that_fails_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    lines: list[str] = []
    outcomes: list[Exception | str] = [RuntimeError("timed out\nmore"), "context"]

    def connect() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert start(connect, lines.append) == "context"
    assert lines == ["starting Ray ...", "Ray did not start (timed out); trying once more ..."]
    outcomes += [RuntimeError("timed out"), RuntimeError("timed out again\nmore")]
    with pytest.raises(Failure, match=r"^Ray did not start: timed out again; .* RAY_TMPDIR [^\n]*$"):
        start(connect, lines.append)
    outcomes.append(UserError("wrong"))
    with pytest.raises(UserError):  # a second try would not help
        start(connect, lines.append)


def test_access_keys_are_not_handed_to_trials() -> None:
    from ray.tune.execution import class_cache

    before = set(class_cache.ENV_VARS_TO_PROPAGATE)
    with without_access_keys():
        assert not [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]
        assert before > class_cache.ENV_VARS_TO_PROPAGATE
    assert before == class_cache.ENV_VARS_TO_PROPAGATE


def test_train_looks_at_its_directories_before_it_starts_ray(
    demo_shards: Path,
    tmp_path: Path,
    call: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(local_ray, "check_machine", refuse)
    (tmp_path / "full" / "file").mkdir(parents=True)
    cases = [
        ((demo_shards, "--out", tmp_path / "full"), f"{tmp_path / 'full'}: already exists"),
        ((demo_shards, "--out", tmp_path / "new", "--resume"), f"{tmp_path / 'new'}: nothing to resume"),
        ((demo_shards, "--out", "/proc/none/run"), "/proc/none"),
        ((tmp_path / "absent", "--out", tmp_path / "new"), f"{tmp_path / 'absent'}"),
    ]
    for arguments, message in cases:
        done = call("train", "--config", "demo", "--shards", *arguments)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "new").exists()
