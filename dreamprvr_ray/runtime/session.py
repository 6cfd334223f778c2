"""The Ray that a command uses: a cluster to which it connects, or a local Ray that it starts and that ends with it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray

from dreamprvr_ray.config import AUTO_PRECISION
from dreamprvr_ray.cpus import allowed_cpus
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.runtime import ray_internals, ray_version
from dreamprvr_ray.runtime.local_ray import LOOPBACK, start
from dreamprvr_ray.runtime.lost_ray import lost_cluster, lost_process, watched

FIRST_DASHBOARD_PORT = 8265  # Ray's own default
API_SERVER = "RAY_API_SERVER_ADDRESS"  # environment variable
CONNECT_TIMEOUT = 5.0  # seconds

# Environment variables that Ray's processes read when they start.
RAY_ENVIRONMENT = {
    # How often the controller looks for workers that have ended or are lost; 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # How long an elastic group waits for all its workers before it starts with those that fit.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves an actor: a preempted node is handled like a lost one
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1",  # NCCL copies directly between the GPUs that a process can see
    # Do not start worker processes in advance: they could not be used, since our actors have a runtime environment.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search keeps its own records and resumes from its Optuna study
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Environment variables that the C library and OpenMP read when a worker starts.
WORKER_ENVIRONMENT = RAY_ENVIRONMENT | {
    # Waiting threads spin for about ten microseconds, as long as waking a sleeping thread takes. Spinning for
    # longer would take cores from threads that have work, and a step would need 8 times the CPU time.
    # OMP_WAIT_POLICY is for OpenMP runtimes other than GNU's.
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "passive",
    # glibc returns large blocks to the system at once. Getting them back, page by page, took a third of a training step
    # on the CPU.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**50),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# For a local Ray: nothing listens on an address that other machines can reach. See `ray_internals.loopback_only` for
# the first.
LOOPBACK_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}


def _no_log(line: str) -> None:
    pass


@contextmanager
def ray_session(
    dashboard: bool,
    log: Callable[[str], None] = _no_log,
    resume: str = "add --resume to the same command",
    local: bool = False,
) -> Iterator[str | None]:
    """Connect to the cluster of RAY_ADDRESS, or else of `ray start` on this machine, or else start a local Ray.

    With `local`, a local Ray is started even if there is a cluster.

    Disconnects, or ends the local Ray, when the block ends. A Ray to which this process is already connected is used
    and left running. Yields the URL of the dashboard, or None if there is none. `log` receives a line when Ray starts.
    Raises `UserError` if RAY_ADDRESS does not answer, or if the installed Ray is not of the tested version; `UserError`
    or `Failure` if a local Ray does not start. If it is lost later, this process ends with one line, which says with
    `resume` how to continue.
    """
    ray_version.check_version()
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield None
        return
    ray_internals.silence_token_notice()
    with ExitStack() as stack:
        context = None if local else connect_to_cluster()
        if context is None:  # not `or`: it would call the context's `__len__`, for which Ray prints a warning
            context = _start_local(dashboard, log, stack)
            stack.callback(ray.shutdown)
            stack.enter_context(watched(lost_process, resume))
        else:
            stack.callback(ray.shutdown)
            stack.enter_context(watched(lost_cluster(), resume))
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None


def connect_to_cluster() -> Any | None:
    """Connect to a cluster and return Ray's context; None if there is no cluster or RAY_ADDRESS is `local`.

    Raises `UserError` if RAY_ADDRESS names a cluster that does not answer.
    """
    requested = os.environ.get("RAY_ADDRESS") or "auto"
    address = ray_internals.started_cluster() if requested == "auto" else requested
    if address is None or address == "local":
        return None
    reason = _connection_error(address)
    if reason is None:
        try:
            return _init(address, {})
        except ConnectionError as error:
            reason = first_line(error)
    if requested == "auto":  # the recorded cluster is gone
        return None
    raise UserError(f"RAY_ADDRESS={requested}: cannot connect to a Ray cluster: {reason}")


def worker_environment() -> dict[str, str]:
    """Return the environment variables of all workers, on every node; those set in this process take precedence."""
    forwarded = (*RAY_ENVIRONMENT, AUTO_PRECISION)
    return WORKER_ENVIRONMENT | {name: os.environ[name] for name in forwarded if name in os.environ}


def _init(address: str, local: dict[str, str], **options: Any) -> Any:
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        # Progress arrives through queues and callbacks. What workers print stays in Ray's logs and on the dashboard.
        return ray.init(
            address=address,
            runtime_env={"env_vars": worker_environment() | local},
            log_to_driver=False,
            logging_level="WARNING",
            **options,
        )
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm_handler)  # Ray's own ends the process at once


def _connection_error(address: str) -> str | None:
    """Return why nothing answers at host:port; None if something does. URLs are not tried."""
    if "://" in address:
        return None
    try:
        socket.create_connection(ray_internals.host_and_port(address), timeout=CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _start_local(dashboard: bool, log: Callable[[str], None], stack: ExitStack) -> Any:
    """Start a Ray on this machine that only this process uses."""
    local = dict(LOOPBACK_ENVIRONMENT)
    if not dashboard:  # state tracking is for the dashboard; it starts an actor, which takes seconds in every run
        local["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "0"
    before = {name: os.environ.get(name) for name in (*local, API_SERVER)}
    stack.callback(_restore, before)
    stack.enter_context(ray_internals.loopback_only())

    def connect() -> Any:
        # A second try has another port: what is left of the first one may still listen on its own.
        port = stack.enter_context(_reserved_port(FIRST_DASHBOARD_PORT))
        # Without an address, Ray's State API asks whichever Ray it finds on this machine. Ray Train would ask another
        # command's Ray for its controller, take the controller for dead and remove the workers. Without a dashboard
        # nothing answers, which does no harm.
        environment = local | {API_SERVER: f"http://{LOOPBACK}:{port}"}
        os.environ |= environment
        options = {"include_dashboard": dashboard, "dashboard_port": port, "num_cpus": allowed_cpus()}
        with ray_internals.quiet_start():
            return _init("local", environment, **options)

    return start(connect, log)


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)  # Ray may not have come so far as to set it
        else:
            os.environ[name] = value


@contextmanager
def _reserved_port(first: int) -> Iterator[int]:
    """Yield the first free port from `first` upwards.

    A lock file keeps other commands from choosing it while the block runs.
    """
    for port in range(first, 2**16):
        try:
            lock = os.open(Path(tempfile.gettempdir()) / f"dreamprvr-ray-port-{port}", os.O_RDWR | os.O_CREAT, 0o600)
        except PermissionError:  # another user's command has it
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
    raise RuntimeError(f"no free port from {first} upwards")
