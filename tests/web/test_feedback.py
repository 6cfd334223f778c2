"""Feedback is kept as captions that `extract` reads."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreamprvr_ray.errors import Failure
from dreamprvr_ray.video.captions import CaptionRow, read_caption_table
from dreamprvr_ray.web.feedback import CONFIRMED, REJECTED, Feedback, FeedbackFiles


def moment(sentence: str, is_right: bool = True) -> Feedback:
    return Feedback("cooking/eggs.mp4", sentence, 1.23456, 4.0, is_right)


def test_confirmed_moments_are_captions(tmp_path: Path) -> None:
    files = FeedbackFiles(tmp_path)
    assert files.append(moment('she says "no", thén\tleaves'))
    assert not files.append(moment('she says "no", thén\tleaves'))  # a second click
    assert files.append(moment("another"))
    assert read_caption_table(tmp_path / CONFIRMED) == [
        CaptionRow(1, "cooking/eggs.mp4", 'she says "no", thén leaves', 1.235, 4.0),
        CaptionRow(2, "cooking/eggs.mp4", "another", 1.235, 4.0),
    ]
    assert not (tmp_path / REJECTED).exists()


def test_rejected_moments_are_kept_apart(tmp_path: Path) -> None:
    FeedbackFiles(tmp_path).append(moment("no", is_right=False))
    assert not (tmp_path / CONFIRMED).exists()
    assert [row.sentence for row in read_caption_table(tmp_path / REJECTED)] == ["no"]


def test_threads_and_processes_lose_no_line(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dreamprvr_ray.web.feedback import Feedback, FeedbackFiles\n"
        "files = FeedbackFiles(Path(sys.argv[1]))\nprint('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(100): files.append(Feedback('v', f'{sys.argv[2]} {n}', 0.0, 1.0, True))"
    )
    words = [[sys.executable, "-c", script, str(tmp_path), str(each)] for each in range(2)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(each, text=True, **pipes) for each in words]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all at the same time
        process.stdin.write("\n")
        process.stdin.flush()
    files = FeedbackFiles(tmp_path)
    threads = [
        threading.Thread(target=lambda name=name: [files.append(moment(f"{name} {n}")) for n in range(100)])
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len({row.sentence for row in read_caption_table(tmp_path / CONFIRMED)}) == 400


def test_a_file_without_a_last_line_end_is_continued(tmp_path: Path) -> None:
    (tmp_path / CONFIRMED).write_text('{"video": "a", "sentence": "b"}')
    FeedbackFiles(tmp_path).append(moment("c"))
    assert [row.sentence for row in read_caption_table(tmp_path / CONFIRMED)] == ["b", "c"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    files = FeedbackFiles(tmp_path)
    files.append(moment("first"))
    before = (tmp_path / CONFIRMED).read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))  # Python ignores the signal
    try:
        with pytest.raises(Failure, match="cannot be written"):
            files.append(moment("second"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / CONFIRMED).read_bytes() == before
    (tmp_path / REJECTED).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure):
        files.append(moment("no", is_right=False))
    assert not (tmp_path / "elsewhere").exists()
