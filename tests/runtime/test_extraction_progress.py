"""Progress of an extraction."""

from __future__ import annotations

import pytest

from dreamprvr_ray.runtime.extraction_progress import Tally
from dreamprvr_ray.video.directory import ListedVideo


def test_time_left_is_estimated_from_the_sizes_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    files = [ListedVideo(id, f"{id}.mp4", size, 0) for id, size in (("a", 10), ("b", 30), ("long", 160))]
    tally = Tally(files, finished=2, all_videos=6, fps=2.0)
    first = tally.progress(failed=0)
    assert (first.videos, first.all_videos, first.encoded, first.left) == (2, 6, 0, None)
    now[0] += 5
    tally.add("a", 20)
    tally.end("a", encoded=True, frames=20)
    done = tally.progress(failed=0)
    assert (done.videos, done.encoded, done.seconds_of_video, done.elapsed) == (3, 1, 10.0, 5.0)
    assert done.left == pytest.approx(5 * 190 / 10)
    tally.start("long", 200.0)  # its header states 200 s, of which half are encoded
    tally.add("long", 200)
    now[0] += 40
    assert tally.progress(failed=0).left == pytest.approx(45 * (190 - 80) / 90)
    tally.end("b", encoded=False)
    failed = tally.progress(failed=1)
    assert (failed.videos, failed.failed, failed.encoded) == (3, 1, 1)
    assert failed.left == pytest.approx(45 * 80 / 120)
