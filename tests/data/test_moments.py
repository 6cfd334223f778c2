"""Reading the moments of queries and the captions of frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreamprvr_ray.data.moments import read_moment_files
from dreamprvr_ray.errors import UserError


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_moments_and_captions(tmp_path: Path) -> None:
    moments = write(
        tmp_path / "moments.jsonl",
        {"query": "a#0", "video": "a", "start": 7, "end": 3},
        {"query": "b#0", "video": "b", "start": "1.5", "end": 2, "duration": 8},
        {"query": "b#0", "video": "b", "start": 4, "end": 5},
    )
    captions = write(tmp_path / "captions.jsonl", ["a", 10, [[0, 9, "long"], [2, 4, "short"]]], ["c", 3])
    files = read_moment_files(moments, captions)
    assert files.spans == {"a#0": ((3, 7),), "b#0": ((1.5, 2), (4, 5))}
    assert files.durations == {"a": 10, "b": 8, "c": 3}
    assert [files.caption_at("a", seconds) for seconds in (1, 3, 9.5)] == ["long", "short", None]
    assert files.caption_at("c", 1) is None and files.caption_at("unknown", 1) is None
    assert read_moment_files(None, None).spans == {}


@pytest.mark.parametrize(
    "line",
    [
        *({"query": "a#0", "video": "a", "start": 1, "end": end} for end in (None, True, "x", float("nan"), [1])),
        {"query": "a#0", "video": "a", "start": 1, "end": 2, "duration": 0},
        {"video": "a", "start": 1, "end": 2},
        ["a", 1, 2],
        7,
    ],
)
def test_a_malformed_moment_is_one_line(tmp_path: Path, line: object) -> None:
    path = write(tmp_path / "moments.jsonl", {"query": "b#0", "video": "b", "start": 0, "end": 1}, line)
    with pytest.raises(UserError, match=r"moments\.jsonl, line 2: must be .* with times in seconds"):
        read_moment_files(path, None)


@pytest.mark.parametrize(
    "line", [["a"], ["a", -1, []], ["a", 10, [[0, 1]]], ["a", 10, [[0, "x", "text"]]], ["a", 10, 3], 5, {"video": "a"}]
)
def test_malformed_captions_are_one_line(tmp_path: Path, line: object) -> None:
    path = write(tmp_path / "captions.jsonl", line)
    with pytest.raises(UserError, match=r"captions\.jsonl, line 1: must be \[video, duration in seconds, "):
        read_moment_files(None, path)
