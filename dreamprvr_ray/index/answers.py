"""What a search in an index returns. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class IndexedVideo:
    """A video of an index.

    Attributes:
        id: Its id.
        file: Path of its file, relative to the index's directory of videos; None if unknown.
        duration: Its length in seconds; None if unknown.
        fps: Frames per second that were encoded; None if unknown.
    """

    id: str
    file: str | None
    duration: float | None
    fps: float | None


@dataclass(frozen=True)
class Curve:
    """How similar a sentence is along a video.

    Attributes:
        times: The middle of each frame row, in seconds of the video; as a share of its length if times are unknown.
        similarities: Of each frame row: cosines of the model and the encoder, weighted as in the score.
    """

    times: tuple[float, ...]
    similarities: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """A moment of a video.

    Attributes:
        rank: Its place in the answer, from 1.
        video: Id of the video.
        file: Path of its file, relative to the index's directory of videos; None if unknown.
        start: When the moment begins, in seconds of the video; None if times are unknown.
        end: When it ends.
        shares: Its start and end as shares of the video's length, or of the window's where times are unknown.
        score: The model's score of the video for the sentence; higher is better.
        curve: The similarities along the video, or along the window.
        window: Id of the window of a long video that answers best; the video's id if it is not cut into windows.
        duration: Length of the video in seconds; None if unknown.
    """

    rank: int
    video: str
    file: str | None
    start: float | None
    end: float | None
    shares: tuple[float, float]
    score: float
    curve: Curve
    window: str
    duration: float | None


@dataclass(frozen=True)
class Answer:
    """The best moments for a sentence.

    Attributes:
        sentence: As it was asked.
        results: The best videos, each with its best moment, the best first.
        seconds: How long the search took; of several sentences at once, all of it.
        probability: That the collection holds what the sentence describes at all; None if the index is not calibrated.
    """

    sentence: str
    results: tuple[Found, ...]
    seconds: float
    probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
