"""Where in a video a sentence takes place: the moment in which its similarities along the video stand out.

Several ways were compared before this one was chosen (docs/lab-notes.md, 2026-11-27).
"""

from __future__ import annotations

import numpy as np

from dreamprvr_ray.data.moments import Span
from dreamprvr_ray.model.moment_network import MomentNetwork, smoothed

SMOOTHING = 1.5  # standard deviation of the Gaussian that smooths the similarities, in frame rows
SLOPE, MIDPOINT = 5.0, 0.55  # of the logistic function of a frame's height, from the median (0) to the peak (1)


def find_moment(similarities: np.ndarray, network: MomentNetwork | None = None) -> tuple[int, int]:
    """Return the frames [start, end) of the moment that similarities along a video point to.

    Args:
        similarities: (L,) of a sentence with each of the video's frame rows, finite. Their scale does not matter.
        network: That of a model which learned from annotated windows.

    Each frame has a chance of being in the moment: the network's or, without one, a logistic function of how high its
    smoothed similarity is between the median and the peak. The moment is the run of frames with the largest expected
    overlap: the chances inside, divided by the length of the run and the chances outside. So short gaps between similar
    frames are bridged, and a single frame that resembles the sentence elsewhere is not taken in. Where all frames are
    alike, the moment is the whole video.

    Raises:
        ValueError: There is no frame, or a similarity is not finite.
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"similarities must be finite and of shape (L,) with L > 0, not {values.shape}")
    heights = heights_of(values)
    if heights is None:
        return 0, len(values)
    if network is None:
        return _largest_overlap(1 / (1 + np.exp(-SLOPE * (heights - MIDPOINT))))
    return _largest_overlap(network.chances(values))


def heights_of(similarities: np.ndarray) -> np.ndarray | None:
    """Return how high smoothed similarities (L,) are, from their median (0) to their peak (1).

    None without a peak: at least half of the frames are as similar as the most similar one.
    """
    smooth = smoothed(similarities, SMOOTHING)
    median, peak = float(np.median(smooth)), float(smooth.max())
    if peak - median <= 1e-9 * max(abs(peak), 1.0):
        return None
    heights: np.ndarray = (smooth - median) / (peak - median)
    return heights


def _largest_overlap(chances: np.ndarray) -> tuple[int, int]:
    """Return the run of frames [start, end) with the largest expected overlap by the frames' chances (L,)."""
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    starts, ends = np.triu_indices(len(sums), 1)
    inside = sums[ends] - sums[starts]
    best = int((inside / (ends - starts + sums[-1] - inside)).argmax())
    return int(starts[best]), int(ends[best])


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
