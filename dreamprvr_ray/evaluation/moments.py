"""Where in a video a sentence takes place: the moment in which its similarities along the video stand out.

Three ways were compared on two collections before this one was chosen (docs/lab-notes.md, 2026-11-27).
"""

from __future__ import annotations

import math

import numpy as np

from dreamprvr_ray.data.moments import Span

SMOOTHING = 2.5  # standard deviation of the Gaussian that smooths the similarities, in frame rows
THRESHOLD = 0.35  # of the way from the median similarity to the peak; what exceeds it speaks for a frame


def find_moment(similarities: np.ndarray) -> tuple[int, int]:
    """Return the frames [start, end) of the moment that similarities along a video point to.

    Args:
        similarities: (L,) of a sentence with each of the video's frame rows, finite. Their scale does not matter.

    Every frame counts by how far its smoothed similarity exceeds a threshold between the median and the peak, and the
    moment is the run of frames with the largest sum: short gaps between similar frames are bridged, and a single frame
    that resembles the sentence elsewhere is not taken in. Where all frames are alike, the moment is the whole video.

    Raises:
        ValueError: There is no frame, or a similarity is not finite.
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"similarities must be finite and of shape (L,) with L > 0, not {values.shape}")
    smooth = _smooth(values)
    median, peak = float(np.median(smooth)), float(smooth.max())
    if peak - median <= 1e-9 * max(abs(peak), 1.0):
        return 0, len(values)
    sums = np.concatenate([[0.0], np.cumsum(smooth - (median + THRESHOLD * (peak - median)))])
    # The run with the largest sum that ends before `end` starts at the lowest sum before it.
    starts = np.minimum.accumulate(sums[:-1])
    end = int((sums[1:] - starts).argmax()) + 1
    start = int(sums[:end].argmin())
    return start, end


def to_seconds(frames: tuple[int, int], count: int, duration: float) -> Span:
    """Return the time of frames [start, end) of a video of `count` frame rows, which share its duration equally."""
    return Span(frames[0] * duration / count, frames[1] * duration / count)


def to_shares(frames: tuple[int, int], count: int) -> Span:
    """Return frames [start, end) of a video of `count` frame rows as shares of its length, from 0 to 1."""
    return to_seconds(frames, count, 1.0)


def best_overlap(found: Span, windows: np.ndarray) -> float:
    """Return the IoU of a found moment with the annotated window (windows, 2) that it fits best, at least one."""
    return max(overlap(found, Span(*window)) for window in windows.tolist())


def overlap(first: Span, second: Span) -> float:
    """Return the intersection of two spans / their union (IoU), in [0, 1]; 0 if both are empty."""
    common = max(0.0, min(first.end, second.end) - max(first.start, second.start))
    union = (first.end - first.start) + (second.end - second.start) - common
    return common / union if union > 0 else 0.0


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the Gaussian average of each value's surroundings; beyond the ends there is nothing."""
    reach = math.ceil(4 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    inside = slice(reach, reach + len(values))
    smooth: np.ndarray = np.convolve(values, kernel)[inside] / np.convolve(np.ones_like(values), kernel)[inside]
    return smooth
