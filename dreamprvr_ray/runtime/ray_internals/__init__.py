"""Everything private in Ray that this package uses: undocumented names, and overrides of private methods.

Ray may change any of them in a minor release, so commands refuse to run with any other than the tested one. To move to
another release, change `ray_version.py` and pyproject.toml, and run `tests/runtime/test_ray_internals.py` first.

This file holds what connecting to Ray needs. What Ray Train and Ray Tune need is in `trainers.py` and `tune.py`:
importing `ray.train` takes more than a second, which a command spends while Ray's processes start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from dreamprvr_ray.runtime.ray_version import unsupported_ray

try:
    from ray._common.utils import get_default_system_temp_dir
    from ray._private import ray_constants, worker
    from ray._private.services import canonicalize_bootstrap_address
    from ray._private.utils import read_ray_address
    from ray._private.worker import global_worker
except ImportError as error:
    raise unsupported_ray() from error

_SCALING_POLICY = "ray.train.v2._internal.execution.scaling_policy:FixedScalingPolicy"
_TRAINER = "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer"
# Every private name in use, as MODULE:ATTRIBUTE; a test checks that the installed Ray has each.
PRIVATE_NAMES = (
    "ray._common.utils:get_default_system_temp_dir",
    "ray._private.authentication.authentication_token_setup:logger",
    "ray._private.node:Node.dead_processes",
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER",
    "ray._private.services:canonicalize_bootstrap_address",
    "ray._private.services:logger",
    "ray._private.utils:read_ray_address",
    "ray._private.worker:global_worker",
    "ray._private.worker:print_to_stdstream",
    _SCALING_POLICY,
    f"{_SCALING_POLICY}.after_controller_start",
    f"{_SCALING_POLICY}._maybe_send_resource_request",
    _TRAINER,
    f"{_TRAINER}._create_default_callbacks",
    f"{_TRAINER}._initialize_and_run_controller",
    f"{_TRAINER}._register_sigint_handler",
    "ray.train.v2._internal.callbacks:DatasetsCallback",
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
    "ray.train.v2._internal.execution.controller:TrainController.abort",
    "ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE",
    "ray.tune.experiment:Trial",
)


def started_cluster() -> str | None:
    """Return the address of the cluster that `ray start` started on this machine, or None; the cluster may be gone.

    Why: Ray's public `address="auto"` also finds a local Ray that another command started for itself, which ends with
    that command. Without it: two commands on one machine would share a Ray.
    """
    address: str | None = read_ray_address()
    return address


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and port to which `ray.init` would connect. Raises ValueError for a malformed address.

    Why: `ray.init` retries an address at which nothing listens forever, so `session` tries the port first.
    Without it: a wrong RAY_ADDRESS hangs the command.
    """
    host, port = canonicalize_bootstrap_address(address).rsplit(":", 1)
    return host.strip("[]"), int(port)


def gcs_address() -> str | None:
    """Return host:port of the GCS of the cluster to which this process is connected; None behind `ray://`.

    Why: `get_runtime_context().gcs_address` raises for a connection by `ray://`. Without it: a lost cluster cannot be
    noticed by looking at its port.
    """
    address: str | None = global_worker.gcs_client.address if global_worker.connected else None
    return address


@contextmanager
def loopback_only() -> Iterator[None]:
    """Make a local Ray that starts inside the block listen on 127.0.0.1 only, as it does on Windows and macOS.

    Why: Ray reads the environment variable for this, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, when it is imported, which may
    have happened. Without it: a local Ray accepts connections from other machines.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def is_loopback_only() -> bool:
    """Return whether the connected Ray is a local one that `session` started in this process, and that ends with it."""
    return ray.is_initialized() and not ray_constants.ENABLE_RAY_CLUSTER


def silence_token_notice() -> None:
    """Keep Ray from warning at every start that token authentication is on, as it should be.

    Why: the warning comes from a private module's logger. Without it: each command begins with a warning that needs no
    action.
    """
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keep Ray from printing the logs of those of its processes that do not start inside the block.

    Why: what failed is reported in one line that names the directory of the logs. Without it: 25 lines of a log, with
    tracebacks, before that line.
    """
    logger = logging.getLogger("ray._private.services")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def quiet_losses() -> Iterator[None]:
    """Keep Ray from printing on stdout, inside the block, that it has lost one of its workers.

    Why: Ray Serve replaces a lost replica, and stdout is for results. Without it: four lines for each, in yellow.
    """
    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def temporary_folder() -> str:
    """Return the directory in which Ray makes its own, `ray`: RAY_TMPDIR, else TMPDIR, else /tmp.

    Why: a directory that Ray cannot use is reported before Ray starts. Without it: a traceback of Ray's.
    """
    folder: str = get_default_system_temp_dir()
    return folder


def ended_processes() -> list[str]:
    """Return which of the processes have ended, unasked, without which the local Ray of this process does not work.

    Why: Ray notices it after a minute, or never. Without it: the command hangs.
    """
    node = global_worker.node
    dead = node.dead_processes() if node is not None else []
    return [
        name for name, _ in dead if name in (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
    ]
