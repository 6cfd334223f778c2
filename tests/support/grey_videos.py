"""Video files for tests, drawn with PyAV: frame number k is an even grey of level k * STEP."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

STEP = 4  # between the greys of two frames; more than what lossy codecs change


def make_video(
    path: Path,
    frames: int = 30,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    stamps: Sequence[int] | None = None,
    per_second: int | None = None,
    audio: float = 0.0,
    options: dict[str, str] | None = None,
    key_frames: int = 12,
    images: Sequence[np.ndarray] | None = None,
    container: str | None = None,
) -> Path:
    """Write a video and return its path.

    Args:
        size: Width and height.
        stamps: Time stamps of the frames, in units of 1 / per_second seconds; by default frame k is at k / rate.
        audio: Seconds of silence.
        options: Of the container.
        key_frames: Frames from one key frame to the next.
        images: In place of greys.
    """
    import av

    with av.open(str(path), "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = key_frames
        stream.codec_context.bit_rate = 8_000_000
        stream.options = {"preset": "veryfast"} if codec == "libx264" else {}
        ticks = per_second or rate
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, ticks)
        sound = file.add_stream("aac", rate=8000, layout="mono") if audio else None
        if sound is not None:
            for start in range(0, int(audio * 8000), 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 8000, start
                file.mux(sound.encode(silence))
        count = len(stamps) if stamps is not None else frames
        for number in range(count):
            image = images[number] if images else grey(number, size)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (stamps[number] if stamps is not None else number), Fraction(1, ticks)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            file.mux(sound.encode(None))
    return path


def make_audio(path: Path, seconds: float = 2.0) -> Path:
    """Write a file with silence and no video."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, int(seconds * 8000), 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, start
            file.mux(stream.encode(silence))
        file.mux(stream.encode(None))
    return path


def grey(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.full((size[1], size[0], 3), number * STEP % 256, np.uint8)


def number_of(image: np.ndarray) -> int:
    """Return which frame of `make_video` an image shows."""
    return round(float(image.mean()) / STEP)


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d) into an mp4 file's first track, as phones do."""
    content = bytearray(path.read_bytes())
    box = content.index(b"tkhd") + 4
    start = box + (36 if content[box] == 0 else 48) + 4
    a, b, c, d = (value * 65536 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
