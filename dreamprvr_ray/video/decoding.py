"""Decoding of a video file: one frame for each i / fps seconds, chosen by time stamps, in bounded memory."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.files import (
    FALLBACK_RATE,
    MAX_PIXELS,
    NO_FRAMES,
    Orientation,
    UnreadableVideo,
    first_frame,
    open_container,
    stated_duration,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_RATE = 1000.0  # frames per second that can be asked for
_LONGER = 10.0  # seconds by which frames may exceed the duration that a file states; beyond, time stamps are wrong
_SHORTER = 0.25  # seconds, or two frames, that may be missing at the end without a warning
_LATE = 60  # seconds after which a video that starts later than its sound counts from its own start
MAX_HOURS = 100  # beyond, time stamps are wrong; at a wrong rate, each frame would be repeated for days
_BACKWARDS = 1  # seconds by which a time stamp may be too early before it counts as a new start
# Containers whose time stamps are of one timeline. Those of others may start again, as where recordings were joined.
_INDEXED = {"mov", "mp4", "matroska", "webm", "avi"}
_MICROSECOND = Fraction(1, 1_000_000)
_SEEK_MARGINS = (0.0, 10.0, 60.0)  # seconds before a window where decoding starts, each tried if the last was too late


@dataclass(frozen=True, eq=False)
class Frame:
    """The frame that is shown at a time."""

    time: float  # i / fps, in seconds from the start of the video
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright; read-only: frames that show the same image share it


def decode(
    path: str | os.PathLike[str], fps: float, *, start: float = 0.0, end: float | None = None, threads: int = 1
) -> Frames:
    """Return an iterator over the frames at i / fps seconds, for every whole number i with start <= i / fps < end.

    Frame i is the last one that is shown at or before i / fps. Time 0 is where the file's streams start; if its frames
    start later, the first one counts as shown from there. Time ends with the last frame's own duration.

    Memory holds a few frames, whatever the length of the video. `start` is found by seeking in mp4, mov, mkv, webm and
    most avi files; others are decoded from their start.

    Args:
        fps: Frames per second to return, more than 0 and at most 1000. The video's own rate may be lower or higher.
        start, end: The window, in seconds.
        threads: Threads of the decoder.

    Raises:
        UserError: `fps` or the window is out of range.
        UnreadableVideo: The file has no frames to decode. It is raised by the first step of the iteration.
    """
    if not 0 < fps <= MAX_RATE:
        raise UserError(f"fps={fps}: must be more than 0 and at most {MAX_RATE:g}")
    if not 0 <= start < math.inf or (end is not None and not end > start):
        raise UserError(f"start={start}, end={end}: must be 0 <= start < end")
    return Frames(path, fps, start, math.inf if end is None else end, threads)


class Frames(Iterator[Frame]):
    """The iterator that `decode` returns. Closes the file at the end, by `close`, or as a context manager.

    After the iteration, `warning` says in one line why frames are missing: the file is cut off or damaged. None if it
    is not. `decoded_seconds` is the time up to which frames were decoded.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, start: float, end: float, threads: int) -> None:
        self.path = os.fspath(path)
        self.warning: str | None = None
        self.decoded_seconds = 0.0
        self._fps, self._start, self._end, self._threads = fps, start, end, threads
        self._frames = self._sample()

    def __next__(self) -> Frame:
        return next(self._frames)

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The iteration then ends."""
        self._frames.close()  # type: ignore[attr-defined]

    def _sample(self) -> Iterator[Frame]:
        """Yield the frames at i / fps from those that the file shows."""
        number = max(0, math.floor(self._start * self._fps) - 1)
        while number / self._fps < self._start:  # as floats, the product may be on either side
            number += 1
        orientation = Orientation()
        shown: _Shown | None = None
        image: np.ndarray | None = None
        for following in self._shown():
            while shown is not None and (time := number / self._fps) < min(following.time, self._end):
                image = orientation.image(shown.frame) if image is None else image
                yield Frame(time, image)
                number += 1
            if number / self._fps >= self._end:
                return
            shown, image = following, None
        if shown is None:
            raise UnreadableVideo(self.path, f"{NO_FRAMES} ({self.warning})" if self.warning else NO_FRAMES)
        while (time := number / self._fps) < min(shown.end, self._end):
            image = orientation.image(shown.frame) if image is None else image
            yield Frame(time, image)
            number += 1

    def _shown(self) -> Iterator[_Shown]:
        """Yield what the file shows from the window's start on, in the order of time."""
        for margin in _SEEK_MARGINS:
            begin = self._start - margin
            if begin <= 0:
                break
            reader = _Reader(self.path, self._threads)
            frames = reader.read(begin)
            first = next(frames, None)
            if first is not None and first.time <= self._start:
                yield from self._watched(reader, itertools.chain([first], frames))
                return
            frames.close()  # type: ignore[attr-defined]
            if not reader.can_seek:
                break
        reader = _Reader(self.path, self._threads)
        yield from self._watched(reader, reader.read(None))

    def _watched(self, reader: _Reader, frames: Iterator[_Shown]) -> Iterator[_Shown]:
        for shown in frames:
            self.decoded_seconds = shown.end
            yield shown
        self.warning = reader.warning()


@dataclass(frozen=True, eq=False)
class _Shown:
    """A decoded frame, still in the decoder's own format, and when it is shown, in seconds."""

    time: float
    end: float
    frame: VideoFrame


