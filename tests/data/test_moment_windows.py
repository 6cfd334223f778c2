"""The annotated windows of moments in shards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dreamprvr_ray.data.captions import KnownMoment
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.manifest import FileRecord
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError

Converted = Callable[..., ShardSet]
DAMAGED = [[0.1], [0.4, 0.2], [0.2, 1.5], [-0.1, 0.2], [0.2, 0.2], [math.nan, 0.2], [0.1, 0.2, 0.3]]
WINDOWS = {"vid_005#enc#1": [(2.0, 4.0), (1.0, 1.5)], "vid_005#enc#0": [(9.0, 12.0)]}


def write_moments(tree: Path) -> None:
    (tree / "moments.jsonl").write_text(
        "".join(
            json.dumps({"query": query, "video": "vid_005", "start": start, "end": end, "duration": 10}) + "\n"
            for query, windows in WINDOWS.items()
            for start, end in windows
        )
    )


def rewrite(shards: ShardSet, change: Callable[[pa.RecordBatch], pa.RecordBatch], split: str = "train") -> ShardSet:
    """Rewrite the queries of a split and record the file's checksum, as another program may have written it."""
    files = dict(shards.manifest.files)
    for stem in shards.manifest.splits[split].shards:
        path = shards.directory / f"{stem}.queries.arrow"
        with pa.OSFile(str(path)) as source:
            batch = change(pa.ipc.open_file(source).get_batch(0))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        files[path.name] = FileRecord.of(path)
    replace(shards.manifest, files=files).write(shards.directory)
    return ShardSet.open(shards.directory)


def without_windows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the queries as earlier versions wrote them."""
    names = [name for name in batch.schema.names if name != "moment_windows"]
    return pa.RecordBatch.from_arrays([batch.column(name) for name in names], names=names)


@pytest.mark.parametrize("many", [False, True])
def test_windows_are_read_as_they_were_written(
    tree: Path, converted: Converted, many: bool, request: pytest.FixtureRequest
) -> None:
    if many:
        request.getfixturevalue("many_shards")
    write_moments(tree)
    shards = converted(tree)
    train = shards.split("train")
    assert train.moment_windows is not None and len(train.moment_windows) == len(train.queries)
    found = dict(zip(train.queries, train.moment_windows, strict=True))
    np.testing.assert_array_equal(found.pop("vid_005#enc#1"), [[0.1, 0.15], [0.2, 0.4]])
    np.testing.assert_array_equal(found.pop("vid_005#enc#0"), [[0.9, 1.0]])
    assert all(windows.shape == (0, 2) for windows in found.values())
    assert shards.split("val").moment_windows is None
    joined = Split.joined([shards.split("val"), train])
    assert joined.moment_windows is not None
    np.testing.assert_array_equal(joined.moment_windows[len(shards.split("val").queries) :][0], train.moment_windows[0])


def test_shards_of_earlier_versions_have_no_windows(tree: Path, converted: Converted) -> None:
    write_moments(tree)
    shards = rewrite(converted(tree), without_windows)
    train = shards.split("train")
    assert train.moment_windows is None and train.moment_fractions is not None
    # The source is the same, so the shards are kept, and a note says what they lack.
    again = convert(Source.open(tree, "mini"), shards.directory, ConversionSettings(dtype="float16"), 1)
    assert again.already_converted and "without the annotated windows" in again.notes[0]
    assert "convert into another directory" in again.notes[0]


def test_a_collection_without_moments_has_the_same_columns_as_before(tree: Path, converted: Converted) -> None:
    stem = converted(tree).manifest.splits["train"].shards[0]
    with pa.OSFile(str(tree.parents[1] / "shards" / f"{stem}.queries.arrow")) as source:
        assert not {"moment_windows", "moment_fraction"} & set(pa.ipc.open_file(source).schema.names)


@pytest.mark.parametrize("times", DAMAGED)
def test_damaged_windows_are_one_line(tree: Path, converted: Converted, times: list[float]) -> None:
    write_moments(tree)

    def damage(batch: pa.RecordBatch) -> pa.RecordBatch:
        column = batch.schema.get_field_index("moment_windows")
        lists = [times, *batch.column(column).to_pylist()[1:]]
        return batch.set_column(column, batch.schema.field(column), pa.array(lists, pa.list_(pa.float64())))

    with pytest.raises(UserError, match="damaged: column 'moment_windows' must hold starts and ends") as error:
        rewrite(converted(tree), damage).split("train")
    assert len(error.value.mistakes) == 1


@pytest.mark.parametrize(
    ("spans", "duration", "expected"),
    [
        ([(4, 1)], 10, KnownMoment(0.3, ((0.1, 0.4),))),  # swapped
        ([(8, 14)], 10, KnownMoment(0.6, ((0.8, 1.0),))),  # after the end
        ([(1, 3), (2, 4), (1, 3)], 10, KnownMoment(0.3, ((0.1, 0.3), (0.2, 0.4)))),  # what they share counts once
        ([(3, 3)], 10, KnownMoment(0.0)),
        ([(12, 14)], 10, KnownMoment(0.2)),
    ],
)
def test_shares_of_the_video(spans: Iterable[tuple[float, float]], duration: float, expected: KnownMoment) -> None:
    found = KnownMoment.of(spans, duration, "here")
    assert found.fraction == pytest.approx(expected.fraction)
    np.testing.assert_allclose(found.windows, expected.windows)


def test_an_unknown_duration_and_impossible_times() -> None:
    unknown = KnownMoment.of([(1, 2)], math.nan, "here")
    assert math.isnan(unknown.fraction) and not unknown.windows
    for span, duration in (((1, 2), 0), ((1, 2), math.inf), ((1, math.inf), 4), ((math.nan, 1), 4)):
        with pytest.raises(UserError, match=r"^here: invalid moment of \S+ s in a video of"):
            KnownMoment.of([span], duration, "here")
