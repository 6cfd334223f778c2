"""A calibration from shards: which scores it learns from, and the commands that write and show it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.indexes import small_checkpoint, small_shards
from support.tiny_encoder import NAME

from dreamprvr_ray import export_model
from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, load_model
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.retrieval import score_split
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.building import update_index
from dreamprvr_ray.index.calibrating import calibrate, score_queries
from dreamprvr_ray.index.calibration import CALIBRATION, Calibration, CalibrationSource
from dreamprvr_ray.index.collections import ShardCollection
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.model.dreamprvr import DreamPRVR

Call = Callable[..., subprocess.CompletedProcess[str]]
SIZE, WEIGHTS = 12, ScoreWeights(0.5, 0.5)
# A calibration whose probabilities depend on the best score and on the number of videos.
STEEP = Calibration(
    (0.5, 0.0, 0.0, 3.0), (0.2, 1.0, 1.0, 1.0), (1.0, 0.5, 0.1, -0.5), 0.0, 0.5,
    CalibrationSource("made", "val", 1, 1, "0"), (),
)  # fmt: skip


def make_split(name: str, videos: int, seed: int, also: bool = False) -> FeatureSplit:
    """Videos of which each has a query like two of its frames, with noise."""
    random = np.random.default_rng(seed)
    frames = {f"{name}{number}": random.standard_normal((5, SIZE)) for number in range(videos)}
    queries = [
        Query(f"{id}#0", id, "", rows[2:4].mean(0) + 0.3 * random.standard_normal((3, SIZE)),
              also=[f"{name}1"] if also and id == f"{name}0" else [])
        for id, rows in frames.items()
    ]  # fmt: skip
    return FeatureSplit(frames, queries)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    splits = {"train": make_split("train", 90, 0), "val": make_split("val", 40, 1, also=True)}
    splits["test"] = make_split("test", 5, 2)
    directory = tmp_path_factory.mktemp("calibrating") / "shards"
    return write_shards(directory, collection="made", splits=splits, one_encoder=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values: dict[str, object] = {"model.hidden_size": SIZE, "model.heads": 2, "model.branches": 2, "model.registers": 1}
    values |= {"model.initialization": "aligned", "data.video_size": SIZE, "data.text_size": SIZE}
    values |= {"evaluation.encoder_weight": WEIGHTS.encoder, "evaluation.clip_weight": WEIGHTS.clip}
    experiment = load_experiment("demo", values)
    torch.manual_seed(0)
    model = DreamPRVR(experiment.model, SIZE, SIZE)
    directory = tmp_path_factory.mktemp("checkpoint")
    Checkpoint(model.state_dict(), None, experiment, {"epoch": 1, "SumR": 1.0}).write(directory)
    return directory


def test_scores_are_those_of_an_evaluation_of_all_videos_together(shards: ShardSet, checkpoint: Path) -> None:
    model = load_model(checkpoint).model
    val, train = shards.split("val"), shards.split("train")
    scored = score_queries(model, WEIGHTS, val, train)
    expected = score_split(model, Split.joined([val, train]), WEIGHTS).numpy()[: len(val.owner)]
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)
    assert scored.own.tolist() == val.owner.tolist()
    assert np.flatnonzero(scored.right[0]).tolist() == [0, 1] and scored.right[1:].sum() == len(val.owner) - 1


def test_windows_of_a_long_video_are_one_video(
    shards: ShardSet, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val, train = shards.split("val"), shards.split("train")
    model = load_model(checkpoint).model
    windows = score_queries(model, WEIGHTS, val, train)
    monkeypatch.setattr(
        "dreamprvr_ray.index.calibrating._sources",
        lambda split: [f"{split.name}{number // 2}" for number in range(len(split))],
    )
    merged = score_queries(model, WEIGHTS, val, train)
    np.testing.assert_array_equal(merged.scores, windows.scores.reshape(len(val.owner), -1, 2).max(2))
    np.testing.assert_array_equal(merged.own, windows.own // 2)
    np.testing.assert_array_equal(merged.right, windows.right.reshape(len(val.owner), -1, 2).any(2))


def test_the_encoder_alone_is_calibrated(shards: ShardSet) -> None:
    calibration = calibrate(None, shards)
    assert [quality.videos for quality in calibration.quality] == [100]  # of 40 and 90 videos
    assert calibration.source.queries == 40 and calibration.source.videos == 130
    assert calibration.quality[0].auc > 0.6


def test_val_without_enough_queries_is_refused(tmp_path: Path) -> None:
    splits = {name: make_split(name, 8, seed) for seed, name in enumerate(("train", "val", "test"))}
    small = write_shards(tmp_path / "small", collection="made", splits=splits, one_encoder=True)
    with pytest.raises(UserError, match="val has 8 queries; at least 20 are needed to calibrate"):
        calibrate(None, small)
    other = ShardSet(small.directory, replace(small.manifest, one_encoder=False))
    with pytest.raises(UserError, match="requires frames and queries of one encoder"):
        calibrate(None, other)


def test_export_calibrates_and_the_page_shows_it(
    shards: ShardSet, checkpoint: Path, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    done = call("export", "--checkpoint", checkpoint, "--out", out, "--shards", shards.directory, "--json")
    assert done.returncode == 0, done.stderr
    assert "learned from 40 queries of val" in done.stdout and "in 100 videos: " in done.stdout
    values = json.loads((out / CALIBRATION).read_text())
    assert json.loads(done.stdout.splitlines()[-1])["calibration"] == values
    calibration = Calibration.from_dict(values)
    again = export_model(checkpoint, tmp_path / "again", shards)
    assert json.loads((again / CALIBRATION).read_text()) == values  # the same draw
    copied = export_model(out, tmp_path / "copy")
    assert (copied / CALIBRATION).read_bytes() == (out / CALIBRATION).read_bytes()
    existing = call("export", "--checkpoint", checkpoint, "--out", out, "--shards", shards.directory)
    assert existing.returncode == 2 and existing.stderr == f"error: {out} already exists; choose another --out\n"

    page = tmp_path / "figures.html"
    words = ["report", "--figures", "--checkpoint", out, "--shards", shards.directory, "--out", page]
    assert call(*words).returncode == 0
    html = page.read_text()
    assert "<h2>Nothing found</h2>" in html and "present kept" in html
    assert f"{100 * calibration.quality[0].refused:.1f}%" in html
    (out / CALIBRATION).write_text("{}")
    damaged = call(*words)
    assert damaged.returncode == 2 and re.fullmatch(
        r"error: \S+calibration.json: damaged: .*\n", damaged.stderr.splitlines(True)[-1]
    )


def test_an_answer_has_the_probability_of_its_scores(tmp_path: Path) -> None:
    indexed = small_shards(tmp_path / "small")
    checkpoint = small_checkpoint(tmp_path / "best")
    model = export_model(checkpoint, tmp_path / "model")
    for name, calibration in (("plain", None), ("calibrated", STEEP)):
        if calibration is not None:
            calibration.write(model)
        update_index(tmp_path / name, ShardCollection(indexed, ["val"]), model, sentence_encoder=NAME)
    plain, calibrated = Index.open(tmp_path / "plain"), Index.open(tmp_path / "calibrated")
    sentence = indexed.split("val").captions[3]
    assert plain.find(sentence).probability is None
    answer = calibrated.find(sentence, top=len(calibrated))
    scores = np.array([found.score for found in answer.results])
    assert answer.probability is not None and answer.probability == STEEP.probability(scores)
    assert 0.01 < answer.probability < 0.99
    assert answer.results == plain.find(sentence, top=len(plain)).results
