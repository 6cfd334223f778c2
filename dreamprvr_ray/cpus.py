"""How many CPU cores this process may use. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def allowed_cpus(membership: Path = _MEMBERSHIP, mount: Path = _MOUNT) -> int:
    """Return the number of cores that this process may use, at least 1.

    It is the smallest of the machine's cores, the cores of the process's affinity (`taskset`, batch systems) and the
    CPU limit of its control groups (containers), rounded up.

    Args:
        membership: The file that names the process's control groups.
        mount: Where the control groups are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(limit) for limit in _cgroup_limits(membership, mount))]))


def _cgroup_limits(membership: Path, mount: Path) -> Iterator[float]:
    """Yield the CPU limits, in cores, of the process's control groups and of their parents, version 2 and version 1."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [mount] if not controllers else [mount / "cpu", mount / controllers]
        names = [name for name in path.split("/") if name not in ("", "..")]
        for root in roots:
            for depth in range(len(names) + 1):  # a limit of a parent holds for its children, too
                yield from _limit(root.joinpath(*names[:depth]))


def _limit(group: Path) -> Iterator[float]:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = map(float, " ".join((group / name).read_text() for name in files).split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period
