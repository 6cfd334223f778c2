"""The synthetic demo collection: reproducible, readable, and such that partial relevance matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray.data import demo
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import NotWritableError, UserError

SMALL = {"train": 12, "val": 4, "test": 6}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_depend_on_the_seed_only(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("a", "b", "c")]
    for root, seed in zip(roots, (1, 1, 2), strict=True):
        demo.write_demo(root, seed, SMALL)
    first, second, other = (_contents(root) for root in roots)
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_it_can_be_converted(tmp_path: Path) -> None:
    ceilings = demo.write_demo(tmp_path, 0, SMALL)
    assert demo.demo_ceilings(tmp_path) == ceilings
    source = Source.open(tmp_path, "demo")
    convert(source, tmp_path / "shards", ConversionSettings(), workers=1)
    shards = ShardSet.open(tmp_path / "shards")
    assert {name: split.videos for name, split in shards.manifest.splits.items()} == SMALL
    assert shards.manifest.protocol == "own splits"
    split = shards.split("train")
    assert split.moment_fractions is not None
    assert ((split.moment_fractions > 0) & (split.moment_fractions <= 0.5)).all()
    assert set(np.diff(split.first_query).tolist()) <= {2, 3, 4}
    assert {len(source.video(video)) for video in split.videos} <= set(range(20, 151))


def test_an_existing_demo_is_not_written_again(tmp_path: Path) -> None:
    demo.write_demo(tmp_path, 0, SMALL)
    before = (tmp_path / "demo" / "moments.jsonl").stat().st_mtime_ns
    demo.write_demo(tmp_path, 0, SMALL)
    assert (tmp_path / "demo" / "moments.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already exists and is not this demo"):
        demo.write_demo(tmp_path, 1, SMALL)
    with pytest.raises(UserError, match="does not contain a demo"):
        demo.demo_ceilings(tmp_path / "elsewhere")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritableError, match=r"/file: cannot be written: Not a directory$"):
        demo.write_demo(tmp_path / "file", 0, SMALL)
    with pytest.raises(NotWritableError, match=r"^/proc/x: cannot be written: No such file or directory$"):
        demo.write_demo(Path("/proc/x"), 0, SMALL)


def test_partial_relevance_matters_and_can_be_learned(tmp_path: Path) -> None:
    """A linear map learned from train and matched with the best frame is far better than matching average frames."""
    ceilings = demo.write_demo(tmp_path)
    assert ceilings.chance == 58.0  # 0.5 + 2.5 + 5 + 50
    assert ceilings.chance + 50 < ceilings.mean_pooling < ceilings.perfect - 200
    train, test = (_features(Source.open(tmp_path, "demo"), split) for split in ("train", "test"))
    (train_videos, train_queries, train_owner), (test_videos, test_queries, test_owner) = train, test
    mean = np.concatenate(train_videos).mean(axis=0)
    targets = np.stack([train_videos[video].mean(axis=0) for video in train_owner]) - mean
    for _ in range(5):  # the frames that a query describes are unknown: guess them, fit, and repeat
        weights = np.linalg.solve(
            train_queries.T @ train_queries + np.eye(train_queries.shape[1]), train_queries.T @ targets
        )
        predicted = train_queries @ weights
        frames = [train_videos[video] - mean for video in train_owner]
        targets = np.stack(
            [rows[np.argsort(rows @ query)[-3:]].mean(axis=0) for rows, query in zip(frames, predicted, strict=True)]
        )
    predicted = test_queries @ weights
    best = np.stack([((rows - mean) @ predicted.T).max(axis=0) for rows in test_videos], axis=1)
    average = np.stack([(rows.mean(axis=0) - mean) @ predicted.T for rows in test_videos], axis=1)
    learned = demo._sum_recall(best, test_owner)
    assert learned > (ceilings.mean_pooling + ceilings.perfect) / 2
    assert demo._sum_recall(average, test_owner) < ceilings.mean_pooling + 10


def _features(source: Source, split: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return unit frame rows of each video, mean tokens with a constant (Q, Dt + 1), and each query's owner (Q,)."""
    captions = source.splits[split]
    videos = list(dict.fromkeys(caption.video for caption in captions))
    frames = [source.video(video) for video in videos]
    means = np.stack([source.query(caption.query).mean(axis=0) for caption in captions])
    owner = np.array([videos.index(caption.video) for caption in captions])
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in frames]
    return unit, np.c_[means, np.ones(len(means))], owner


def test_sum_recall() -> None:
    scores = np.array([[3.0, 1, 2], [3, 3, 1], [np.inf, 5, 4]])
    # Ranks 1, 2 (a tie counts against the query) and 3 of three videos.
    assert demo._sum_recall(scores, np.array([0, 1, 2])) == pytest.approx(100 / 3 + 300, abs=0.1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["--out", str(tmp_path), "--seed", "3", "--json"])
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["collection"] == "demo"
    assert values["test_sum_recall"].keys() == {"chance", "mean_pooling", "perfect"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk, which HDF5 meets in the same place.
    script = (
        "import resource, sys\n"
        "from dreamprvr_ray import command_line\n"
        "from dreamprvr_ray.data import demo\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "command_line.run(demo.main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--out", str(tmp_path / "a" / "b")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"failed: {tmp_path}/a/b: File too large; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_not_deleted(tmp_path: Path) -> None:
    mine = tmp_path / f".demo.partial-{os.getpid()}" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    demo.write_demo(tmp_path, 0, SMALL)
    assert mine.read_text() == "mine"
    (tmp_path / "demo" / "demo.json").write_text('{"settings": [')
    with pytest.raises(UserError, match="already exists and is not this demo"):
        demo.write_demo(tmp_path, 0, SMALL)
