"""Changes of a source tree to other layouts that `convert` reads, correct and nearly so."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
from hypothesis import strategies as st

from benchmarks.fuzz_values import JSON, SPECIAL, Change, path_of

_LAYOUTS: list[Callable[[Path], object]] = [
    lambda root: path_of(root, "feature.hdf5").rename(root / "c" / "FeatureData" / "x_vid_features.h5"),
    lambda root: path_of(root, "feature.hdf5").rename(path_of(root, "feature.hdf5").with_name("features.HDF5")),
    lambda root: path_of(root, "queries").rename(path_of(root, "queries").with_name("clip_c_query_feats.h5")),
    lambda root: shutil.copyfile(path_of(root, "queries"), path_of(root, "queries").with_name("c_query_features.h5")),
    lambda root: path_of(root, "captions").unlink(),
    lambda root: [path_of(root, name).unlink() for name in ("captions", "val captions")],
    lambda root: _nest(path_of(root, "feature.hdf5"), "{}/features"),
    lambda root: _nest(path_of(root, "feature.hdf5"), "all/{}"),
    lambda root: _nest(path_of(root, "queries"), "{}/x/y"),
]


def _nest(path: Path, pattern: str) -> None:
    """Move the datasets of an HDF5 file to other paths."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return
    with contextlib.suppress(TypeError, ValueError, OSError, RuntimeError, KeyError), h5py.File(path, "a") as file:
        for number, id in enumerate(list(file)):
            file.move(id, f"moved{number}")
            file.move(f"moved{number}", pattern.format(id))


def change_layout() -> st.SearchStrategy[Change]:
    def change(layout: Callable[[Path], object]) -> Change:
        def apply_layout(root: Path) -> None:
            layout(root)

        return apply_layout

    return st.sampled_from(_LAYOUTS).map(change)


_IDS = st.sampled_from(["a#0", "a#1", "b#0", "d#1", "a", "b", "d", "e", 0, 8737, "", "/", ".", "\ud800", "A#0"])
_CAPTION_KEYS = st.sampled_from(
    ["query", "qid", "desc_id", "id", "video", "videos", "vid", "vid_name", "sentence", "desc", "ts", "start", "end",
     "relevant_windows", "duration"]
)  # fmt: skip


@st.composite
def change_captions(draw: st.DrawFn) -> Change:
    """Captions or labels as JSON lines, correct but for some values."""
    times = st.lists(st.integers(0, 9) | SPECIAL, max_size=3)
    value = _IDS | st.lists(_IDS, max_size=3) | times | st.lists(times, max_size=2) | JSON
    changes = draw(st.lists(st.tuples(st.integers(0, 5), _CAPTION_KEYS, value), max_size=4))
    labels = draw(st.booleans())

    def change(root: Path) -> None:
        lines: list[dict[str, Any]] = [
            {"query": f"{video}#{place}", "video": video, "sentence": "x"} for video in "abd" for place in range(2)
        ]
        for number, key, other in changes:
            lines[number][key] = other
        path = path_of(root, "captions")
        if not labels:
            path.unlink(missing_ok=True)
        name = "ctrain.labels.jsonl" if labels else "ctrain.caption.jsonl"
        path.with_name(name).write_text("\n".join(map(json.dumps, lines)))

    return change
