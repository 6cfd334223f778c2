"""Suggestions for an id or a file name that is missing: what is there and differs in its spelling only.

Imports no torch.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping

_ENDINGS = re.compile(r"\.(mp4|avi|mkv|webm|mov|3gp|m4v|npy|npz|hdf5|h5|txt)$")
_COMPARED = 2000  # how many ids a fuzzy search looks at: it takes 20 microseconds for each
_SHOWN = 2  # ids shown as examples


class Ids:
    """The ids that a file has, to find those that a missing id may stand for."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = list(ids)
        self._by_form: Mapping[str, str] | None = None

    def hint(self, missing: str) -> str:
        """Return `; it has 'x'`, or what the ids look like if none is close to `missing`."""
        if not self._ids:
            return "; it is empty"
        if self._by_form is None:
            self._by_form = {_plain_form(id): id for id in reversed(self._ids)}
        close = self._by_form.get(_plain_form(missing))
        if close is None:
            near = [id for id in self._ids if id[:3] == missing[:3]][:_COMPARED] or self._ids[:_COMPARED]
            close = next(iter(difflib.get_close_matches(missing, near, n=1, cutoff=0.8)), None)
        if close is not None:
            return f"; it has {quoted(close)}"
        examples = ", ".join(map(quoted, self._ids[:_SHOWN]))
        return f"; its ids look like {examples}" + (", ..." if len(self._ids) > _SHOWN else "")


def quoted(name: str) -> str:
    """Return a name in quotes, with blanks other than spaces and what is not printable escaped so that it is seen."""
    return f"'{name}'" if name.isprintable() else ascii(name)


def same_name(name: str, other: str) -> bool:
    """Return whether two file names are equal apart from case, punctuation, a plural and the ending."""
    return _file_form(name) == _file_form(other)


def is_hdf5_name(name: str) -> bool:
    """Return whether a file's name has an ending of HDF5 files."""
    return re.search(r"\.(hdf5?|h5|he5)$", name.lower()) is not None


def _plain_form(id: str) -> str:
    """Return an id without case, invisible characters, blanks, the prefix `v_` and a file's ending."""
    text = unicodedata.normalize("NFKC", id).casefold()
    text = "".join(char for char in text if char.isprintable() and not char.isspace())
    video, mark, rest = text.partition("#")
    return _ENDINGS.sub("", video).removeprefix("v_") + mark + rest


def _file_form(name: str) -> str:
    text = re.sub(r"(\.(txt|bak|hdf5?|h5|jsonl?))+$", "", name.casefold())
    return re.sub(r"[^a-z0-9]", "", text).removesuffix("s")
