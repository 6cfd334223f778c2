"""Finding the caption files of a collection and their labels. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dreamprvr_ray.data.near_misses import quoted, same_name
from dreamprvr_ray.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")
_TEXT = ".caption.txt"
# How a caption file is named after its collection; the first that exists is used.
_NAMES = (
    "{collection}{split}" + _TEXT,
    "{collection}{split}.caption.jsonl",
    "{collection}{split}.jsonl",
    "{collection}_{split}.jsonl",
    "{collection}_{split}_release.jsonl",
)
_LABELS = "{collection}{split}.labels.jsonl"
_OTHER_NAMES = {"train": ("training", "trn"), "val": ("valid", "validation", "dev"), "test": ("testing", "tst")}
_NAMED = 3  # how many files a message names


def find_captions(folder: Path, collection: str, required: bool = True) -> dict[str, Path]:
    """Return the caption file of each split that has one.

    Raises:
        UserError: No split has one although they are required, or a file's name is nearly that of a split without one.
    """
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    expected = {split: [name.format(collection=collection, split=split) for name in _NAMES] for split in SPLITS}
    # A file that exists and cannot be read is an error when it is read, not a split that is missing.
    files = {
        split: next(folder / name for name in own if os.path.lexists(folder / name))
        for split, own in expected.items()
        if any(os.path.lexists(folder / name) for name in own)
    }
    used = [path.name for path in files.values()]
    candidates = [name for name in names if _may_be_captions(name) and name not in used]
    mistakes = []
    for split in SPLITS:
        if split not in files:
            spellings = [name.format(collection=collection, split=other) for other in _OTHER_NAMES[split]
                         for name in _NAMES]  # fmt: skip
            near = _near((*expected[split], *spellings), candidates)
            if near:
                wanted = expected[split][1 if near.casefold().endswith(".jsonl") else 0]
                mistakes.append(f"{folder / wanted}: no such file, but there is {quoted(near)}; rename it")
    if mistakes:
        raise UserError(*mistakes)
    if files or not required:
        return files
    collections = sorted(
        {
            name.removesuffix(_TEXT).removesuffix(split)
            for name in names
            for split in SPLITS
            if name.endswith(split + _TEXT)
        }
    )
    if collections and collection not in collections:
        listed = f"; available: {', '.join(collections)}{did_you_mean(collection, collections)}"
        raise UserError(f"{folder}: no captions of collection '{collection}'{listed}")
    raise UserError(f"{folder / expected['train'][0]}: no such file: the collection has no captions{_others(folder)}")


def unused_captions(folder: Path, used: Iterable[Path]) -> list[str]:
    """Return the names of files that look like captions and are not used."""
    known = {path.name for path in used}
    names = sorted(entry.name for entry in folder.iterdir() if "caption" in entry.name.lower())
    return [name for name in names if name not in known and not name.startswith(".")]


def find_labels(folder: Path, collection: str, captions: Mapping[str, Path]) -> dict[str, Path]:
    """Return the file with the right videos of the queries of each split that has one.

    Raises:
        UserError: A file's name is nearly that of a split's labels, or its split has no captions.
    """
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    labels, mistakes = {}, []
    for split in SPLITS:
        path = folder / _LABELS.format(collection=collection, split=split)
        if os.path.lexists(path):
            labels[split] = path
            if split not in captions:
                mistakes.append(f"{path}: labels of a split that has no captions")
        elif near := _near([path.name], filter(_may_be_captions, names)):
            mistakes.append(f"{path}: no such file, but there is {quoted(near)}; rename it")
    if mistakes:
        raise UserError(*mistakes)
    return labels


def _may_be_captions(name: str) -> bool:
    return "caption" in name.lower() or name.lower().endswith(".jsonl")


def _near(expected: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the first name that differs from an expected one in its spelling only."""
    expected = list(expected)
    return next((name for name in names if any(same_name(name, other) for other in expected)), None)


def _others(folder: Path) -> str:
    others = unused_captions(folder, ()) or sorted(path.name for path in folder.glob("*.json*"))
    return f"; {folder} holds {', '.join(map(quoted, others[:_NAMED]))}" if others else ""
