"""`extract`, from small real videos: what it writes, what it skips, and how it continues."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from support.object_store import S3
from support.tiny_encoder import LOG, NAME, SECONDS, TinyEncoder, encoded_frames, features_of, mean_colours
from support.videos import write_broken, write_video

from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.storage.location import Storage

pytest.importorskip("av", reason="decoding videos requires PyAV")
from dreamprvr_ray.video.decoding import decode

if TYPE_CHECKING:
    from conftest import Driver

PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # of `support`
Call = Callable[..., subprocess.CompletedProcess[str]]
FEATURES = "FeatureData/support.tiny_encoder-TinyEncoder/feature.hdf5"
SECONDS_OF = [3 + number % 4 for number in range(17)]  # lengths of the 17 good videos


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local Ray, and the directory in which its processes log what they encode."""
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOG, str(folder))
        patch.setenv("PYTHONPATH", PYTHONPATH)
        with ray_session(dashboard=False):
            yield folder


def write_captions(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "sentence", "start", "end"), *rows])
    return path


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory `videos` with 17 videos and 3 broken files, and `captions.csv`."""
    folder = tmp_path_factory.mktemp("twenty")
    videos = folder / "videos"
    for number, seconds in enumerate(SECONDS_OF):
        write_video(videos / ("more" if number > 9 else ".") / f"clip{number:02d}.mp4", seconds, number)
    write_broken(videos)
    rows = [(f"clip{number:02d}", f"the number {number} in {place}", place, place + 2) for number in range(17)
            for place in range(2)]  # fmt: skip
    write_captions(folder / "captions.csv", [*rows, ("empty", "nothing", "", "")])
    return folder


def run(call: Call, *words: object) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = call("extract", "--encoder", NAME, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done


def test_three_broken_files_of_twenty_are_named_and_the_others_encoded(
    log: Path, twenty: Path, tmp_path: Path, call: Call
) -> None:
    out, shards = tmp_path / "clips", tmp_path / "shards"
    words = ["--videos", twenty / "videos", "--captions", twenty / "captions.csv", "--out", out, "--shards", shards]
    before = encoded_frames(log)
    result, done = run(call, *words)
    assert result["videos"] == 17 and result["encoded_now"] == 17 and result["captions_left_out"]["failed"] == 1
    assert result["failures"].keys() == {"empty.mp4", "text.mp4", "sound.mp4"}
    last = done.stdout.splitlines()[-2]
    assert last.startswith(f"{out}: extracted: 17 of 20 videos, {sum(SECONDS_OF)} s; 34 captions; 3 failed")
    assert "empty.mp4 (is empty)" in last and "captions left out: 1 of failed videos" in last
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [failure["file"] for failure in failures] == ["empty.mp4", "sound.mp4", "text.mp4"]
    assert "audio only" in failures[1]["reason"]
    assert encoded_frames(log) - before == sum(SECONDS_OF)

    with h5py.File(out / FEATURES) as features:
        for number in (0, 5, 16):
            id = f"more/clip{number}" if number > 9 else f"clip{number:02d}"
            frames = list(decode(twenty / "videos" / f"{id}.mp4", 1.0))
            np.testing.assert_allclose(features[id][:], [mean_colours(frame.image) for frame in frames])
    shard_set = ShardSet.open(shards)
    assert shard_set.manifest.encoding is not None and shard_set.manifest.encoding.frames.name == NAME
    assert {"train", "val", "test"} == shard_set.manifest.splits.keys()
    assert sum(record.videos for record in shard_set.manifest.splits.values()) == 17
    split = shard_set.split("train")
    assert split.times is not None and split.moment_fractions is not None
    for video, times in zip(split.videos, split.times, strict=True):
        seconds = SECONDS_OF[int(video[-2:])]
        assert (times.source, times.file, times.start) == (video, f"{video}.mp4", 0.0)
        assert times.frames == seconds and times.duration == pytest.approx(seconds)
    fractions = dict(zip(split.queries, split.moment_fractions.tolist(), strict=True))
    assert all(
        fraction == pytest.approx(2 / SECONDS_OF[int(id.split("#")[0][-2:])], abs=0.01)
        for id, fraction in fractions.items()
    )
    np.testing.assert_allclose(
        split.tokens(0, 1)[0].numpy()[:2] * np.linalg.norm(features_of(split.captions[0]).tokens[:2], axis=1)[:, None],
        features_of(split.captions[0]).tokens[:2],
        atol=0.01,
    )

    again, _ = run(call, *words)
    assert again["already_extracted"] is True and again["encoded_now"] == 0
    assert encoded_frames(log) - before == sum(SECONDS_OF)


def test_a_second_run_encodes_what_is_new_or_has_changed(log: Path, tmp_path: Path, call: Call) -> None:
    videos, out = tmp_path / "videos", tmp_path / "mine"
    for number in range(3):
        write_video(videos / f"{number}.mp4", 3, number)
    (videos / "late.mp4").write_bytes(b"")
    captions = write_captions(tmp_path / "c.csv", [("0", "a b", 0, 2), ("1", "c", 0, 2), ("2", "d", "", "")])
    words = ["--videos", videos, "--captions", captions, "--out", out]
    first, _ = run(call, *words)
    assert first["encoded_now"] == 3 and list(first["failures"]) == ["late.mp4"]
    before = encoded_frames(log)
    write_video(videos / "late.mp4", 5, 7)  # repaired
    write_video(videos / "1.mp4", 4, 9)  # another video in its place
    write_captions(captions, [("0", "a b", 0, 2), ("late", "new words", 0, 9), ("2", "d", 30, 40)])
    second, done = run(call, *words)
    assert second["encoded_now"] == 2 and second["failures"] == {} and encoded_frames(log) - before == 5 + 4
    assert (out / "failures.jsonl").read_text() == ""
    assert second["captions"] == {"train": 1, "test": 1} or sum(second["captions"].values()) == 2
    assert "warning: " in done.stderr and "line 3: ends at 9 s, but late.mp4 at 5.0 s" in done.stderr
    assert "line 4: starts at 30 s, but 2.mp4 ends at 3.0 s; left out" in done.stderr
    with h5py.File(out / FEATURES) as features:
        assert {name: len(features[name]) for name in features} == {"0": 3, "1": 4, "2": 3, "late": 5}
    texts = {path.name for path in (out / "TextData").iterdir()}
    assert texts == {f"mine{split}.caption.jsonl" for split in second["captions"]} | {
        "mine_query_feat.hdf5", "mine_sentence_feat.hdf5"
    }  # fmt: skip
    for words_now, message in (
        (["--fps", "2"], "was extracted with other settings (--fps 1 before, 2 now); choose another --out"),
        (
            ["--encoder", "support.tiny_encoder:FramesOnly"],
            "other settings (--encoder support.tiny_encoder:TinyEncoder",
        ),
    ):
        done = call("extract", "--encoder", NAME, *words, *words_now)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_an_hour_is_cut_into_windows_that_captions_are_assigned_to(log: Path, tmp_path: Path, call: Call) -> None:
    write_video(tmp_path / "videos" / "film.mp4", 3600, rate=1, size=(32, 32))
    write_video(tmp_path / "videos" / "short.mp4", 20, rate=1, size=(32, 32))
    rows = [("film", "early", 10, 20), ("film", "in two windows", 70, 90), ("film", "somewhere", "", ""),
            ("film", "the end", 3590, 3600), ("short", "short", 1, 3)]  # fmt: skip
    out, shards = tmp_path / "films", tmp_path / "shards"
    captions = write_captions(tmp_path / "c.csv", rows)
    words = ["--videos", tmp_path / "videos", "--captions", captions, "--out", out, "--shards", shards]
    whole, done = run(call, *words)
    assert (
        whole["windows"] == 2 and "1 videos have more than 128 frames, up to 3,600: a row of the longest" in done.stderr
    )
    shutil.rmtree(shards)
    before = encoded_frames(log)
    result, _ = run(call, *words, "--window", "128")
    assert encoded_frames(log) == before and result["encoded_now"] == 0  # windows are parts of what is encoded
    assert result["videos"] == 2 and result["windows"] == 2 + -(-(3600 - 128) // 64)
    lines = [json.loads(line) for line in (out / "TextData" / "filmstest.caption.jsonl").read_text().splitlines()]
    right = {line["sentence"]: line["videos"] for line in lines}
    assert right["early"] == ["film@0-128"] and right["the end"][0] == "film@3472-3600"
    assert sorted(right["in two windows"]) == ["film@0-128", "film@64-192"]
    assert len(right["somewhere"]) == result["windows"] - 1 and right["short"] == ["short"]
    moments = [json.loads(line) for line in (out / "moments.jsonl").read_text().splitlines()]
    assert [(each["start"], each["end"], each["duration"]) for each in moments if each["query"] == "film#3"] == [
        (118, 128, 128)
    ]
    shard_set = ShardSet.open(shards)
    test, search = shard_set.split("test"), shard_set.split("search")
    assert test.right_videos is not None and len(test) + len(search) == result["windows"]
    assert test.times is not None
    times = test.times[test.videos.index("film@3472-3600")]
    assert (times.source, times.start, times.end, times.file) == ("film", 3472.0, 3600.0, "film.mp4")
    assert times.frame(0).start == 3472.0 and times.clip(31).end == pytest.approx(3599, abs=1.1)


def test_videos_without_captions_in_an_object_store(log: Path, tmp_path: Path, s3: S3, call: Call) -> None:
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.webm", 3, number)
    source = s3.uri("source/mine")
    result, done = run(
        call, "--videos", tmp_path / "videos", "--out", source, "--shards", tmp_path / "shards", "--collection", "mine"
    )
    assert result["captions"] == {} and "no captions: to be searched only" in done.stdout
    files = Storage.of(source).files()
    assert {FEATURES, "encoding.json", "video_times.jsonl", "extraction/settings.json"} <= set(files)
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.split("search").videos == ["0", "1"] and shards.manifest.text_size == TinyEncoder().size
    again, _ = run(call, "--videos", tmp_path / "videos", "--out", source, "--collection", "mine")
    assert again["already_extracted"] is True


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("support.tiny_encoder:Failing", "failed: the encoder failed: RuntimeError: out of luck\n"),
        ("support.tiny_encoder:FramesOnly", "encode_sentences to encode sentences\n"),
        ("support.tiny_encoder:Missing", "no 'Missing' in support.tiny_encoder"),
    ],
)
def test_an_encoder_that_fails_is_one_line(log: Path, tmp_path: Path, call: Call, encoder: str, message: str) -> None:
    write_video(tmp_path / "videos" / "a.mp4", 2)
    captions = write_captions(tmp_path / "c.csv", [("a", "x", 0, 1)])
    done = call("extract", "--encoder", encoder, "--videos", tmp_path / "videos", "--captions", captions, "--out",
                tmp_path / "out")  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not re_progress(line)]
    assert done.returncode == (1 if "Failing" in encoder else 2) and len(lines) == 1 and message in done.stderr


def re_progress(line: str) -> bool:
    return line.startswith(("0/", "starting Ray")) or "core_worker" in line


def test_processes_that_end_again_and_again_lose_no_video(log: Path, tmp_path: Path, call: Call) -> None:
    write_video(tmp_path / "videos" / "a.mp4", 4, 1)
    words = ["--encoder", "support.tiny_encoder:Crashing", "--videos", tmp_path / "videos", "--out", tmp_path / "mine"]
    result, _ = run(call, *words)
    assert (log / "crashes").read_text() == "00000"  # once more than Ray tries
    assert result["videos"] == 1 and not (tmp_path / "mine" / "failures.jsonl").exists()


def test_nothing_but_broken_files(log: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "videos").mkdir()
    write_broken(tmp_path / "videos")
    done = call("extract", "--encoder", NAME, "--videos", tmp_path / "videos", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "failed: none of 3 videos could be encoded: empty.mp4: is empty" in done.stderr
    assert len((tmp_path / "out" / "failures.jsonl").read_text().splitlines()) == 3


def test_mistakes_are_one_line_each_before_ray_starts(tmp_path: Path, call: Call) -> None:
    videos, captions = tmp_path / "videos", write_captions(tmp_path / "c.csv", [("a", "x", 0, 1)])
    write_video(videos / "a.mp4", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    right: dict[str, object] = {"--videos": videos, "--captions": captions, "--encoder": NAME, "--out": tmp_path / "o"}
    for option, value, message in (
        ("--videos", tmp_path / "nowhere", f"{tmp_path}/nowhere: no such directory"),
        ("--videos", tmp_path / "empty", f"{tmp_path}/empty: no videos"),
        ("--captions", tmp_path / "nothing.csv", f"{tmp_path}/nothing.csv: no such file"),
        ("--encoder", "clip", "encoder 'clip': must be LIBRARY:MODEL"),
        ("--encoder", "timm:lite0", "--sentence-encoder: required, since timm encodes frames only"),
        ("--encoder", "sentence_transformers:x", "sentence_transformers does not encode frames"),
        ("--sentence-encoder", "timm:lite0", "timm does not encode sentences"),
        ("--out", tmp_path / "other", f"{tmp_path}/other: holds other files, such as notes.txt; choose another --out"),
        ("--out", tmp_path / "file", f"{tmp_path}/file"),
        ("--out", "/proc/nowhere/out", "/proc/nowhere"),
        ("--out", "s3:/bucket", "is neither a path nor a URI"),
        ("--fps", 0, "--fps 0: must be above 0 and at most 1000"),
        ("--fps", "fast", "argument --fps: invalid float value: 'fast'"),
        ("--window", -1, "--window -1: must be above 0"),
        ("--overlap", 3, "--overlap: windows overlap only if there are any"),
        ("--workers", 0, "--workers 0: must be 1 or more"),
        ("--val-fraction", 1, "--val-fraction 1: must be above 0 and below 1"),
        ("--columns", "sentence", "--columns 'sentence': must be WHAT=COLUMN"),
        ("--collection", "a/b", "--collection 'a/b': must be the name of a collection"),
        ("--shards", "s3://bucket/x", "must be a local directory"),
    ):
        words = [str(word) for pair in (right | {option: value}).items() for word in pair]
        done = call("extract", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, (option, done.stderr)
    assert not (tmp_path / "o").exists()


def test_a_killed_extraction_continues_where_it_was(tmp_path: Path, drive: Callable[..., Driver], call: Call) -> None:
    videos, out, log = tmp_path / "videos", tmp_path / "mine", tmp_path / "log"
    log.mkdir()
    for number in range(12):  # four are encoded at once, in 3.2 s
        write_video(videos / f"{number:02d}.mp4", 16, number, rate=1)
    environment = {"PYTHONPATH": PYTHONPATH, LOG: str(log), SECONDS: "0.05"}
    words = ["--encoder", NAME, "--videos", videos, "--out", out, "--workers", 1]
    driver = drive("extract", *words, **environment)
    parts = out / "extraction" / "videos"
    deadline = time.monotonic() + 600
    while not parts.is_dir() or len(list(parts.glob("*.safetensors"))) < 2:
        assert driver.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill(with_its_ray=True)
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    assert 2 <= len(kept) < 12
    before = encoded_frames(log)
    done = drive("extract", *words, **environment | {SECONDS: "0"})
    output = done.end()
    assert done.process.returncode == 0, output
    assert encoded_frames(log) - before == 16 * (12 - len(kept))
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
    with h5py.File(out / FEATURES) as features:
        assert sorted(features) == [f"{number:02d}" for number in range(12)]
    print(f"killed with {len(kept)} of 12 videos; {before - 16 * len(kept)} frames were encoded again")


def test_an_interrupted_extraction_says_how_to_resume(tmp_path: Path, drive: Callable[..., Driver], call: Call) -> None:
    videos, out, log = tmp_path / "videos", tmp_path / "mine", tmp_path / "log"
    log.mkdir()
    for number in range(12):
        write_video(videos / f"{number:02d}.mp4", 16, number, rate=1)
    environment = {"PYTHONPATH": PYTHONPATH, LOG: str(log), SECONDS: "0.05"}
    parts, kept = out / "extraction" / "videos", 0
    for interruption in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and `ray job stop`
        driver = drive("extract", "--encoder", NAME, "--videos", videos, "--out", out, "--workers", 1, **environment)
        deadline = time.monotonic() + 600
        while not parts.is_dir() or len(list(parts.glob("*.safetensors"))) <= kept:
            assert driver.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        driver.process.send_signal(interruption)
        lines = driver.end().splitlines()
        assert driver.process.returncode == 130
        assert lines[-2:] == [
            f"stopped; what is encoded remains in {out}: run the same command again to resume",
            "interrupted",
        ]
        assert "Traceback" not in "".join(lines)
        kept, before = len(list(parts.glob("*.safetensors"))), kept
        assert before < kept < 12
