"""Several collections as one: what is refused, what they share, and which videos an epoch draws."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamprvr_ray.data.batches import plan_epoch
from dreamprvr_ray.data.captions import Caption
from dreamprvr_ray.data.collections import Collections, EpochDraw, open_manifest
from dreamprvr_ray.data.manifest import MANIFEST, Manifest
from dreamprvr_ray.data.overlaps import find_shared
from dreamprvr_ray.data.shard_files import MappedShard
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.errors import UserError


def edited(shards: Path, target: Path, **values: Any) -> Path:
    """Copy shards, with other values in their manifest."""
    shutil.copytree(shards, target)
    manifest = json.loads((target / MANIFEST).read_text()) | values
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target


def test_a_single_collection_is_as_it_is(demo_shards: Path) -> None:
    shards = ShardSet.open(demo_shards)
    alone = Collections.of(shards)
    assert alone.manifest == shards.manifest == open_manifest(str(demo_shards))
    assert alone.train().videos == shards.split("train").videos
    assert alone.train(with_val=True).videos == shards.joined("train", "val").videos
    assert list(alone.vals()) == ["demo"] and alone.shared == ()
    for epoch in range(3):  # exactly the batches of earlier versions
        own = plan_epoch(alone.draw({}).videos(7, epoch), 10, 7, epoch)
        order = np.random.default_rng([7, epoch]).permutation(24)
        assert [batch.tolist() for batch in own] == [order[start : start + 10].tolist() for start in (0, 10, 20)]


def test_several_are_one_in_the_order_of_their_names(demo_shards: Path, other_shards: Path) -> None:
    one, other = ShardSet.open(demo_shards), ShardSet.open(other_shards)
    both = Collections.open((str(other_shards), str(demo_shards)))
    assert both.names == ("demo", "other") == tuple(both.vals())
    parts = [one.split("train"), other.split("train")]
    train = both.train()
    assert train.videos == [id for part in parts for id in part.videos]
    assert train.captions == [text for part in parts for text in part.captions]
    assert len(train) == len(one.split("train")) + 16 and train.owner[-1] == len(train) - 1
    assert train.clips(len(parts[0])).equal(parts[1].clips(0)) and train.frames(3).equal(parts[0].frames(3))
    with_val = [shards.split(name) for shards in (one, other) for name in ("train", "val")]
    assert both.train(with_val=True).queries == [id for part in with_val for id in part.queries]

    manifest = both.manifest
    assert manifest.collection == "demo + other" and manifest.protocol == "own splits"
    assert manifest.splits["train"].videos == len(train)
    assert manifest.fingerprint not in (one.manifest.fingerprint, other.manifest.fingerprint)
    turned = open_manifest((str(demo_shards), str(other_shards)))
    assert turned == manifest
    record = ShardsRecord.of(manifest)
    assert ShardsRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.splits["other val"] == {"videos": 8, "queries": len(other.split("val").queries)}
    assert "the shards' collection was 'demo + other' and is 'demo' now" in record.differences(
        ShardsRecord.of(one.manifest)
    )


def test_moments_that_only_one_collection_has(
    demo_shards: Path, other_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = MappedShard.moment_fractions.fget
    assert known is not None
    monkeypatch.setattr(
        MappedShard, "moment_fractions", property(lambda shard: None if shard.video_count == 16 else known(shard))
    )
    train = Collections.open((str(demo_shards), str(other_shards))).train()
    fractions, own = train.moment_fractions, ShardSet.open(demo_shards).split("train").moment_fractions
    assert fractions is not None and own is not None and len(fractions) == len(train.queries)
    assert fractions[: len(own)].tolist() == own.tolist() and np.isnan(fractions[len(own) :]).all()
    assert ShardSet.open(other_shards).split("train").moment_fractions is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": "clip"}, "they must have features of one encoder: features planted and clip"),
        ({"text_size": 32}, "they must have queries of one size: values per query token 48 and 32"),
        ({"video_size": 32}, "they must have videos of one size: values per video row 64 and 32"),
        ({"dtype": "float32"}, "they must be of one type: type float16 and float32"),
        ({"collection": "demo"}, "both are of the collection demo"),
    ],
)
def test_collections_of_different_encoders_are_refused(
    demo_shards: Path, other_shards: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    different = edited(other_shards, tmp_path / "different", **values)
    with pytest.raises(UserError) as refused:
        Collections.open((str(demo_shards), str(different)))
    (line,) = refused.value.mistakes
    assert line.startswith(f"{demo_shards} and {different}: ") and message in line


def test_the_same_shards_twice_are_refused(demo_shards: Path, tmp_path: Path) -> None:
    copied = edited(demo_shards, tmp_path / "copied")
    for again in (demo_shards, copied):
        with pytest.raises(UserError, match=r"and .*: the same shards twice"):
            Collections.open((str(demo_shards), str(again)))
    with pytest.raises(UserError, match="no shards were given"):
        Collections.open(())


def test_an_epoch_draws_by_weight(demo_shards: Path, other_shards: Path) -> None:
    both = Collections.open((str(demo_shards), str(other_shards)))
    assert both.draw({}) == EpochDraw((24, 16), (24, 16)) and both.draw({}).videos(0, 0).tolist() == list(range(40))
    assert both.draw({}, with_val=True).sizes == (34, 24)
    draw = both.draw({"other": 0.25})
    assert draw.counts == (24, 4) and draw.count == 28
    drawn = [draw.videos(3, epoch) for epoch in range(40)]
    for videos in drawn:
        assert videos[:24].tolist() == list(range(24)) and len(set(videos.tolist())) == 28 and videos.max() < 40
    assert len({tuple(videos) for videos in drawn}) > 30  # every epoch its own
    assert set(np.concatenate(drawn).tolist()) == set(range(40))  # and in the long run all
    assert draw.videos(3, 5).tolist() == drawn[5].tolist() != draw.videos(4, 5).tolist()
    with pytest.raises(UserError, match=r"data\.weights\.othr: no such collection; .* did you mean 'other'"):
        both.draw({"othr": 0.5})
    with pytest.raises(UserError, match=r"data\.weights: \{demo: 0, other: 0.01\}: no video would be drawn"):
        both.draw({"demo": 0.0, "other": 0.01})


def captions(*ids: str) -> list[Caption]:
    return [Caption(f"{id}#0", id, f"sentence of {id}") for id in ids]


def test_what_one_collection_learns_of_another_is_found(
    demo_shards: Path, other_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {
        "demo": {"train": captions("a", "b", "c"), "val": captions("d"), "test": captions("e")},
        "other": {"train": captions("f", "e"), "val": captions("a", "g"), "test": captions("d", "h")},
    }
    found = find_shared(splits, ("demo", "train"), ("other", "val"))
    assert found is not None and (found.videos, found.queries) == (("a",), ("a#0",))
    assert found.line() == (
        "val of other shares 1 video ('a') and 1 query ('a#0') with train of demo: results there are too optimistic"
    )
    assert find_shared(splits, ("demo", "train"), ("other", "test")) is None

    monkeypatch.setattr(ShardSet, "captions", lambda shards: splits[shards.manifest.collection])
    lines: list[str] = []
    manifest = open_manifest((str(demo_shards), str(other_shards)), lines.append)
    assert manifest.protocol == (
        "demo: own splits, train overlaps test; other: own splits, train overlaps val, val overlaps test"
    )
    assert [part.protocol for part in manifest.parts()] == [
        "own splits, train overlaps test",
        "own splits, train overlaps val, val overlaps test",
    ]
    assert len(lines) == 3 and all(line.startswith("warning: ") for line in lines)
    with pytest.raises(UserError, match="cannot train on val: 1 of its 18 videos"):
        Collections.open((str(demo_shards), str(other_shards))).train(with_val=True)


def test_a_val_that_is_test_must_not_be_trained_on(demo_shards: Path, other_shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(other_shards)
    paper = replace(manifest, splits={**manifest.splits, "val": manifest.splits["test"]}, overlaps=None)
    target = edited(other_shards, tmp_path / "paper")
    paper.write(target)
    with pytest.raises(UserError, match="other: cannot train on val: it is the test split"):
        Collections.open((str(demo_shards), str(target))).train(with_val=True)


def test_each_at_a_uri_is_cached(
    demo_shards: Path, other_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", str(tmp_path / "cache"))
    both = Collections.open((demo_shards.as_uri(), other_shards.as_uri()))
    assert both.manifest.fingerprint == open_manifest((str(demo_shards), str(other_shards))).fingerprint
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.is_dir()) == [
        "demo",
        "other",
    ]
