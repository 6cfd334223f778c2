"""Cutting long videos into overlapping windows, and finding the windows that captions are about. Imports no torch.

A window is retrieved like a separate video: of two hours, 128 rows would be 56 seconds each, so that short moments
disappear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreamprvr_ray.errors import UserError

_INSIDE = 0.5  # share of a moment, or of the window if that is shorter, above which the window shows the moment


@dataclass(frozen=True)
class Window:
    """A part of a video, or all of it.

    Attributes:
        id: The video's id, followed by `@<start>-<end>` in seconds if it is a part.
        video: The video's id.
        first: Its first frame.
        stop: The frame after its last one.
        start: When it begins in the video, in seconds.
        end: When it ends, in seconds.
    """

    id: str
    video: str
    first: int
    stop: int
    start: float
    end: float

    def shared(self, start: float, end: float) -> float:
        """Return for how many seconds the window shows a moment."""
        return max(0.0, min(self.end, end) - max(self.start, start))


@dataclass(frozen=True)
class WindowSettings:
    """Length and overlap of windows in seconds; without a length, videos stay as they are."""

    length: float | None = None
    overlap: float | None = None

    def __post_init__(self) -> None:
        if self.length is None:
            if self.overlap is not None:
                raise UserError("--overlap: windows overlap only if there are any; give their length with --window")
        elif not self.length > 0:
            raise UserError(f"--window {self.length:g}: must be above 0")
        elif self.overlap is not None and not 0 <= self.overlap < self.length:
            raise UserError(f"--overlap {self.overlap:g}: must be at least 0 and below --window {self.length:g}")

    @property
    def stride(self) -> float | None:
        """Seconds from the start of one window to that of the next: half a window unless `overlap` is given."""
        if self.length is None:
            return None
        return self.length - (self.length / 2 if self.overlap is None else self.overlap)


def cut(video: str, frames: int, fps: float, settings: WindowSettings) -> list[Window]:
    """Return the windows of a video of this many frames, in order.

    All have the full length: the last one ends with the video, and overlaps the one before it by more than the others.
    A video that is no longer than a window is one window, with the video's own id.
    """
    whole = Window(video, video, 0, frames, 0.0, frames / fps)
    if settings.length is None or settings.stride is None:
        return [whole]
    length = max(1, round(settings.length * fps))
    stride = max(1, round(settings.stride * fps))
    if frames <= length:
        return [whole]
    starts = [*range(0, frames - length, stride), frames - length]
    return [
        Window(f"{video}@{_number(first / fps)}-{_number((first + length) / fps)}", video, first, first + length,
               first / fps, (first + length) / fps)
        for first in starts
    ]  # fmt: skip


def windows_of_moment(windows: Sequence[Window], start: float | None, end: float | None) -> list[Window]:
    """Return the windows of a video that show a moment, the one that holds it best first.

    A window shows a moment if most of the moment is inside it, or most of the window is inside the moment. Without
    times, every window may show it.
    """
    if start is None or end is None:
        return list(windows)

    def fit(window: Window) -> tuple[float, float]:
        return -window.shared(start, end), abs(window.start + window.end - start - end)

    best, *others = sorted(windows, key=fit)
    length = end - start

    def shows(window: Window) -> bool:
        if length == 0:
            return window.start <= start <= window.end
        return window.shared(start, end) > _INSIDE * min(length, window.end - window.start)

    return [best, *(window for window in others if shows(window))]


def _number(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
