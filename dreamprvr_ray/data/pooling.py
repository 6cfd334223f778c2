"""What conversion does to raw features once, so that training never does (model page, section 1).

n raw frames of a video, Lq raw tokens of a query, Dv and Dt their sizes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dreamprvr_ray.config import CLIPS, FRAMES, QUERY_TOKENS

NORM_FLOOR = 1e-5  # added to a row's norm, so that a zero row stays zero

PREPROCESSING = {
    "clips": f"means of {CLIPS} slices",
    "frames": f"as they are up to {FRAMES}, else means of {FRAMES} slices",
    "tokens": f"the first {QUERY_TOKENS}",
    "rows": f"divided by their L2 norm + {NORM_FLOOR:g}",
}  # as the manifest of the shards records it


def clips(features: np.ndarray) -> np.ndarray:
    """The clip rows (32, Dv), float32, of a video's raw frames (n, Dv), n >= 1."""
    return _normalised(_slice_means(_float32(features), CLIPS))


def frames(features: np.ndarray) -> np.ndarray:
    """The frame rows (min(n, 128), Dv), float32, of a video's raw frames (n, Dv), n >= 1."""
    features = _float32(features)
    return _normalised(features if len(features) <= FRAMES else _slice_means(features, FRAMES))


def query_tokens(features: np.ndarray) -> np.ndarray:
    """The token rows (min(Lq, 30), Dt), float32, of a query's raw tokens (Lq, Dt)."""
    return _normalised(_float32(features[:QUERY_TOKENS]))


def _float32(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, dtype=np.float32)


def _slice_means(features: np.ndarray, slices: int) -> np.ndarray:
    """Means (slices, Dv) of consecutive slices of the rows; an empty slice gives the row at which it starts.

    The last row is the end of the last slice and so, in videos of several rows a slice, in none: the authors' cutting.
    """
    count = len(features)
    cuts = np.minimum(np.round(np.arange(slices + 1) * count / slices).astype(np.int64), count - 1).tolist()
    sums = np.empty((slices, features.shape[1]), dtype=np.float32)
    sizes = np.empty((slices, 1), dtype=np.float32)
    for i, (start, stop) in enumerate(pairwise(cuts)):
        stop = max(stop, start + 1)
        # One reduction a slice: numpy's reduceat over all of them is ten times slower along this axis.
        np.add.reduce(features[start:stop], axis=0, out=sums[i])
        sizes[i] = stop - start
    return sums / sizes


def _normalised(rows: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    normalised: np.ndarray = rows / (norms + np.float32(NORM_FLOOR))[:, None]
    return normalised
