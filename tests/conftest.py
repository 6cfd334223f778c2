"""Fixtures that are shared by many tests."""

from __future__ import annotations

import importlib
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from support.object_store import S3

from dreamprvr_ray import command_line

ROOT = Path(__file__).parent.parent

# Use a separate Ray instance even if one runs on this machine, and do not let threads compete for the cores.
os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray Train's processes for dashboards and for preempted cloud machines take seconds each to start.
os.environ |= {"RAY_TRAIN_ENABLE_STATE_TRACKING": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


LONGEST = (
    "test_readme",
    "test_tune",
    "test_up",
    "test_several_nodes",
    "test_from_nothing",
    "test_metrics",
    "test_train",
    "test_workers",
    "test_distributed",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first; otherwise one pytest-xdist worker waits for another at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data next to the checkout; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared next to this checkout")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m dreamprvr_ray.<command>` in a process and return its output."""

    def run(name: str, *arguments: object, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", f"dreamprvr_ray.{name}", *map(str, arguments)]
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def call() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process, which saves seconds and uses the Ray instance that is connected here, if any."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        module = importlib.import_module(f"dreamprvr_ray.{name}")
        if hasattr(module, "__path__"):  # a command that is a package
            module = importlib.import_module(f"dreamprvr_ray.{name}.__main__")
        words = [str(module.__file__), *map(str, arguments)]
        out, errors = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(errors),
            pytest.raises(SystemExit) as exit,
        ):
            patch.setattr(sys, "argv", words)
            command_line.run(module.main)
        return subprocess.CompletedProcess(words, exit.value.code, out.getvalue(), errors.getvalue())

    return run


@dataclass(frozen=True)
class Driver:
    """A command in a separate process, to be interrupted or killed."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)  # lines on stderr so far

    def wait_for_output(self, words: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output.append(line)
            if words in line:
                return
        raise AssertionError(f"the command ended without printing {words!r}:\n{''.join(self.output)}")

    def end(self) -> str:
        """Wait until the process ends, and return its stderr."""
        self.output.append(self.process.communicate()[1])
        return "".join(self.output)

    def kill(self, with_its_ray: bool = False) -> None:
        """Kill the process, optionally with the Ray processes that it started, and wait until all have ended."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family if with_its_ray else ():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()
        given_up = time.monotonic() + 120
        while alive := [process for process in family if runs(process)]:
            assert time.monotonic() < given_up, alive
            time.sleep(0.2)


def runs(process: psutil.Process) -> bool:
    """Return whether a process is running; one that has ended but was not waited for is a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def drive() -> Iterator[Callable[..., Driver]]:
    """Start `python -m dreamprvr_ray.<command>`; processes that still run when the test ends are killed."""
    drivers: list[Driver] = []

    def start(name: str, *arguments: object, **environment: str) -> Driver:
        words = [sys.executable, "-m", f"dreamprvr_ray.{name}", *map(str, arguments)]
        drivers.append(
            Driver(
                subprocess.Popen(
                    words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | environment
                )
            )
        )
        return drivers[-1]

    yield start
    for driver in drivers:
        if driver.process.poll() is None:
            driver.kill(with_its_ray=True)


@pytest.fixture(scope="session")
def demo_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo source tree."""
    from dreamprvr_ray.data.demo import write_demo

    directory = tmp_path_factory.mktemp("demo") / "source"
    write_demo(directory, seed=1, videos={"train": 24, "val": 10, "test": 12})
    return directory


@pytest.fixture(scope="session")
def demo_shards(demo_source: Path, call: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """The shards of `demo_source`."""
    shards = demo_source.parent / "shards"
    done = call("convert", "--source", demo_source, "--collection", "demo", "--out", shards)
    assert done.returncode == 0, done.stderr
    return shards


@pytest.fixture(scope="session")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of another collection, `other`, whose features have the same names and sizes."""
    from dreamprvr_ray.data.conversion import ConversionSettings, convert
    from dreamprvr_ray.data.demo import write_demo
    from dreamprvr_ray.data.manifest import Manifest
    from dreamprvr_ray.data.source import Source

    directory = tmp_path_factory.mktemp("other")
    write_demo(directory / "source", seed=2, videos={"train": 16, "val": 8, "test": 10})
    convert(Source.open(directory / "source", "demo"), directory / "shards", ConversionSettings(), workers=1)
    manifest = Manifest.open(directory / "shards")
    replace(manifest, collection="other").write(directory / "shards")
    return directory / "shards"


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A local Ray instance with its dashboard, for tests that use Ray directly and for commands that they `call`."""
    from dreamprvr_ray.runtime.session import ray_session

    with ray_session(dashboard=True):
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    s3 = S3("{}:{}".format(*server.get_host_and_port()))
    log, recorder = logging.getLogger("werkzeug"), logging.Handler()
    recorder.emit = lambda record: s3.requests.append(record.getMessage())  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("DREAMPRVR_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setattr(log, "handlers", [recorder])
        patch.setattr(log, "propagate", False)
        log.setLevel(logging.INFO)
        yield s3
    server.stop()
