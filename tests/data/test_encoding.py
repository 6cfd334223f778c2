"""How features were made, from a source through shards and checkpoints to an exported model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, read_metrics
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.captions import Query
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.encoding import (
    EncoderRecord,
    EncodingRecord,
    VideoTimes,
    format_video_times,
    read_encoding,
    read_video_times,
)
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.data.source_writer import SourceVideo, write_source_tree
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.model.dreamprvr import DreamPRVR

FRAMES = EncoderRecord("timm:lite0", 8, "fp32", {"library": "timm", "weights_sha256": "ab", "input_std": 0.5})
ENCODING = EncodingRecord(FRAMES, replace(FRAMES, name="sentence_transformers:mini", size=6), 2.0, 64.0, 32.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source tree of three captioned videos of 5, 40 and 200 frames, and one without captions."""
    random = np.random.default_rng(0)
    counts = {"a": 5, "b": 40, "c": 200, "d": 7}
    folder = tmp_path / "source" / "kitchen"

    def videos(*ids: str) -> list[SourceVideo]:
        return [
            SourceVideo(
                id,
                random.standard_normal((counts[id], 8)).astype(np.float32),
                [Query(f"{id}#0", id, "x y", random.standard_normal((2, 6)).astype(np.float32))] if id != "d" else [],
            )
            for id in ids
        ]

    write_source_tree(folder, "kitchen", "lite0", {"train": videos("a", "d"), "val": videos("b"), "test": videos("c")})
    times = [(id, VideoTimes(f"film-{id}", f"{id}.mp4", 10.0, 2.0, count, 300.0)) for id, count in counts.items()]
    (folder / "video_times.jsonl").write_text(format_video_times(times))
    (folder / "encoding.json").write_text(json.dumps(ENCODING.to_dict()))
    return folder


def test_shards_hold_the_times_of_all_rows_and_the_encoders(source: Path, tmp_path: Path) -> None:
    conversion = convert(Source.open(source, "kitchen"), tmp_path / "shards", ConversionSettings(), workers=1)
    assert conversion.manifest.encoding == ENCODING
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.manifest.encoding == ENCODING
    assert [(name, record.videos, record.queries) for name, record in shards.manifest.splits.items()] == [
        ("train", 1, 1), ("val", 1, 1), ("test", 1, 1), ("search", 1, 0),
    ]  # fmt: skip
    test, search = shards.split("test"), shards.split("search")
    assert test.times == [VideoTimes("film-c", "c.mp4", 10.0, 2.0, 200, 300.0)]
    assert search.videos == ["d"] and len(search) == 1 and search.queries == [] and len(search.owner) == 0
    assert search.frames(0).shape == (7, 8) and search.times is not None and search.times[0].file == "d.mp4"


@pytest.mark.parametrize("count", [1, 5, 33, 128, 129, 200, 1000])
def test_the_times_of_rows_are_those_of_the_frames_that_were_averaged(count: int) -> None:
    """Raw frame i is its own time, so that the mean of a slice is the mean time of its frames."""
    times = VideoTimes("v", "v.mp4", 7.0, 4.0, count, 900.0)
    raw = np.stack([np.full(count, 1.0), 7.0 + np.arange(count) / 4], axis=1).astype(np.float32)
    for rows, span in ((pooling.clips(raw), times.clip), (pooling.frames(raw), times.frame)):
        middle = rows[:, 1] / rows[:, 0]
        expected = [(span(number).start + span(number).end - 1 / 4) / 2 for number in range(len(rows))]
        np.testing.assert_allclose(middle, expected, rtol=1e-4)
    assert times.end == 7.0 + count / 4


