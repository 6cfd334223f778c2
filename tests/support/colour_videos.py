"""Videos that are grey except for one moment in a colour, an encoder that knows the colours' names, and their index.

The index is of the encoder alone and made in this process, so that a test needs neither a model nor Ray.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord, VideoTimes
from dreamprvr_ray.index.building import update_index
from dreamprvr_ray.index.collections import PooledVideo
from dreamprvr_ray.video.encoders.protocols import SentenceFeatures, Settings
from support.videos import write_video

HELD = "held"  # a sentence with this word is not answered by the first process that encodes it ...
HELD_BY = "DREAMPRVR_RAY_TEST_HELD_BY"  # ... which writes its id to the new file that this variable names
NAME = "support.colour_videos:ColourEncoder"
SIZE = 4
RATE = 4  # frames per second, all of which are encoded
SECONDS = 20
GREY = (128, 128, 128)
COLOURS = {
    "red": (220, 20, 30),
    "green": (30, 200, 60),
    "blue": (50, 40, 220),
    "yellow": (240, 210, 10),
    "cyan": (20, 180, 240),
    "magenta": (190, 30, 160),
}


@dataclass(frozen=True)
class Moment:
    """When a video shows its colour, in seconds."""

    start: int
    end: int


def moments() -> dict[str, Moment]:
    """Return the moment of each colour, which is that of one video."""
    return {colour: Moment(2 + 2 * number, 6 + 2 * number) for number, colour in enumerate(COLOURS)}


def write_colour_videos(directory: Path, endings: Sequence[str] = (".mp4",)) -> dict[str, Path]:
    """Write a video for each colour, `<colour>/clip.mp4` and the like, with these endings in turn."""
    paths = {}
    for number, (colour, moment) in enumerate(moments().items()):

        def shown(_: int, second: int, colour: str = colour, moment: Moment = moment) -> tuple[int, int, int]:
            return COLOURS[colour] if moment.start <= second < moment.end else GREY

        path = directory / colour / f"clip{endings[number % len(endings)]}"
        paths[colour] = write_video(path, SECONDS, rate=RATE, size=(160, 90), colour=shown)
    return paths


class ColourEncoder:
    """A `FrameEncoder` and a `SentenceEncoder`: a frame's mean colour, and the colour that a sentence names."""

    def __init__(self, device: object = None) -> None:
        self.name, self.size, self.precision = NAME, SIZE, "fp32"
        self.version: Settings = {"library": "test", "version": 1}

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([embedding(frame.reshape(-1, 3).mean(0)) for frame in frames])

    def encode_sentences(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        if any(HELD in sentence for sentence in sentences):
            with suppress(FileExistsError), open(os.environ[HELD_BY], "x") as file:
                print(os.getpid(), file=file, flush=True)
                time.sleep(600)
        rows = [embedding(np.array(next((COLOURS[word] for word in each.split() if word in COLOURS), GREY)))
                for each in sentences]  # fmt: skip
        return [SentenceFeatures(row[None], row) for row in rows]


def embedding(colour: np.ndarray) -> np.ndarray:
    """Return a colour's difference to grey, with a constant, so that grey has a direction as well."""
    return np.append((colour - 128) / 128, 0.3).astype(np.float32)


class _Videos:
    """A collection for `update_index`."""

    name, origin, dtype, video_size, text_size, one_encoder = "colours", "a test", "float16", SIZE, SIZE, True

    def __init__(self, files: dict[str, str]) -> None:
        record = EncoderRecord(NAME, SIZE, "fp32", {"library": "test", "version": 1})
        self.encoding = EncodingRecord(record, record, float(RATE))
        self._files = files
        self.ids = list(files)

    def read(self, id: str) -> PooledVideo:
        colour = self._files[id].partition("/")[0]
        moment = moments()[colour]
        rows = np.stack(
            [
                embedding(np.array(COLOURS[colour] if moment.start * RATE <= row < moment.end * RATE else GREY))
                for row in range(SECONDS * RATE)
            ]
        )
        clips, frames = pooling.clips(rows).astype(np.float16), pooling.frames(rows).astype(np.float16)
        return PooledVideo(clips, frames, VideoTimes(id, self._files[id], 0.0, float(RATE), len(rows), float(SECONDS)))


def write_index(directory: Path, videos: Path, paths: dict[str, Path]) -> Path:
    """Write an index of colour videos; a video's id is its file without the ending."""
    files = {str(path.relative_to(videos).with_suffix("")): str(path.relative_to(videos)) for path in paths.values()}
    update_index(directory, _Videos(files), None, videos_directory=videos)  # type: ignore[arg-type]
    return directory
