"""The release of Ray that this package supports: it uses private names of Ray (`ray_internals`), which may change."""

from __future__ import annotations

import ray

from dreamprvr_ray.errors import UserError

TESTED_RAY = "2.60"  # the minor release that the tests run with
REQUIREMENT = "ray[data,default,train,tune]>=2.60,<2.61"  # as in pyproject.toml


def check_version(installed: str = ray.__version__) -> None:
    """Raise `UserError` if the installed Ray is not of the tested minor release.

    Refusing is safer than a warning: with another release an override may silently have no effect, and a local Ray may
    accept connections from other machines.
    """
    if installed.split(".")[:2] != TESTED_RAY.split("."):
        raise unsupported_ray(installed)


def unsupported_ray(installed: str = ray.__version__) -> UserError:
    """Return the error for a Ray of another release, or for one that lacks a private name."""
    return UserError(
        f"Ray {installed} is installed, but dreamprvr_ray supports Ray {TESTED_RAY} only; "
        f"run: pip install '{REQUIREMENT}'"
    )
