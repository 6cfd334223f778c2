"""Only the collection's own files are opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamprvr_ray.web.video_files import ChangedVideo, ServedVideo, UnavailableVideo, VideoFiles


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    videos = tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    (videos / "a" / "b.mp4").write_text("content")
    return videos


def files(directory: Path, file: str) -> VideoFiles:
    return VideoFiles(directory, [ServedVideo("a/b", file)])


def test_a_video_is_opened_by_its_id(directory: Path) -> None:
    served = files(directory, "a/b.mp4")
    with served.open("a/b") as file:
        assert file.read() == b"content"
    for other in ("a/b.mp4", "", ".", "../outside/secret", str(directory / "a" / "b.mp4"), "a/b\0"):
        with pytest.raises(UnavailableVideo, match="no such video"):
            served.open(other)


def test_a_link_within_the_collection_is_followed(directory: Path) -> None:
    (directory / "link.mp4").symlink_to("a/b.mp4")
    with files(directory, "link.mp4").open("a/b") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("file", ["../outside/secret", "a/../../outside/secret", "/etc/passwd"])
def test_an_index_cannot_lead_outside(directory: Path, file: str) -> None:
    with pytest.raises(ChangedVideo, match="outside"):
        files(directory, file).open("a/b")


def test_what_took_the_place_of_a_file_is_refused(directory: Path) -> None:
    path, served = directory / "a" / "b.mp4", files(directory, "a/b.mp4")
    path.unlink()
    with pytest.raises(UnavailableVideo, match="missing"):
        served.open("a/b")
    path.symlink_to(directory.parent / "outside" / "secret")
    with pytest.raises(ChangedVideo, match="outside"):
        served.open("a/b")
    path.unlink()
    os.mkfifo(path)  # opening it must not wait
    with pytest.raises(ChangedVideo, match="not a regular file"):
        served.open("a/b")
    path.unlink()
    path.mkdir()
    with pytest.raises(ChangedVideo, match="not a regular file"):
        served.open("a/b")
    path.rmdir()
    (directory / "a").rmdir()
    (directory / "a").symlink_to(directory.parent / "outside")
    (directory.parent / "outside" / "b.mp4").write_text("secret")
    with pytest.raises(ChangedVideo, match="outside"):
        served.open("a/b")


def test_a_directory_replaced_between_two_steps_is_noticed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is resolved first; then a directory of it becomes a link to the outside."""
    (directory.parent / "outside" / "b.mp4").write_text("secret")
    resolve = os.path.realpath

    def then_replace(path: str) -> str:
        resolved = resolve(path)
        if not (directory / "a").is_symlink():
            (directory / "a").rename(directory / "moved")
            (directory / "a").symlink_to(directory.parent / "outside")
        return resolved

    served = files(directory, "a/b.mp4")
    monkeypatch.setattr(os.path, "realpath", then_replace)
    with pytest.raises(ChangedVideo, match="outside"):
        served.open("a/b")


def test_an_index_without_files(directory: Path) -> None:
    for served in (VideoFiles(None, [ServedVideo("a", "a/b.mp4")]), VideoFiles(directory, [ServedVideo("a", "")])):
        assert not served.has_file("a")
        with pytest.raises(UnavailableVideo, match="does not know"):
            served.open("a")
