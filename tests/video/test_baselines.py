"""Baselines of a search: what their videos are, and that they are trained once."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamprvr_ray.api import train_model
from dreamprvr_ray.data.captions import Query
from dreamprvr_ray.data.in_memory import FeatureSplit, write_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.search.final_result import Candidate, FinalRecord, FinalResult, FinalRun
from dreamprvr_ray.storage.files import read_json, write_json
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.baselines import CHANGES, MODEL, RECORD, change_frames, run_baselines

TINY = {"training.epochs": 1, "model.hidden_size": 16, "training.precision": "fp32"}
Call = Callable[..., subprocess.CompletedProcess[str]]


def test_each_change_of_frames() -> None:
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
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with shards and what a finished search leaves that baselines need: one model with seed 3."""
    folder = tmp_path_factory.mktemp("baselines")
    splits = {name: split(name, count) for name, count in {"train": 6, "val": 3, "test": 3}.items()}
    shards = write_shards(folder / "shards", collection="few", splits=splits)
    train_model("videos", shards, folder / "run", overrides={**TINY, "training.seed": 3}, log=None)
    shutil.copytree(folder / "run" / "best", folder / "search" / "best")
    test = evaluate_checkpoint(Storage.of(folder / "search" / "best"), shards, "test")
    run = FinalRun(seed=3, val_sumr=100.0, best_epoch=1, checkpoint=None, test=test)
    result = FinalResult((Candidate("trial 0", 0, {}, 1, (run,)),))
    write_json(folder / "search" / "final.json", FinalRecord("test", "few", "dev", result).to_dict())
    return folder


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
