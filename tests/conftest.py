"""Fixtures that many tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A Ray of our own, whatever runs on this machine, and threads that do not fight over the cores.
os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded and real data beside the project, which a checkout of its own does not have."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m dreamprvr_ray.<command>` as a user would, and returns what it printed."""

    def run(name: str, *arguments: object, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", f"dreamprvr_ray.{name}", *map(str, arguments)]
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def demo_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo source tree."""
    from dreamprvr_ray.data.demo import write_demo

    directory = tmp_path_factory.mktemp("demo") / "source"
    write_demo(directory, seed=1, videos={"train": 24, "val": 10, "test": 12})
    return directory


@pytest.fixture(scope="session")
def demo_shards(demo_source: Path, command: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """The shards of `demo_source`."""
    shards = demo_source.parent / "shards"
    done = command("convert", "--source", demo_source, "--collection", "demo", "--out", shards)
    assert done.returncode == 0, done.stderr
    return shards


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with its dashboard, for the tests that use its libraries directly."""
    from dreamprvr_ray.workers import ray_session

    with ray_session(dashboard=True):
        yield
