"""python -m benchmarks.fuzz_sources: convert damaged source trees and open damaged shards; count what happens.

Each input starts from a correct tree or correct shards, to which `hypothesis` makes one to three changes: other bytes
or text in a file, other HDF5 objects, shapes and types, other JSON values, another layout, captions and labels as JSON
lines, a directory or a link in a file's place. The
allowed outcomes are success and one-line errors (`UserError`, `Failure`). Each input runs in its own process, so
that a crash or a hang counts as one. `tests/data/test_fuzz.py` runs a smaller number.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_layouts import change_captions, change_layout
from benchmarks.fuzz_values import FRAGMENTS, JSON, NUMBERS, TEXT, Change, path_of
from dreamprvr_ray import convert
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.captions import Query
from dreamprvr_ray.data.manifest import MANIFEST, FileRecord
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.data.source_writer import SourceVideo, write_source_tree
from dreamprvr_ray.errors import Failure, NotWritableError, UserError

LIMIT_SECONDS = 10

_TEXT_FILES = [
    "captions",
    "val captions",
    "id.txt",
    "shape.txt",
    "video2frames.txt",
    "moments.jsonl",
    "frame_captions.jsonl",
]
_HDF5_FILES = ["feature.hdf5", "queries"]


def write_tree(root: Path) -> None:
    """Write a small correct collection `c` with both formats of features and moments."""
    random = np.random.default_rng(0)

    def video(name: str) -> SourceVideo:
        tokens = random.standard_normal((3, 4), dtype=np.float32)
        queries = [Query(f"{name}#{place}", name, f"query {place}", tokens, (0.0, 1.0, 4.0)) for place in range(2)]
        return SourceVideo(name, random.standard_normal((5, 6), dtype=np.float32), queries)

    names = {"train": ["a", "b", "d"], "val": ["e"], "test": ["f"]}
    videos = {split: [video(name) for name in own] for split, own in names.items()}
    write_source_tree(root / "c", "c", "f", videos)
    every = [video for own in videos.values() for video in own]
    folder = root / "c" / "FeatureData" / "f"
    np.concatenate([video.frames for video in every]).tofile(folder / "feature.bin")
    frames = {video.id: [f"{video.id}_{number}" for number in range(5)] for video in every}
    (folder / "id.txt").write_text(" ".join(name for own in frames.values() for name in own))
    (folder / "shape.txt").write_text(f"{5 * len(every)} 6")
    (folder / "video2frames.txt").write_text(repr(frames))
    (root / "c" / "frame_captions.jsonl").write_text('["a", 4.0, []]\n')


@st.composite
def _edit(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Another content of a text file: new, or with a part replaced."""
    new = draw(
        FRAGMENTS.map(str.encode)
        | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
        | NUMBERS.map(str.encode)
        | st.binary(max_size=30)
    )
    if draw(st.booleans()):
        return lambda content: new
    start, length = draw(st.floats(0, 1)), draw(st.sampled_from([0, 1, 5, 100]))

    def replace(content: bytes) -> bytes:
        position = int(start * len(content))
        return content[:position] + new + content[position + length :]

    return replace


@st.composite
def _change_text(draw: st.DrawFn) -> Change:
    name, edit = draw(st.sampled_from(_TEXT_FILES)), draw(_edit())
    matrix = name in ("id.txt", "shape.txt", "video2frames.txt")

    def change(root: Path) -> None:
        path = path_of(root, name)
        if path.is_file():
            path.write_bytes(edit(path.read_bytes()))
        if matrix:
            path_of(root, "feature.hdf5").unlink(missing_ok=True)

    return change


@st.composite
def _change_json_lines(draw: st.DrawFn) -> Change:
    name = draw(st.sampled_from(["moments.jsonl", "frame_captions.jsonl"]))
    keys = st.sampled_from(["query", "video", "start", "end", "duration", "x"])
    value = draw(st.dictionaries(keys, JSON, max_size=5) | st.lists(JSON, max_size=4) | JSON)

    def change(root: Path) -> None:
        moments = path_of(root, "moments.jsonl")
        if moments.is_fifo():
            return
        line: dict[str, Any] = {"query": "a#0", "video": "a", "start": 0, "end": 1}
        moments.write_text(
            json.dumps(line) + "\n" if name != "moments.jsonl" or not moments.is_file() else moments.read_text()
        )
        path = path_of(root, name)
        if path.is_fifo():
            return
        merged = line | value if isinstance(value, dict) and name == "moments.jsonl" else value
        path.write_text(json.dumps(merged) + "\n")

    return change


