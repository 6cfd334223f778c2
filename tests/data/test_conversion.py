"""Conversion of a source tree: protocols, parallel processes, resuming, and what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamprvr_ray.data.conversion import Conversion, ConversionSettings, Progress, convert
from dreamprvr_ray.data.manifest import MANIFEST, UNFINISHED, Manifest
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError

Converted = Callable[..., ShardSet]


def _convert(
    tree: Path,
    out: Path,
    workers: int = 1,
    report: Callable[[Progress], None] = lambda progress: None,
    **settings: object,
) -> Conversion:
    return convert(Source.open(tree, "mini"), out, ConversionSettings(**settings), workers, report)  # type: ignore[arg-type]


def _ids(tree: Path, split: str) -> list[str]:
    return [caption.query for caption in Source.open(tree, "mini").splits[split]]


def _captions(tree: Path, split: str) -> Path:
    return tree / "TextData" / f"mini{split}.caption.txt"


def _interrupt_after(shards: int) -> Callable[[Progress], None]:
    done: list[Progress] = []

    def report(progress: Progress) -> None:
        done.append(progress)
        if len(done) == shards:
            raise KeyboardInterrupt

    return report


@pytest.mark.usefixtures("many_shards")
def test_the_bytes_do_not_depend_on_the_number_of_workers(tree: Path, converted: Converted, tmp_path: Path) -> None:
    alone = converted(tree, tmp_path / "a", workers=1).manifest
    parallel = converted(tree, tmp_path / "b", workers=2).manifest
    assert len(alone.files) > 20
    assert parallel == alone
    ShardSet.open(tmp_path / "b").verify_checksums()
    (tree / "FeatureData" / "i3d" / "feature.hdf5").unlink()
    assert converted(tree, tmp_path / "c", workers=1).manifest.files == alone.files
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted([MANIFEST, *alone.files])


def test_own_splits(tree: Path, converted: Converted, tmp_path: Path) -> None:
    shards = converted(tree)
    assert shards.manifest.protocol == "own splits"
    assert [sorted(shards.split(name).queries) for name in ("train", "val", "test")] == [
        sorted(_ids(tree, name)) for name in ("train", "val", "test")
    ]
    with pytest.raises(UserError, match="--protocol paper: mini has separate val and test splits"):
        _convert(tree, tmp_path / "paper", protocol="paper")
    assert not (tmp_path / "paper").exists()


@pytest.mark.parametrize("how", ["no test", "no val", "test is val"])
@pytest.mark.parametrize("protocol", ["dev", "paper"])
def test_protocol(tree: Path, converted: Converted, how: str, protocol: str) -> None:
    if how == "no test":
        _captions(tree, "test").unlink()
    elif how == "no val":
        _captions(tree, "val").rename(_captions(tree, "test"))
    else:
        shutil.copyfile(_captions(tree, "val"), _captions(tree, "test"))
    source = Source.open(tree, "mini").splits
    distributed, train = sorted(caption.query for caption in source.get("val") or source["test"]), source["train"]
    shards = converted(tree, protocol=protocol, dev_fraction=0.25)
    assert shards.manifest.protocol == protocol
    splits = {name: shards.split(name) for name in ("train", "val", "test")}
    assert sorted(splits["test"].queries) == distributed
    if protocol == "paper":
        assert splits["val"].queries == splits["test"].queries
        assert shards.manifest.splits["val"].shards == shards.manifest.splits["test"].shards  # stored once
        assert len(splits["train"].queries) == len(train)
    else:
        assert len(splits["val"]) == 2  # a quarter of 8 videos
        assert not set(splits["val"].videos) & set(splits["train"].videos)
        assert sorted(splits["val"].queries + splits["train"].queries) == sorted(caption.query for caption in train)


def test_the_dev_split_depends_on_the_seed(tree: Path, converted: Converted, tmp_path: Path) -> None:
    _captions(tree, "test").unlink()
    chosen = {seed: tuple(converted(tree, tmp_path / str(seed), seed=seed).split("val").videos) for seed in range(6)}
    assert len(set(chosen.values())) > 1
    assert tuple(converted(tree, tmp_path / "again", seed=0).split("val").videos) == chosen[0]


def test_invalid_settings(tree: Path, tmp_path: Path) -> None:
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(UserError, match="--dev-fraction"):
            ConversionSettings(dev_fraction=fraction)
    with pytest.raises(UserError, match="--seed -1"):
        ConversionSettings(seed=-1)
    _captions(tree, "test").unlink()
    with pytest.raises(UserError, match="leaves none of 8 train videos"):
        _convert(tree, tmp_path / "out", dev_fraction=0.99)
    _captions(tree, "val").unlink()
    with pytest.raises(UserError, match="neither a val nor a test split; at least one is required"):
        _convert(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("many_shards")
def test_an_invalid_video_leaves_nothing_behind(tree: Path, tmp_path: Path, workers: int) -> None:
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
        file["s15e01_seg02_clip_15"][7, 3] = np.nan  # of the last shards
    with pytest.raises(UserError, match=r"feature\.hdf5: video 's15e01_seg02_clip_15': NaN in row 7 of 300"):
        _convert(tree, tmp_path / "out", workers)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("many_shards")
def test_an_interrupted_conversion_is_resumed(tree: Path, converted: Converted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _convert(tree, out, report=_interrupt_after(4))
    with pytest.raises(UserError, match="the conversion is unfinished; run the same convert command again"):
        ShardSet.open(out)
    with pytest.raises(UserError, match=r"another, unfinished conversion .*dtype: float16 before, float32 now"):
        _convert(tree, out, dtype="float32")
    (out / ".train-00000.videos.arrow.partial-1").write_bytes(b"half")
    damaged = out / "train-00001.videos.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    seen: list[Progress] = []
    conversion = _convert(tree, out, report=seen.append)
    assert conversion.kept_shards == 3  # four were finished, one of them is damaged
    assert seen[-1].videos == seen[-1].all_videos == 16
    complete = converted(tree, tmp_path / "complete").manifest
    assert conversion.manifest == complete
    ShardSet.open(out).verify_checksums()
    assert sorted(path.name for path in out.iterdir()) == sorted([MANIFEST, *complete.files])


KILLED = """
import os, signal, sys
from pathlib import Path
from dreamprvr_ray.data import conversion, shard_plan, shard_workers
from dreamprvr_ray.data.source import Source

