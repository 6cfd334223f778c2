"""Opening and examining video files with PyAV, whose wheels contain FFmpeg.

Only local files are opened, and only as containers that hold their own frames: a playlist or a list of files, which
could name other files and hosts, is not a video.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamprvr_ray.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's names of the containers that are opened. Still images and playlists are not among them.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,asf,flv,live_flv,"
    "ogg,gif,apng,mxf,nut,rm,wtv,dv,nsv"
)
# Files with these endings are listed as videos in a directory.
_ENDINGS = "mp4 m4v mov mkv webm avi 3gp 3g2 mpg mpeg ts m2ts mts wmv asf flv ogv gif vob mxf"
ENDINGS = frozenset(f".{ending}" for ending in _ENDINGS.split())
MAX_PIXELS = 2**27  # of a frame; 400 MB as RGB. A header may claim any size
NO_FRAMES = "no frame can be decoded"
FALLBACK_RATE = Fraction(25)  # frames per second, where the file states none


class UnreadableVideo(UserError):
    """A file that has no frames to encode. Its message is one line, `<path>: <reason>`."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path, self.reason = os.fspath(path), reason

    def __reduce__(self) -> tuple[type[UnreadableVideo], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class VideoFile:
    """What the header of a video file states; frames may say otherwise."""

    duration: float | None  # seconds; None if the file does not state it
    width: int  # upright, in pixels
    height: int
    codec: str  # FFmpeg's name: h264, vp9
    container: str  # FFmpeg's name: mov,mp4,m4a,3gp,3g2,mj2
    frame_rate: float | None  # average frames per second; None if unknown
    bytes: int


def examine(path: str | os.PathLike[str]) -> VideoFile:
    """Return what a video's header states, and check that a frame can be decoded.

    Raises:
        UnreadableVideo: As `decoding.decode` does.
    """
    with open_container(path) as (container, stream):
        height, width = Orientation().shape(first_frame(path, container, stream))
        rate = stream.average_rate
        return VideoFile(
            duration=stated_duration(container, stream),
            width=width,
            height=height,
            codec=stream.codec_context.name,
            container=container.format.name,
            frame_rate=float(rate) if rate else None,
            bytes=os.stat(path).st_size,
        )


def first_frame(path: str | os.PathLike[str], container: InputContainer, stream: VideoStream) -> VideoFrame:
    """Return the first frame that can be decoded. Raises `UnreadableVideo` if there is none."""
    from av.error import FFmpegError

    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    if not frame.is_corrupt:
                        return frame
            except FFmpegError:  # a damaged packet: later ones may be whole
                continue
    except FFmpegError as error:
        raise UnreadableVideo(path, f"no frame can be decoded: {error.strerror}") from None
    raise UnreadableVideo(path, NO_FRAMES)


@contextmanager
def open_container(path: str | os.PathLike[str], threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a local video file and choose its video stream.

    Args:
        threads: Threads of the decoder. Each holds a few frames.

    Raises:
        UnreadableVideo: The file cannot be opened, is not a video, or has no video stream.
    """
    import av
    from av.error import FFmpegError
    from av.stream import Disposition

    _check_regular(path)
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        # The prefix keeps FFmpeg from reading a name such as "http:x.mp4" or "concat:x" as an address.
        container = av.open(f"file:{os.fspath(path)}", container_options=options, metadata_errors="replace")
    except (FFmpegError, ValueError, UnicodeError) as error:
        raise UnreadableVideo(path, _why_not_opened(path, error)) from None
    with container:
        streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            kind = "audio only" if container.streams.audio else "no stream of frames"
            raise UnreadableVideo(path, f"no video: {kind}")
        streams = [each for each in streams if each.codec_context is not None]
        if not streams:
            raise UnreadableVideo(path, "no decoder for its codec")
        # The largest, as a second stream may be a preview.
        stream = max(streams, key=lambda each: (each.width or 0) * (each.height or 0))
        if (stream.width or 0) * (stream.height or 0) > MAX_PIXELS:
            raise UnreadableVideo(path, f"frames of {stream.width} x {stream.height} pixels are too large")
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO" if threads > 1 else "NONE"
        yield container, stream


def stated_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the duration in seconds as the video stream states it, else the container, else None."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


class Orientation:
    """How a file's frames must be turned and mirrored to be shown: its display matrix.

    Quarter turns and mirrored frames are supported; another angle is rounded to quarter turns. Pixels that are not
    square stay as they are.
    """

    def __init__(self) -> None:
        # Read once for each angle: PyAV's frames whose side data is read stay in memory until a garbage collection.
        self._matrices: dict[int, tuple[int, int, int, int] | None] = {}

    def shape(self, frame: VideoFrame) -> tuple[int, int]:
        """Return (height, width) of a frame as it is shown."""
        matrix = self._matrix(frame)
        return (frame.width, frame.height) if matrix is not None and matrix[0] == 0 else (frame.height, frame.width)

    def image(self, frame: VideoFrame) -> np.ndarray:
        """Return a frame as it is shown, (H, W, 3) uint8 RGB."""
        image = frame.to_ndarray(format="rgb24")
        matrix = self._matrix(frame)
        if matrix is None:
            return image
        a, b, c, d = matrix
        if a == 0:  # x' = c * y and y' = b * x
            image, a, d = image.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(image[::d, ::a])

    def _matrix(self, frame: VideoFrame) -> tuple[int, int, int, int] | None:
        angle = frame.rotation
        if angle not in self._matrices:
            self._matrices[angle] = _display_matrix(frame)
        return self._matrices[angle]


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """Return the signs (a, b, c, d) of the frame's display matrix, rounded to quarter turns; None if it has none.

    A point is shown at x' = a x + c y, y' = b x + d y. Either a and d or b and c are 0.
    """
    from av.sidedata.sidedata import Type

    data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    values = np.frombuffer(bytes(data) if data is not None else b"", dtype=np.int32)
    if len(values) < 9:
        return None
    a, b, c, d = (int(values[place]) for place in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (1 if a >= 0 else -1), 0, 0, (1 if d >= 0 else -1)
    return 0, (1 if b >= 0 else -1), (1 if c >= 0 else -1), 0


def _check_regular(path: str | os.PathLike[str]) -> None:
    """Raise `UnreadableVideo` for what is not a readable file with content. Opening a pipe would wait for a writer."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableVideo(path, "is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableVideo(path, "not a regular file")
        if status.st_size == 0:
            raise UnreadableVideo(path, "is empty")
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        reason = "is a link to a file that does not exist" if os.path.islink(path) else "no such file"
        raise UnreadableVideo(path, reason) from None
    except OSError as error:
        raise UnreadableVideo(path, f"cannot be read: {error.strerror or error}") from None
    except ValueError:  # of Python, for NUL in a path
        raise UnreadableVideo(path, "not a valid path") from None


def _why_not_opened(path: str | os.PathLike[str], error: Exception) -> str:
    """Return a reason that says more than FFmpeg's "Invalid data found"."""
    boxes, complete = mp4_boxes(Path(path))
    if boxes and "moov" not in boxes:
        return "no moov atom: the recording or the download of this file was cut off"
    if boxes and not complete:
        return "cut off: its last atom is not complete"
    return f"not a video: {getattr(error, 'strerror', None) or error}"


def mp4_boxes(path: Path) -> tuple[list[str], bool]:
    """Return the types of an mp4 or mov file's outermost boxes, and whether the last is complete; none for others."""
    found: list[str] = []
    with open(path, "rb") as file:
        size, place = os.fstat(file.fileno()).st_size, 0
        while place + 8 <= size and len(found) < 1000:
            file.seek(place)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if not found and kind not in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip"):
                return [], True
            found.append(kind.decode("latin-1"))
            length = int.from_bytes(header[8:], "big") if length == 1 else length
            if length == 0:  # up to the end of the file
                return found, True
            place += max(length, 8)
    return found, place == size
