"""`index` and `find`: from video files to moments, adding and removing videos, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.indexes import small_checkpoint, small_shards
from support.tiny_encoder import LOG, NAME, encoded_frames
from support.videos import write_video

from dreamprvr_ray.find import clock
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.runtime.session import ray_session

pytest.importorskip("av", reason="decoding videos requires PyAV")

if TYPE_CHECKING:
    from conftest import Driver

PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # of `support`
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local Ray, and the directory in which its processes log what they encode."""
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOG, str(folder))
        patch.setenv("PYTHONPATH", PYTHONPATH)
        with ray_session(dashboard=False):
            yield folder


def run(call: Call, name: str, *words: object) -> dict[str, Any]:
    done = call(name, *words, "--json")
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_an_index_of_an_encoder_alone_follows_its_videos(log: Path, tmp_path: Path, call: Call) -> None:
    videos, out = tmp_path / "videos", tmp_path / "index"
    for number in range(3):
        write_video(videos / f"clip{number}.mp4", 3 + number, number)
    (videos / "broken.mp4").write_bytes(b"")
    words = ("--model", "zero-shot", "--encoder", NAME, "--videos", videos, "--out", out)
    made = run(call, "index", *words)
    assert (made["videos"], made["added"], made["removed"]) == (3, 3, 0)
    answer = run(call, "find", out, "a red square", "--top", 2)
    assert answer["sentence"] == "a red square" and answer["probability"] is None
    assert [found["rank"] for found in answer["results"]] == [1, 2]
    for found in answer["results"]:
        assert found["file"] == f"{found['video']}.mp4"
        assert 0 <= found["start"] < found["end"] <= found["duration"] + 0.01
        assert len(found["curve"]["times"]) == len(found["curve"]["similarities"]) == round(found["duration"])

    before = encoded_frames(log)
    write_video(videos / "clip9.mp4", 4, 9)
    (videos / "clip0.mp4").unlink()
    updated = run(call, "index", *words)
    assert (updated["videos"], updated["added"], updated["removed"], updated["unchanged"]) == (3, 1, 1, 2)
    assert encoded_frames(log) - before == 4
    index = Index.open(out)
    assert sorted(video.id for video in index.videos) == ["clip1", "clip2", "clip9"]
    assert index.videos_directory == videos.resolve()
    lines = call("find", out, "a red square").stdout.splitlines()
    assert lines[0].split() == ["rank", "video", "moment", "score"] and len(lines) == 4


def test_windows_of_a_long_video_are_one_result(log: Path, tmp_path: Path, call: Call) -> None:
    videos, out = tmp_path / "videos", tmp_path / "index"
    write_video(videos / "long.mp4", 12, 1)
    write_video(videos / "short.mp4", 3, 2)
    run(call, "index", "--model", "zero-shot", "--encoder", NAME, "--videos", videos, "--window", 4, "--out", out)
    answer = run(call, "find", out, "a red square")
    assert sorted(found["video"] for found in answer["results"]) == ["long", "short"]
    (long,) = (found for found in answer["results"] if found["video"] == "long")
    begin, end = map(float, long["window"].removeprefix("long@").split("-"))
    assert begin <= long["start"] < long["end"] <= end and long["duration"] == pytest.approx(12)
    assert Index.open(out).record.rows > len(Index.open(out).videos) == 2


def test_a_killed_index_continues(tmp_path: Path, drive: Callable[..., Driver], call: Call) -> None:
    checkpoint, out = small_checkpoint(tmp_path / "best"), tmp_path / "index"
    shards = small_shards(tmp_path / "shards", [("train", 1200), ("val", 5), ("test", 5)])
    words = ("--model", checkpoint, "--shards", shards.directory, "--out", out)
    driver = drive("index", *words)
    driver.wait_for_output("0/1,210 videos encoded")
    driver.kill()
    done = run(call, "index", *words)
    assert done["videos"] == 1210 and done["added"] + done["unchanged"] == 1210
    assert run(call, "index", *words)["added"] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "zero-shot", "--videos", "."], "--encoder: required to index videos without a model"),
        (["--model", "x", "--shards", "s", "--source", "."], "not allowed with argument"),
        (["--model", "x"], "one of the arguments --shards --source --videos is required"),
        (["--model", "x", "--source", ".", "--split", "val"], "--split: needs --shards"),
        (["--model", "x", "--source", ".", "--fps", "2"], "--fps: needs --videos"),
        (["--model", "none", "--videos", "."], "none: checkpoint does not exist"),
        (["--model", "none", "--shards", "none"], "none: "),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str], reason: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("index", *words, "--out", "index")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr and not list(tmp_path.iterdir())


def test_find_refuses_in_one_line(tmp_path: Path, call: Call) -> None:
    shards = small_shards(tmp_path / "shards")
    run(call, "index", "--model", "zero-shot", "--shards", shards.directory, "--out", tmp_path / "index")
    for words, reason in (
        ((tmp_path / "none", "a dog"), "no such index"),
        ((shards.directory, "a dog"), "not an index: it has no index.json"),
        ((tmp_path / "index", "a dog"), "name it: --sentence-encoder"),
        ((tmp_path / "index", "", "--sentence-encoder", NAME), "the sentence is empty"),
        ((tmp_path / "index", "a dog", "--top", 0, "--sentence-encoder", NAME), "top 0: must be from 1 to"),
        ((tmp_path / "index", "a dog", "--sentence-encoder", "none:Such"), "module 'none' cannot be imported"),
        ((tmp_path / "index", "a dog", "--sentence-encoder", "timm:x"), "does not encode sentences"),
    ):
        done = call("find", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert reason in done.stderr


def test_times_are_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0, 9.96, 62.04, 3599.96, 3725.5)] == [
        "0:00.0", "0:10.0", "1:02.0", "1:00:00.0", "1:02:05.5",
    ]  # fmt: skip
