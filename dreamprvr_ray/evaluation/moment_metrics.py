"""How well the moments of queries are found, as recorded and shown. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OVERLAPS = (0.3, 0.5, 0.7)  # least IoU of a found moment with an annotated one, as the field reports it


@dataclass(frozen=True)
class MomentRecall:
    """How often the moments of queries are found, in percent of the queries whose annotated windows are known.

    The IoU (intersection over union) is that of the moment found in the query's own video with the annotated window
    that it fits best.

    Attributes:
        queries: Queries with known windows, at least 1.
        mean_iou: Their mean IoU, 0 to 1.
        found: By least IoU, how often the moment is found, whatever the rank of the video.
        first: By least IoU, how often the moment is found and the query's own video alone is at rank 1.
    """

    queries: int
    mean_iou: float
    found: Mapping[float, float]
    first: Mapping[float, float]

    @classmethod
    def of(cls, overlaps: np.ndarray, is_first: np.ndarray) -> MomentRecall | None:
        """Return the result of queries with these IoUs (Q,), whose own video is at rank 1 or not (Q,), bool.

        None without queries.
        """
        if not len(overlaps):
            return None
        found = {least: 100 * float(np.mean(reaches(overlaps, least))) for least in OVERLAPS}
        first = {least: 100 * float(np.mean(reaches(overlaps, least) & is_first)) for least in OVERLAPS}
        return cls(len(overlaps), float(overlaps.mean()), found, first)

    @classmethod
    def mean(cls, results: Sequence[MomentRecall | None]) -> MomentRecall | None:
        """Return the mean of several results, as of seeds or collections, which count equally.

        None if there are none, or if one of them is None.
        """
        known = [result for result in results if result is not None]
        if not known or len(known) < len(results):
            return None
        return cls(
            round(float(np.mean([result.queries for result in known]))),
            float(np.mean([result.mean_iou for result in known])),
            {least: float(np.mean([result.found[least] for result in known])) for least in OVERLAPS},
            {least: float(np.mean([result.first[least] for result in known])) for least in OVERLAPS},
        )

    def lines(self) -> list[str]:
        """Return the percentages with one decimal, as two lines."""
        return [
            f"moment found in the right video ({self.queries} queries): {_percentages(self.found)}"
            f"  mean IoU {self.mean_iou:.2f}",
            f"R@1 of video and moment: {_percentages(self.first)}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by the names of the commands' JSON output."""
        return {
            "queries": self.queries,
            "mean_IoU": self.mean_iou,
            **{f"IoU>={least:g}": value for least, value in self.found.items()},
            **{f"R@1, IoU>={least:g}": value for least, value in self.first.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MomentRecall:
        """Read what `to_dict` wrote. Raises KeyError, TypeError or ValueError if it is damaged."""
        return cls(
            int(values["queries"]),
            float(values["mean_IoU"]),
            {least: float(values[f"IoU>={least:g}"]) for least in OVERLAPS},
            {least: float(values[f"R@1, IoU>={least:g}"]) for least in OVERLAPS},
        )


def reaches(overlaps: np.ndarray, least: float) -> np.ndarray:
    """Return which IoUs are at least `least`; one that rounding alone puts below it is.

    Frames and annotators' windows often share a grid of seconds, so that an IoU of exactly 1/2 is common.
    """
    reached: np.ndarray = overlaps >= least - 1e-9
    return reached


def _percentages(values: Mapping[float, float]) -> str:
    return "  ".join(f"IoU>={least:g} {value:.1f}" for least, value in values.items())
