"""Shards from features in memory equal those of a converted source tree, and mistakes are reported in one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamprvr_ray.data.in_memory import FeatureSplit, Moment, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError

Converted = Callable[..., ShardSet]


def read_tree(tree: Path, moments: Mapping[str, tuple[float, float, float]]) -> dict[str, FeatureSplit]:
    """Read a source tree into memory, with h5py alone."""
    with (
        h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5") as frames,
        h5py.File(tree / "TextData" / "roberta_mini_query_feat.hdf5") as tokens,
    ):
        splits = {}
        for name, captions in Source.open(tree, "mini").splits.items():
            queries = [
                Query(caption.query, caption.video, caption.text, tokens[caption.query][:], moments.get(caption.query))
                for caption in captions
            ]
            splits[name] = FeatureSplit({query.video: frames[query.video][:] for query in queries}, queries)
    return splits


def write_moments(tree: Path) -> dict[str, tuple[float, float, float]]:
    captions = [caption for own in Source.open(tree, "mini").splits.values() for caption in own][::2]
    moments = {caption.query: (1.5, 2.25 + number, 30.1) for number, caption in enumerate(captions)}
    lines = [
        {"query": query, "video": query.split("#")[0], "start": start, "end": end, "duration": duration}
        for query, (start, end, duration) in moments.items()
    ]
    (tree / "moments.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return moments


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("with_moments", [False, True])
@pytest.mark.usefixtures("many_shards")
def test_the_files_equal_those_of_a_converted_tree(
    tree: Path, converted: Converted, tmp_path: Path, dtype: str, with_moments: bool
) -> None:
    moments = write_moments(tree) if with_moments else {}
    expected = converted(tree, dtype=dtype)
    splits = read_tree(tree, moments)
    shards = write_shards(tmp_path / "written", collection="mini", splits=splits, features="i3d", dtype=dtype)  # type: ignore[arg-type]
    assert len(expected.manifest.files) > 20
    for name in expected.manifest.files:
        assert (shards.directory / name).read_bytes() == (expected.directory / name).read_bytes(), name
    source = shards.manifest.conversion["source"]
    assert shards.manifest == replace(
        expected.manifest, conversion=dict(expected.manifest.conversion) | {"source": source}
    )
    shards.verify_checksums()


@pytest.mark.parametrize("protocol", ["dev", "paper"])
def test_without_a_val_split(tree: Path, converted: Converted, tmp_path: Path, protocol: str) -> None:
    (tree / "TextData" / "minival.caption.txt").unlink()
    expected = converted(tree, protocol=protocol, dev_fraction=0.3, seed=3).manifest
    manifest = write_shards(
        tmp_path / "written", collection="mini", splits=read_tree(tree, {}), protocol=protocol, dev_fraction=0.3, seed=3  # type: ignore[arg-type]
    ).manifest  # fmt: skip
    assert (manifest.protocol, manifest.splits, manifest.files) == (protocol, expected.splits, expected.files)


def small_splits(**changes: object) -> dict[str, FeatureSplit]:
    """Two splits with a video and a query each; `changes` replace fields of train's query."""
    random = np.random.default_rng(0)
    splits = {}
    for name in ("train", "val", "test"):
        videos = {f"{name}{number}": random.standard_normal((9, 6)) for number in range(2)}
        queries = [Query(f"{video}#0", video, "someone talks", random.standard_normal((5, 4))) for video in videos]
        splits[name] = FeatureSplit(videos, queries)
    if changes:
        first, *others = splits["train"].queries
        splits["train"] = FeatureSplit(splits["train"].videos, [replace(first, **changes), *others])  # type: ignore[arg-type]
    return splits


def test_any_memory_layout_and_type_of_number(tmp_path: Path) -> None:
    def changed(convert: Callable[[np.ndarray], object]) -> dict[str, FeatureSplit]:
        return {
            name: FeatureSplit(
                {id: convert(np.asarray(rows, np.float32)) for id, rows in split.videos.items()},  # type: ignore[misc]
                [replace(query, tokens=convert(np.asarray(query.tokens, np.float32))) for query in split.queries],  # type: ignore[arg-type]
            )
            for name, split in small_splits().items()
        }

    expected = write_shards(tmp_path / "a", collection="mini", splits=small_splits()).manifest.files
    for number, convert in enumerate((np.asfortranarray, np.float64, np.ndarray.tolist)):
        files = write_shards(tmp_path / str(number), collection="mini", splits=changed(convert)).manifest.files
        assert files == expected


def test_videos_without_a_query_are_left_out(tmp_path: Path) -> None:
    splits = small_splits()
    videos = {id: rows for split in splits.values() for id, rows in split.videos.items()}
    everywhere = {name: FeatureSplit(videos, split.queries) for name, split in splits.items()}
    shards = write_shards(tmp_path / "a", collection="mini", splits=everywhere)
    assert shards.split("val").videos == ["val0", "val1"]


def test_writing_again(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "a", collection="mini", splits=small_splits())
    written = (tmp_path / "a" / "manifest.json").stat().st_mtime_ns
    assert write_shards(tmp_path / "a", collection="mini", splits=small_splits()).manifest == shards.manifest
    assert (tmp_path / "a" / "manifest.json").stat().st_mtime_ns == written
    for changes in ({"sentence": "someone sings"}, {"tokens": np.ones((5, 4))}, {"moment": (0, 1, 2)}):
        with pytest.raises(UserError, match=r"shards of another conversion \(features in memory changed\)"):
            write_shards(tmp_path / "a", collection="mini", splits=small_splits(**changes))


