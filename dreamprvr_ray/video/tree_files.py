"""Putting the files of a source tree into place, on a disk or in an object store. Imports no torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dreamprvr_ray.storage.files import writing
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.extraction_store import EXTRACTION

_PARTIAL = "partial"  # in SOURCE/extraction: a source tree that is being written


@contextmanager
def new_tree(source: Storage) -> Iterator[Path]:
    """Yield an empty directory to write a source tree into, which is removed afterwards."""
    if (directory := source.directory) is None:
        with tempfile.TemporaryDirectory(prefix="dreamprvr-extraction-") as temporary:
            yield Path(temporary)
        return
    folder = directory / EXTRACTION / _PARTIAL
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_files(folder: Path, files: Sequence[str], source: Storage) -> None:
    if (directory := source.directory) is None:
        source.upload(folder, files)
        return
    for file in files:
        with writing(directory / file):
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / file, directory / file)


def remove_file(source: Storage, file: str) -> None:
    """Remove a file of an earlier source tree."""
    folder, _, name = file.rpartition("/")
    parent, _, last = folder.rpartition("/")
    storage = source / parent if parent else source
    if folder:
        storage.delete_directory(last, lambda own: own == name)
    elif source.directory is not None:
        (source.directory / name).unlink(missing_ok=True)
    else:
        source.delete_directory("", lambda own: own == name)


@contextmanager
def local_source(location: str, files: Sequence[str]) -> Iterator[Path]:
    """Yield an extracted source tree as a local directory: itself, or a copy of these files of one in a store."""
    source = Storage.of(location)
    if (directory := source.directory) is not None:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="dreamprvr-source-") as folder:
        source.download(files, Path(folder))
        yield Path(folder)
