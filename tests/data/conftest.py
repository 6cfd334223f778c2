"""Source trees and shards that the tests of data share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the golden collection's directory, which a test may change."""
    return copy_tree(tmp_path / "source")


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., ShardSet]:
    """Return `converted(folder, dtype="float32")`, which converts the collection mini in a directory."""

    def run(folder: Path, out: Path = tmp_path / "shards", workers: int = 1, **settings: object) -> ShardSet:
        convert(Source.open(folder, "mini"), out, ConversionSettings(**settings), workers)  # type: ignore[arg-type]
        return ShardSet.open(out)

    return run


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one or two golden videos in a shard, and let every shard justify a process."""
    monkeypatch.setattr("dreamprvr_ray.data.shard_plan.SMALLEST_SHARD_BYTES", 1)
    monkeypatch.setattr("dreamprvr_ray.data.shard_workers.PROCESS_BYTES", 1)


def copy_tree(root: Path) -> Path:
    folder = root / "mini"
    for path in GOLDEN.joinpath("mini").rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(GOLDEN / "mini")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)  # not its mode: the original may be read-only
    return folder
