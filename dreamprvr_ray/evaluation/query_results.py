"""The result of each query of an evaluation, and the file of them that `evaluate --queries` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.errors import Failure, NotWritableError, UserError
from dreamprvr_ray.evaluation.ranks import BestVideos, Ranks
from dreamprvr_ray.storage.files import replacing_file, writing

TOP = 5  # videos listed for each query


@dataclass(frozen=True)
class ScoredVideo:
    """A video and its score for a query."""

    video: str
    score: float


@dataclass(frozen=True)
class QueryResult:
    """How a query retrieved its video."""

    query: str  # id
    sentence: str
    video: str  # id of the query's own video
    rank: int  # of its best right video, from 1; ties count against it
    top: tuple[ScoredVideo, ...]  # the videos with the highest scores, best first
    right_videos: tuple[str, ...] | None = None  # ids, its own first; None if each query of the split has one

    def to_dict(self) -> dict[str, Any]:
        """Return one line of the file, before it is written as JSON."""
        values = asdict(self)
        if self.right_videos is None:
            del values["right_videos"]
        return values


def query_results(split: Split, ranks: Ranks, best: BestVideos) -> Iterator[QueryResult]:
    """Yield the result of each query of a split, in its order."""
    rows = zip(
        split.queries,
        split.captions,
        split.owner.tolist(),
        ranks.rank.tolist(),
        best.videos.tolist(),
        best.scores.tolist(),
        strict=True,
    )
    videos, several = split.videos, split.right_videos
    for number, (query, sentence, own, rank, indices, values) in enumerate(rows):
        top = tuple(ScoredVideo(videos[index], value) for index, value in zip(indices, values, strict=True))
        right = None
        if several is not None:
            offsets, numbers = several
            right = tuple(videos[video] for video in numbers[offsets[number] : offsets[number + 1]])
        yield QueryResult(query, sentence, videos[own], rank, top, right)


def check_new_file(path: Path) -> None:
    """Raise `UserError` or `NotWritableError` if a file exists already or cannot be created.

    Call it before an evaluation on test: the reading counts even if its results cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: already exists; choose another --queries")
    with writing(path):
        path.touch()
        path.unlink()


def write_query_results(path: Path, results: Sequence[QueryResult]) -> None:
    """Write one line of JSON per query, atomically. Raises `Failure` if the disk is full."""
    try:
        with writing(path), replacing_file(path) as partial:
            partial.write_text("".join(json.dumps(result.to_dict()) + "\n" for result in results), encoding="utf-8")
    except NotWritableError:
        raise
    except OSError as error:
        raise Failure(f"{path}: cannot be written: {error.strerror}") from None
