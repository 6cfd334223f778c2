"""An index of an extracted source: times in seconds, windows of long videos, and the recorded encoder of sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny_encoder import NAME, SIZE, features_of

from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index.building import update_index
from dreamprvr_ray.index.collections import SourceCollection
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.directory import ListedVideo
from dreamprvr_ray.video.extracted_source import SourcePlan, write_source
from dreamprvr_ray.video.extraction_store import ExtractionStore, VideoFeatures, video_key

ENCODER = EncoderRecord(NAME, SIZE, "fp32", {"library": "test", "version": 1})
ENCODING = EncodingRecord(ENCODER, ENCODER, 2.0, window=8.0, overlap=4.0)
SENTENCE = "a red circle leaves"


def extracted(folder: Path, encoding: EncodingRecord = ENCODING) -> SourceCollection:
    """Write what `extract` writes of two videos at 2 frames per second: the sentence is seen in the long one."""
    random = np.random.default_rng(0)
    store, videos = ExtractionStore(Storage.of(folder / "store")), []
    for name, frames in (("long", 60), ("short", 10)):
        rows = random.standard_normal((frames, SIZE)).astype(np.float32)
        if name == "long":
            rows[41:47] = 4 * features_of(SENTENCE).sentence  # 20.5 to 23.5 seconds
        videos.append(ListedVideo(name, f"{name}.mp4", frames, 0))
        store.write_video(video_key(videos[-1]), videos[-1], VideoFeatures(rows, frames / 2 - 0.1))
    write_source(folder / "source", SourcePlan("clips", encoding, videos, [], {}), store)
    return SourceCollection(Source.open(folder / "source", "clips"))


def test_moments_are_in_seconds_of_the_video_and_its_windows_are_one_result(tmp_path: Path) -> None:
    update = update_index(tmp_path / "index", extracted(tmp_path), None)
    index = Index.open(tmp_path / "index")
    assert update.added == 8 and len(index.videos) == 2  # seven windows of the long video
    assert [(video.id, video.file, video.duration, video.fps) for video in index.videos] == [
        ("long", "long.mp4", 29.9, 2.0),
        ("short", "short.mp4", 4.9, 2.0),
    ]
    best, other = index.find(SENTENCE).results
    assert (best.video, best.file, other.video) == ("long", "long.mp4", "short")
    assert best.start is not None and best.end is not None
    assert best.start == pytest.approx(20.5, abs=1) and best.end == pytest.approx(23.5, abs=1)
    begin, end = map(float, best.window.removeprefix("long@").split("-"))
    assert begin <= best.start < best.end <= end
    assert best.curve.times[0] == begin + 0.25 and len(best.curve.times) == 16
    assert best.shares == (best.start / 29.9, best.end / 29.9)
    assert other.end is not None and other.end <= 4.9  # the last frame stands for less than half a second


def test_videos_of_other_encoders_are_refused(tmp_path: Path) -> None:
    update_index(tmp_path / "index", extracted(tmp_path), None)
    other = replace(ENCODER, version={"library": "test", "version": 2})
    newer = extracted(tmp_path / "newer", replace(ENCODING, frames=other))
    with pytest.raises(UserError, match=r"were encoded by another encoder \(version: 1 before, 2 now\)"):
        update_index(tmp_path / "index", newer, None)
    frames_only = replace(ENCODER, name="support.tiny_encoder:FramesOnly")
    mixed = extracted(tmp_path / "mixed", replace(ENCODING, frames=frames_only))
    with pytest.raises(UserError, match="so they cannot be searched without a model"):
        update_index(tmp_path / "other", mixed, None)