_DTYPES = ["f2", "f4", "f8", "i1", "u8", "bool", "c8", "S3", ">f4", "i8,f4", "O", "V4"]
_SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.sampled_from(
    [(10**12, 6), (5, 10**10), (2, 6), (6, 5)]
)


@st.composite
def _change_hdf5(draw: st.DrawFn) -> Change:
    name = draw(st.sampled_from(_HDF5_FILES))
    id = draw(st.sampled_from(["a", "b", "e", "a#0", "e#1"]))
    kind = draw(st.sampled_from(["dataset", "group", "soft link", "external link", "null", "values", "lazy", "gone"]))
    dtype, shape = draw(st.sampled_from(_DTYPES)), draw(_SHAPES)
    scale = draw(st.sampled_from([0, 1e-45, 1e-20, 1e-5, 1e15, 1e25, 3e38, float("nan"), float("inf"), -1]))
    target = draw(st.text("a/b.#\x7f é", min_size=1, max_size=8))

    def change(root: Path) -> None:
        path = path_of(root, name)
        if not path.is_file() or not h5py.is_hdf5(path):
            return
        refused = contextlib.suppress(TypeError, ValueError, OSError, RuntimeError, KeyError)
        with refused, h5py.File(path, "a") as file:
            if id in file:
                del file[id]
            if kind == "group":
                file.create_group(id).create_group("inner")
            elif kind == "soft link":
                file[id] = h5py.SoftLink(target)
            elif kind == "external link":
                file[id] = h5py.ExternalLink(target.replace("/", ""), target)
            elif kind == "null":
                file[id] = h5py.Empty("f4")
            elif kind == "values":
                file[id] = np.full((5, 6 if name == "feature.hdf5" else 4), scale, "f4")
            elif kind == "lazy":
                file.create_dataset(id, shape, "f4", chunks=True)
            elif kind == "dataset" and np.prod([float(size) for size in shape]) < 1e6:
                special = h5py.string_dtype() if dtype == "O" else np.dtype(dtype)
                file.create_dataset(id, shape, special)

    return change


@st.composite
def _change_file(draw: st.DrawFn) -> Change:
    name = draw(st.sampled_from([*_TEXT_FILES, *_HDF5_FILES, "feature.bin"]))
    kind = draw(st.sampled_from(["gone", "empty", "cut", "directory", "dangling", "loop", "device", "pipe", "pointer"]))
    part = draw(st.floats(0, 1))

    def change(root: Path) -> None:
        path = path_of(root, name)
        if not path.is_file():
            return
        content = path.read_bytes()
        path.unlink()
        if kind == "empty":
            path.touch()
        elif kind == "cut":
            path.write_bytes(content[: int(part * len(content))])
        elif kind == "directory":
            path.mkdir()
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "pointer":
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")

    return change


TREE_CHANGES = st.lists(
    _change_text() | _change_json_lines() | _change_hdf5() | _change_file() | change_layout() | change_captions(),
    min_size=1,
    max_size=3,
)


@st.composite
def _flip_hdf5(draw: st.DrawFn) -> Change:
    """Flip bytes of an HDF5 file, with which the library itself may crash: for processes that may end."""
    name, places = (
        draw(st.sampled_from(_HDF5_FILES)),
        draw(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=5)),
    )
    return lambda root: flip(path_of(root, name), places)


def flip(path: Path, places: list[tuple[float, int]]) -> None:
    """Change bytes at these places (0 to 1) of a file by these bits."""
    content = bytearray(path.read_bytes())
    for place, bits in places:
        content[min(len(content) - 1, int(place * len(content)))] ^= bits
    path.write_bytes(content)


