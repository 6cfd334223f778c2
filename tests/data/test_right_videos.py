"""Queries with several right videos: written to shards, read from them, and shards without them as before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dreamprvr_ray.data.batches import other_right_videos
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.manifest import FileRecord
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.errors import UserError


def split_of(name: str, videos: int, also: dict[int, Sequence[int]] | None = None) -> FeatureSplit:
    """A split with a query per video; `also` gives other right videos by the number of the query's own."""
    random = np.random.default_rng(0)
    frames = {f"{name}{number}": random.standard_normal((5, 6)) for number in range(videos)}
    queries = [
        Query(
            f"{video}#0",
            video,
            "a sentence",
            random.standard_normal((3, 4)),
            also=[f"{name}{other}" for other in (also or {}).get(number, ())],
        )
        for number, video in enumerate(frames)
    ]
    return FeatureSplit(frames, queries)


def write(folder: Path, also: dict[int, Sequence[int]] | None = None) -> ShardSet:
    splits = {"train": split_of("a", 9), "val": split_of("b", 3), "test": split_of("c", 5, also)}
    return write_shards(folder, collection="c", splits=splits)


@pytest.mark.parametrize("shards_of_one_video", [False, True])
def test_right_videos_are_read_as_they_were_written(
    tmp_path: Path, shards_of_one_video: bool, request: pytest.FixtureRequest
) -> None:
    if shards_of_one_video:
        request.getfixturevalue("many_shards")
    shards = write(tmp_path / "shards", {1: [4, 0], 3: [3, 2, 2]})
    test = shards.split("test")
    assert test.right_videos is not None
    offsets, numbers = test.right_videos
    assert (offsets.dtype, numbers.dtype) == (np.int64, np.int64)
    right = [numbers[start:end].tolist() for start, end in pairwise(offsets)]
    assert right == [[0], [1, 4, 0], [2], [3, 2], [4]]
    assert shards.split("train").right_videos is None


def test_shards_without_several_right_videos_have_the_same_bytes_as_before(tmp_path: Path) -> None:
    one, several = write(tmp_path / "one"), write(tmp_path / "several", {1: [4]})
    with pa.memory_map(str(tmp_path / "one" / "test-00000.queries.arrow")) as file:
        assert "right_videos" not in pa.ipc.open_file(file).schema.names
    changed = [name for name, record in one.manifest.files.items() if several.manifest.files[name] != record]
    assert changed == ["test-00000.queries.arrow"]
    write(tmp_path / "several", {1: [4]})  # the same features: nothing to do
    with pytest.raises(UserError, match="another conversion"):
        write(tmp_path / "several", {1: [4, 0]})


def test_a_right_video_that_no_query_has_as_its_first_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = split_of("c", 5, {0: [3, 4]})
    splits = {"train": split_of("a", 9), "val": split_of("b", 3), "test": FeatureSplit(test.videos, test.queries[:4])}
    shards = write_shards(tmp_path / "shards", collection="c", splits=splits)
    assert "test: 1 right videos of queries are left out" in caplog.text and "'c4'" in caplog.text
    right = shards.split("test").right_videos
    assert right is not None and right[1].tolist() == [0, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (["c1", "c0"], "must begin with the query's own video"),
        ([], "must begin with the query's own video"),
        (["c0", "c2", "c2"], "must begin with the query's own video"),
        (["c0", "gone"], "no video 'gone'"),
    ],
)
def test_damaged_right_videos_are_one_line(tmp_path: Path, ids: list[str], problem: str) -> None:
    shards = write(tmp_path / "shards", {0: [1]})
    path = tmp_path / "shards" / "test-00000.queries.arrow"
    with pa.OSFile(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    column = batch.schema.get_field_index("right_videos")
    lists = [ids, *batch.column(column).to_pylist()[1:]]
    batch = batch.set_column(column, batch.schema.field(column), pa.array(lists, pa.list_(pa.string())))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    manifest = shards.manifest
    manifest.files[path.name] = FileRecord.of(path)  # type: ignore[index]
    with pytest.raises(UserError, match=problem) as error:
        _ = ShardSet(tmp_path / "shards", manifest).split("test").right_videos
    assert len(error.value.mistakes) == 1


def test_pairs_of_a_batch_are_other_right_videos_of_its_queries(tmp_path: Path) -> None:
    split = write(tmp_path / "shards", {1: [4, 0], 3: [2]}).split("test")
    pairs = other_right_videos(split, np.array([4, 3, 1, 2]))
    assert pairs is not None and sorted(pairs.tolist()) == [[1, 3], [2, 0]]
    assert other_right_videos(split, np.array([0, 4, 2])) is None
    assert other_right_videos(split, np.array([], dtype=np.int64)) is None


def test_right_videos_of_joined_splits_are_those_of_each(tmp_path: Path) -> None:
    parts = [write(tmp_path / str(number), also).split("test") for number, also in enumerate(({1: [4]}, {}, {0: [2]}))]
    right = Split.joined(parts).right_videos  # all have videos of the same ids
    assert right is not None
    lists = [right[1][start:end].tolist() for start, end in pairwise(right[0])]
    assert lists == [[0], [1, 4], [2], [3], [4], [5], [6], [7], [8], [9], [10, 12], [11], [12], [13], [14]]
    assert Split.joined([parts[1], parts[1]]).right_videos is None
