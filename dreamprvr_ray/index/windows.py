"""The encoder's score of a sentence, from the similarities of single frames (`evaluation/encoder.py`, best windows).

A window's cosine is the sum of its frames' dot products, divided by the norm of their sum. The norms are kept in an
index, so that a search compares a sentence with frames only, not with windows.

Shapes: Q queries; V videos, N frame rows of all of them, W windows of all of them; D values of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamprvr_ray.evaluation.encoder import WINDOWS
from dreamprvr_ray.model.scoring import MIN_NORM

_BLOCK = 16  # videos whose sums are computed together, in the cache
_STEPS = np.maximum(np.array(WINDOWS) // 4, 1)  # from one window to the next


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of some videos, video by video and, of a video, length by length.

    Attributes:
        starts: (W,) the first frame row of each window, among those of all videos.
        stops: (W,) the row after its last one.
        groups: (V * 4,) the first window of each length of each video.
    """

    starts: np.ndarray
    stops: np.ndarray
    groups: np.ndarray


def windows_of(counts: np.ndarray) -> Windows:
    """Return the windows of videos with these numbers of frame rows (V,): those of `evaluation.encoder.window_sums`.

    A window begins every quarter of its length, the last one ends with the video, and a shorter video is one window.
    """
    lengths = np.minimum(counts[:, None], WINDOWS)  # (V, 4)
    last = counts[:, None] - lengths
    numbers = window_numbers(counts)
    groups = np.cumsum(numbers.ravel()) - numbers.ravel()
    group = np.repeat(np.arange(numbers.size), numbers.ravel())
    places = (np.arange(len(group)) - groups[group]) * np.broadcast_to(_STEPS, numbers.shape).ravel()[group]
    begins = np.repeat(np.cumsum(counts) - counts, len(WINDOWS))
    starts = begins[group] + np.minimum(places, last.ravel()[group])
    stops = starts + lengths.ravel()[group]
    return Windows(starts.astype(np.int32), stops.astype(np.int32), groups)


def window_numbers(counts: np.ndarray) -> np.ndarray:
    """Return how many windows of each length (V, 4) videos with these numbers of frame rows (V,) have."""
    last = counts[:, None] - np.minimum(counts[:, None], WINDOWS)
    numbers: np.ndarray = -(-last // _STEPS) + 1
    return numbers


def window_norms(features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the norms (W,) float32 of the sums of the windows' frame rows: features (N, D), counts (V,)."""
    norms, first = [np.zeros(0)], 0
    for start in range(0, len(counts), _BLOCK):
        own = counts[start : start + _BLOCK]
        windows, sums = windows_of(own), np.zeros((1 + int(own.sum()), features.shape[1]))
        np.cumsum(features[first : first + len(sums) - 1], axis=0, dtype=np.float64, out=sums[1:])
        norms.append(np.linalg.norm(sums[windows.stops] - sums[windows.starts], axis=1))
        first += len(sums) - 1
    result: np.ndarray = np.maximum(np.concatenate(norms), MIN_NORM).astype(np.float32)
    return result


def window_scores(products: np.ndarray, windows: Windows, norms: np.ndarray) -> np.ndarray:
    """Return the encoder's score (Q, V) float32.

    Args:
        products: (Q, N) dot products of sentences of length 1 with the videos' frame rows.
        windows: Of the videos.
        norms: (W,) of `window_norms`.
    """
    sums = np.zeros((len(products), 1 + products.shape[1]))
    # In float64: the windows of two equal videos must tie.
    np.cumsum(products, axis=1, dtype=np.float64, out=sums[:, 1:])
    cosines = (sums[:, windows.stops] - sums[:, windows.starts]) / norms
    best = np.maximum.reduceat(cosines, windows.groups, axis=1).reshape(len(products), -1, len(WINDOWS))
    scores: np.ndarray = best.mean(2).astype(np.float32)
    return scores
