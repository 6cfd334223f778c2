"""Files that are broken, odd, or no videos: frames up to the break with a warning, or one line with the reason."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.grey_videos import make_audio, make_video, number_of

from dreamprvr_ray.video import decoding, files
from dreamprvr_ray.video.decoding import decode
from dreamprvr_ray.video.files import UnreadableVideo, examine

pytest.importorskip("av", reason="PyAV is not installed: pip install 'dreamprvr_ray[video]'")

NOISE = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8) for seed in range(60)]
FASTSTART = {"movflags": "faststart"}  # the index is in front of the frames
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")  # for root


def cut(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def link(path: Path) -> Path:
    path.symlink_to("missing.mp4")
    return path


def image(path: Path) -> Path:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(NOISE[0]).save(path.with_suffix(".png" if "png" in path.name else ".jpg"))
    return path.with_suffix(".png" if "png" in path.name else ".jpg").rename(path)


def without_frames(path: Path) -> Path:
    """The header of a video, whose frames are all missing."""
    return written(path, make_video(path, images=NOISE, options=FASTSTART).read_bytes().partition(b"mdat")[0] + b"mdat")


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def directory(path: Path) -> Path:
    path.mkdir()
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty.mp4": (lambda path: written(path, b""), "is empty"),
    "zeros.mp4": (lambda path: written(path, bytes(10_000)), "not a video"),
    "text.mp4": (lambda path: written(path, b"This is not a video.\n" * 100), "not a video"),
    "playlist.mp4": (lambda path: written(path, b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9,\nvideo.ts\n"), "not a video"),
    "list.mp4": (lambda path: written(path, b"ffconcat version 1.0\nfile 'video.mp4'\n"), "not a video"),
    "png.mp4": (image, "not a video"),
    "jpeg.mp4": (image, "not a video"),
    "noise.avi": (lambda path: written(path, NOISE[0].tobytes()), "not a video"),
    "audio.mp4": (make_audio, "audio only"),
    "audio.mkv": (make_audio, "audio only"),
    "recording.mp4": (lambda path: cut(make_video(path, images=NOISE), 0.7), "no moov atom"),
    "index.mp4": (lambda path: cut(make_video(path, images=NOISE), 0.999), "cut off: its last atom is not complete"),
    "header.mp4": (lambda path: cut(make_video(path, images=NOISE), 0.001), "no moov atom"),
    "frames.mp4": (without_frames, "no frame can be decoded"),
    "beginning.mkv": (lambda path: cut(make_video(path, images=NOISE), 0.02), "no frame can be decoded"),
    "folder.mp4": (directory, "is a directory"),
    "link.mp4": (link, "is a link to a file that does not exist"),
    "missing.mp4": (lambda path: path, "no such file"),
    "pipe.mp4": (pipe, "not a regular file"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    make, reason = UNREADABLE[name]
    path = make(tmp_path / name)
    for use in (lambda: list(decode(path, 1)), lambda: list(decode(path, 1, start=1)), lambda: examine(path)):
        with pytest.raises(UnreadableVideo) as caught:
            use()
        assert reason in caught.value.reason
        assert str(caught.value) == f"{path}: {caught.value.reason}" and "\n" not in caught.value.reason


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "avi"])
def test_truncated_files_give_frames_up_to_the_break(tmp_path: Path, ending: str, part: float) -> None:
    codec = "libvpx-vp9" if ending == "webm" else "libx264"
    options = FASTSTART if ending in ("mp4", "mov") else {}
    path = make_video(tmp_path / f"video.{ending}", 60, 10, images=NOISE, codec=codec, options=options)
    whole = [frame.image for frame in decode(path, 10)]
    frames = decode(cut(path, part), 10)
    found = [frame.image for frame in frames]
    assert 0.8 * part * 60 < len(found) < 60
    assert frames.decoded_seconds == pytest.approx(len(found) / 10, abs=0.11)
    assert frames.warning is not None and "\n" not in frames.warning
    assert "cut off" in frames.warning or "damaged" in frames.warning
    assert all(np.array_equal(one, other) for one, other in zip(whole, found, strict=False))


def test_a_file_that_is_cut_off_says_where(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mkv", 60, 10, images=NOISE, audio=6)
    frames = decode(cut(path, 0.5), 1)
    assert [frame.time for frame in frames] == [0, 1, 2]
    assert frames.warning == "cut off: ends at 2.9 s of 6.1 s"


def test_a_complete_file_has_no_warning(tmp_path: Path) -> None:
    for ending in ("mp4", "mkv", "avi", "ts", "3gp"):
        frames = decode(make_video(tmp_path / f"video.{ending}", 30, 10), 1)
        assert len(list(frames)) == 3 and frames.warning is None
    # The sound is longer than the frames, and a frame is shown for a minute.
    path = make_video(tmp_path / "long.mkv", stamps=[0, 10, 600], per_second=10, audio=80)
    frames = decode(path, 1)
    assert len(list(frames)) >= 61 and frames.warning is None


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", 60, 10, images=NOISE, options=FASTSTART)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    frames = decode(path, 10)
    assert [frame.time for frame in frames] == [number / 10 for number in range(60)]
    assert frames.warning is not None and frames.warning.startswith("damaged: ")


def test_time_stamps_that_would_repeat_frames_for_years(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.avi", 60, 10, codec="mpeg4")
    content = bytearray(path.read_bytes())
    scale = content.index(b"strh") + 28
    content[scale : scale + 4] = (10**9).to_bytes(4, "little")  # an AVI's rate is a fraction; this is its divisor
    path.write_bytes(content)
    with pytest.raises(UnreadableVideo, match="time stamps beyond 100 hours are wrong"):
        list(decode(path, 1))


def test_one_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "one.mp4", 1, 10)
    frames = decode(path, 1)
    assert [(frame.time, number_of(frame.image)) for frame in frames] == [(0, 0)]
    assert frames.warning is None and frames.decoded_seconds == pytest.approx(0.1)


def test_an_animated_picture(tmp_path: Path) -> None:
    path = make_video(tmp_path / "animation.gif", 20, 10, codec="gif", pixels="rgb8")
    assert [frame.time for frame in decode(path, 1)] == [0, 1]


def test_a_wrong_ending(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mkv", 20, 10).rename(tmp_path / "video.mp4")
    assert len(list(decode(path, 1))) == 2


def test_frames_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "video.mp4", 5, 5)
    for module in (files, decoding):
        monkeypatch.setattr(module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(UnreadableVideo, match="frames of 64 x 48 pixels are too large"):
        list(decode(path, 1))


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", 5, 5)
    path.chmod(0)
    program = f"from dreamprvr_ray.video.decoding import decode\nlist(decode({str(path)!r}, 1))"
    words = [*(UNPRIVILEGED if os.getuid() == 0 else ()), sys.executable, "-c", program]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(f"{path}: cannot be read: Permission denied")


def test_the_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableVideo("a.mp4", "is empty")))  # noqa: S301 - our own
    assert (error.path, error.reason, error.mistakes) == ("a.mp4", "is empty", ("a.mp4: is empty",))
