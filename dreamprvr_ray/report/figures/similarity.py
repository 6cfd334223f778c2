"""Similarity of a query along a video (figures 1 and 5 of the paper), and how often its peak is in the moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from dreamprvr_ray.data.moments import MomentFiles, Span
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation.curves import QueryVectors, VideoRows, similarity_curves
from dreamprvr_ray.evaluation.moment_metrics import OVERLAPS, reaches
from dreamprvr_ray.evaluation.moments import find_moment, overlap, to_seconds
from dreamprvr_ray.evaluation.score_blocks import VIDEO_BLOCK
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.report.figures.embedders import Embedder

TOP = 3  # videos listed for a query


@dataclass(frozen=True)
class CurveSource:
    """What gives a curve: a model, the encoder, or both with the weights that they have in the score."""

    label: str  # what charts call it
    weights: ScoreWeights
    model: Embedder | None = None
    encoder: Embedder | None = None
    moments: MomentNetwork | None = None  # finds the moments in the curves, if the model learned to


@dataclass(frozen=True, eq=False)
class Curve:
    """The cosines (frames,) of a query with the frames of a video, in float32."""

    label: str  # of its source
    cosines: np.ndarray
    moments: MomentNetwork | None = None  # of its source

    @property
    def peak(self) -> int:
        """The number of the frame with the highest cosine; the first of several."""
        return int(self.cosines.argmax())


@dataclass(frozen=True)
class Timeline:
    """The times of a video's frames. A frame row stands for an equal part of the video."""

    frames: int
    duration: float | None  # in seconds, if known

    def at(self, frame: int) -> float:
        """Return the middle of a frame's part: in seconds or, if the duration is not known, its number from 1."""
        return frame + 1 if self.duration is None else (frame + 0.5) * self.duration / self.frames

    def describe(self, frame: int) -> str:
        """Return where a frame is, as text."""
        return f"frame {frame + 1}" if self.duration is None else f"{self.at(frame):.1f} s"

    @property
    def times(self) -> np.ndarray:
        """The times (frames,) of all frames, as `at` returns them."""
        return np.array([self.at(frame) for frame in range(self.frames)])

    def found(self, curve: Curve) -> Span:
        """Return the moment that a curve points to; in frames from 0 if the duration is not known."""
        length = float(self.frames) if self.duration is None else self.duration
        return to_seconds(find_moment(curve.cosines, curve.moments), self.frames, length)

    def inside(self, spans: Sequence[Span]) -> np.ndarray:
        """Return which frames (frames,) have their middle in one of the spans; none if the duration is not known."""
        inside = np.zeros(self.frames, dtype=bool)
        for span in spans if self.duration is not None else ():
            inside |= (self.times >= span.start) & (self.times <= span.end)
        return inside


@dataclass(frozen=True)
class RetrievedVideo:
    """A video with one of the highest scores for a query, and where in it the model finds the query."""

    video: str
    score: float
    is_right: bool
    timeline: Timeline
    peak: int  # frame
    caption: str | None  # what this frame shows, if known


@dataclass(frozen=True, eq=False)
class QueryExample:
    """A query, its curves along its own video, and the videos that the model retrieves."""

    query: str  # id
    sentence: str
    video: str  # id
    rank: int  # of the best right video, from 1
    timeline: Timeline
    curves: tuple[Curve, ...]  # the model's first
    moment: tuple[Span, ...]  # its annotated windows; empty if unknown
    captions: tuple[str | None, ...]  # (frames,) what each frame of its own video shows, if known
    top: tuple[RetrievedVideo, ...]
    scored: int = 0  # the place of the curve with the score's weights, in which a search finds the moment


