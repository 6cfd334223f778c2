"""Small videos, made by PyAV."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np


def colour_of(number: int, second: int) -> tuple[int, int, int]:
    """Return the colour of a video at a second."""
    return (40 + 53 * number) % 200, (30 + 17 * second) % 200, (60 + 29 * (number + second)) % 200


def write_video(
    path: Path,
    seconds: float,
    number: int = 0,
    rate: int = 4,
    size: tuple[int, int] = (64, 48),
    colour: Callable[[int, int], tuple[int, int, int]] = colour_of,
) -> Path:
    """Write a video whose colour changes every second, and return its path."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if path.suffix not in (".webm",) else "libvpx", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, rate)
        image = np.empty((size[1], size[0], 3), np.uint8)
        for frame_number in range(round(seconds * rate)):
            image[:] = colour(number, frame_number // rate)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = frame_number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_broken(folder: Path) -> dict[str, str]:
    """Write three files that are no videos, and return a word of the reason of each."""
    import av

    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for _ in range(20):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {"empty.mp4": "empty", "text.mp4": "", "sound.mp4": "audio only"}
