"""Shares of a core for single processes, by Linux control groups (version 1 or 2, which root may write)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamprvr_ray.errors import UserError

ROOT = Path("/sys/fs/cgroup")
# A share is renewed in each period. Workers that wait for each other lose a part of it at most, so it is short:
# the default of 100 ms is as long as many of the messages that are measured.
PERIOD = 20_000  # microseconds


@contextmanager
def core_shares(count: int, share: float) -> Iterator[list[Path]]:
    """Create `count` groups of `share` cores each. A process joins one by `join`.

    Raises `UserError` where the system does not let this process create groups.
    """
    created: list[Path] = []
    try:
        for number in range(count):
            created.append(_create(f"dreamprvr-ray-{os.getpid()}-{number}", int(share * PERIOD)))
        yield created
    except OSError as error:
        raise UserError(f"{error.filename or ROOT}: cannot limit the workers' cores: {error.strerror}") from None
    finally:
        for group in created:
            with suppress(OSError):  # a process that is still ending holds its group
                group.rmdir()


def join(group: Path) -> None:
    """Move this process and its threads into a group of `core_shares`."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _create(name: str, quota: int) -> Path:
    group = (ROOT / "cpu" if (ROOT / "cpu").is_dir() else ROOT) / name
    group.mkdir()
    # The largest weight, so that other programs get what is left of the cores, not a part of the shares.
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
        (group / "cpu.shares").write_text("262144")
    else:
        (group / "cpu.max").write_text(f"{quota} {PERIOD}")
        (group / "cpu.weight").write_text("10000")
    return group