if __name__ == "__main__":
    shard_plan.SMALLEST_SHARD_BYTES = shard_workers.PROCESS_BYTES = 1
    tree, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    kill = lambda progress: os.kill(os.getpid(), signal.SIGKILL)
    conversion.convert(Source.open(tree, "mini"), out, conversion.ConversionSettings(), workers, kill)
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("many_shards")
def test_a_killed_conversion_is_resumed(tree: Path, converted: Converted, tmp_path: Path, workers: int) -> None:
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    killed = subprocess.run([sys.executable, str(script), str(tree), str(out), str(workers)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / MANIFEST).exists()
    assert (out / UNFINISHED / "settings.json").is_file()
    conversion = _convert(tree, out)
    assert conversion.kept_shards >= 1
    assert conversion.manifest == converted(tree, tmp_path / "complete").manifest
    ShardSet.open(out).verify_checksums()


def test_a_finished_conversion_is_not_repeated(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = _convert(tree, out)
    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = _convert(tree, out, workers=2)
    assert (first.already_converted, again.already_converted) == (False, True)
    assert again.manifest == first.manifest
    assert _convert(tree, out, seed=5).already_converted  # no split is carved, so the seed does not matter
    with pytest.raises(UserError, match=r"shards of another conversion \(dtype: float16 before, float32 now\)"):
        _convert(tree, out, dtype="float32")
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
        file["vid_005"][0, 0] = 5.0
    with pytest.raises(UserError, match=r"shards of another conversion \(i3d/feature\.hdf5 changed\)"):
        _convert(tree, out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == written


def test_large_source_files_are_identified_by_size_and_time(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamprvr_ray.data.source.HASHED_BYTES", 100_000)
    _convert(tree, tmp_path / "out")
    os.utime(_captions(tree, "train"))
    assert _convert(tree, tmp_path / "out").already_converted
    os.utime(tree / "FeatureData" / "i3d" / "feature.hdf5")
    with pytest.raises(UserError, match=r"i3d/feature\.hdf5 changed"):
        _convert(tree, tmp_path / "out")


def test_other_files_are_not_deleted(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: holds other files"):
        _convert(tree, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is a file; must be a directory"):
        _convert(tree, out / "notes.txt")
    (out / "notes.txt").unlink()
    assert not _convert(tree, out).already_converted  # an empty directory is accepted


@pytest.mark.usefixtures("many_shards")
def test_two_conversions_at_once(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _convert(tree, out, report=_interrupt_after(1))
    with open(out / UNFINISHED / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another conversion is using this directory; wait for it to finish"):
            _convert(tree, out)
    assert _convert(tree, out).kept_shards == 1


def test_shards_have_a_maximum_size(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamprvr_ray.data.shard_plan.SMALLEST_SHARD_BYTES", 1)
    monkeypatch.setattr("dreamprvr_ray.data.shard_plan.SHARDS_PER_SPLIT", 1)
    monkeypatch.setattr("dreamprvr_ray.data.shard_plan.SHARD_BYTES", 20_000)
    _convert(tree, tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out").split("train")._shards
    sizes = [shard.clips.nbytes + shard.frames.nbytes + shard.tokens.nbytes for shard in shards]
    assert max(shard.video_count for shard in shards) > 1
    assert 1 < len(shards) < 8
    assert max(sizes) <= 20_000


def test_the_manifest_records_the_conversion(tree: Path, tmp_path: Path) -> None:
    _captions(tree, "test").unlink()
    _convert(tree, tmp_path / "out", dev_fraction=0.3, seed=4)
    values = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert values["conversion"]["settings"] == {"dtype": "float16", "protocol": "dev", "dev_fraction": 0.3, "seed": 4}
    assert "i3d/feature.hdf5" in values["conversion"]["source"]
    assert values["preprocessing"]["rows"] == "divided by their L2 norm + 1e-05"
    assert Manifest.read(tmp_path / "out" / MANIFEST).dtype == "float16"


@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="half a minute and 1 GB: set SLOW_TESTS to run it")
def test_a_real_collection(shared: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(shared / "realdata" / "unpack.py"), "qvh", str(tmp_path)], check=True)
    convert(Source.open(tmp_path, "qvh"), tmp_path / "shards", ConversionSettings(), workers=2)
    shards = ShardSet.open(tmp_path / "shards")
    shards.verify_checksums()
    counts = {name: (split.videos, split.queries) for name, split in shards.manifest.splits.items()}
    assert counts == {"train": (1974, 6000), "val": (184, 187), "test": (465, 477)}
    fractions = shards.split("train").moment_fractions
    assert fractions is not None
    assert not np.isnan(fractions).any()
