"""Clips and thumbnails, against the colours that a video shows at each second."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="decoding videos requires PyAV")

import av
from PIL import Image
from support.grey_videos import make_video, rotate
from support.videos import colour_of, write_video

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.decoding import decode
from dreamprvr_ray.video.files import UnreadableVideo, examine
from dreamprvr_ray.web.clips import LONGEST, playable_type, thumbnail, write_clip

RATE, SECONDS = 10, 12


def write_recording(path: Path, codec: str, sound: str | None = None, key_seconds: int = 4, **options: str) -> Path:
    """Write a video with a key frame every four seconds, whose colour changes every second, and with a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options | {"sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, options.get("pix_fmt", "yuv420p")
        stream.codec_context.gop_size = key_seconds * RATE
        tone = container.add_stream(sound, rate=48000) if sound else None
        for number in range(SECONDS * RATE):
            image = np.full((48, 64, 3), colour_of(0, number // RATE), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            if tone is not None:
                wave = np.sin(np.arange(4800) / 20)[None].astype(np.float32)
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 48000, number * 4800, Fraction(1, 48000)
                container.mux(tone.encode(samples))
        container.mux(stream.encode())
        if tone is not None:
            container.mux(tone.encode())
    return path


def colours(path: Path) -> list[tuple[float, np.ndarray]]:
    """Return the time and the colour in the middle of each second of a file, counted from its own start."""
    with decode(path, 2) as frames:
        return [(each.time, each.image[24, 32]) for each in frames if each.time % 1 == 0.5]


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("clips") / "recording.mp4", "libx264", "aac")


@pytest.mark.parametrize(("start", "end"), [(0.0, 3.0), (4.0, 7.0), (4.3, 7.0), (8.0, 12.0)])
def test_a_clip_at_a_key_frame_is_copied(recording: Path, tmp_path: Path, start: float, end: float) -> None:
    clip = write_clip(str(recording), str(tmp_path / "clip.mp4"), start, end)
    key = start - start % 4
    assert clip.is_copied and clip.start == pytest.approx(key, abs=1e-3)
    assert end - 1 / RATE <= clip.end <= end + 6 / RATE  # frames that were decoded before
    shown = colours(tmp_path / "clip.mp4")
    assert len(shown) >= int(end - key)
    for time, colour in shown[: int(end - key)]:
        np.testing.assert_allclose(colour, colour_of(0, int(key + time)), atol=12)
    assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(end - key, abs=0.15)
    assert playable_type(str(tmp_path / "clip.mp4"), "clip.mp4") == "video/mp4"


@pytest.mark.parametrize(("start", "end", "exact"), [(2.0, 5.0, False), (5.5, 9.5, False), (4.3, 6.3, True)])
def test_a_clip_elsewhere_is_encoded(recording: Path, tmp_path: Path, start: float, end: float, exact: bool) -> None:
    clip = write_clip(str(recording), str(tmp_path / "clip.mp4"), start, end, exact=exact)
    assert not clip.is_copied
    assert (clip.start, clip.end) == pytest.approx((start, end), abs=1.01 / RATE)
    for time, colour in colours(tmp_path / "clip.mp4"):
        if 0.1 < (clip.start + time) % 1 < 0.9:
            np.testing.assert_allclose(colour, colour_of(0, int(clip.start + time)), atol=12)
    assert examine(tmp_path / "clip.mp4").duration == pytest.approx(end - start, abs=0.11)
    assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(end - start, abs=0.15)


def test_an_exact_clip_at_a_key_frame_is_copied(recording: Path, tmp_path: Path) -> None:
    assert write_clip(str(recording), str(tmp_path / "clip.mp4"), 4.0, 7.0, exact=True).is_copied


@pytest.mark.parametrize(
    ("name", "codec", "options", "media_type"),
    [
        ("a.mp4", "libx264", {}, "video/mp4"),
        ("a.mov", "libx264", {}, "video/mp4"),
        ("a.webm", "libvpx", {}, "video/webm"),
        ("a.mkv", "libx264", {}, None),
        ("a.avi", "mpeg4", {}, None),
        ("b.mp4", "mpeg4", {}, None),
        ("c.mp4", "libx264", {"pix_fmt": "yuv444p"}, None),
        ("a.ts", "libx264", {}, None),
    ],
)
def test_what_browsers_cannot_play_becomes_mp4(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], media_type: str | None
) -> None:
    path = write_recording(tmp_path / name, codec, **options)
    assert playable_type(str(path), name) == media_type
    clip = write_clip(str(path), str(tmp_path / "clip.mp4"), 1.0, 3.0)
    assert playable_type(str(tmp_path / "clip.mp4"), "clip.mp4") == "video/mp4"
    for time, colour in colours(tmp_path / "clip.mp4"):
        if 0.1 < (clip.start + time) % 1 < 0.9:
            np.testing.assert_allclose(colour, colour_of(0, int(clip.start + time)), atol=15)


@pytest.mark.parametrize("exact", [False, True])
def test_a_rotated_video_stays_upright(tmp_path: Path, exact: bool) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255
    path = rotate(make_video(tmp_path / "phone.mp4", 10, 5, images=[image] * 10, pixels="yuv420p"), (0, 1, -1, 0))
    clip = write_clip(str(path), str(tmp_path / "clip.mp4"), 0.4, 1.6, exact=exact)
    assert clip.is_copied != exact
    original, shown = (next(decode(each, 1)).image for each in (path, tmp_path / "clip.mp4"))
    assert shown.shape == original.shape == (64, 48, 3)
    np.testing.assert_allclose(shown[8::16, 6::12], original[8::16, 6::12], atol=10)


def test_a_part_after_the_end_and_broken_files(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableVideo):
        write_clip(str(recording), str(tmp_path / "clip.mp4"), 50, 60)
    for start, end in ((3, 3), (4, 3), (-1, 3), (0, LONGEST + 1), (float("nan"), 3)):
        with pytest.raises(UserError):
            write_clip(str(recording), str(tmp_path / "clip.mp4"), start, end)
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    with pytest.raises(UnreadableVideo):
        write_clip(str(tmp_path / "text.mp4"), str(tmp_path / "clip.mp4"), 0, 3)
    with pytest.raises(UnreadableVideo):
        playable_type(str(tmp_path / "text.mp4"), "text.mp4")
    with pytest.raises(UnreadableVideo):
        thumbnail(str(tmp_path / "text.mp4"), 0, 100)


def test_thumbnails(recording: Path) -> None:
    for time, second in ((0.0, 0), (5.5, 5), (11.9, 11), (500.0, 0)):
        picture = Image.open(io.BytesIO(thumbnail(str(recording), time, 32)))
        assert picture.format == "JPEG" and picture.size == (32, 24)
        np.testing.assert_allclose(np.asarray(picture)[12, 16], colour_of(0, second), atol=15)


def test_a_large_video_is_encoded_smaller(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mkv", 1, size=(1606, 904))
    write_clip(str(path), str(tmp_path / "clip.mp4"), 0.25, 1.0, exact=True)
    assert examine(tmp_path / "clip.mp4").width == 1280
