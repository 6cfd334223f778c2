"""Where in their videos queries take place, and what single frames show, for looking at results. Imports no torch.

Shards hold moments as shares of the video's length, which is all that an evaluation needs; seconds and captions are
read from files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dreamprvr_ray.data.captions import json_lines
from dreamprvr_ray.errors import UserError


class Span(NamedTuple):
    """A part of a video, in seconds."""

    start: float
    end: float

    def contains(self, seconds: float) -> bool:
        """Return whether a time is in the span, both ends included."""
        return self.start <= seconds <= self.end


@dataclass(frozen=True)
class FrameCaption:
    """What a part of a video shows, in words."""

    span: Span
    text: str


@dataclass(frozen=True)
class MomentFiles:
    """What is known about times in videos; each may be missing for any query or video.

    Attributes:
        spans: The windows of a query's moment, by its id; at least one.
        durations: The length of a video in seconds, by its id.
        captions: The captions of a video's frames, by its id.
    """

    spans: Mapping[str, tuple[Span, ...]]
    durations: Mapping[str, float]
    captions: Mapping[str, tuple[FrameCaption, ...]]

    def caption_at(self, video: str, seconds: float) -> str | None:
        """Return the caption of a video at a time; of several, that of the shortest span."""
        at = [caption for caption in self.captions.get(video, ()) if caption.span.contains(seconds)]
        return min(at, key=lambda caption: caption.span.end - caption.span.start).text if at else None


def read_moment_files(moments: Path | None, frame_captions: Path | None) -> MomentFiles:
    """Read the moments of queries and the captions of frames.

    Args:
        moments: JSON lines `{"query", "video", "start", "end"}` in seconds, optionally with the video's "duration".
            Several lines of a query are several windows of its moment.
        frame_captions: JSON lines `[video, duration in seconds, [[start, end, caption], ...]]`. The list of captions
            may be missing.

    Raises:
        UserError: A file is missing or malformed.
    """
    spans: dict[str, tuple[Span, ...]] = {}
    durations: dict[str, float] = {}
    captions: dict[str, tuple[FrameCaption, ...]] = {}
    for where, entry in json_lines(moments) if moments else ():
        try:
            query = str(entry["query"])
            spans[query] = (*spans.get(query, ()), _span(entry["start"], entry["end"]))
            if entry.get("duration") is not None:
                durations[str(entry["video"])] = _duration(entry["duration"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f'{where}: must be {{"query", "video", "start", "end"}} with times in seconds, and "duration" if known'
            ) from None
    for where, entry in json_lines(frame_captions) if frame_captions else ():
        try:
            video, duration, *rest = entry
            durations[str(video)] = _duration(duration)
            frames = rest[0] if rest else ()
            captions[str(video)] = tuple(FrameCaption(_span(start, end), str(text)) for start, end, text in frames)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{where}: must be [video, duration in seconds, [[start, end, caption], ...]] with times in seconds"
            ) from None
    return MomentFiles(spans, durations, captions)


def _span(start: object, end: object) -> Span:
    first, last = sorted((_number(start), _number(end)))  # annotators sometimes swap start and end
    return Span(first, last)


def _duration(value: object) -> float:
    seconds = _number(value)
    if seconds <= 0:
        raise ValueError("a duration must be positive")
    return seconds


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError("not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number
