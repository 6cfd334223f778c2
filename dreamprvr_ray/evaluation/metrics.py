"""The retrieval metrics of a split: recall, median rank and ties, as records. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECALL_RANKS = (1, 5, 10, 100)


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
    ties: int  # queries whose video has exactly the score of another one
    by_moment: Mapping[str, Recall] | None  # by moment length / video length; None if no moment is known
    ranks: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Rank of each query's video (Q,), from 1. It is not part of `to_dict`; None for a result that was read."""

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
            "ties": self.ties,
            "by_moment": groups,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Retrieval:
        """Read what `to_dict` wrote, ignoring other keys."""
        groups = values.get("by_moment")
        median_rank = values.get("median_rank")
        return cls(
            videos=values.get("videos", 0),
            recall=Recall.from_dict(values, values.get("queries", 0)),
            median_rank=float("nan") if median_rank is None else median_rank,
            ties=values.get("ties", 0),
            by_moment=groups and {name: Recall.from_dict(group, group["queries"]) for name, group in groups.items()},
        )
