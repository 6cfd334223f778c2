"""Source trees that are written can be read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dreamprvr_ray.data.captions import Caption, Moment, Query
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.data.source_writer import SourceVideo, write_random_source_tree, write_source_tree


def test_a_written_tree_can_be_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames, tokens = random.standard_normal((7, 5), dtype=np.float32), random.standard_normal((3, 4), dtype=np.float32)
    queries = [Query("v#0", "v", "someone sings", tokens, Moment(1.0, 3.0, 8.0)), Query("v#1", "v", "", tokens + 1)]
    train, test = SourceVideo("v", frames, queries), SourceVideo("w", frames + 1, [Query("w#0", "w", "rain", tokens)])
    write_source_tree(tmp_path / "mini", "mini", "clip", {"train": [train], "test": [test]})
    source = Source.open(tmp_path, "mini")
    assert (source.features, source.raw.video_size, source.raw.text_size) == ("clip", 5, 4)
    assert source.splits == {
        "train": [Caption("v#0", "v", "someone sings"), Caption("v#1", "v", "")],
        "test": [Caption("w#0", "w", "rain")],
    }
    assert source.moments is not None
    assert {query: moment.fraction for query, moment in source.moments.items()} == {"v#0": 0.25}
    np.testing.assert_array_equal(source.video("w"), frames + 1)
    np.testing.assert_array_equal(source.query("v#1"), tokens + 1)


def test_a_random_tree_can_be_read(tmp_path: Path) -> None:
    write_random_source_tree(tmp_path, "mini", "clip", 6, 4, {"train": 3, "test": 2}, queries=4)
    source = Source.open(tmp_path, "mini")
    assert {split: len(captions) for split, captions in source.splits.items()} == {"train": 12, "test": 8}
    assert source.moments is None
    assert source.video("train_2").shape[1] == 6 and source.query("test_1#enc#3").shape[1] == 4