@st.composite
def shard_changes(draw: st.DrawFn) -> Change:
    """A change of a manifest's value, or of bytes in a shard file whose checksum the manifest then lists."""
    if draw(st.booleans()):
        places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
        name = draw(st.sampled_from(["train-00000.videos.arrow", "train-00000.queries.arrow"]))
        consistent = draw(st.booleans())

        def change(folder: Path) -> None:
            flip(folder / name, places)
            if consistent:
                values = json.loads((folder / MANIFEST).read_text())
                values["files"][name] = vars(FileRecord.of(folder / name))
                (folder / MANIFEST).write_text(json.dumps(values))

        return change
    steps, value, remove = draw(st.lists(st.integers(0, 20), min_size=1, max_size=4)), draw(JSON), draw(st.booleans())

    def change_manifest(folder: Path) -> None:
        values = json.loads((folder / MANIFEST).read_text())
        place = values
        for step in steps:  # walks into the values; the last step names the one that is changed
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                return
            key = keys[step % len(keys)]
            if step is steps[-1] or not isinstance(place[key], (dict, list)):
                break
            place = place[key]
        if remove:
            del place[key]
        else:
            place[key] = value
        (folder / MANIFEST).write_text(json.dumps(values))

    return change_manifest


def apply(changes: list[Change], root: Path) -> None:
    """Make the changes; one that is impossible after those before it, as in a file that is a loop now, is left out."""
    for change in changes:
        with contextlib.suppress(OSError):
            change(root)


def convert_tree(root: Path) -> str:
    """Convert the tree and return the outcome: `converted`, or the first line of the error. Other errors are raised."""
    out = root / "shards"
    arguments = ["--source", str(root), "--collection", "c", "--out", str(out), "--workers", "1"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        outcome = _outcome(lambda: convert.main(arguments), "converted")
    if outcome != "converted":
        assert not out.exists(), "an error left something behind"
    else:
        for name in ShardSet.open(out).manifest.splits:
            _read(ShardSet.open(out).split(name))
    return outcome


def open_shards(folder: Path) -> str:
    """Open all splits and return the outcome as `convert_tree` does."""

    def read() -> None:
        shards = ShardSet.open(folder)
        for name in shards.manifest.splits:
            _read(shards.split(name))

    return _outcome(read, "opened")


def _read(split: Split) -> None:
    assert len(split.queries) == len(split.captions) == len(split.owner) == split.first_query[-1]
    if split.right_videos is not None:
        offsets, numbers = split.right_videos
        assert (numbers[offsets[:-1]] == split.owner).all() and offsets[-1] == len(numbers)


def _outcome(action: Callable[[], object], success: str) -> str:
    try:
        action()
    except UserError as error:
        assert all(mistake and len(mistake.split("\n")) == 1 for mistake in error.mistakes), error.mistakes
        return error.mistakes[0]
    except (Failure, NotWritableError) as error:
        assert "\n" not in str(error)
        return str(error)
    return success


def _in_a_process(action: Callable[[], str]) -> str:
    """Run the action in another process; return `success`, `refused`, `crash: ...`, `traceback: ...` or `hang`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            text = "success" if action() in ("converted", "opened") else "refused"
        except BaseException:
            text = "traceback: " + traceback.format_exc()
        os.write(writer, text.encode(errors="replace")[-4000:])
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with os.fdopen(reader) as file:
                text = file.read()
            return f"crash: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    return "hang"


def main(arguments: list[str]) -> int:
    parser = Parser("fuzz_sources", "Convert damaged source trees and open damaged shards.", package="benchmarks")
    parser.add_argument("--inputs", type=int, default=2000, help="number of inputs (default: 2000)")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dreamprvr-fuzz-") as folder:
        tree, shards = Path(folder, "tree"), Path(folder, "shards")
        write_tree(tree)
        convert_tree(tree)
        shutil.move(tree / "shards", shards)

        def try_one(kind: str, original: Path, changes: list[Change], action: Callable[[Path], str]) -> None:
            copy = Path(folder, "copy")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(original, copy)
            apply(changes, copy)
            outcome = _in_a_process(lambda: action(copy))
            counts[f"{kind}: {outcome.partition(':')[0]}"] += 1
            if outcome not in ("success", "refused"):
                bad.append(outcome)

        quick = settings(
            max_examples=options.inputs // 2,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        quick(given(TREE_CHANGES)(lambda changes: try_one("tree", tree, changes, convert_tree)))()
        quick(given(shard_changes())(lambda change: try_one("shards", shards, [change], open_shards)))()
        few = settings(quick, max_examples=max(1, options.inputs // 10))
        few(given(_flip_hdf5())(lambda change: try_one("HDF5 bytes", tree, [change], convert_tree)))()
    for outcome, number in Counter(bad).most_common(20):
        print(f"{number} x {outcome}")
    for name, number in sorted(counts.items()):
        print(f"{name}: {number}")
    if options.json:
        print_json({"counts": dict(counts), "bad": len(bad)})
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
