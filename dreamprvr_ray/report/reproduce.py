"""The commands, the space file and the versions with which a search can be repeated."""

from __future__ import annotations

import platform
import shlex
from importlib import metadata
from typing import Any

import yaml

import dreamprvr_ray
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.experiment import SearchRecord, Trial
from dreamprvr_ray.yaml_files import flatten

PACKAGES = ("torch", "ray", "optuna")
SIZES = ("data.video_size", "data.text_size")


def space_file(search: SearchRecord) -> str:
    """The search's settings as a space file, what is not set left out."""
    return yaml.safe_dump(_without_nulls(search.settings), sort_keys=False, allow_unicode=True, width=120)


def tune_command(search: SearchRecord) -> str:
    """The search once more, from the space file above."""
    fixed = {
        key: value for key, value in fixed_values(search).items() if key not in (search.settings.get("space") or {})
    }
    return " ".join(["python -m dreamprvr_ray.tune --space", shlex.quote(f"{search.name}.yaml"), *_set(fixed)])


def train_command(search: SearchRecord, trial: Trial, out: str) -> str:
    """One trial's training alone."""
    settings = search.settings
    words = [
        "python -m dreamprvr_ray.train",
        "--config",
        shlex.quote(str(settings.get("config"))),
        *_set(fixed_values(search) | trial.values),
    ]
    return " ".join([*words, "--shards", shlex.quote(str(settings.get("shards"))), "--out", shlex.quote(out)])


def fixed_values(search: SearchRecord) -> dict[str, Any]:
    """What every trial has, by dotted key, where it is not as in the configuration that the search names.

    Empty where that configuration is no longer there to compare with; sizes of features are the shards' own.
    """
    try:
        base = load_experiment(str(search.settings.get("config"))).flat()
    except UserError:
        return {}
    now = flatten(search.experiment)
    return {key: value for key, value in now.items() if key not in SIZES and key in base and base[key] != value}


def versions(search: SearchRecord) -> tuple[dict[str, str], bool]:
    """Versions by package, and whether the search itself recorded them (else they are those of this machine, now)."""
    if search.final is not None and search.final.versions:
        return {name: str(version) for name, version in search.final.versions.items()}, True
    found = {"dreamprvr_ray": dreamprvr_ray.__version__}
    found |= {name: metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}, False


def _set(values: dict[str, Any]) -> list[str]:
    """`--set` with every pair; YAML reads the values back to the last digit."""
    if not values:
        return []
    return [
        "--set",
        *(
            shlex.quote(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
            for key, value in values.items()
        ),
    ]


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
    return {key: value for key, value in kept.items() if value not in ({}, [], ())}
