"""The files of a collection, opened by the ids of its videos and by nothing else.

A request names an id. Which file that is, the index says; a path of a request is never opened. The file must be a
regular file inside the collection's directory, also after following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW  # opening a pipe must not wait for its writer


class UnavailableVideo(Exception):
    """A video that cannot be served. The message is one line for the user and holds no path."""

    status = 404  # of HTTP


class ChangedVideo(UnavailableVideo):
    """Where the file was is now something else."""

    status = 410


@dataclass(frozen=True)
class ServedVideo:
    """A video of a collection.

    Attributes:
        id: Its id in the index.
        file: Its file, relative to the directory of videos; empty if the index does not know it.
        duration: Seconds; None if unknown.
    """

    id: str
    file: str
    duration: float | None = None


class VideoFiles:
    """Opens the videos of a collection."""

    def __init__(self, directory: Path | None, videos: Iterable[ServedVideo]) -> None:
        """`directory` is where the videos' files are; None if the index knows no files."""
        self._directory = None if directory is None else Path(os.path.realpath(directory))
        self.videos: Mapping[str, ServedVideo] = {video.id: video for video in videos}

    def has_file(self, video: str) -> bool:
        """Return whether the index knows the file of a video; it may be missing now."""
        served = self.videos.get(video)
        return self._directory is not None and served is not None and bool(served.file)

    def open(self, video: str) -> BinaryIO:
        """Open the file of a video to read it.

        Raises:
            UnavailableVideo: The index has no such video or no file of it, or the file is missing.
            ChangedVideo: The file is not a regular file, or leads outside of the collection's directory.
        """
        served = self.videos.get(video)
        if served is None:
            raise UnavailableVideo("the collection has no such video")
        if self._directory is None or not served.file:
            raise UnavailableVideo("the index does not know the file of this video")
        path = os.path.realpath(self._directory / served.file)
        if os.path.commonpath([path, self._directory]) != str(self._directory):
            raise ChangedVideo("the file of this video is outside of the collection's directory")
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            raise UnavailableVideo("the file of this video is missing") from None
        except OSError:  # a link that was put there just now, or no permission
            raise UnavailableVideo("the file of this video cannot be read") from None
        try:
            _check(path, descriptor)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def _check(path: str, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ChangedVideo("the file of this video is not a regular file")
    # A directory of the path may have been replaced by a link after it was resolved.
    if os.path.realpath(f"/proc/self/fd/{descriptor}") != path:
        raise ChangedVideo("the file of this video is outside of the collection's directory")


def fd_path(file: BinaryIO) -> str:
    """Return a path that opens the same file again, whatever happens to its name."""
    return f"/proc/self/fd/{file.fileno()}"


def entity_tag(file: BinaryIO) -> str:
    """Return an ETag for the content of an open file."""
    status = os.fstat(file.fileno())
    return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
