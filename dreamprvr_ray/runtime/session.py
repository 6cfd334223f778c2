"""The Ray that a command runs on, connected to or started for the length of a block."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import read_ray_address

from dreamprvr_ray.config import AUTO_PRECISION
from dreamprvr_ray.errors import UserError

FIRST_DASHBOARD_PORT = 8265  # Ray's own default
LOOPBACK = "127.0.0.1"
ANSWER_WITHIN = 5.0  # seconds

# Read by Ray's processes when they start. Ends and losses of workers are seen at the controller's next look at them: 2 s by default.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then an elastic group is started with the workers that there is room for
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor more; a preempted node is a lost node
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1",  # NCCL copies directly between the GPUs of a node that a process sees
    "RAY_prestart_worker_first_driver": "0",  # processes that none of our actors would be placed in: theirs have an environment of their own
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search keeps its own records, and is taken up again from its study
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Read by the C library and by OpenMP in every worker when it starts. glibc gives large blocks back to the system at once; fetching them anew, page by
# page, took a third of a training step on the CPU.
WORKER_ENVIRONMENT = RAY_ENVIRONMENT | {
    # Threads that wait for each other spin for some ten microseconds, as long as waking a sleeper takes. Spinning on, they would take the cores
    # from whoever has work: 8 times a step's processor time. The second is for OpenMP runtimes other than GNU's.
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**50),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# Of a local Ray: nothing listens where other machines could reach it. The first is what Ray does by itself on Windows and macOS.
STAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@contextmanager
def ray_session(dashboard: bool) -> Iterator[str | None]:
    """Ray for the length of the block: the cluster that RAY_ADDRESS names or that `ray start` has started here, else a local one.

    Gives the dashboard's address where there is one. A Ray that is connected already is used and left alone.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield None
        return
    # It warns at every start that token authentication is on, as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    with ExitStack() as stack:
        context = _cluster()
        if context is None:  # `or` would ask for its length, which Ray warns of
            context = _local(dashboard, stack)
        stack.callback(ray.shutdown)
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None


def is_our_own() -> bool:
    """Whether the connected Ray is one that a `ray_session` of this process has started, and that ends with it."""
    return ray.is_initialized() and not ray_constants.ENABLE_RAY_CLUSTER


def _init(address: str, local: dict[str, str], **options: Any) -> Any:
    forwarded = {name: os.environ[name] for name in (*RAY_ENVIRONMENT, AUTO_PRECISION) if name in os.environ}
    environment = WORKER_ENVIRONMENT | forwarded | local
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Our own lines come through queues and callbacks; what workers print stays in Ray's logs and on the dashboard.
        return ray.init(
            address=address,
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level="WARNING",
            **options,
        )
    finally:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Ray has put a handler of its own there, which ends at once
            signal.signal(signal.SIGTERM, on_sigterm)


def _cluster() -> Any | None:
    """A connection to a cluster; None where there is none, or where RAY_ADDRESS is `local`."""
    named = os.environ.get("RAY_ADDRESS") or "auto"
    # Not what Ray itself takes for `auto`, which is any Ray that runs here: another command's own Ray is not to be joined, and ends with it.
    address = read_ray_address() if named == "auto" else named
    if address is None or address == "local":
        return None
    reason = _silence(address)
    if reason is None:
        try:
            return _init(address, {})
        except ConnectionError as error:
            reason = str(error).splitlines()[0]
    if named == "auto":  # the record of a cluster that is gone
        return None
    raise UserError(f"RAY_ADDRESS={named}: no Ray cluster answers there: {reason}")


def _silence(address: str) -> str | None:
    """Why nobody listens at host:port, None if somebody does: Ray would try again for ever. Of other addresses nothing is known."""
    if "://" in address:
        return None
    try:
        host, port = canonicalize_bootstrap_address(address).rsplit(":", 1)
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _local(dashboard: bool, stack: ExitStack) -> Any:
    """A Ray of our own on this machine."""
    port = stack.enter_context(_own_port(FIRST_DASHBOARD_PORT))
    # Ray's State API looks for the one Ray of this machine unless it is told the address. There may be others, and Ray Train, asking one
    # of them for its controller, would take it for dead and remove its workers. Without a dashboard nobody answers, which it lives with.
    local = {"RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{port}"} | STAY_ON_LOOPBACK
    if not dashboard:  # what it shows of Ray Train's runs takes an actor more, seconds of every run's start
        local["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "0"
    before = {name: os.environ.get(name) for name in local}
    stack.callback(_restore, before)
    os.environ |= local
    stack.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
    ray_constants.ENABLE_RAY_CLUSTER = False  # the variable has been read when Ray was imported
    return _init("local", local, include_dashboard=dashboard, dashboard_port=port)


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@contextmanager
def _own_port(first: int) -> Iterator[int]:
    """The first port from `first` on that nobody listens on here, kept from other commands that look for one while the block runs."""
    for port in range(first, 2**16):
        try:
            lock = os.open(Path(tempfile.gettempdir()) / f"dreamprvr-ray-port-{port}", os.O_RDWR | os.O_CREAT, 0o600)
        except PermissionError:  # another user's command
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                free = probe.connect_ex((LOOPBACK, port)) != 0
        except BlockingIOError:
            free = False
        if free:
            try:
                yield port
            finally:
                os.close(lock)
            return
        os.close(lock)
    raise RuntimeError(f"no free port from {first} on")
