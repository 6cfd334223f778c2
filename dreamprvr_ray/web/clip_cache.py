"""Clips that were cut lately, in files without a name: they are gone when the process ends, however it ends."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import IO, BinaryIO

from dreamprvr_ray.web.clips import Clip, write_clip
from dreamprvr_ray.web.video_files import fd_path

KEPT = 64  # clips
KEPT_BYTES = 2**30
AT_ONCE = 2  # clips that are cut at the same time; others wait


@dataclass(frozen=True)
class _Kept:
    clip: Clip
    file: IO[bytes]
    size: int


class ClipCache:
    """Cuts clips, and keeps the latest. Its methods may be called by several threads."""

    def __init__(self, kept: int = KEPT, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_clips, self._kept_bytes = kept, kept_bytes
        self._clips: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._cutting = threading.Semaphore(AT_ONCE)
        self._pending: dict[Hashable, threading.Lock] = {}

    def clip(
        self, key: Hashable, source: BinaryIO, start: float, end: float, exact: bool
    ) -> tuple[Clip, BinaryIO, bool]:
        """Return a clip of an open video, its file, open for reading, and whether it was cut just now.

        Args:
            key: What tells this clip from others.
            exact: Whether it must start at `start`, see `write_clip`.

        Raises:
            UnreadableVideo: The video cannot be decoded.
            UserError: The part is empty or too long.
        """
        with self._lock:
            pending = self._pending.setdefault(key, threading.Lock())
        try:
            with pending:  # a player sends several requests for a clip at once
                kept = self._get(key)
                is_new = kept is None
                if kept is None:
                    with self._cutting:
                        kept = self._cut(source, start, end, exact)
                    self._put(key, kept)
                return kept.clip, open(f"/proc/self/fd/{kept.file.fileno()}", "rb"), is_new
        finally:
            with self._lock:
                self._pending.pop(key, None)

    def _get(self, key: Hashable) -> _Kept | None:
        with self._lock:
            kept = self._clips.get(key)
            if kept is not None:
                self._clips.move_to_end(key)
            return kept

    def _cut(self, source: BinaryIO, start: float, end: float, exact: bool) -> _Kept:
        file = tempfile.TemporaryFile(prefix="dreamprvr-ray-clip-")  # noqa: SIM115 - kept
        try:
            clip = write_clip(fd_path(source), f"/proc/self/fd/{file.fileno()}", start, end, exact=exact)
            return _Kept(clip, file, os.fstat(file.fileno()).st_size)
        except BaseException:
            file.close()
            raise

    def _put(self, key: Hashable, kept: _Kept) -> None:
        with self._lock:
            self._clips[key] = kept
            while len(self._clips) > 1 and (
                len(self._clips) > self._kept_clips
                or sum(each.size for each in self._clips.values()) > self._kept_bytes
            ):
                # Not closed: another request may be opening it. It is closed once nothing refers to it.
                self._clips.popitem(last=False)