def test_moments(tmp_path: Path) -> None:
    splits = small_splits(moment=Moment(start=1.0, end=3.0, duration=8.0))
    fractions = write_shards(tmp_path / "a", collection="mini", splits=splits).split("train").moment_fractions
    assert fractions is not None
    np.testing.assert_array_equal(fractions, [0.25, np.nan])


BAD_QUERIES: dict[str, tuple[dict[str, object], str]] = {
    "a missing video": (
        {"video": "v9"}, "mini: train query 'train0#0': video 'v9' is not among the split's videos"
    ),
    "a repeated id": ({"id": "train1#0"}, "mini: train query id 'train1#0' is used 2 times"),
    "an id that is not a string": ({"id": 3}, "mini: train query 3: id, video and sentence must be strings"),
    "right videos that are a string": (
        {"also": "v1"},
        "mini: train query 'train0#0': id, video and sentence must be strings, and `also` a list of strings",
    ),
    "an unknown right video": (
        {"also": ["v9"]}, "mini: train query 'train0#0': right video 'v9' is not among the split's videos"
    ),
    "a cube": ({"tokens": np.ones((2, 2, 4))}, "mini: query 'train0#0': shape must be (tokens, 4), not (2, 2, 4)"),
    "no tokens": ({"tokens": np.ones((0, 4))}, "mini: query 'train0#0': 0 tokens; at least one is needed"),
    "a different size": (
        {"tokens": np.ones((2, 5))},
        "mini: query 'train1#0': features of size 4, but most queries have size 5",
    ),
    "NaN": ({"tokens": np.full((2, 4), np.nan)}, "mini: query 'train0#0': NaN in row 0 of 2"),
    "words": ({"tokens": [["a"]]}, "mini: query 'train0#0': must be an array of numbers: could not convert"),
    "a moment without duration": (
        {"moment": (1, 2)},
        "mini: train query 'train0#0': moment must be (start, end, duration of the video) in seconds, not (1, 2)",
    ),
    "a video of no length": (
        {"moment": (1, 2, 0)}, "mini: train query 'train0#0': invalid moment of 1 s in a video of 0 s"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_QUERIES)
def test_invalid_queries(tmp_path: Path, name: str) -> None:
    changes, message = BAD_QUERIES[name]
    with pytest.raises(UserError) as error:
        write_shards(tmp_path / "a", collection="mini", splits=small_splits(**changes))
    assert len(error.value.mistakes) == 1 and error.value.mistakes[0].startswith(message), error.value
    assert not (tmp_path / "a").exists()


def test_invalid_videos(tmp_path: Path) -> None:
    for rows, message in (
        (np.full((3, 6), np.inf), "video 'val0': an infinite value in row 0 of 3"),
        (np.ones((3, 7)), "video 'val0': features of size 7, but most videos have size 6"),
        (np.ones((3, 2, 6)), "video 'val0': shape must be (frames, 6), not (3, 2, 6)"),
    ):
        splits = small_splits()
        splits["val"] = FeatureSplit(dict(splits["val"].videos) | {"val0": rows}, splits["val"].queries)
        with pytest.raises(UserError) as error:
            write_shards(tmp_path / "a", collection="mini", splits=splits)
        assert error.value.mistakes == (f"mini: {message}",)
        assert not (tmp_path / "a").exists()


def test_invalid_splits(tmp_path: Path) -> None:
    splits = small_splits()
    for wrong, message in (
        ({"train": splits["train"]}, "mini: neither a val nor a test split; at least one is required"),
        ({}, "mini: no splits"),
        (
            splits | {"tests": splits["test"]},
            "mini: unknown split 'tests': must be one of train, val, test; did you mean",
        ),
        (splits | {"val": FeatureSplit({}, [])}, "mini: split 'val' has no queries"),
    ):
        with pytest.raises(UserError) as error:
            write_shards(tmp_path / "a", collection="mini", splits=wrong)
        assert error.value.mistakes[0].startswith(message), error.value
    other = replace(splits["train"].queries[0], tokens=np.ones((5, 4)))
    test = FeatureSplit({"train0": np.ones((9, 6))}, [other])
    with pytest.raises(UserError) as error:
        write_shards(tmp_path / "a", collection="mini", splits=splits | {"test": test})
    assert error.value.mistakes == (
        "mini: test query 'train0#0': video 'train0' has other features in another split",
        "mini: test query 'train0#0': the id has other tokens in another split",
    )
    assert not (tmp_path / "a").exists()


def test_odd_features_and_overlaps_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = small_splits()
    (video, *_) = splits["train"].videos
    train = FeatureSplit(dict(splits["train"].videos) | {video: np.zeros((3, 6))}, splits["train"].queries)
    query = splits["test"].queries[0]
    test_video = {query.video: splits["test"].videos[query.video]}
    val = FeatureSplit(dict(splits["val"].videos) | test_video, [*splits["val"].queries, query])
    shards = write_shards(tmp_path / "a", collection="mini", splits=splits | {"train": train, "val": val})
    assert shards.manifest.protocol == "own splits, val overlaps test"
    assert any("1 of" in message and "all zeros" in message for message in caplog.messages)
    assert any("val queries are also in test" in message for message in caplog.messages)
