"""Conversion of a source tree: protocols, parallel processes, resuming, and what it refuses."""

from __future__ import annotations

import errno
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


def test_a_directory_called_conversion_is_not_deleted(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    notes = out / UNFINISHED / "notes.txt"
    notes.parent.mkdir(parents=True)
    with pytest.raises(UserError, match="out: holds other files, such as conversion"):
        _convert(tree, out)
    notes.write_text("mine")
    (notes.parent / "settings.json").write_text('{"mine": true}')
    with pytest.raises(UserError, match="out: holds other files, such as conversion"):
        _convert(tree, out)
    assert notes.read_text() == "mine"
    # Also next to shards that were converted before.
    shutil.move(notes.parent, tmp_path / "mine")
    out.rmdir()
    _convert(tree, out)
    shutil.move(tmp_path / "mine", out / UNFINISHED)
    assert _convert(tree, out).already_converted
    assert sorted(path.name for path in notes.parent.iterdir()) == ["notes.txt", "settings.json"]


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("ends", ["finished", "invalid"])
def test_files_of_others_in_an_unfinished_conversion_are_not_deleted(tree: Path, tmp_path: Path, ends: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _convert(tree, out, report=_interrupt_after(1))
    names = [UNFINISHED + "/mine.json", UNFINISHED + "/.mine.partial-1", ".mine.txt.partial-7", "mine.arrow"]
    for name in names:
        (out / name).write_text("mine")
    if ends == "invalid":
        with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
            file["s15e01_seg02_clip_15"][7, 3] = np.nan
        record = out / UNFINISHED / "settings.json"
        settings = json.loads(record.read_text())
        record.write_text(json.dumps(settings | {"source": Source.open(tree, "mini").fingerprint()}))
        with pytest.raises(UserError, match="NaN"):
            _convert(tree, out)
    else:
        _convert(tree, out)
    assert [name for name in names if not (out / name).is_file()] == []
    assert not (out / UNFINISHED / "settings.json").exists()


def test_an_empty_directory_of_the_user_is_left_empty(tree: Path, tmp_path: Path) -> None:
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
        file["vid_005"][7, 3] = np.nan
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="NaN"):
        _convert(tree, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("many_shards")
def test_an_unfinished_conversion_of_an_earlier_version_is_resumed(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _convert(tree, out, report=_interrupt_after(2))
    for path in (out / UNFINISHED).glob("*.json"):
        values = json.loads(path.read_text())
        values.pop("created_directory", None), values.pop("rows", None)
        path.write_text(json.dumps(values))
    assert _convert(tree, out).kept_shards == 2


def test_a_file_system_without_locks(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not _convert(tree, tmp_path / "out").already_converted


def _change(tree: Path, video: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
        rows = change(file[video][:])
        del file[video]
        file[video] = rows


@pytest.mark.parametrize("scale", [1e25, 1e37])
def test_huge_features_become_unit_rows(tree: Path, converted: Converted, tmp_path: Path, scale: float) -> None:
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5") as file:
        scale /= np.abs(file["vid_005"][:]).max()
    normal = converted(tree, tmp_path / "normal", dtype="float32").split("train")
    _change(tree, "vid_005", lambda rows: (rows.astype(np.float64) * scale).astype(np.float32))
    (note,) = _convert(tree, tmp_path / "shards", dtype="float32").notes
    assert "1 of 16 videos hold values above 1e+15" in note and note.endswith("'vid_005'")
    split = ShardSet.open(tmp_path / "shards").split("train")
    number = split.videos.index("vid_005")
    for rows, expected in ((split.clips(number), normal.clips(number)), (split.frames(number), normal.frames(number))):
        np.testing.assert_allclose(rows.numpy(), expected.numpy(), atol=1e-5)


def test_sums_beyond_float32_become_unit_rows(tree: Path, tmp_path: Path) -> None:
    _change(tree, "vid_005", lambda rows: np.full((300, 24), 3e38, np.float32))
    _convert(tree, tmp_path / "out")
    split = ShardSet.open(tmp_path / "out").split("train")
    for rows in (split.clips(split.videos.index("vid_005")), split.frames(split.videos.index("vid_005"))):
        np.testing.assert_allclose(np.linalg.norm(rows.double().numpy(), axis=1), 1, atol=1e-3)


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("workers", [1, 2])
def test_zero_and_vanishing_features_are_noted(tree: Path, tmp_path: Path, workers: int) -> None:
    _change(tree, "vid_005", lambda rows: rows * 0)
    _change(tree, "vid_001", lambda rows: rows * np.float32(1e-8))
    _change(tree, "vid_002", lambda rows: np.where(np.arange(len(rows))[:, None] == 0, rows * np.float32(1e-5), rows))
    with h5py.File(tree / "TextData" / "roberta_mini_query_feat.hdf5", "a") as file:
        file["vid_001#enc#0"][:] = 0
    with pytest.raises(KeyboardInterrupt):
        _convert(tree, tmp_path / "out", workers, report=_interrupt_after(12))
    notes = _convert(tree, tmp_path / "out", workers).notes  # also of shards that the first run finished
    assert [note.partition("features of ")[2] for note in notes] == [
        "1 of 16 videos are all zeros: were they missing? 'vid_005'",
        "1 of 44 queries are all zeros: were they missing? 'vid_001#enc#0'",
        "2 of 16 videos have rows of almost no length (0.01 or less), which normalising leaves short: is the scale"
        " right? 'vid_001', 'vid_002'",
    ]
    assert _convert(tree, tmp_path / "again", 1, dtype="float32").notes == notes


KILLED_WORKER = """
import os, sys
from pathlib import Path
from dreamprvr_ray import command_line, convert
from dreamprvr_ray.data import shard_plan, shard_workers

def kill(task):
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    shard_plan.SMALLEST_SHARD_BYTES = shard_workers.PROCESS_BYTES = 1
    shard_workers.make_shard = kill
    command_line.run(convert.main)
"""


def test_a_killed_process_of_a_conversion_is_one_line(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED_WORKER)
    command = ["--source", str(tree), "--collection", "mini", "--out", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run([sys.executable, str(script), *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("failed: a process that makes shards was killed, perhaps because memory ran out;")
    assert done.stderr.count("\n") == 2  # the first says what is read


def test_an_error_leaves_no_new_parent_directories(tree: Path, tmp_path: Path) -> None:
    with h5py.File(tree / "FeatureData" / "i3d" / "feature.hdf5", "a") as file:
        file["vid_005"][7, 3] = np.nan
    with pytest.raises(UserError, match="NaN"):
        _convert(tree, tmp_path / "a" / "b" / "out")
    assert not (tmp_path / "a").exists()