class _Reader:
    """Reads a file's frames once, with their times in seconds."""

    def __init__(self, path: str, threads: int) -> None:
        self._path, self._threads = path, threads
        self._damaged = 0  # packets and frames that could not be decoded
        self._break: str | None = None  # why reading stopped early
        self._read_end = 0.0  # the end of the last packet of any stream, in seconds from the container's start
        self._stated: float | None = None  # seconds that the container states, if it states them for sure
        self._tolerance = _SHORTER
        self.can_seek = True

    def read(self, begin: float | None) -> Iterator[_Shown]:
        """Yield the frames, from the last key frame before `begin` if it is given."""
        from av.error import FFmpegError

        with open_container(self._path, self._threads) as (container, stream):
            clock = _Clock(container, stream)
            if container.duration and _INDEXED & set(container.format.name.split(",")):
                self._stated = container.duration / 1_000_000
            self._tolerance = max(_SHORTER, float(2 * clock.step))
            if begin is not None:
                # The first frame shows whether a frame's time depends on those before it.
                self.can_seek = bool(_INDEXED & set(container.format.name.split(","))) and clock.knows(
                    first_frame(self._path, container, stream)
                )
                if not self.can_seek:
                    return
                try:
                    container.seek(clock.stamp(begin), stream=stream)
                except FFmpegError:  # a file without an index
                    self.can_seek = False
                    return
            for frame in self._decoded(container, stream):
                if frame.width * frame.height > MAX_PIXELS:
                    raise UnreadableVideo(self._path, f"frames of {frame.width} x {frame.height} pixels are too large")
                shown = clock.place(frame)
                if shown.end > MAX_HOURS * 3600:
                    self._break = f"time stamps beyond {MAX_HOURS} hours are wrong"
                    return
                yield shown

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Yield the frames that can be decoded, and skip damaged ones."""
        from av.error import FFmpegError

        origin = (container.start_time or 0) / 1_000_000
        packets = container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                self._break = error.strerror
                packet = None
            try:
                if packet is None:  # what the decoder still holds
                    frames: Sequence[Any] = stream.codec_context.decode(None)
                elif packet.stream.index == stream.index:
                    frames = packet.decode()
                else:
                    frames = []
            except FFmpegError:
                self._damaged += 1
                frames = []
            if packet is not None and packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin
                self._read_end = max(self._read_end, end)
            for frame in frames:
                if frame.is_corrupt:
                    self._damaged += 1
                else:
                    yield frame
            if packet is None:
                return

    def warning(self) -> str | None:
        """Return why frames are missing, in one line; None if none are."""
        parts = []
        if self._break is not None:
            parts.append(f"cannot be read to the end: {self._break}")
        elif self._stated is not None and self._read_end < self._stated - self._tolerance:
            parts.append(f"cut off: ends at {self._read_end:.1f} s of {self._stated:.1f} s")
        if self._damaged:
            parts.append(f"damaged: {self._damaged} {'frame' if self._damaged == 1 else 'frames'} cannot be decoded")
        return "; ".join(parts) or None


def start_stamp(container: InputContainer, stream: VideoStream) -> int | None:
    """Return time 0 as a time stamp of the stream; None: that of its first frame.

    It is the container's start, of any stream. Where that is negative (the priming of audio) or a minute earlier, it is
    the video's.
    """
    own, base = stream.start_time, stream.time_base or _MICROSECOND
    if container.start_time is None or container.start_time < 0:
        return own
    start = container.start_time * _MICROSECOND / base
    if own is not None and (abs(own - start) * base < Fraction(1, 1000) or (own - start) * base > _LATE):
        return own
    return round(start)


class _Clock:
    """Turns time stamps into seconds from the start of the video; times never fall.

    A frame without a time stamp follows the frame before it at the file's average rate. So does one whose time stamp is
    far before it or far beyond the duration that the file states, and later ones continue from there.

    AVI has no time stamps of presentation. Where frames are reordered (B-frames), FFmpeg's guess of them is wrong, and
    those of decoding are used, which rise by one a frame.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._base = stream.time_base or _MICROSECOND
        rate = stream.average_rate or stream.guessed_rate or FALLBACK_RATE
        self.step = 1 / rate if 0 < rate <= MAX_RATE else 1 / FALLBACK_RATE  # seconds from frame to frame
        stated = container.duration / 1_000_000 if container.duration else stated_duration(container, stream)
        self._limit = math.inf if stated is None else stated + _LONGER
        self._origin = start_stamp(container, stream)
        self._shift = Fraction()  # seconds added after time stamps that jumped
        self._last: Fraction | None = None
        self._by_decoding = container.format.name == "avi" and stream.codec_context.has_b_frames

    def knows(self, frame: VideoFrame) -> bool:
        """Whether the frame's time does not depend on the frames before it."""
        return frame.pts is not None and not self._by_decoding

    def stamp(self, seconds: float) -> int:
        """Return a time as a time stamp of the stream, rounded down."""
        return (self._origin or 0) + math.floor(seconds / self._base)

    def place(self, frame: VideoFrame) -> _Shown:
        """Return a frame with its time; frames must come in the order in which they are shown."""
        expected = Fraction() if self._last is None else self._last + self.step
        stamp = frame.dts if self._by_decoding else frame.pts
        if stamp is None:
            time = expected
        else:
            if self._origin is None or (self._by_decoding and self._last is None):
                self._origin = stamp
            time = (stamp - self._origin) * self._base + self._shift
            if time > self._limit or (self._last is not None and time < self._last - _BACKWARDS):
                self._shift += expected - time
                time = expected
            time = time if self._last is None else max(time, self._last)
        self._last = time
        length = frame.duration * self._base if frame.duration else self.step
        if time + length > self._limit:
            length = min(self.step, max(Fraction(self._limit) - time, 1 / FALLBACK_RATE))
        return _Shown(float(time), float(time + length), frame)
