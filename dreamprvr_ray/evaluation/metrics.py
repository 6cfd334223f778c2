"""Records of an evaluation: recall, the metrics of a split, and what they were measured on. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dreamprvr_ray.data.overlaps import SharedCaptions
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall

RECALL_RANKS = (1, 5, 10, 100)
ENCODER = "encoder"  # the zero-shot result by the encoder's whole score


@dataclass(frozen=True)
class Recall:
    """Recall in percent at ranks 1, 5, 10 and 100, their sum, and the number of queries that they are measured on."""

    queries: int
    at: Mapping[int, float]
    sumr: float

    @classmethod
    def from_ranks(cls, ranks: np.ndarray) -> Recall:
        """Compute the recall of ranks (Q,), which count from 1. Without queries it is zero."""
        at = {k: 100 * float(np.mean(ranks <= k)) if len(ranks) else 0.0 for k in RECALL_RANKS}
        return cls(len(ranks), at, sum(at.values()))

    @classmethod
    def of_lists(cls, positions: np.ndarray, offsets: np.ndarray) -> Recall:
        """Compute the share of each query's right videos that are in the top K, averaged over the queries.

        positions (P,) count from 1; those of query q are positions[offsets[q]:offsets[q + 1]], at least one.
        """
        counts, at = np.diff(offsets), {}
        for k in RECALL_RANKS:
            found = np.add.reduceat(positions <= k, offsets[:-1], dtype=np.int64) if len(counts) else counts
            at[k] = 100 * float(np.mean(found / counts)) if len(counts) else 0.0
        return cls(len(counts), at, sum(at.values()))

    @classmethod
    def mean(cls, recalls: Sequence[Recall]) -> Recall:
        """Return the mean of recalls on the same queries, as of several seeds; at least one."""
        at = {k: float(np.mean([recall.at[k] for recall in recalls])) for k in RECALL_RANKS}
        return cls(recalls[0].queries, at, float(np.mean([recall.sumr for recall in recalls])))

    def line(self) -> str:
        """Return R@1, R@5, R@10, R@100 and SumR with one decimal."""
        percent = " ".join(f"R@{k} {value:.1f}" for k, value in self.at.items())
        return f"{percent}  SumR {self.sumr:.1f}"

    def to_dict(self) -> dict[str, float | None]:
        """Return R@1, R@5, R@10, R@100 and SumR by these names. Without queries each is None, not zero."""
        values = {f"R@{k}": value for k, value in self.at.items()} | {"SumR": self.sumr}
        return dict(values) if self.queries else dict.fromkeys(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], queries: int) -> Recall:
        """Read what `to_dict` wrote for this number of queries. A missing rank counts as zero."""
        return cls(queries, {k: values.get(f"R@{k}") or 0.0 for k in RECALL_RANKS}, values.get("SumR") or 0.0)


@dataclass(frozen=True)
class Retrieval:
    """How well the queries of a split retrieve their videos."""

    videos: int
    recall: Recall
    median_rank: float
    ties: int  # queries whose best right video has exactly the score of a wrong one
    by_moment: Mapping[str, Recall] | None  # by moment length / video length; None if no moment is known
    ranks: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Rank of each query's best right video (Q,), from 1. Not part of `to_dict`; None for a result that was read."""
    mean_rank: float | None = None  # None without queries, and for results of earlier versions
    list_recall: Recall | None = None  # share of a query's right videos in the top K; None if each query has one
    right_videos: int | None = None  # of all queries together; None if each query has one
    moments: MomentRecall | None = None  # None if no query has annotated windows, and in records of earlier versions

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics by the names of the commands' JSON output."""
        groups = None
        if self.by_moment is not None:
            groups = {name: {"queries": group.queries, **group.to_dict()} for name, group in self.by_moment.items()}
        return {
            "videos": self.videos,
            "queries": self.recall.queries,
            **self.recall.to_dict(),
            "median_rank": self.median_rank,
            **({} if self.mean_rank is None else {"mean_rank": self.mean_rank}),
            "ties": self.ties,
            "by_moment": groups,
            **({} if self.right_videos is None else {"right_videos": self.right_videos}),
            **({} if self.list_recall is None else {"list_recall": self.list_recall.to_dict()}),
            **({} if self.moments is None else {"moments": self.moments.to_dict()}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Retrieval:
        """Read what `to_dict` wrote, ignoring other keys."""
        groups = values.get("by_moment")
        median_rank, lists, queries = values.get("median_rank"), values.get("list_recall"), values.get("queries", 0)
        return cls(
            videos=values.get("videos", 0),
            recall=Recall.from_dict(values, queries),
            median_rank=float("nan") if median_rank is None else median_rank,
            ties=values.get("ties", 0),
            by_moment=groups and {name: Recall.from_dict(group, group["queries"]) for name, group in groups.items()},
            mean_rank=values.get("mean_rank"),
            list_recall=lists and Recall.from_dict(lists, queries),
            right_videos=values.get("right_videos"),
            moments=_moments(values.get("moments")),
        )


def _moments(values: Any) -> MomentRecall | None:
    return None if values is None else MomentRecall.from_dict(values)


def mean_retrieval(results: Sequence[Retrieval]) -> Retrieval:
    """Return the mean of the results on several collections, each counted once whatever its number of queries.

    Videos, queries and ties are sums. The result on a single collection is returned as it is.
    """
    if len(results) == 1:
        return results[0]
    ranks = [result.mean_rank for result in results if result.mean_rank is not None]
    at = {k: float(np.mean([result.recall.at[k] for result in results])) for k in RECALL_RANKS}
    recall = Recall(
        sum(result.recall.queries for result in results), at, float(np.mean([result.recall.sumr for result in results]))
    )
    return Retrieval(
        videos=sum(result.videos for result in results),
        recall=recall,
        median_rank=float(np.mean([result.median_rank for result in results])),
        ties=sum(result.ties for result in results),
        by_moment=None,
        mean_rank=float(np.mean(ranks)) if len(ranks) == len(results) else None,
        moments=MomentRecall.mean([result.moments for result in results]),
    )


@dataclass(frozen=True)
class Reading:
    """When and where a checkpoint was evaluated on test."""

    at: str  # ISO 8601, UTC
    shards: str  # directory
    number: int  # of this checkpoint's evaluations on test of this collection, from 1


@dataclass(frozen=True)
class TrainingOverlap:
    """What an evaluated split shares with a split that the model was trained on or chosen by."""

    collection: str  # of the training
    split: str  # train or val
    videos: int  # of the evaluated split
    queries: int  # of the evaluated split, by id or by video and sentence

    @classmethod
    def of(cls, shared: SharedCaptions) -> TrainingOverlap:
        """Return the counts of what two splits share."""
        return cls(shared.first_collection, shared.first, len(shared.videos), len(shared.queries))


@dataclass(frozen=True)
class Evaluation:
    """The retrieval of a checkpoint on a split."""

    split: str
    collection: str
    protocol: str
    retrieval: Retrieval
    reading: Reading | None = None  # of test; None for other splits and for files of the authors' release
    zero_shot: Mapping[str, Recall] | None = None  # by the encoder without a model; None if there is not one encoder
    shared_with_training: tuple[TrainingOverlap, ...] | None = None  # None if it was not compared
    zero_shot_moments: MomentRecall | None = None  # by the encoder's whole score

    @property
    def best_zero_shot(self) -> tuple[str, Recall] | None:
        """The best result by the encoder alone, with its name."""
        return max(self.zero_shot.items(), key=lambda item: item[1].sumr) if self.zero_shot else None

    def to_dict(self) -> dict[str, Any]:
        """Return the record in `test.json`, which is also the commands' JSON output."""
        result: dict[str, Any] = {"split": self.split, "collection": self.collection, "protocol": self.protocol}
        result |= self.retrieval.to_dict()
        if self.zero_shot is not None:
            result["zero_shot"] = {name: recall.to_dict() for name, recall in self.zero_shot.items()}
        if self.zero_shot_moments is not None:
            result["zero_shot_moments"] = self.zero_shot_moments.to_dict()
        if self.shared_with_training is not None:
            result["shared_with_training"] = [asdict(overlap) for overlap in self.shared_with_training]
        if self.reading is None:
            return result
        return {"at": self.reading.at, "shards": self.reading.shards, **result, "test_reads": self.reading.number}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` wrote. Texts that are missing are empty."""
        reading = None
        if "test_reads" in values:
            reading = Reading(values.get("at", ""), values.get("shards", ""), values["test_reads"])
        split, collection, protocol = (values.get(key, "") for key in ("split", "collection", "protocol"))
        retrieval, encoder = Retrieval.from_dict(values), values.get("zero_shot")
        if encoder is not None:
            encoder = {name: Recall.from_dict(recall, retrieval.recall.queries) for name, recall in encoder.items()}
        shared = values.get("shared_with_training")
        if shared is not None:
            shared = tuple(TrainingOverlap(**overlap) for overlap in shared)
        moments = _moments(values.get("zero_shot_moments"))
        return cls(split, collection, protocol, retrieval, reading, encoder, shared, moments)

    def lines(self) -> list[str]:
        """Return a summary for people."""
        retrieval, recall = self.retrieval, self.retrieval.recall
        mean = "" if retrieval.mean_rank is None else f"  mean rank {retrieval.mean_rank:.1f}"
        lines = [
            f"{self.split} of {self.collection} (protocol: {self.protocol}):"
            f" {recall.queries} queries, {retrieval.videos} videos",
            f"  {recall.line()}  median rank {retrieval.median_rank:g}{mean}",
        ]
        if retrieval.list_recall is not None and retrieval.right_videos is not None and recall.queries:
            per_query = retrieval.right_videos / recall.queries
            lines.append(f"  all right videos ({per_query:.1f} per query): {retrieval.list_recall.line()}")
        for name, group in (retrieval.by_moment or {}).items():
            if group.queries:
                lines.append(f"  moment/video {name}: {group.line()} ({group.queries} queries)")
        if retrieval.moments is not None:
            lines += [f"  {line}" for line in retrieval.moments.lines()]
        if self.zero_shot_moments is not None:
            lines += [f"  zero-shot, {line}" for line in self.zero_shot_moments.lines()]
        if retrieval.ties > recall.queries / 100:
            lines.append(
                f"  warning: {retrieval.ties} queries score a wrong video exactly as high as a right one;"
                " ties count against them"
            )
        if self.zero_shot and self.best_zero_shot:
            lines.append(zero_shot_line(self.zero_shot))
            if warning := below_zero_shot(recall.sumr, self.best_zero_shot):
                lines.append(warning)
        if self.reading and self.reading.number > 1:
            lines.append(
                f"  note: this model has been evaluated on test {self.reading.number} times; do not use test to"
                " choose between models"
            )
        return lines


def mean_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the mean of evaluations on several collections, as `mean_retrieval`; that on a single one as it is."""
    if len(evaluations) == 1:
        return evaluations[0]
    protocols = {each.protocol for each in evaluations}
    return Evaluation(
        split=evaluations[0].split,
        collection=" + ".join(each.collection for each in evaluations),
        protocol=(
            protocols.pop()
            if len(protocols) == 1
            else "; ".join(f"{each.collection}: {each.protocol}" for each in evaluations)
        ),
        retrieval=mean_retrieval([each.retrieval for each in evaluations]),
        zero_shot=mean_zero_shot([each.zero_shot for each in evaluations]),
        zero_shot_moments=MomentRecall.mean([each.zero_shot_moments for each in evaluations]),
    )


def mean_zero_shot(results: Sequence[Mapping[str, Recall] | None]) -> dict[str, Recall] | None:
    """Return the means of the encoder's results over several collections; None if one of them has none."""
    known = [each for each in results if each is not None]
    if len(known) < len(results):
        return None
    return {name: Recall.mean([each[name] for each in known if name in each]) for name in known[0]}


def table_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a table of evaluations on several collections, and their mean."""
    heads = ["", *(f"R@{k}" for k in RECALL_RANKS), "SumR", "median rank", "queries", "videos", "protocol"]
    rows = [heads]
    for each in evaluations:
        size = [f"{each.retrieval.recall.queries:,}", f"{each.retrieval.videos:,}"]
        rows.append([f"{each.split} of {each.collection}", *_cells(each.retrieval), *size, each.protocol])
        rows += _encoder_row(each)
    mean = mean_evaluation(evaluations)
    rows += [["mean", *_cells(mean.retrieval)], *_encoder_row(mean)]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(heads))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, len(heads) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cells(retrieval: Retrieval) -> list[str]:
    return [*_recall_cells(retrieval.recall), f"{retrieval.median_rank:g}"]


def _recall_cells(recall: Recall) -> list[str]:
    return [*(f"{recall.at[k]:.1f}" for k in RECALL_RANKS), f"{recall.sumr:.1f}"]


def _encoder_row(evaluation: Evaluation) -> list[list[str]]:
    """Return the row of the encoder alone, with a warning if the model is below it; none for other features."""
    best = evaluation.best_zero_shot
    if best is None:
        return []
    below = below_zero_shot(evaluation.retrieval.recall.sumr, best)
    name, recall = best
    return [[f"  encoder alone ({name})", *_recall_cells(recall), *(["", "", "", below.strip()] if below else [])]]


def zero_shot_line(results: Mapping[str, Recall]) -> str:
    """Return the SumR of the encoder alone, by each of its comparisons, as a line."""
    return "  zero-shot SumR: " + ", ".join(f"{name} {recall.sumr:.1f}" for name, recall in results.items())


def below_zero_shot(sumr: float, best: tuple[str, Recall]) -> str | None:
    """Return a warning if a model's SumR is below the best result of the encoder alone."""
    name, recall = best
    if sumr >= recall.sumr:
        return None
    how = "" if name == ENCODER else f" ({name})"
    return f"  warning: the model is below the encoder alone: SumR {sumr:.1f} against {recall.sumr:.1f}{how}"
