"""Reading shards: golden rows, order, views of the mapped files, and damage."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from dreamprvr_ray.data.manifest import MANIFEST, FileRecord
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError

Converted = Callable[..., ShardSet]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 5e-4)])
@pytest.mark.usefixtures("many_shards")
def test_shards_hold_the_golden_rows(
    tree: Path, golden: Path, converted: Converted, dtype: str, tolerance: float
) -> None:
    expected = np.load(golden / "expected.npz")
    shards = converted(tree, dtype=dtype)
    seen = set()
    for name in shards.manifest.splits:
        split = shards.split(name)
        for number, video in enumerate(split.videos):
            assert split.clips(number).dtype == getattr(torch, dtype)
            for rows, kind in ((split.clips(number), "clip"), (split.frames(number), "frame")):
                np.testing.assert_allclose(rows.float().numpy(), expected[f"{kind}/{video}"], atol=tolerance, rtol=0)
                seen.add(f"{kind}/{video}")
        for number, query in enumerate(split.queries):
            (rows,) = split.tokens(number, number + 1)
            np.testing.assert_allclose(rows.float().numpy(), expected[f"text/{query}"], atol=tolerance, rtol=0)
            seen.add(f"text/{query}")
    assert seen == set(expected)


@pytest.mark.usefixtures("many_shards")
def test_a_split_has_the_order_of_the_caption_file(tree: Path, converted: Converted) -> None:
    captions = Source.open(tree, "mini").splits["train"]
    # The queries of a video need not be adjacent in the file; in the shards they are, in the file's order.
    path = tree / "TextData" / "minitrain.caption.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:] + lines[:1]))
    moments = [
        {"query": caption.query, "video": caption.video, "start": 1, "end": 3, "duration": 8}
        for caption in captions[1:]
    ]
    (tree / "moments.jsonl").write_text("\n".join(json.dumps(moment) for moment in moments))
    shards = converted(tree)
    assert len(shards.manifest.splits["train"].shards) > 3
    split = shards.split("train")
    assert split.videos == list(dict.fromkeys(caption.video for caption in captions))
    assert split.queries[3] == captions[0].query  # it was the first of four
    assert sorted(split.queries) == sorted(caption.query for caption in captions)
    text_of = {caption.query: caption.text for caption in captions}
    assert split.captions == [text_of[query] for query in split.queries]
    assert [split.videos[video] for video in split.owner] == [query.split("#")[0] for query in split.queries]
    assert (np.diff(split.owner) >= 0).all()
    assert split.owner.dtype == split.first_query.dtype == np.int64
    for video in range(len(split)):
        assert (split.owner[split.first_query[video] : split.first_query[video + 1]] == video).all()
    assert split.first_query[-1] == len(split.queries) == len(captions)
    assert split.frame_counts.tolist() == [len(split.frames(video)) for video in range(len(split))]
    assert split.token_counts.tolist() == [
        len(split.tokens(query, query + 1)[0]) for query in range(len(split.queries))
    ]
    assert sum(len(piece) for piece in split.tokens(0, len(split.queries))) == split.token_counts.sum()
    assert split.moment_fractions is not None
    assert np.isnan(split.moment_fractions[3])
    assert (np.delete(split.moment_fractions, 3) == 0.25).all()
    # No moment of val or test is known, which differs from a collection without moments.
    assert shards.split("val").moment_fractions is not None


def test_a_collection_without_moments(tree: Path, converted: Converted) -> None:
    assert converted(tree).split("train").moment_fractions is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_features_are_views_of_the_mapped_files(tree: Path, converted: Converted) -> None:
    allocated = pa.total_allocated_bytes()
    split = converted(tree).split("train")
    for view, kind in ((split.clips(3), "videos"), (split.frames(3), "videos"), (split.tokens(0, 9)[0], "queries")):
        maps = [
            line.split()
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(f"train-00000.{kind}.arrow")
        ]
        ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
        last = view.data_ptr() + view.numel() * view.element_size()
        assert any(start <= view.data_ptr() and last <= stop for start, stop in ranges)
    assert pa.total_allocated_bytes() == allocated


def test_the_manifest_can_be_written_and_read(tree: Path, converted: Converted, tmp_path: Path) -> None:
    manifest = converted(tree).manifest
    assert (manifest.collection, manifest.features, manifest.video_size, manifest.text_size) == ("mini", "i3d", 24, 16)
    assert {name: (split.videos, split.queries) for name, split in manifest.splits.items()} == {
        "train": (8, 23),
        "val": (4, 7),
        "test": (4, 14),
    }
    manifest.write(tmp_path)
    assert type(manifest).read(tmp_path / MANIFEST) == manifest


def test_damage_that_open_detects(tree: Path, converted: Converted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory of shards"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json: not a directory of shards"):
        ShardSet.open(tmp_path)
    shards = converted(tree)
    with pytest.raises(UserError, match="no split 'tests'; available: train, val, test; did you mean 'test'"):
        shards.split("tests")
    replace(shards.manifest, schema_version=0).write(shards.directory)
    with pytest.raises(UserError, match="schema version must be 1, not 0"):
        ShardSet.open(shards.directory)
    for text in ("{", "[]", '{"schema_version": 1}', '{"schema_version": 1, "splits": {"a": {}}, "files": {}}'):
        (shards.directory / MANIFEST).write_text(text)
        with pytest.raises(UserError, match="not a manifest of shards"):
            ShardSet.open(shards.directory)
    shards.manifest.write(shards.directory)
    name = "val-00000.videos.arrow"
    complete = (shards.directory / name).read_bytes()
    (shards.directory / name).write_bytes(complete[:-1])
    with pytest.raises(UserError, match=rf"{name}: damaged: [\d,]+ bytes, but [\d,]+ in the manifest; convert again"):
        ShardSet.open(shards.directory)
    (shards.directory / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        ShardSet.open(shards.directory)


def test_damage_that_only_the_checksum_detects(tree: Path, converted: Converted) -> None:
    shards = converted(tree)
    shards.verify_checksums()
    path = shards.directory / "test-00000.queries.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"test-00000\.queries\.arrow: damaged: SHA-256 differs from the manifest's"
    ) as error:
        ShardSet.open(shards.directory).verify_checksums()
    assert len(error.value.mistakes) == 1
    path.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"test-00000\.queries\.arrow: damaged: "):
        ShardSet.open(shards.directory).split("test")


def test_the_fingerprint_is_of_the_content(tree: Path, converted: Converted, tmp_path: Path) -> None:
    first = converted(tree, tmp_path / "first").manifest
    path = tree / "FeatureData" / "i3d" / "feature.hdf5"
    path.rename(path.with_name("moved.hdf5"))  # feature.bin holds the same values
    assert converted(tree, tmp_path / "second").manifest.fingerprint == first.fingerprint
    assert type(first).read(tmp_path / "first" / MANIFEST).fingerprint == first.fingerprint
    assert converted(tree, tmp_path / "other", dtype="float32").manifest.fingerprint != first.fingerprint
    (tree / "TextData" / "minitest.caption.txt").unlink()
    splits = {converted(tree, tmp_path / str(seed), seed=seed).manifest.fingerprint for seed in (0, 1)}
    assert len(splits | {first.fingerprint}) == 3


def _rewrite_manifest(shards: ShardSet) -> None:
    """Let the manifest list the files as they are now, so that sizes and checksums are consistent."""
    files = {name: FileRecord.of(shards.directory / name) for name in shards.manifest.files}
    replace(shards.manifest, files=files).write(shards.directory)


def _batch(path: Path) -> pa.RecordBatch:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).get_batch(0)


def _write_batches(path: Path, *batches: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    columns = {column: batch.column(column) for column in batch.schema.names} | {name: values}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _with_value(batch: pa.RecordBatch, value: float) -> pa.RecordBatch:
    clips = batch.column("clips")
    values = np.array(clips.values.to_numpy(zero_copy_only=False), np.float16)
    values[100] = value
    return _with_column(batch, "clips", pa.FixedSizeListArray.from_arrays(pa.array(values), clips.type.list_size))


def _longer(lists: pa.ListArray) -> pa.ListArray:
    """The lists with all rows in the last one."""
    offsets = pa.array([0] * len(lists) + [len(lists.values)], pa.int32())
    return pa.ListArray.from_arrays(offsets, lists.values)


WRONG_CONTENT: dict[str, tuple[str, Callable[[pa.RecordBatch], list[pa.RecordBatch]], str]] = {
    "NaN": ("videos", lambda batch: [_with_value(batch, float("nan"))], "column 'clips' holds NaN"),
    "infinite": ("videos", lambda batch: [_with_value(batch, float("inf"))], "column 'clips' holds NaN or an infinite"),
    "a column too few": ("videos", lambda batch: [batch.select(["video", "clips"])], "must have one column 'frames'"),
    "a column too many": (
        "queries",
        lambda batch: [_with_column(batch, "more", batch.column("video"))],
        "unexpected column 'more'",
    ),
    "another type": (
        "queries",
        lambda batch: [_with_column(batch, "video", batch.column("video").cast(pa.int64()))],
        "column 'video' must be int32, not int64",
    ),
    "other sizes": (
        "videos",
        lambda batch: [_with_column(batch, "clips", pa.array([[0.0]] * len(batch), pa.list_(pa.float16(), 1)))],
        "column 'clips' must be",
    ),
    "nulls": (
        "videos",
        lambda batch: [_with_column(batch, "video", pa.array([None] * len(batch), pa.string()))],
        "column 'video' holds nulls",
    ),
    "owners out of range": (
        "queries",
        lambda batch: [_with_column(batch, "video", pa.array([99] * len(batch), pa.int32()))],
        "column 'video' must ascend",
    ),
    "too many rows": (
        "videos",
        lambda batch: [_with_column(batch, "frames", _longer(batch.column("frames")))],
        "column 'frames' must hold 1 to 128 rows",
    ),
    "fewer videos": ("videos", lambda batch: [batch.slice(0, 2)], "damaged: "),
    "two batches": ("queries", lambda batch: [batch, batch], "must hold 1 record batch, not 2"),
    "no batch": ("queries", lambda batch: [], "damaged: "),
}


@pytest.mark.parametrize("name", WRONG_CONTENT)
def test_files_whose_size_and_checksum_are_right_and_whose_content_is_wrong(
    tree: Path, converted: Converted, name: str
) -> None:
    kind, change, message = WRONG_CONTENT[name]
    shards = converted(tree)
    path = shards.directory / f"train-00000.{kind}.arrow"
    batches = change(_batch(path))
    if batches:
        _write_batches(path, *batches)
    else:
        path.write_bytes(b"ARROW1\0\0" + bytes(64))
    _rewrite_manifest(shards)
    with pytest.raises(UserError) as error:
        ShardSet.open(shards.directory).split("train")
    assert message in str(error.value) and str(shards.directory) in str(error.value)
    assert "\n" not in str(error.value)


EDITED: dict[str, tuple[dict[str, object], str]] = {
    "a size": ({"video_size": -3}, "video_size must be a positive integer"),
    "a size that is text": ({"text_size": "16"}, "text_size must be a positive integer"),
    "another size": ({"video_size": 25}, "column 'clips' must be"),
    "another dtype": ({"dtype": "float32"}, "column 'clips' must be"),
    "an unknown dtype": ({"dtype": "int8"}, "dtype must be float16 or float32"),
    "counts": (
        {"splits": {"train": {"videos": 3, "queries": 4, "shards": ["train-00000"]}}},
        "but manifest.json lists",
    ),
    "a stem elsewhere": ({"splits": {"train": {"videos": 1, "queries": 1, "shards": ["../x"]}}}, "no file '../x"),
    "no shards": ({"splits": {"train": {"videos": 0, "queries": 0, "shards": []}}}, "no shards"),
    "splits": ({"splits": 7}, "splits must be an object"),
    "a file elsewhere": ({"files": {"../x.arrow": {"bytes": 1, "sha256": ""}}}, "not a valid name of a shard file"),
    "bytes": ({"files": {"x.arrow": {"bytes": 1.5, "sha256": ""}}}, "not a file's record"),
    "an unknown key": ({"more": 1}, "unknown key"),
    "a version": ({"schema_version": {}}, "schema version must be 1"),
}


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_manifest(tree: Path, converted: Converted, name: str) -> None:
    changes, message = EDITED[name]
    path = converted(tree).directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as error:
        ShardSet.open(path.parent).split("train")
    assert message in str(error.value) and str(path.parent) in str(error.value)


def test_flipped_bits_are_found_and_checks_are_remembered(
    tree: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = converted(tree)
    read: list[str] = []
    read_whole = FileRecord.of

    def record(path: Path) -> FileRecord:
        read.append(path.name)
        return read_whole(path)

    monkeypatch.setattr(FileRecord, "of", staticmethod(record))
    shards.split("train")
    assert read == []  # `convert` wrote and read the files on this machine
    path = shards.directory / "train-00000.videos.arrow"
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-2000] ^= 4  # in the features, where no format can tell
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times
    for _ in range(2):
        with pytest.raises(UserError, match=r"train-00000\.videos\.arrow: damaged: SHA-256 differs"):
            ShardSet.open(shards.directory).split("train")
    shards.split("val")
    content[-2000] ^= 4
    path.write_bytes(content)
    read.clear()
    for _ in range(2):
        ShardSet.open(shards.directory).split("train")
    assert read == [path.name]


def test_without_a_cache_every_process_checks(
    tree: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = converted(tree)
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", "/proc/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    monkeypatch.setattr("dreamprvr_ray.data.checked_files._checked_here", {})
    path = shards.directory / "val-00000.queries.arrow"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 4
    path.write_bytes(content)
    shards.split("train")
    with pytest.raises(UserError, match=r"val-00000\.queries\.arrow: damaged"):
        shards.split("val")
