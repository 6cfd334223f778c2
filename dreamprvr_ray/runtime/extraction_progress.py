"""Progress of an extraction, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dreamprvr_ray.video.directory import ListedVideo


@dataclass(frozen=True)
class ExtractionProgress:
    """Progress of encoding videos in this run.

    Attributes:
        videos: Videos that are finished, by this run or earlier ones.
        all_videos: All videos.
        failed: Files that have failed.
        encoded: Videos that this run has encoded.
        seconds_of_video: Seconds of video that this run has encoded.
        elapsed: Seconds since it began to.
        left: Seconds that it will still take, estimated by the sizes of the files; None if that is not known yet.
    """

    videos: int
    all_videos: int
    failed: int
    encoded: int
    seconds_of_video: float
    elapsed: float
    left: float | None


class Tally:
    """Counts what is encoded, and estimates what is left from the sizes of files."""

    def __init__(self, todo: Sequence[ListedVideo], finished: int, all_videos: int, fps: float) -> None:
        self._bytes = {video.id: video.bytes for video in todo}
        self._left = sum(self._bytes.values())
        self._done = 0  # bytes of files that are finished
        self._frames: dict[str, int] = {}  # of files under way
        self._seconds: dict[str, float] = {}  # that their headers state
        self._finished, self._all, self._fps = finished, all_videos, fps
        self._encoded, self._encoded_frames = 0, 0
        self._finished_frames = 0
        self._began = time.monotonic()

    def start(self, id: str, seconds: float) -> None:
        self._seconds[id] = seconds

    def add(self, id: str, count: int) -> None:
        self._frames[id] = self._frames.get(id, 0) + count
        self._encoded_frames += count

    def end(self, id: str, encoded: bool, frames: int = 0) -> None:
        known = self._frames.pop(id, 0)
        self._encoded_frames += max(0, frames - known)
        self._finished_frames += frames
        self._done += self._bytes[id]
        self._left -= self._bytes[id]
        if encoded:
            self._encoded += 1
            self._finished += 1

    def progress(self, failed: int) -> ExtractionProgress:
        elapsed = time.monotonic() - self._began
        per_frame = self._done / self._finished_frames if self._finished_frames else 0.0
        begun = 0.0
        for id, frames in self._frames.items():
            seconds = self._seconds.get(id)
            size = self._bytes[id]
            begun += min(size, size * frames / self._fps / seconds if seconds else frames * per_frame)
        done = self._done + begun
        left = elapsed * (self._left - begun) / done if done else None
        return ExtractionProgress(
            self._finished, self._all, failed, self._encoded, self._encoded_frames / self._fps, elapsed, left
        )