@dataclass(frozen=True)
class Localisation:
    """How well the similarity along the queries' own videos shows where the annotated moments are.

    Attributes:
        label: Of the source of the curves.
        inside: In how many queries the most similar frame is inside the moment.
        queries: Queries with a known moment.
        chance: How many would be inside, with a frame drawn at random.
        overlaps: (queries,) intersection over union (IoU) of the moment that `find_moment` finds and the annotated
            window that it fits best.
    """

    label: str
    inside: int
    queries: int
    chance: float
    overlaps: tuple[float, ...]

    def overlapping(self, least: float) -> int:
        """Return in how many queries the found moment has at least this IoU with the annotated one."""
        return int(reaches(np.array(self.overlaps), least).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by the names of the command's JSON output."""
        shares = {f"IoU>={least:g}": 100 * self.overlapping(least) / self.queries for least in OVERLAPS}
        return {
            "label": self.label, "inside": self.inside, "queries": self.queries, "chance": self.chance,
            "mean_IoU": fmean(self.overlaps), **shares,
        }  # fmt: skip


def curves_of(source: CurveSource, split: Split, pairs: Sequence[tuple[int, int]]) -> list[Curve]:
    """Return the curve of each pair of a query and a video."""
    numbers = np.array([query for query, _ in pairs], dtype=np.int64)
    videos, place = np.unique(np.array([video for _, video in pairs], dtype=np.int64), return_inverse=True)
    models, encoders = (
        _embedded(source.model, split, numbers, videos),
        _embedded(source.encoder, split, numbers, videos),
    )
    curves = []
    for number, video in enumerate(place.tolist()):
        (query, frames), (sentence, features) = models(number, video), encoders(number, video)
        curve = similarity_curves(QueryVectors(query, sentence), VideoRows(None, frames, features), source.weights)
        curves.append(Curve(source.label, curve[0].numpy(), source.moments))
    return curves


def _embedded(
    embedder: Embedder | None, split: Split, queries: np.ndarray, videos: np.ndarray
) -> Callable[[int, int], tuple[Tensor | None, Tensor | None]]:
    """Return a function that gives a query's embedding (1, D) and a video's frames (L, D) by their places here."""
    if embedder is None:
        return lambda query, video: (None, None)
    embeddings, frames = embedder.queries(split, queries), embedder.frames(split, videos)
    return lambda query, video: (embeddings[query : query + 1], frames[video])


def timeline_of(split: Split, files: MomentFiles, video: int) -> Timeline:
    """Return the times of a video's frames."""
    return Timeline(int(split.frame_counts[video]), files.durations.get(split.videos[video]))


def query_examples(
    sources: Sequence[CurveSource],
    split: Split,
    files: MomentFiles,
    queries: Sequence[int],
    scores: Tensor,
    ranks: Tensor,
    scored: int,
) -> list[QueryExample]:
    """Return examples of these queries. `sources` starts with the model.

    `scores` (Q, V) are the model's, `ranks` (Q,) those of each query's best right video; `scored` is the place of the
    source with the score's weights.
    """
    owners = split.owner[list(queries)].tolist()
    own = [curves_of(source, split, list(zip(queries, owners, strict=True))) for source in sources]
    best = scores[list(queries)].cpu().topk(min(TOP, scores.shape[1]))
    pairs = [(query, video) for query, videos in zip(queries, best.indices.tolist(), strict=True) for video in videos]
    found = iter(curves_of(sources[0], split, pairs))
    examples = []
    for place, (query, owner) in enumerate(zip(queries, owners, strict=True)):
        timeline, video = timeline_of(split, files, owner), split.videos[owner]
        right = right_videos(split, query)
        top = tuple(
            _retrieved(split, files, number, score, number in right, next(found))
            for number, score in zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
        )
        examples.append(
            QueryExample(
                split.queries[query],
                split.captions[query],
                video,
                int(ranks[query]),
                timeline,
                tuple(curves[place] for curves in own),
                files.spans.get(split.queries[query], ()),
                tuple(_caption(files, video, timeline, frame) for frame in range(timeline.frames)),
                top,
                scored,
            )
        )
    return examples


def right_videos(split: Split, query: int) -> set[int]:
    """Return the numbers of a query's right videos."""
    if split.right_videos is None:
        return {int(split.owner[query])}
    offsets, numbers = split.right_videos
    return set(numbers[offsets[query] : offsets[query + 1]].tolist())


def _retrieved(
    split: Split, files: MomentFiles, number: int, score: float, is_right: bool, curve: Curve
) -> RetrievedVideo:
    video, timeline = split.videos[number], timeline_of(split, files, number)
    caption = _caption(files, video, timeline, curve.peak)
    return RetrievedVideo(video, score, is_right, timeline, curve.peak, caption)


def _caption(files: MomentFiles, video: str, timeline: Timeline, frame: int) -> str | None:
    return None if timeline.duration is None else files.caption_at(video, timeline.at(frame))


def queries_with_moment(split: Split, files: MomentFiles) -> list[int]:
    """Return the numbers of the queries whose moment is known, in a video of known length."""
    return [
        number
        for number, query in enumerate(split.queries)
        if query in files.spans and split.videos[split.owner[number]] in files.durations
    ]


def localisation(source: CurveSource, split: Split, files: MomentFiles) -> Localisation | None:
    """Compare curves with the annotated moments; None if no query has a moment in a video of known length."""
    known = queries_with_moment(split, files)
    if not known:
        return None
    inside, chance, overlaps = 0, 0.0, []
    for query, curve in _own_curves(source, split, known):
        timeline = timeline_of(split, files, int(split.owner[query]))
        moment = files.spans[split.queries[query]]
        is_inside = timeline.inside(moment)
        inside += bool(is_inside[curve.peak])
        chance += float(is_inside.mean())
        found = timeline.found(curve)
        overlaps.append(max(overlap(found, span) for span in moment))
    return Localisation(source.label, inside, len(known), chance, tuple(overlaps))


def _own_curves(source: CurveSource, split: Split, queries: Sequence[int]) -> Iterator[tuple[int, Curve]]:
    """Yield each query with the curve along its own video, a few videos at a time."""
    owners = split.owner[list(queries)].tolist()
    pairs = list(zip(queries, owners, strict=True))
    for start in range(0, len(pairs), VIDEO_BLOCK):
        block = pairs[start : start + VIDEO_BLOCK]
        yield from zip([query for query, _ in block], curves_of(source, split, block), strict=True)
