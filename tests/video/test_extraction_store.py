"""What an extraction has finished, on a disk and in an object store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.object_store import S3
from support.tiny_encoder import features_of

from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.directory import ListedVideo
from dreamprvr_ray.video.extraction_store import ExtractionStore, VideoFeatures, WrittenTree, video_key

VIDEO = ListedVideo("sub/ü", "sub/ü.mp4", 10, 20)
FRAMES = EncoderRecord("timm:lite0", 3, "fp32", {"library": "timm"})


@pytest.fixture(params=["disk", "store"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.of(tmp_path / "source")
    s3: S3 = request.getfixturevalue("s3")
    return Storage.of(s3.uri("source"))


def test_what_is_written_is_read_again(source: Storage) -> None:
    store = ExtractionStore(source)
    assert store.settings() is None and store.finished_videos() == set() and store.finished_sentences() == set()
    store.check_is_own()
    store.write_settings(EncodingRecord(FRAMES, None, 2.0, 128.0, 64.0))
    assert store.settings() == EncodingRecord(FRAMES, None, 2.0)  # windows may change
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    store.write_video(video_key(VIDEO), VIDEO, VideoFeatures(rows, 1.9, "cut off"))
    assert store.finished_videos() == {video_key(VIDEO)}
    read = store.read_video(video_key(VIDEO))
    np.testing.assert_array_equal(read.rows, rows)
    assert (read.duration, read.warning) == (1.9, "cut off")
    sentences = ["a b c", "tür", "a"]
    store.write_sentences([(sentence, features_of(sentence)) for sentence in sentences])
    store.write_sentences([("later", features_of("later"))])
    assert store.finished_sentences() == {*sentences, "later"}
    part = next(part for part in store.sentence_parts() if len(part.sentences) == 3)
    assert part.counts.tolist() == [3, 1, 1]
    np.testing.assert_array_equal(part.tokens[:3], features_of("a b c").tokens)
    np.testing.assert_array_equal(part.embeddings[1], features_of("tür").sentence)
    assert store.written() == WrittenTree()
    store.record_written(WrittenTree("abc", ("b", "c/a"), {"videos": 1}))
    assert store.written() == WrittenTree("abc", ("b", "c/a"), {"videos": 1})


def test_a_file_that_changes_has_another_key() -> None:
    key = video_key(VIDEO)
    assert key == video_key(replace(VIDEO, id="another"))  # the id may change as other files come and go
    for change in ({"file": "x.mp4"}, {"bytes": 11}, {"modified_ns": 21}):
        assert video_key(replace(VIDEO, **change)) != key


def test_a_directory_of_other_files_is_not_used(source: Storage) -> None:
    source.write_text("notes.txt", "mine")
    with pytest.raises(UserError, match=r"holds other files, such as notes\.txt; choose another --out"):
        ExtractionStore(source).check_is_own()


@pytest.mark.parametrize("file", ["../mine.txt", "/mine.txt", "a/../../mine.txt", "a//b", "", 3])
def test_a_record_names_no_file_outside_of_the_source(source: Storage, file: object) -> None:
    """Files of the record are removed when the tree changes."""
    source.write_text("extraction/written.json", json.dumps({"digest": "", "files": ["a", file], "summary": {}}))
    with pytest.raises(UserError, match=r"written\.json: damaged: not a file of the source"):
        ExtractionStore(source).written()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_files_are_one_line(source: Storage, content: bytes) -> None:
    store = ExtractionStore(source)
    for name, read in (
        ("videos/k.safetensors", lambda: store.read_video("k")),
        ("sentences/k.safetensors", store.finished_sentences),
    ):
        source.write_bytes(f"extraction/{name}", content)
        with pytest.raises(UserError, match=r"k\.safetensors: damaged: .*; remove it and run the command again"):
            read()
    source.write_bytes("extraction/settings.json", content or b"{")
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        store.settings()