def test_sources_without_times_are_converted_as_before(source: Path, tmp_path: Path) -> None:
    (source / "video_times.jsonl").unlink()
    (source / "encoding.json").unlink()
    convert(Source.open(source, "kitchen"), tmp_path / "shards", ConversionSettings(), workers=1)
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.manifest.encoding is None and "search" not in shards.manifest.splits
    assert shards.split("test").times is None
    values = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    del values["encoding"]  # as earlier versions wrote it
    assert Manifest.parse(json.dumps(values).encode(), "manifest.json") == shards.manifest


def test_a_collection_without_captions_can_only_be_searched(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "TextData")  # an object store has no empty directories
    opened = Source.open(source, "kitchen")
    assert opened.notes() == [f"{source}: no captions, so the shards serve to search, not to train or to evaluate"]
    manifest = convert(opened, tmp_path / "shards", ConversionSettings(), workers=1).manifest
    assert list(manifest.splits) == ["search"] and manifest.text_size == 6 and manifest.one_encoder is False
    assert ShardSet.open(tmp_path / "shards").split("search").videos == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="no train split, only search"):
        ShardSet.open(tmp_path / "shards").split("train")
    with pytest.raises(UserError, match="no split 'val'; available: search"):
        ShardSet.open(tmp_path / "shards").split("val")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("video_times.jsonl", '{"video": "a"}', r'line 1: must be {"video", "start", "fps", "frames", "duration"}'),
        ("video_times.jsonl", "{}x", "line 1: not valid JSON"),
        ("video_times.jsonl", "", "video 'a' is not listed in"),
        ("encoding.json", "{}", r"encoding\.json: damaged: not a record of an encoding"),
        ("encoding.json", "[", r"encoding\.json: damaged"),
    ],
)
def test_damaged_files_are_one_line(source: Path, name: str, content: str, message: str) -> None:
    (source / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Source.open(source, "kitchen")


def test_times_must_match_the_features(source: Path, tmp_path: Path) -> None:
    times = read_video_times(source / "video_times.jsonl")
    times["b"] = replace(times["b"], frames=39)
    (source / "video_times.jsonl").write_text(format_video_times(times.items()))
    with pytest.raises(UserError, match=r"video b: 40 frames, but video_times\.jsonl lists 39"):
        convert(Source.open(source, "kitchen"), tmp_path / "shards", ConversionSettings(), workers=1)
    with pytest.raises(UserError, match="video 'a' is listed twice"):
        line = format_video_times([("a", times["a"])])
        (source / "video_times.jsonl").write_text(line + line)
        read_video_times(source / "video_times.jsonl")


def test_a_record_survives_json() -> None:
    for record in (ENCODING, EncodingRecord(FRAMES, None, 1.0)):
        assert EncodingRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert FRAMES.differences(replace(FRAMES, version={"library": "timm"}, precision="bf16")) == [
        "weights_sha256: ab before, None now",
        "input_std: 0.5 before, None now",
    ]
    for values in (None, {}, {**ENCODING.to_dict(), "fps": 0}, {**ENCODING.to_dict(), "frames": {"name": "x"}}):
        with pytest.raises(ValueError, match="not a record of an encoding"):
            EncodingRecord.from_dict(values)


def test_an_exported_model_says_how_to_encode(
    tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    experiment = load_experiment("demo", {"model.hidden_size": 16, "model.branches": 1})
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    (tmp_path / "model").mkdir()
    metrics = {"epoch": 1, "SumR": 100.0, "encoding": asdict(ENCODING)}
    Checkpoint(model.state_dict(), None, experiment, metrics).write(tmp_path / "model")
    done = call("export", "--checkpoint", tmp_path / "model", "--out", tmp_path / "export", "--json")
    assert done.returncode == 0, done.stderr
    expected = "2 frames per second, encoded by timm:lite0, sentences by sentence_transformers:mini"
    assert f"encoding.json: its videos are {expected}" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["encoding"] == ENCODING.to_dict()
    assert read_encoding(tmp_path / "export" / "encoding.json") == ENCODING
    assert EncodingRecord.from_dict(read_metrics(tmp_path / "export")["encoding"]) == ENCODING
