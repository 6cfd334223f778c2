"""Opening a checkpoint by the location that a user gave, with the one that was probably meant where it is none."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

from dreamprvr_ray.checkpoints.checkpoint import STATE, WEIGHTS, TrainedModel, load_model
from dreamprvr_ray.checkpoints.layout import BEST, CHECKPOINTS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.storage.location import Storage

LAST = "last"  # the latest checkpoint of a training without Ray


def load_trained_model(storage: Storage) -> TrainedModel:
    """Load the model of a checkpoint directory, or of a local checkpoint file of the authors' release.

    Raises `UserError` as `check_checkpoint` and `load_model` do; each line names `storage`.
    """
    check_checkpoint(storage)
    with storage.local_directory() as path:
        try:
            return load_model(path)
        except UserError as error:  # of an object store, `path` is a temporary copy
            raise UserError(*(line.replace(str(path), str(storage)) for line in error.mistakes)) from None


def find_checkpoint(storage: Storage) -> Storage:
    """Return the checkpoint at a location: the location itself, or the best checkpoint of a run's directory.

    Raises `UserError` as `check_checkpoint` does, also if the location is a file.
    """
    if storage.directory is not None and storage.directory.is_file():
        raise UserError(f"{storage}: is a file; give the directory of a checkpoint or a run")
    for place in (storage, storage / BEST):
        if place.exists(WEIGHTS):
            return place
    if checkpoint := _best_of(storage / CHECKPOINTS):
        return checkpoint
    check_checkpoint(storage)
    return storage


def check_checkpoint(storage: Storage) -> None:
    """Raise `UserError` unless `storage` is a checkpoint directory, or a file that may be one of the authors' release.

    The line names the checkpoint that was probably meant: of a run's or a search's directory, the best one.
    """
    path = storage.directory
    try:
        if path is not None and path.is_file():
            near = _near(Storage.of(path.parent), inside=True)
            if near is not None and (path.name == STATE or not zipfile.is_zipfile(path)):
                raise UserError(f"{path}: not a checkpoint but a file of one; did you mean '{near}'?")
            return
        if storage.exists(WEIGHTS):
            return
        exists = path is None or path.exists()
        near = _near(storage) or (None if path is None or exists else _near_sibling(path))
    except OSError as error:
        raise UserError(f"{storage}: cannot be read: {error.strerror}") from None
    reason = f"not a checkpoint: it has no {WEIGHTS}" if exists else "checkpoint does not exist"
    raise UserError(f"{storage}: {reason}" + (f"; did you mean '{near}'?" if near is not None else ""))


def _near(storage: Storage, inside: bool = False) -> Storage | None:
    """Return a checkpoint in a directory or, of a local one, in its parent. With `inside`, it may be the directory."""
    places = [*([storage] if inside else []), storage / BEST, storage / LAST]
    for place in places:
        if place.exists(WEIGHTS):
            return place
    if checkpoint := _best_of(storage / CHECKPOINTS):
        return checkpoint
    if storage.directory is not None:
        parent = Storage.of(storage.directory.parent)
        for place in (parent / BEST, parent):
            if place.exists(WEIGHTS):
                return place
    return _best_of(storage)


def _best_of(storage: Storage) -> Storage | None:
    """Return the best checkpoint of a store; None if `storage` is none, or a damaged one."""
    store = CheckpointStore(storage)
    with suppress(UserError, KeyError, TypeError):
        metrics = store.metrics()
        if metrics is not None and (best := store.at(metrics["best_epoch"])).exists(WEIGHTS):
            return best
    return None


def _near_sibling(path: Path) -> Storage | None:
    """Return the checkpoint that a path with a typing error in its last part may mean."""
    names = Storage.of(path.parent).names()
    close = next((name for name in names if did_you_mean(path.name, [name])), None)
    if close is None:
        return None
    sibling = Storage.of(path.parent / close)
    return sibling if sibling.exists(WEIGHTS) else _near(sibling)
