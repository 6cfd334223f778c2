"""Windows of long videos."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.windows import Window, WindowSettings, cut, windows_of_moment


def ids(frames: int, fps: float, length: float | None, overlap: float | None = None) -> list[str]:
    return [window.id for window in cut("v", frames, fps, WindowSettings(length, overlap))]


def test_windows_have_the_full_length_and_cover_the_video() -> None:
    assert ids(100, 1, None) == ids(100, 1, 128) == ids(128, 1, 128) == ["v"]
    assert ids(256, 1, 128) == ["v@0-128", "v@64-192", "v@128-256"]
    assert ids(260, 1, 128, 0) == ["v@0-128", "v@128-256", "v@132-260"]
    assert ids(30, 2, 5, 2.5) == ["v@0-5", "v@2.5-7.5", "v@5-10", "v@7.5-12.5", "v@10-15"]
    for frames in range(1, 300):
        windows = cut("v", frames, 1, WindowSettings(50, 20))
        assert windows[0].first == 0 and windows[-1].stop == frames
        assert all(one.first < other.first <= one.stop for one, other in pairwise(windows))
        assert {window.stop - window.first for window in windows} == {min(frames, 50)}
        assert len({window.id for window in windows}) == len(windows)


WINDOWS = cut("v", 320, 1, WindowSettings(128))  # 0-128, 64-192, 128-256, 192-320


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, ["v@0-128", "v@64-192", "v@128-256", "v@192-320"]),
        (10, 20, ["v@0-128"]),
        (80, 120, ["v@64-192", "v@0-128"]),  # inside both: nearer to the middle of the second
        (50, 90, ["v@0-128", "v@64-192"]),  # 40 s in the first, 26 s in the second
        (50, 70, ["v@0-128"]),  # 6 of 20 s are not most of it
        (120, 136, ["v@64-192"]),  # half is not most of it
        (300, 320, ["v@192-320"]),
        (0, 320, ["v@64-192", "v@128-256", "v@0-128", "v@192-320"]),  # longer than a window: those inside it
        (100, 100, ["v@64-192", "v@0-128"]),  # an instant
    ],
)
def test_a_moment_is_shown_by_the_windows_that_hold_most_of_it(
    start: float | None, end: float | None, expected: list[str]
) -> None:
    right = [window.id for window in windows_of_moment(WINDOWS, start, end)]
    assert right[0] == expected[0] and sorted(right) == sorted(expected)


def test_a_moment_beyond_all_windows_belongs_to_the_nearest() -> None:
    assert [window.id for window in windows_of_moment(WINDOWS, 400, 410)] == ["v@192-320"]
    assert windows_of_moment([Window("v", "v", 0, 5, 0, 5)], 1, 2)[0].id == "v"


@pytest.mark.parametrize(
    ("length", "overlap", "message"),
    [
        (0, None, "--window 0: must be above 0"),
        (10, 10, "--overlap 10: must be at least 0 and below --window 10"),
        (10, -1, "--overlap -1: must be at least 0 and below --window 10"),
        (None, 5, "--overlap: windows overlap only if there are any; give their length with --window"),
    ],
)
def test_wrong_settings(length: float | None, overlap: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WindowSettings(length, overlap)
