"""Which frame is shown when: containers, time stamps, windows, rotation, colours, memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.grey_videos import STEP, grey, make_video, number_of, rotate

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.decoding import Frame, decode
from dreamprvr_ray.video.files import examine

pytest.importorskip("av", reason="PyAV is not installed: pip install 'dreamprvr_ray[video]'")

CONTAINERS = {
    "mp4": {},
    "mov": {},
    "mkv": {},
    "3gp": {},
    "ts": {},
    "webm": {"codec": "libvpx-vp9"},
    "avi": {"codec": "mpeg4"},
}


def shown(path: Path, fps: float, **window: float) -> list[tuple[float, int]]:
    """The time and the number of each frame."""
    return [(frame.time, number_of(frame.image)) for frame in decode(path, fps, **window)]  # type: ignore[arg-type]


def by_definition(times: list[float], end: float, fps: float) -> list[tuple[float, int]]:
    """The same from the times of all frames: frame i is the last one shown at or before i / fps."""
    found, number = [], 0
    while number / fps < end:
        at = number / fps
        found.append((at, max([place for place, time in enumerate(times) if time <= at], default=0)))
        number += 1
    return found


@pytest.mark.parametrize("ending", CONTAINERS)
def test_containers_and_windows(tmp_path: Path, ending: str) -> None:
    path = make_video(tmp_path / f"video.{ending}", 50, 10, **CONTAINERS[ending])  # type: ignore[arg-type]
    expected = [(float(second), 10 * second) for second in range(5)]
    assert shown(path, 1) == expected
    every = shown(path, 10)
    assert [number for _, number in every] == list(range(50))
    for start, end in ((0.0, 2.0), (1.5, 3.25), (3.0, 99.0), (4.9, 5.0)):
        assert shown(path, 10, start=start, end=end) == [each for each in every if start <= each[0] < end]
    assert shown(path, 1, start=5.0) == []
    video = examine(path)
    assert (video.width, video.height, video.frame_rate) == (64, 48, 10.0)
    assert video.duration == pytest.approx(5, abs=0.11)


def test_windows_start_exactly_where_frames_are(tmp_path: Path) -> None:
    """i / fps is rounded, and so is its product with fps: frame i must not be lost."""
    path = make_video(tmp_path / "video.mp4", 10, 10)
    for fps in (29.97, 49.0, 0.3 * 11):
        for frame in list(decode(path, fps)):
            assert next(decode(path, fps, start=frame.time)).time == frame.time
            after = float(np.nextafter(frame.time, 99))
            assert all(each.time > frame.time for each in decode(path, fps, start=after))


@pytest.mark.parametrize("fps", [0.3, 1.0, 7.0, 29.97])
def test_avi_with_reordered_frames(tmp_path: Path, fps: float) -> None:
    """AVI has no time stamps of presentation."""
    path = make_video(tmp_path / "video.avi", 50, 10)
    assert shown(path, fps) == by_definition([place / 10 for place in range(50)], 5, fps)
    assert shown(path, fps, start=2.0) == [each for each in shown(path, fps) if each[0] >= 2]


@pytest.mark.parametrize("seed", range(4))
def test_variable_frame_rate(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    stamps = np.cumsum(random.choice([1, 7, 40, 400, 3000], 40)).tolist()
    stamps = [stamp - stamps[0] for stamp in stamps]
    path = make_video(tmp_path / "video.mp4", stamps=stamps, per_second=1000)
    times = [stamp / 1000 for stamp in stamps]
    for fps in (0.5, 1.0, 12.5):
        found, expected = shown(path, fps), by_definition(times, times[-1], fps)
        assert found[: len(expected)] == expected
        assert {number for _, number in found[len(expected) :]} <= {39}  # the last frame's own duration
        assert shown(path, fps, start=11.0) == [each for each in found if each[0] >= 11]


@pytest.mark.parametrize(("rate", "frames"), [(1, 5), (120, 60), (240, 50)])
def test_low_and_high_frame_rates(tmp_path: Path, rate: int, frames: int) -> None:
    path = make_video(tmp_path / "video.mp4", frames, rate)
    times = [place / rate for place in range(frames)]
    for fps in (0.5, 1, 24, 1000):
        assert shown(path, fps) == by_definition(times, frames / rate, fps)


def test_frames_that_are_shown_for_long(tmp_path: Path) -> None:
    path = make_video(tmp_path / "slides.mkv", stamps=[0, 10_000, 70_000], per_second=1000)
    numbers = [number for _, number in shown(path, 1)]
    assert numbers[:71] == [0] * 10 + [1] * 60 + [2]
    frames = list(decode(path, 1))
    assert frames[11].image is frames[12].image


def test_a_video_that_starts_after_its_sound(tmp_path: Path) -> None:
    """Times count from the start of the file, as a player shows them."""
    stamps = [30 + place for place in range(30)]
    path = make_video(tmp_path / "late.mkv", stamps=stamps, per_second=10, audio=6)
    assert shown(path, 1) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 10), (5, 20)]
    assert shown(path, 1, start=4) == [(4, 10), (5, 20)]


def test_negative_time_stamps(tmp_path: Path) -> None:
    options = {"avoid_negative_ts": "disabled"}
    stamps = [place - 20 for place in range(50)]
    path = make_video(tmp_path / "early.mkv", stamps=stamps, per_second=10, options=options)
    assert shown(path, 1) == [(float(second), 10 * second) for second in range(5)]
    assert shown(path, 1, start=3) == [(3, 30), (4, 40)]


def test_a_start_that_is_not_zero(tmp_path: Path) -> None:
    stamps = [10_000 + place for place in range(50)]
    path = make_video(tmp_path / "recording.ts", stamps=stamps, per_second=10)
    assert shown(path, 1) == [(float(second), 10 * second) for second in range(5)]
    assert shown(path, 1, start=3) == [(3, 30), (4, 40)]


def test_an_edit_list(tmp_path: Path) -> None:
    """mp4 files with an initial pause, or with frames that are cut from the start, have an edit list."""
    path = make_video(tmp_path / "pause.mp4", stamps=[20 + place for place in range(30)], per_second=10, audio=5)
    assert shown(path, 1) == [(0, 0), (1, 0), (2, 0), (3, 10), (4, 20)]


def test_a_stream_without_time_stamps(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.h264", 50, 25)
    assert shown(path, 5) == [(place / 5, 5 * place) for place in range(10)]
    assert shown(path, 5, start=1) == [(place / 5, 5 * place) for place in range(5, 10)]


def test_recordings_that_were_joined(tmp_path: Path) -> None:
    """Where time stamps start again, time continues."""
    path = make_video(tmp_path / "joined.ts", 30, 10)
    path.write_bytes(path.read_bytes() * 2)
    found = shown(path, 1)
    assert [time for time, _ in found] == [0, 1, 2, 3, 4, 5]
    assert [number for _, number in found][:3] == [0, 10, 20]
    assert all(abs(number - expected) <= 1 for (_, number), expected in zip(found[3:], (0, 10, 20), strict=True))
    assert shown(path, 1, start=4) == found[4:]


def test_a_video_that_counts_from_its_own_start(tmp_path: Path) -> None:
    """A damaged file may state that its frames start an hour after its sound."""
    stamps = [36_000 + place for place in range(30)]
    path = make_video(tmp_path / "late.mkv", stamps=stamps, per_second=10, audio=1)
    assert shown(path, 1) == [(0, 0), (1, 10), (2, 20)]


def test_an_unknown_duration(tmp_path: Path) -> None:
    path = make_video(tmp_path / "live.mkv", 30, 10, options={"live": "1"})
    assert examine(path).duration is None
    frames = decode(path, 1)
    assert [number_of(frame.image) for frame in frames] == [0, 10, 20]
    assert frames.warning is None
    assert frames.decoded_seconds == pytest.approx(3, abs=0.05)


# The display matrix, and where the image's upper left quarter is shown.
TURNS = {
    (1, 0, 0, 1): ("upper", "left"),
    (0, 1, -1, 0): ("upper", "right"),  # by 90 degrees clockwise, as of phones
    (-1, 0, 0, -1): ("lower", "right"),
    (0, -1, 1, 0): ("lower", "left"),
    (-1, 0, 0, 1): ("upper", "right"),  # mirrored
}


@pytest.mark.parametrize("matrix", TURNS, ids=str)
def test_rotation(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255
    path = rotate(make_video(tmp_path / "phone.mp4", 5, 5, images=[image] * 5, pixels="yuv444p"), matrix)
    (frame,) = decode(path, 1)
    shape = (64, 48) if matrix[0] == 0 else (48, 64)
    assert frame.image.shape == (*shape, 3) and frame.image.flags.c_contiguous
    half_height, half_width = shape[0] // 2, shape[1] // 2
    rows = slice(0, half_height) if TURNS[matrix][0] == "upper" else slice(half_height, None)
    columns = slice(0, half_width) if TURNS[matrix][1] == "left" else slice(half_width, None)
    assert frame.image[rows, columns].mean() > 240
    assert frame.image.mean() == pytest.approx(255 / 4, abs=4)
    video = examine(path)
    assert (video.height, video.width) == shape


@pytest.mark.parametrize("size", [(2, 2), (33, 17), (16, 301)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = make_video(tmp_path / "odd.mkv", 5, 5, size, "ffv1", "yuv420p")
    (frame,) = decode(path, 1)
    assert frame.image.shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("ffv1", "gray"), ("ffv1", "yuv420p10le"), ("png", "rgb24"), ("mjpeg", "yuvj420p")]
)
def test_colours(tmp_path: Path, codec: str, pixels: str) -> None:
    """Grey, 10 bits, RGB, and the full range of JPEG."""
    ending = "mov" if codec == "png" else "mkv"
    path = make_video(tmp_path / f"colours.{ending}", 60, 10, codec=codec, pixels=pixels)
    for frame in decode(path, 10):
        expected = grey(round(frame.time * 10), (64, 48))
        assert np.abs(frame.image.astype(int) - expected).max() <= 2
    if pixels != "gray":
        red = np.zeros((48, 64, 3), np.uint8)
        red[..., 0] = 200
        path = make_video(tmp_path / f"red.{ending}", 1, 10, codec=codec, pixels=pixels, images=[red])
        (frame,) = decode(path, 1)
        assert np.abs(frame.image.astype(int) - red).max() <= 6


def test_names_that_ffmpeg_reads_as_addresses(tmp_path: Path) -> None:
    source = make_video(tmp_path / "video.mp4", 5, 5)
    for name in ("Übung 1 (neu).mp4", "http:a.mp4", "concat:a|b.mp4", "100%d.mp4", "a?b#c.mp4", "a\nb.mp4"):
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        assert shown(path, 1) == [(0, 0)]
    current = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert shown(Path("http:a.mp4"), 1) == [(0, 0)]
    finally:
        os.chdir(current)


def test_threads_decode_the_same(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", 60, 10)
    one, several = (list(decode(path, 10, threads=threads)) for threads in (1, 3))
    assert [frame.time for frame in one] == [frame.time for frame in several]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, several, strict=True))


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """200 frames of 0.9 MB each are decoded in less than a third of what they would take together."""
    path = make_video(tmp_path / "long.mp4", 200, 1, (640, 480))
    process = psutil.Process()
    frames = decode(path, 1)
    next(frames)
    before = process.memory_info().rss
    grown = [process.memory_info().rss - before for _ in frames]
    assert len(grown) == 199
    assert max(grown) < 55_000_000


def test_closing_early(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", 30, 10)
    with decode(path, 1) as frames:
        assert isinstance(next(frames), Frame)
    assert list(frames) == []
    opened = psutil.Process().open_files()
    assert str(path) not in [file.path for file in opened]


@pytest.mark.parametrize("fps", [0, -1, 1001, float("nan"), float("inf")])
def test_rates_out_of_range(tmp_path: Path, fps: float) -> None:
    with pytest.raises(UserError, match="must be more than 0 and at most 1000"):
        decode(tmp_path / "video.mp4", fps)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (2, 2), (3, 2), (float("nan"), None)])
def test_windows_out_of_range(tmp_path: Path, start: float, end: float | None) -> None:
    with pytest.raises(UserError, match="must be 0 <= start < end"):
        decode(tmp_path / "video.mp4", 1, start=start, end=end)


def test_the_numbers_of_frames_can_be_told_apart() -> None:
    assert 60 * STEP < 256
