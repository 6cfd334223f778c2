"""Baselines of a search: what their videos are, and that they are trained once."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamprvr_ray.data.captions import Query
from dreamprvr_ray.data.in_memory import FeatureSplit, write_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import read_json
from dreamprvr_ray.video.baselines import CHANGES, MODEL, RECORD, change_frames, run_baselines

TINY = {
    "config": "videos",
    "trials": 1,
    "trial": {"at_a_time": 1},
    "final": {"seeds": 1},
    "space": {"loss.margin": {"float": [0.3, 0.9]}, "training.epochs": 1, "model.hidden_size": 16},
}
Call = Callable[..., subprocess.CompletedProcess[str]]


def test_what_stands_in_place_of_a_video() -> None:
    frames, random = np.arange(10, dtype=np.float32).reshape(5, 2), np.random.default_rng(0)
    assert change_frames(frames, "mean frame", random).tolist() == [[4.0, 5.0]]
    assert change_frames(frames, "single frame", random).tolist() == [[4.0, 5.0]]
    assert change_frames(frames[:4], "single frame", random).tolist() == [[4.0, 5.0]]
    shuffled = change_frames(frames, "shuffled frames", random)
    assert shuffled.tolist() != frames.tolist() and sorted(shuffled.tolist()) == frames.tolist()


def split(name: str, videos: int) -> FeatureSplit:
    random = np.random.default_rng(len(name))
    frames = {f"{name}{number}": random.standard_normal((6 + number, 12)) for number in range(videos)}
    queries = [
        Query(f"{video}#{place}", video, f"moment {place} of {video}", random.standard_normal((4, 10)))
        for video in frames
        for place in range(2)
    ]
    return FeatureSplit(frames, queries)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, call: Call, local_ray: None) -> Iterator[Path]:
    """A directory with shards and a finished search of one trial on them."""
    folder = tmp_path_factory.mktemp("baselines")
    splits = {name: split(name, count) for name, count in {"train": 6, "val": 3, "test": 3}.items()}
    write_shards(folder / "shards", collection="few", splits=splits)
    space = {**TINY, "shards": str(folder / "shards"), "out": str(folder / "search")}
    (folder / "space.yaml").write_text(json.dumps(space))
    done = call("tune", "--space", folder / "space.yaml")
    assert done.returncode == 0, done.stderr
    yield folder


def run(folder: Path, out: str = "baselines") -> tuple[list[Any], list[str]]:
    lines: list[str] = []
    return run_baselines(folder / "search", str(folder / "shards"), folder / out, lines.append), lines


def test_baselines_are_trained_and_tested_once(search: Path, call: Call) -> None:
    rows, lines = run(search)
    assert [row.name for row in rows] == [MODEL, *CHANGES] and len(lines) == 3
    final = read_json(search / "search" / "final.json")["candidates"][0]["runs"]
    assert [rows[0].sumr, rows[0].recall[1]] == [
        tuple(run["test"]["SumR"] for run in final),
        tuple(run["test"]["R@1"] for run in final),
    ]
    # What is done stays; a training that is missing from the record is repeated from its checkpoint, with its result.
    assert run(search) == (rows, [])
    record = read_json(search / "baselines" / RECORD)
    lost = next(iter(record["results"]))
    del record["results"][lost]
    (search / "baselines" / RECORD).write_text(json.dumps(record))
    again, lines = run(search)
    assert again == rows and len(lines) == 1 and lines[0].startswith(lost)
    done = call(
        "video.baselines", "--search", search / "search", "--shards", search / "shards",
        "--out", search / "baselines", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in (MODEL, *CHANGES, *CHANGES.values()))
    assert [row["SumR"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]] == [list(row.sumr) for row in rows]


def test_changed_shards_have_the_same_sentences(search: Path) -> None:
    run(search)
    own = ShardSet.open(search / "shards").split("test")
    for change in CHANGES:
        changed = ShardSet.open(search / "baselines" / change.replace(" ", "_") / "shards").split("test")
        assert (changed.videos, changed.queries, changed.captions) == (own.videos, own.queries, own.captions)
        assert all(
            np.allclose(one.float(), other.float(), atol=2e-3)
            for one, other in zip(changed.tokens(0, 6), own.tokens(0, 6), strict=True)
        )
        assert changed.frame_counts.tolist() == (own.frame_counts.tolist() if "shuffled" in change else [1, 1, 1])


def test_other_directories_are_refused(search: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no final\.json: give the directory of a search that has finished"):
        run_baselines(tmp_path, str(search / "shards"), tmp_path / "out", print)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match="does not hold this search's baselines; choose another --out"):
        run_baselines(search / "search", str(search / "shards"), tmp_path / "mine", print)
    shutil.copytree(search / "search", tmp_path / "search")
    (tmp_path / "search" / "final.json").write_text("{}")
    with pytest.raises(UserError, match=r"final\.json: damaged"):
        run_baselines(tmp_path / "search", str(search / "shards"), tmp_path / "out", print)
