"""Whatever source trees and shards hold: converting and opening them succeeds or ends with one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks import fuzz_sources
from benchmarks.fuzz_values import Change

quick = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz_sources.write_tree(folder / "tree")
    assert fuzz_sources.convert_tree(folder / "tree") == "converted"
    shutil.move(folder / "tree" / "shards", folder / "shards")
    yield folder
    shutil.rmtree(folder)


def changed(folder: Path, name: str, changes: list[Change]) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / name, copy)
    fuzz_sources.apply(changes, copy)
    return copy


@settings(quick, max_examples=150)
@given(fuzz_sources.TREE_CHANGES)
def test_a_changed_source_tree_is_converted_or_refused(folder: Path, changes: list[Change]) -> None:
    fuzz_sources.convert_tree(changed(folder, "tree", changes))


@settings(quick, max_examples=250)
@given(fuzz_sources.shard_changes())
def test_changed_shards_are_opened_or_refused(folder: Path, change: Change) -> None:
    fuzz_sources.open_shards(changed(folder, "shards", [change]))
