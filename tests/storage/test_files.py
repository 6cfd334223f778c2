"""Atomic writes of files and directories, and errors that name what cannot be written."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dreamprvr_ray.errors import NotWritableError, UserError
from dreamprvr_ray.storage import files
from dreamprvr_ray.storage.files import partial_path, read_json, remove_partial_files, replacing, write_json, write_text


def test_json_that_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.json: must hold a JSON object$"):
        read_json(tmp_path / "list.json")


def listing(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def fill(directory: Path, text: str) -> None:
    (directory / "file").write_text(text)


def is_own(name: str) -> bool:
    return name == "file"


@pytest.fixture(params=["exchange", "two renames"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of replacing a directory."""
    if request.param == "two renames":
        monkeypatch.setattr(files.ctypes, "CDLL", lambda name: object())


@pytest.mark.usefixtures("ways")
def test_a_new_directory_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a" / "best"
    for text in ("first", "second", "third"):
        with replacing(target, is_own) as directory:
            fill(directory, text)
            assert directory.parent == target.parent  # else the rename is a copy
        assert listing(tmp_path) == {"a/best/file": text}
        assert [path.name for path in target.parent.iterdir()] == ["best"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.usefixtures("ways")
def test_what_is_not_the_programs_own_stays_in_a_replaced_directory(tmp_path: Path) -> None:
    target = tmp_path / "best"
    (target / "notes").mkdir(parents=True)
    (target / "notes" / "day.txt").write_text("mine")
    (target / "link").symlink_to("notes")
    fill(target, "first")
    with replacing(target, is_own) as directory:
        fill(directory, "second")
    assert listing(tmp_path) == {"best/file": "second", "best/notes/day.txt": "mine"}
    assert (target / "link").readlink() == Path("notes") and sorted(os.listdir(tmp_path)) == ["best"]
    refused = pytest.raises(NotWritableError, match=f"{target}/link: cannot be written: File exists")
    with refused, replacing(target, is_own) as directory:
        fill(directory, "third")
        (directory / "link").touch()
    with pytest.raises(NotWritableError, match="File exists"), replacing(target) as directory:  # must not exist
        fill(directory, "third")
    assert listing(tmp_path) == {"best/file": "second", "best/notes/day.txt": "mine"}
    assert sorted(os.listdir(tmp_path)) == ["best"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_directory_and_no_temporary_one(exception: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "best"
    for expected in ({}, {"best/file": "first"}):
        with pytest.raises(exception), replacing(target, is_own) as directory:
            fill(directory, "half")
            raise exception
        assert listing(tmp_path) == expected
        assert [path.name for path in tmp_path.iterdir()] == (["best"] if expected else [])
        with replacing(target, is_own) as directory:
            fill(directory, "first")


def test_a_complete_directory_exists_at_all_times(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with replacing(target, is_own) as directory:
        fill(directory, "first")
    seen = []

    def look(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        # At every line of the module's code: what a kill just here would leave.
        if frame.f_code.co_filename != files.__file__:
            return None
        seen.append((target / "file").read_text() if target.exists() else f"nothing at line {frame.f_lineno}")
        return look

    tracing = sys.gettrace()
    sys.settrace(look)
    try:
        with replacing(target, is_own) as directory:
            fill(directory, "second")
    finally:
        sys.settrace(tracing)
    assert list(dict.fromkeys(seen)) == ["first", "second"] and seen == sorted(seen)


def test_text_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_text(path, json.dumps({"a": 1}))
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it, then \ud800")
    assert listing(tmp_path) == {"new/file.json": '{"a": 1}'}
    write_text(path, "second")
    assert listing(tmp_path) == {"new/file.json": "second"}


def test_json_is_written_and_read(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "file.json", {"a": [1, None], "b": {"c": "ä"}})
    assert read_json(tmp_path / "new" / "file.json") == {"a": [1, None], "b": {"c": "ä"}}
    assert listing(tmp_path) == {"new/file.json": '{\n "a": [\n  1,\n  null\n ],\n "b": {\n  "c": "\\u00e4"\n }\n}\n'}


def test_partial_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_text(path, "complete")
    partial_path(path).write_text("half")
    others = [tmp_path / ".other.json.partial-1", tmp_path / ".file.json.partial-mine"]
    for other in others:
        other.touch()
    remove_partial_files(tmp_path, ["file.json"])
    for other in others:  # not a temporary file of this program
        other.unlink()
    assert listing(tmp_path) == {"file.json": "complete"}


def test_the_error_names_the_destination_and_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, named, reason in (
        (Path("/proc/x/a.json"), "/proc/x", "No such file or directory"),
        (tmp_path / "file" / "run" / "a.json", tmp_path / "file" / "run", "Not a directory"),
        (tmp_path, tmp_path, "Is a directory"),
    ):
        with pytest.raises(NotWritableError) as caught:
            write_text(path, "")
        assert str(caught.value) == f"{named}: cannot be written: {reason}"
    with pytest.raises(NotWritableError) as caught, replacing(Path("/proc/x")):
        pass
    assert str(caught.value) == "/proc/x: cannot be written: No such file or directory"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
