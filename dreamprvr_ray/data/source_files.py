"""Finding the files of a source tree: captions, query features and video features, under the names that people give.

A file in the documented place is used as before; others are looked for if it is missing. A choice between several files
is the user's. `source` documents the layouts. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamprvr_ray.data.caption_files import find_captions, find_labels
from dreamprvr_ray.data.encoding import VIDEO_TIMES
from dreamprvr_ray.data.near_misses import is_hdf5_name, quoted
from dreamprvr_ray.errors import UserError, did_you_mean

_DEPTH = 3  # how deep under FeatureData features are looked for
_NAMED = 6  # how many files a message names
_QUERY_FILE = "query_feat.hdf5"  # how the name of a file of query features ends in the releases
_SENTENCE_FILE = "sentence_feat.hdf5"  # how that of the file with embeddings of whole sentences ends


@dataclass(frozen=True)
class SourceFiles:
    """The files of a collection.

    Attributes:
        folder: The collection's directory.
        captions: Caption file by split.
        labels: File with the right videos of a split's queries, by split.
        queries: HDF5 file of query features; None if the collection has no captions.
        sentences: HDF5 file of embeddings of whole sentences, if there is one.
        videos: HDF5 file of video features, or the matrix next to its `id.txt`.
        features: Name of the video features.
    """

    folder: Path
    captions: Mapping[str, Path]
    labels: Mapping[str, Path]
    queries: Path | None
    sentences: Path | None
    videos: Path
    features: str

    def describe(self) -> str:
        """Return in a line which files were chosen."""
        if self.queries is None:
            return f"reading videos without captions: {self._shown(self.videos)}"
        captions = ", ".join(path.name for path in (*self.captions.values(), *self.labels.values()))
        sentences = f" and {self.sentences.name}" if self.sentences else ""
        queries = self._shown(self.queries) + sentences
        return f"reading {captions}; queries: {queries}; videos: {self._shown(self.videos)}"

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)


def find_files(directory: Path, collection: str, features: str | None, queries: str | None) -> SourceFiles:
    """Find the files of a collection; `features` and `queries` choose among several, or are paths.

    Raises:
        UserError: Something is missing, or ambiguous.
    """
    for option, value in (("--features", features), ("--queries", queries)):
        if value is not None and (not value.strip() or "\0" in value):
            raise UserError(f"{option} {quoted(value)}: must be a name or a path")
    folder = _find_collection(directory, collection, needs_features=features is None)
    text, feature_folder = folder / "TextData", folder / "FeatureData"
    listed = os.path.lexists(folder / VIDEO_TIMES)  # videos need no captions then
    has_text = text.is_dir()  # an empty directory is lost in an object store
    captions = find_captions(text, collection, required=not listed) if has_text else {}
    name, videos = _find_video_features(feature_folder, features)
    query_file = _find_query_features(text, feature_folder, collection, queries) if captions else None
    return SourceFiles(
        folder=folder,
        captions=captions,
        labels=find_labels(text, collection, captions) if has_text else {},
        queries=query_file,
        sentences=None if query_file is None else _find_sentence_features(query_file),
        videos=videos,
        features=name,
    )


def _find_collection(directory: Path, collection: str, needs_features: bool) -> Path:
    if not collection or "/" in collection or "\0" in collection:
        raise UserError(f"--collection {quoted(collection)}: must be the name of a collection, such as tvr")
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    folder = directory / collection
    if not folder.is_dir():
        folder = directory
        if not (folder / "TextData").is_dir() and not os.path.lexists(folder / VIDEO_TIMES):
            names = sorted(entry.name for entry in directory.iterdir() if (entry / "TextData").is_dir())
            raise UserError(f"{directory}: no collection '{collection}'{available(names, collection)}")
    needed = [] if os.path.lexists(folder / VIDEO_TIMES) else ["TextData"]
    for part in [*needed, *(["FeatureData"] if needs_features else [])]:
        if not (folder / part).is_dir():
            names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
            raise UserError(f"{folder / part}: no such directory{did_you_mean(part, names)}")
    return folder


def _find_query_features(folder: Path, feature_folder: Path, collection: str, queries: str | None) -> Path:
    files = _hdf5_files(folder) or [path for inner in _folders(folder) for path in _hdf5_files(inner)]
    if not files and feature_folder.is_dir():
        files = [path for path in _hdf5_files(feature_folder) if "query" in path.name.lower()]
    files = [path for path in files if not path.name.endswith(_SENTENCE_FILE)]
    if queries is not None:
        return _choose_query_features(files, folder, collection, queries)
    for choices in (
        [path for path in files if path.name.endswith(_QUERY_FILE)],
        [path for path in files if "query" in path.name.lower()],
        files,
    ):
        own = [path for path in choices if collection in path.name]  # there may be files of other collections
        if len(choices) == 1 or len(own) == 1:
            return (own or choices)[0]
        if choices:
            raise UserError(
                f"{folder}: several files of query features; choose one with --queries, by a part of its name:"
                f" {_listed(own or choices)}"
            )
    raise UserError(
        f"{folder}: no query features: there must be an HDF5 file, such as {collection}_{_QUERY_FILE}, or choose one"
        " with --queries PATH"
    )


def _choose_query_features(files: Sequence[Path], folder: Path, collection: str, queries: str) -> Path:
    wanted = queries.casefold()
    for matches in (
        [path for path in files if wanted in (path.name.casefold(), path.stem.casefold())],
        [path for path in files if path.name.casefold().startswith(wanted)],
        [path for path in files if wanted in path.name.casefold()],
    ):
        own = [path for path in matches if collection in path.name]
        if len(matches) == 1 or len(own) == 1:
            return (own or matches)[0]
        if matches:
            raise UserError(f"--queries {quoted(queries)}: fits several files of {folder}: {_listed(own or matches)}")
    path = _existing(queries, folder)
    if path is None:
        raise UserError(f"{folder}: no query features '{queries}'{available([path.name for path in files], queries)}")
    if not path.is_dir():
        return path
    inner = _hdf5_files(path)
    if len(inner) == 1:
        return inner[0]
    raise UserError(f"--queries {path}: must be an HDF5 file; the directory holds {_listed(inner) or 'no such file'}")


def _find_sentence_features(query_file: Path) -> Path | None:
    """Return the file of sentences' embeddings that belongs to a file of query features, if there is one."""
    stem, folder = query_file.name.removesuffix(_QUERY_FILE), query_file.parent
    own = folder / f"{stem}{_SENTENCE_FILE}"
    if os.path.lexists(own):
        return own
    # Others may belong to other files of query features; one that belongs to none is misnamed.
    for path in sorted(folder.glob(f"*{_SENTENCE_FILE}")):
        if not os.path.lexists(folder / f"{path.name.removesuffix(_SENTENCE_FILE)}{_QUERY_FILE}"):
            raise UserError(f"{path}: belongs to no file of query features; rename it to {own.name}")
    return None


