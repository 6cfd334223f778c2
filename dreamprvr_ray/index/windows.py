"""The encoder's score of a sentence, from the similarities of single frames (`evaluation/encoder.py`, best windows).

A window's cosine is the sum of its frames' dot products, divided by the norm of their sum. The norms are kept in an
index, so that a search compares a sentence with frames only, not with windows.

Shapes: Q queries; V videos, N frame rows of all of them, W windows of all of them; D values of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dreamprvr_ray.evaluation.encoder import WINDOWS
from dreamprvr_ray.model.scoring import MIN_NORM


def windows_of(counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the windows of `length` frame rows in a row, of videos with these numbers of frames (V,).

    They are `evaluation.encoder.window_sums`: a window begins every quarter of its length, the last one ends with the
    video, and a shorter video is one window.

    Returns:
        The first frame row (W,) of each window among those of all videos, the row after its last one (W,), and the
        number of the first window of each video (V,).
    """
    step = max(length // 4, 1)
    lengths = np.minimum(counts, length)
    last = counts - lengths
    numbers = -(-last // step) + 1
    firsts = np.cumsum(numbers) - numbers
    video = np.repeat(np.arange(len(counts)), numbers)
    place = np.arange(len(video)) - firsts[video]
    begins = np.cumsum(counts) - counts
    starts = begins[video] + np.minimum(place * step, last[video])
    return starts, starts + lengths[video], firsts


def window_norms(features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the norms (W,) float32 of the windows' sums, those of the shortest windows first: features (N, D)."""
    sums = np.concatenate([np.zeros((1, features.shape[1])), np.cumsum(features, axis=0, dtype=np.float64)])
    norms = []
    for length in WINDOWS:
        starts, stops, _ = windows_of(counts, length)
        norms.append(np.linalg.norm(sums[stops] - sums[starts], axis=1))
    result: np.ndarray = np.maximum(np.concatenate(norms), MIN_NORM).astype(np.float32)
    return result


def window_scores(products: np.ndarray, counts: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return the encoder's score (Q, V) float32.

    Args:
        products: (Q, N) dot products of sentences of length 1 with the videos' frame rows.
        counts: (V,) frame rows of each video.
        norms: (W,) of `window_norms`.
    """
    sums = np.concatenate([np.zeros((len(products), 1)), np.cumsum(products, axis=1, dtype=np.float64)], axis=1)
    scores = np.zeros((len(products), len(counts)))
    for (starts, stops, firsts), part in zip(_windows(counts), _split(norms, counts), strict=True):
        cosines = (sums[:, stops] - sums[:, starts]) / part
        scores += np.maximum.reduceat(cosines, firsts, axis=1)
    result: np.ndarray = (scores / len(WINDOWS)).astype(np.float32)
    return result


def _windows(counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return (windows_of(counts, length) for length in WINDOWS)


def _split(norms: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    sizes = [len(windows_of(counts, length)[0]) for length in WINDOWS]
    return np.split(norms, np.cumsum(sizes)[:-1])
