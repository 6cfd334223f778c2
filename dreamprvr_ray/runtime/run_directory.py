"""What must hold of a run's directory before training starts. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from pathlib import Path

from dreamprvr_ray.checkpoints.layout import EXPERIMENT
from dreamprvr_ray.config import Experiment, build_experiment
from dreamprvr_ray.data.locations import Locations, each_location
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import Storage, is_uri
from dreamprvr_ray.yaml_files import parse_yaml


def check_locations(shards: Locations, out: str, resume: bool) -> None:
    """Raise `UserError` unless the shards exist and `out` is new or, with `resume`, a run. Object stores are not asked.

    Starting Ray takes seconds, which a wrong path should not cost.
    """
    storage = Storage.of(out)
    if storage.directory is None:
        pass
    elif not resume:
        check_new(storage)
    elif not storage.exists(EXPERIMENT):
        raise UserError(f"{storage}: nothing to resume: {EXPERIMENT} does not exist")
    for location in each_location(shards):
        if is_uri(location):
            Storage.of(location)
        else:
            Manifest.open(Path(location))
    with storage.lock():  # fails if another command uses the directory, or if it cannot be written
        pass


def check_run(storage: Storage, experiment: Experiment, resume: bool) -> None:
    """Raise `UserError` unless `storage` is new or, with `resume`, holds a run of the same experiment."""
    if not resume:
        check_new(storage)
        return
    if not storage.exists(EXPERIMENT):
        raise UserError(f"{storage}: nothing to resume: {EXPERIMENT} does not exist")
    path = f"{storage}/{EXPERIMENT}"
    earlier = build_experiment(parse_yaml(storage.read_text(EXPERIMENT), path), path)
    if changes := experiment.changes_from(earlier):
        raise UserError(*(f"{storage}: cannot resume: {change}" for change in changes))


def check_new(storage: Storage) -> None:
    """Raise `UserError` if the directory contains anything, or if it is a file or cannot be created."""
    if storage.names() or (storage.directory is not None and storage.directory.is_file()):
        raise UserError(f"{storage}: already exists; use --resume to continue, or choose another --out")
    if (directory := storage.directory) is not None:
        parent = next(path for path in directory.parents if path.exists())
        if not parent.is_dir():
            raise UserError(f"{storage}: cannot be written: {parent} is not a directory")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"{storage}: cannot be written: {parent} does not allow it")
