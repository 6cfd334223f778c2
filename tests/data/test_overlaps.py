"""What train, val and test share is counted, reported and, where it is most of val, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamprvr_ray import convert as command
from dreamprvr_ray.data.cache import read_manifest
from dreamprvr_ray.data.manifest import MANIFEST
from dreamprvr_ray.data.overlaps import Overlap
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.summary import describe_protocol

Converted = Callable[..., ShardSet]


def captions(tree: Path, split: str) -> Path:
    return tree / "TextData" / f"mini{split}.caption.txt"


def add(tree: Path, split: str, *lines: str) -> None:
    """Add captions to a split, with features for queries that have none."""
    with captions(tree, split).open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    (queries,) = (tree / "TextData").glob("*query_feat.hdf5")
    with h5py.File(queries, "a") as file:
        for line in lines:
            if line.split()[0] not in file:
                file[line.split()[0]] = np.ones((2, 16))


def lines_of(tree: Path, split: str) -> list[str]:
    return captions(tree, split).read_text().splitlines()


def test_splits_that_share_nothing(tree: Path, converted: Converted) -> None:
    shards = converted(tree)
    assert shards.manifest.protocol == "own splits"
    assert shards.manifest.overlaps is not None
    assert {name: (found.videos, found.queries) for name, found in shards.manifest.overlaps.items()} == {
        "train and val": (0, 0),
        "train and test": (0, 0),
        "val and test": (0, 0),
    }
    assert len(shards.joined("train", "val")) == 12


def test_a_val_query_that_is_in_test(tree: Path, converted: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    add(tree, "val", lines_of(tree, "test")[0])
    shards = converted(tree)
    overlap = Overlap(videos=1, queries=1, sentences=1)
    assert json.loads((shards.directory / MANIFEST).read_text())["overlaps"]["val and test"] == vars(overlap)
    assert shards.manifest.overlaps is not None and shards.manifest.overlaps["val and test"] == overlap
    assert shards.manifest.protocol == "own splits, val overlaps test"
    assert "partly selected on test" in describe_protocol(shards.manifest.protocol)
    with pytest.raises(UserError, match="cannot train on val: 1 of its 5 videos and 1 of its 8 queries are also in"):
        shards.joined("train", "val")
    command.main(["--source", str(tree), "--collection", "mini", "--out", str(shards.directory)])
    printed = capsys.readouterr()
    assert "note: 1 of 5 val videos are also in test" in printed.err
    assert "note: 1 of 8 val queries are also in test" in printed.err
    assert "(val and test as distributed; val overlaps test: see the notes)" in printed.out


def test_the_same_query_under_another_id(tree: Path, converted: Converted) -> None:
    id, _, sentence = lines_of(tree, "test")[0].partition(" ")
    add(tree, "val", f"{id}_copy  {sentence.upper()} ")
    assert converted(tree).manifest.protocol == "own splits, val overlaps test"
    assert any("val queries are also in test" in note for note in Source.open(tree, "mini").notes())


def test_a_test_query_that_is_in_train(tree: Path, converted: Converted) -> None:
    add(tree, "train", lines_of(tree, "test")[0])
    shards = converted(tree)
    assert shards.manifest.protocol == "own splits, train overlaps test"
    assert len(shards.joined("train", "val")) == 13


@pytest.mark.parametrize("how", ["all test queries but one", "test and more", "other queries of the test videos"])
def test_a_val_that_is_mostly_test_is_refused(tree: Path, tmp_path: Path, converted: Converted, how: str) -> None:
    test = lines_of(tree, "test")
    if how == "all test queries but one":
        captions(tree, "val").write_text("\n".join(test[:-1]))
    elif how == "test and more":
        add(tree, "val", *test)
    else:
        captions(tree, "val").write_text("")
        add(tree, "val", *(f"{line.split()[0]}_other another sentence {place}" for place, line in enumerate(test)))
    with pytest.raises(UserError, match=r"TextData: val is not a separate split: \d+ of its \d+ queries and \d+ of"):
        converted(tree)
    assert not (tmp_path / "shards").exists()


def test_shards_of_earlier_versions_are_examined(
    tree: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tree, "val", *lines_of(tree, "test")[:2])
    path = converted(tree).directory / MANIFEST
    values = json.loads(path.read_text())
    del values["overlaps"]
    path.write_text(json.dumps(values | {"protocol": "own splits"}))
    for manifest in (ShardSet.open(path.parent).manifest, read_manifest(str(path.parent))):
        assert manifest.protocol == "own splits, val overlaps test"
    with pytest.raises(UserError, match="cannot train on val"):
        ShardSet.open(path.parent).joined("train", "val")
    with monkeypatch.context() as patch:  # the result is remembered
        patch.setattr(ShardSet, "captions", None)
        assert ShardSet.open(path.parent).manifest.protocol == "own splits, val overlaps test"
    # Val is test but for one query: its shards are listed as val's.
    values["splits"]["val"] = values["splits"]["test"]
    path.write_text(json.dumps(values | {"protocol": "own splits"}))
    assert ShardSet.open(path.parent).manifest.protocol == "own splits, val is mostly test"


def test_many_sentences_that_two_splits_share_are_noted(tree: Path) -> None:
    add(tree, "train", *(f"train_{n}#0 sentence number {n}" for n in range(40)))
    add(tree, "test", *(f"test_{n}#0 Sentence  number {n}" for n in range(40)))
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
        for n in range(40):
            file[f"train_{n}"] = file[f"test_{n}"] = np.ones((2, 24))
    (note,) = Source.open(tree, "mini").notes()
    assert note.endswith("are also in train: are these the same queries under other ids?")
