"""The commands, the space file and the versions that are needed to reproduce a search."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from dreamprvr_ray.config import FULL_WEIGHT, WEIGHTS, load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.final_record import installed_versions
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.yaml_files import flatten

FEATURE_SIZES = ("data.video_size", "data.text_size")  # taken from the shards


def space_file(search: SearchRecord) -> str:
    """Return the search's settings as a space file, without those that are not set."""
    return yaml.safe_dump(_without_nulls(search.settings), sort_keys=False, allow_unicode=True, width=120)


def tune_command(search: SearchRecord) -> str:
    """Return the command that repeats the search, given `space_file`."""
    space = search.settings.get("space") or {}
    fixed = {key: value for key, value in fixed_values(search).items() if key not in space}
    return " ".join(["python -m dreamprvr_ray.tune --space", shlex.quote(f"{search.name}.yaml"), *_set_options(fixed)])


def train_command(search: SearchRecord, trial: TrialRecord, out: str) -> str:
    """Return the command that trains one trial's configuration."""
    settings = search.settings
    shards = settings.get("shards")
    words = [
        "python -m dreamprvr_ray.train",
        "--config",
        shlex.quote(str(settings.get("config"))),
        *_set_options(fixed_values(search) | trial.values),
        "--shards",
        *map(shlex.quote, shards if isinstance(shards, list) else [str(shards)]),
        "--out",
        shlex.quote(out),
    ]
    return " ".join(words)


def fixed_values(search: SearchRecord) -> dict[str, Any]:
    """Return the values, by dotted key, that all trials share and that differ from the named configuration's.

    The result is empty if that configuration does not exist any more. Feature sizes are left out.
    """
    try:
        named = load_experiment(str(search.settings.get("config"))).flat()
    except UserError:
        return {}
    current = flatten(search.experiment)
    return {
        key: value
        for key, value in current.items()
        if key not in FEATURE_SIZES
        and (key in named or key.startswith(WEIGHTS))
        and named.get(key, FULL_WEIGHT) != value
    }


def versions(search: SearchRecord) -> tuple[dict[str, str], bool]:
    """Return the versions by package, and whether the search recorded them; otherwise they are this machine's."""
    if search.final is not None and search.final.versions:
        return search.final.versions, True
    return installed_versions(), False


def _set_options(values: dict[str, Any]) -> list[str]:
    """Return `--set` and a `key=value` pair for each value, which YAML reads back without loss."""
    if not values:
        return []
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    return ["--set", *(shlex.quote(f"{key}={text}") for key, text in texts.items())]


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
    return {key: value for key, value in nested.items() if value not in ({}, [], ())}
