"""The record of the shards that a model was trained on, and what differs in others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamprvr_ray.data.manifest import FileRecord, Manifest
from dreamprvr_ray.data.shards_record import ShardsRecord, shard_changes


@pytest.fixture
def manifest(demo_shards: Path) -> Manifest:
    return Manifest.open(demo_shards)


def metrics(manifest: Manifest) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps({"shards": ShardsRecord.of(manifest).to_dict()}))
    return values


def test_the_same_content_has_no_differences(manifest: Manifest) -> None:
    assert shard_changes(metrics(manifest), manifest) == []
    elsewhere = replace(manifest, conversion={"settings": manifest.conversion["settings"], "source": {"moved": 1}})
    assert shard_changes(metrics(manifest), elsewhere) == []


def test_what_differs_is_named(manifest: Manifest) -> None:
    before, train = metrics(manifest), manifest.splits["train"]
    files = {name: FileRecord(record.bytes, "0" * 64) for name, record in manifest.files.items()}
    assert shard_changes(before, replace(manifest, files=files)) == [
        "the shards' features or captions differ, although their counts and settings are the same"
    ]
    splits = dict(manifest.splits) | {"train": replace(train, videos=20, queries=99)}
    assert shard_changes(before, replace(manifest, splits=splits, files=files)) == [
        f"the shards' number of videos in train was {train.videos} and is 20 now",
        f"the shards' number of queries in train was {train.queries} and is 99 now",
    ]
    settings = {**manifest.conversion["settings"], "dev_fraction": 0.25}
    other = replace(manifest, protocol="dev", files=files, conversion={"settings": settings})
    lines = shard_changes(before, other)
    assert lines[0] == "the shards' protocol was 'own splits' and is 'dev' now"
    assert lines[1].startswith("the shards' conversion setting dev_fraction was ") and len(lines) == 2


def test_checkpoints_of_earlier_versions_know_collection_and_protocol(manifest: Manifest) -> None:
    earlier = {"collection": "demo", "protocol": "own splits"}
    assert shard_changes(earlier, manifest) == shard_changes({}, manifest) == []
    assert shard_changes(earlier, replace(manifest, protocol="paper")) == [
        "the shards' protocol was 'own splits' and is 'paper' now"
    ]


@pytest.mark.parametrize("record", [None, 3, [], {}, {"fingerprint": 1}, "text"])
def test_a_damaged_record_is_a_value_error(record: object, manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="not a record of shards"):
        shard_changes({"shards": record}, manifest)
    broken = metrics(manifest)
    for name in ("splits", "conversion"):
        broken["shards"][name] = record
        if not record or (name == "conversion" and isinstance(record, dict)):
            continue
        with pytest.raises(ValueError, match="not a record of shards"):
            shard_changes(broken, manifest)
        broken = metrics(manifest)
