"""How a collection's features were made from videos and sentences, and which seconds of a video its rows show.

    encoding.json         in a source: the encoders of frames and sentences, and the frames per second
    video_times.jsonl     in a source, a line for each video or window of a video:
                          {"video", "source", "file", "start", "fps", "frames", "duration"}

`extract` writes both. From there they are kept in the shards, and the encoders also in checkpoints and exported models:
whoever has one can encode a new video or sentence. Sources without them remain valid. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.captions import json_lines
from dreamprvr_ray.data.moments import Span
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import read_json

ENCODING = "encoding.json"
VIDEO_TIMES = "video_times.jsonl"
KEY = "encoding"  # in `metrics.json` of a checkpoint
SEARCH = "search"  # the split of videos without captions, which can be searched only

Plain = str | int | float | bool


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder of frames or sentences.

    Attributes:
        name: As `extract --encoder` accepts it.
        size: Values of an embedding.
        precision: What it computed in, such as fp32.
        version: Its library, versions, a hash of its weights, and settings.
    """

    name: str
    size: int
    precision: str
    version: Mapping[str, Plain]

    def differences(self, now: EncoderRecord) -> list[str]:
        """Return in words how another encoder differs, one difference each."""
        old, new = ({"name": each.name, "size": each.size, **each.version} for each in (self, now))
        return [
            f"{key}: {old.get(key)} before, {new.get(key)} now"
            for key in dict.fromkeys((*old, *new))
            if old.get(key) != new.get(key)
        ]


@dataclass(frozen=True)
class EncodingRecord:
    """How a collection was encoded.

    Attributes:
        frames: The encoder of frames.
        sentences: That of sentences; None if the collection has no captions and none was chosen.
        fps: Frames per second of video.
        window: Length in seconds of the windows that long videos were cut into; None if they were not.
        overlap: Seconds that two such windows share.
    """

    frames: EncoderRecord
    sentences: EncoderRecord | None
    fps: float
    window: float | None = None
    overlap: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> EncodingRecord:
        """Read what `to_dict` wrote. Raises ValueError if it is not such a record."""
        try:
            frames, sentences = values["frames"], values["sentences"]
            record = cls(
                _encoder(frames),
                None if sentences is None else _encoder(sentences),
                float(values["fps"]),
                *(None if values.get(name) is None else float(values[name]) for name in ("window", "overlap")),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a record of an encoding: {first_line(error)}") from None
        if not 0 < record.fps < math.inf:
            raise ValueError("not a record of an encoding: fps must be positive")
        return record

    def describe(self) -> str:
        """Return in a line how to encode a new video and a new sentence."""
        sentences = "" if self.sentences is None else f", sentences by {self.sentences.name}"
        return f"{self.fps:g} frames per second, encoded by {self.frames.name}{sentences}"


def _encoder(values: Mapping[str, Any]) -> EncoderRecord:
    record = EncoderRecord(
        str(values["name"]), int(values["size"]), str(values["precision"]), dict(values["version"].items())
    )
    if not all(isinstance(value, str | int | float | bool) for value in record.version.values()):
        raise ValueError("version must hold plain values")
    return record


@dataclass(frozen=True)
class VideoTimes:
    """Which seconds of a video the rows of a collection's video or window show.

    Attributes:
        source: Id of the video that it is or that it is a window of.
        file: The video's file, relative to the directory of videos; empty if unknown.
        start: The time of the first raw frame in the video, in seconds.
        fps: Raw frames per second.
        frames: Number of raw frames, before pooling.
        duration: Length of the whole video in seconds.
    """

    source: str
    file: str
    start: float
    fps: float
    frames: int
    duration: float

    def __post_init__(self) -> None:
        numbers = (self.start, self.fps, self.duration)
        if not all(math.isfinite(number) for number in numbers) or self.start < 0 or self.fps <= 0 or self.frames < 1:
            raise ValueError("start must be at least 0, fps above 0 and frames at least 1")

    @property
    def end(self) -> float:
        """When the last raw frame ends, in seconds of the video."""
        return self.start + self.frames / self.fps

    def clip(self, number: int) -> Span:
        """Return the seconds of the video that a clip row shows, 0 to 31."""
        return self._span(*pooling.slice_bounds(self.frames, CLIPS)[number])

    def frame(self, number: int) -> Span:
        """Return the seconds of the video that a frame row shows, of at most 128."""
        if self.frames <= FRAMES:
            return self._span(number, number + 1)
        return self._span(*pooling.slice_bounds(self.frames, FRAMES)[number])

    def _span(self, first: int, stop: int) -> Span:
        return Span(self.start + first / self.fps, self.start + stop / self.fps)


def read_encoding(path: Path) -> EncodingRecord:
    """Read an `encoding.json`. Raises `UserError` if it is missing or damaged."""
    try:
        return EncodingRecord.from_dict(read_json(path))
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None


def read_video_times(path: Path) -> dict[str, VideoTimes]:
    """Read a `video_times.jsonl`, by the ids of videos. Raises `UserError` by line if it is malformed."""
    times: dict[str, VideoTimes] = {}
    for where, entry in json_lines(path):
        try:
            video = str(entry["video"])
            start, fps, duration = (float(entry[name]) for name in ("start", "fps", "duration"))
            read = VideoTimes(
                str(entry.get("source", video)), str(entry.get("file", "")), start, fps, int(entry["frames"]), duration
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f'{where}: must be {{"video", "start", "fps", "frames", "duration"}} with times in seconds, and'
                ' optionally "source" and "file"'
            ) from None
        if video in times:
            raise UserError(f"{where}: video '{video}' is listed twice")
        times[video] = read
    return times


def format_video_times(times: Iterable[tuple[str, VideoTimes]]) -> str:
    """Return the content of a `video_times.jsonl`."""
    return "".join(json.dumps({"video": video} | asdict(each), ensure_ascii=False) + "\n" for video, each in times)
