"""Video files of a directory, and those that captions mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.captions import CaptionRow
from dreamprvr_ray.video.directory import find_videos, match_captions


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_videos_are_found_in_all_directories(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a.mkv", "sub/deep/c.webm", "notes.txt", ".hidden.mp4", ".cache/d.mp4", "sub/a.3gp")
    os.symlink(tmp_path / "sub", tmp_path / "again")  # the same directory is read once
    found = find_videos(tmp_path)
    assert [video.file for video in found.videos] == ["a.mkv", "again/a.3gp", "again/deep/c.webm", "b.MP4"] or [
        video.file for video in found.videos
    ] == ["a.mkv", "b.MP4", "sub/a.3gp", "sub/deep/c.webm"]
    assert found.left_out == {}


def test_ids_are_paths_without_endings_unless_they_are_not_unique(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "b.webm", "c/d.mp4", "c.mp4", "e.f.mp4")
    ids = {video.file: video.id for video in find_videos(tmp_path).videos}
    assert ids == {
        "a.mp4": "a", "b.mp4": "b.mp4", "b.webm": "b.webm", "c/d.mp4": "c/d", "c.mp4": "c.mp4", "e.f.mp4": "e.f"
    }  # fmt: skip


def test_names_that_cannot_be_written_are_left_out_with_a_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / os.fsdecode(b"b\xff.mp4")).write_bytes(b"x")
    os.symlink(tmp_path / "nowhere", tmp_path / "c.mp4")
    found = find_videos(tmp_path)
    assert [video.id for video in found.videos] == ["a"]
    assert found.left_out == {
        r"'b\udcff.mp4'": "its name is not valid UTF-8; rename it",
        "c.mp4": "cannot be read: No such file or directory",
    }


def test_a_directory_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x: no such directory$"):
        find_videos(tmp_path / "x")
    with pytest.raises(UserError, match=r"no videos \(.*\); it holds no files$"):
        find_videos(tmp_path)
    touch(tmp_path, "a.jpg", "b.jpg", "c.txt")
    with pytest.raises(UserError, match=r"no videos \(.*\); it holds files with \.jpg, \.txt$"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match=r"a\.jpg: is a file; must be a directory$"):
        find_videos(tmp_path / "a.jpg")


def match(folder: Path, *names: str, skip_missing: bool = False) -> list[str]:
    rows = [CaptionRow(number, name, "x") for number, name in enumerate(names, 2)]
    videos = find_videos(folder).videos
    return [id for id, _ in match_captions(rows, videos, folder, Path("c.csv"), skip_missing).rows]


def test_captions_may_name_a_video_by_path_or_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mov", "Ü ü.mp4")
    names = ["a", "a.mp4", "./a.mp4", str(tmp_path / "a.mp4"), "sub/b", "sub/b.mov", "b", "b.mov", r"sub\b.mov", "Ü ü"]
    assert match(tmp_path, *names) == ["a"] * 4 + ["sub/b"] * 5 + ["Ü ü"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("A.mp4", "it has 'a.mp4'"),
        ("a.avi", "it has 'a.mp4'"),
        ("v_a", "it has 'a.mp4'"),
        ("sub/B.mov", "it has 'sub/b.mov'"),
        ("zebra", "its ids look like"),
    ],
)
def test_a_near_miss_is_named(tmp_path: Path, name: str, hint: str) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mov", "long/name/of/a/video.mp4")
    with pytest.raises(UserError) as error:
        match(tmp_path, "a", name)
    first, second = error.value.mistakes
    assert first.startswith(f"c.csv, line 3: no video '{name}' in {tmp_path}; {hint}")
    assert second == "1 videos of captions do not exist; --skip-missing leaves their captions out"
    assert match(tmp_path, "a", name, skip_missing=True) == ["a"]


def test_a_name_of_several_files_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.mp4", "two/a.mp4")
    with pytest.raises(UserError, match=r"line 2: 'a\.mp4' may be 'one/a' and 'two/a'; give its path relative to"):
        match(tmp_path, "a.mp4")
    assert match(tmp_path, "two/a") == ["two/a"]


def test_captions_of_other_videos_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match="none of its 1 captions is about a video in"):
        match(tmp_path, "b", skip_missing=True)
