"""Drawing a storyboard: its frames as arrays, and a video file of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np

from dreamprvr_ray.storage.files import replacing_file
from dreamprvr_ray.video.storyboard import COLOURS, Event, Storyboard

SIZE = 256  # height and width of a frame
FRAMES_PER_SECOND = 6
ENTERING = 0.4  # seconds that growing, shrinking and sliding take
TURNING = 0.3  # seconds in which a thing fades into another


def background(kind: str, brightness: float) -> np.ndarray:
    """Return a background, (SIZE, SIZE, 3) float32 with values up to 255."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    light = np.full((SIZE, SIZE), 255 * brightness, np.float32)
    if kind == "hatched":
        light[(x + y) // 12 % 2 == 0] += 30
    elif kind == "striped":
        light[(x // 16) % 2 == 0] -= 35
    elif kind == "dotted":
        light[np.hypot(x % 32 - 16, y % 32 - 16) < 7] += 60
    elif kind == "checkered":
        light[(x // 32 + y // 32) % 2 == 0] += 40
    elif kind == "brick":
        light[(y % 24 < 3) | ((x + 24 * (y // 24 % 2)) % 48 < 3)] += 55
    elif kind == "shaded":
        light += (y - SIZE / 2).astype(np.float32) * 0.3
    return np.repeat(light[..., None], 3, axis=2)


def frame(board: Storyboard, time: float, backdrop: np.ndarray | None = None) -> np.ndarray:
    """Return what a video shows at a time in seconds, (SIZE, SIZE, 3) uint8 RGB.

    Args:
        backdrop: The video's `background`, to draw many frames of it.
    """
    image = (background(board.background, board.brightness) if backdrop is None else backdrop).copy()
    for event in board.events:
        if event.start <= time < event.end:
            _draw_event(image, event, time)
    pixels: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels


def write_video(board: Storyboard, path: Path) -> None:
    """Write a storyboard as an MP4 file (H.264), atomically. Imports PyAV, which must be installed.

    Raises OSError if it cannot be written.
    """
    import av

    with replacing_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"preset": "veryfast", "crf": "20"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same file on every machine
        stream.time_base = stream.codec_context.time_base = Fraction(1, FRAMES_PER_SECOND)
        for number, image in enumerate(_frames(board)):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _frames(board: Storyboard) -> Iterator[np.ndarray]:
    backdrop = background(board.background, board.brightness)
    for number in range(int(board.duration * FRAMES_PER_SECOND)):
        yield frame(board, number / FRAMES_PER_SECOND, backdrop)


def _draw_event(image: np.ndarray, event: Event, time: float) -> None:
    """Draw an event's things on an image (SIZE, SIZE, 3) as they are at a time within it."""
    drift = 6 * np.sin(1.7 * (time - event.start))  # things are never quite still
    entered, left = min(1.0, (time - event.start) / ENTERING), min(1.0, (event.end - time) / ENTERING)
    if time < event.change:
        leaves = 1.0 if event.turns else min(1.0, (event.change - time) / ENTERING)
        scale, side = _motion(event.entrance, entered, -1)
        scale_out, side_out = _motion(event.exit, leaves, 1)
        _paint(image, event.first.shape, event.first.colour, event, 0, drift + side + side_out, scale * scale_out)
        return
    scale_out, side_out = _motion(event.exit, left, 1)
    if event.turns:
        share = min(1.0, (time - event.change) / TURNING)
        _paint(image, event.first.shape, event.first.colour, event, 0, drift, 1.0, 1 - share)
        _paint(image, event.second.shape, event.second.colour, event, 1, drift + side_out, scale_out, share)
        return
    scale, side = _motion(event.entrance, min(1.0, (time - event.change) / ENTERING), -1)
    _paint(image, event.second.shape, event.second.colour, event, 1, drift + side + side_out, scale * scale_out)


def _motion(kind: str, share: float, direction: int) -> tuple[float, float]:
    """Return the scale of a thing and its distance in pixels from its place, when `share` of its way in is done."""
    if kind in ("grows", "shrinks"):
        return max(share, 0.05), 0.0
    if kind == "slides":
        return 1.0, direction * (1 - share) * SIZE * 0.8
    return 1.0, 0.0


def _paint(
    image: np.ndarray,
    shape: str,
    colour: str,
    event: Event,
    place: int,
    shift: float,
    scale: float,
    opacity: float = 1.0,
) -> None:
    if opacity <= 0:
        return
    radius = round(event.radius * scale)
    centre_x, centre_y = event.places[place]
    mask = opacity * _mask(shape, radius)
    half = len(mask) // 2
    left, top = round(SIZE / 2 + centre_x + shift) - half, round(SIZE / 2 + centre_y) - half
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + len(mask), SIZE), min(top + len(mask), SIZE)
    if x0 >= x1 or y0 >= y1:
        return
    part = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    region = image[y0:y1, x0:x1]
    region += part * (np.array(COLOURS[colour], np.float32) - region)


@lru_cache(maxsize=2048)
def _mask(shape: str, radius: int) -> np.ndarray:
    """Return the opacity of a shape's pixels, a square of float32 from 0 to 1 around its centre, with smooth edges."""
    half, fine = ceil(1.15 * radius), 2  # pixels, and samples per pixel and axis
    y, x = (np.mgrid[0 : 2 * half * fine, 0 : 2 * half * fine].astype(np.float32) + 0.5) / fine / radius - half / radius
    inside = _inside(shape, x, y).astype(np.float32)
    mask: np.ndarray = inside.reshape(2 * half, fine, 2 * half, fine).mean(axis=(1, 3))
    return mask


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Say which points are inside a shape of radius 1 around the origin; y points down."""
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "circle": lambda: np.hypot(x, y) < 1,
        "ring": lambda: abs(np.hypot(x, y) - 0.775) < 0.225,
        "square": lambda: np.maximum(abs(x), abs(y)) < 0.85,
        "diamond": lambda: abs(x) * 1.3 + abs(y) * 0.95 < 1,
        "cross": lambda: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
        "heart": lambda: ((1.2 * x) ** 2 + (0.15 - 1.2 * y) ** 2 - 1) ** 3 < (1.2 * x) ** 2 * (0.15 - 1.2 * y) ** 3,
    }
    if shape in formulas:
        return formulas[shape]()
    radii = (1.1,) if shape == "triangle" else (1.05, 0.45)  # of the corners, in turn: the star's are outer and inner
    corners = 3 if shape == "triangle" else 10
    return _inside_polygon([radii[number % len(radii)] for number in range(corners)], x, y)


def _inside_polygon(radii: Sequence[float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Say which points are inside the polygon with corners at these distances and equal angles, the first on top."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    corners = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.array(radii)[:, None]
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0 if y1 != y0 else 1) + x0)
    return inside