def _find_video_features(folder: Path, features: str | None) -> tuple[str, Path]:
    """Return the name and the path of the video features."""
    released, others = _video_features(folder) if folder.is_dir() else ({}, {})
    choices = released | others
    if features is None:
        for names in (released, others):
            if len(names) == 1:
                return next(iter(names.items()))
            if names:
                listed = ", ".join(sorted(choices))
                raise UserError(f"{folder}: several features; choose one with --features: {listed}")
        raise UserError(
            f"{folder}: no video features: there must be an HDF5 file or a matrix feature.bin, here or in a directory;"
            " or choose one with --features PATH"
        )
    if features in choices:
        return features, choices[features]
    same_file = [item for item in choices.items() if item[1].name == features]
    if len(same_file) == 1:
        return same_file[0]
    path = _existing(features, folder)
    if path is None:
        raise UserError(f"{folder}: no features '{features}'{available(sorted(choices), features)}")
    if not path.is_dir():
        return path.parent.name if path.stem == "feature" else path.stem, path
    inner = _matrices(path) if not _hdf5_files(path) else _hdf5_files(path)
    inner = [file for file in inner if file.name == "feature.hdf5"] or inner
    if len(inner) == 1:
        return path.resolve().name, inner[0]
    raise UserError(f"--features {path}: must hold one file of features; it holds {_listed(inner) or 'no such file'}")


def _video_features(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the features in a directory by name: those in the documented places, and others."""
    released: dict[str, Path] = {}
    others: dict[str, Path] = {}
    for entry in _folders(folder):
        if os.path.lexists(entry / "feature.hdf5"):
            released[entry.name] = entry / "feature.hdf5"
        elif os.path.lexists(entry / "feature.bin"):
            released[entry.name] = entry / "feature.bin"
        else:
            others |= dict(_other_features(entry, entry.name, _DEPTH))
    for path in _videos_of(folder):
        others[path.name if path.stem in released or path.stem in others else path.stem] = path
    return released, others


def _other_features(folder: Path, name: str, depth: int) -> Iterator[tuple[str, Path]]:
    """Yield the features in a directory and those below it, with names that begin with `name`."""
    files = _videos_of(folder)
    for path in files:
        yield (name if len(files) == 1 or path.stem == "feature" else f"{name}/{path.name}"), path
    if depth > 1:
        for inner in _folders(folder):
            yield from _other_features(inner, f"{name}/{inner.name}", depth - 1)


def _videos_of(folder: Path) -> list[Path]:
    """Return the files in a directory that may hold video features; a matrix only if no HDF5 file does."""
    return [path for path in _hdf5_files(folder) if "query" not in path.name.lower()] or _matrices(folder)


def _matrices(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.suffix == ".bin"] if os.path.lexists(folder / "shape.txt") else []


def _hdf5_files(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if is_hdf5_name(path.name)]


def _files(folder: Path) -> list[Path]:
    """Return what a directory holds other than directories and hidden files, which macOS leaves on foreign disks."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def _existing(name: str, folder: Path) -> Path | None:
    """Return the path of a file or directory that exists, relative to the working directory or to `folder`."""
    return next((path for path in (Path(name).expanduser(), folder / name) if os.path.lexists(path)), None)


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")


def available(names: Sequence[str], name: str) -> str:
    """Return the names that exist and the one that `name` may be meant to be, to append to a message."""
    return f"; available: {', '.join(names) or 'none'}{did_you_mean(name, names)}"
