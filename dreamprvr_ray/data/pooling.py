"""Pooling and normalising raw features, once, at conversion (docs/model.md, section 1). Imports no torch.

Shapes: n raw frames of a video, Lq raw tokens of a query; Dv and Dt values per frame and token.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS

LARGEST_FLOAT32 = 1e15  # beyond it sums and squares of features are computed in float64: in float32 they may overflow
SHORT = 0.01  # a raw row with a smaller norm keeps less than 0.999 of length 1, because of the floor
NORM_FLOOR = 1e-5  # added to a row's norm, so that a zero row stays zero

PREPROCESSING = {
    "clips": f"means of {CLIPS} slices",
    "frames": f"as they are up to {FRAMES}, else means of {FRAMES} slices",
    "tokens": f"the first {QUERY_TOKENS}",
    "rows": f"divided by their L2 norm + {NORM_FLOOR:g}",
}  # as recorded in the manifest


def clips(features: np.ndarray) -> np.ndarray:
    """Return the clip rows (32, Dv), float32, of a video's raw frames (n, Dv), n >= 1."""
    return _normalise(_slice_means(_floats(features), CLIPS))


def frames(features: np.ndarray) -> np.ndarray:
    """Return the frame rows (min(n, 128), Dv), float32, of a video's raw frames (n, Dv), n >= 1."""
    features = _floats(features)
    return _normalise(features if len(features) <= FRAMES else _slice_means(features, FRAMES))


def query_tokens(features: np.ndarray) -> np.ndarray:
    """Return the token rows (min(Lq, 30), Dt), float32, of a query's raw tokens (Lq, Dt)."""
    return _normalise(_floats(features[:QUERY_TOKENS]))


def sentence(features: np.ndarray) -> np.ndarray:
    """Return a sentence's embedding (Dt,), float32, of length 1: the mean of its raw tokens (Lq, Dt), of the first 30.

    Sentence encoders average their tokens before they normalise, so that the longer ones count more.
    """
    return unit(_floats(features[:QUERY_TOKENS]).mean(0))


def unit(vector: np.ndarray) -> np.ndarray:
    """Return a vector (D,) divided by its length, float32; a vector of zeros stays what it is."""
    values = vector.astype(np.float64)
    length = np.sqrt(values @ values)
    result: np.ndarray = (values / length if length > 0 else values).astype(np.float32)
    return result


def norms(rows: np.ndarray) -> np.ndarray:
    """Return the L2 norms (len(rows),) of rows, float64."""
    values = rows.astype(np.float64)
    lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", values, values))
    return lengths


def _floats(features: np.ndarray) -> np.ndarray:
    """Return features as float32, as the authors compute, or as float64 if float32 might overflow."""
    features = np.asarray(features, dtype=np.float32)
    largest = max(features.max(initial=0), -features.min(initial=0))
    return features.astype(np.float64) if largest > LARGEST_FLOAT32 else features


def slice_bounds(count: int, slices: int) -> list[tuple[int, int]]:
    """Return the first row of each slice of `count` rows and the row after its last one, as `clips` and `frames` use
    them.

    An empty slice holds the row at which it starts. The last row is the exclusive end of the last slice, as in the
    authors' code, so unless that slice is empty the last row is in no slice.
    """
    cuts = np.minimum(np.round(np.arange(slices + 1) * count / slices).astype(np.int64), count - 1).tolist()
    return [(start, max(stop, start + 1)) for start, stop in pairwise(cuts)]


def _slice_means(features: np.ndarray, slices: int) -> np.ndarray:
    """Return the means (slices, Dv) of consecutive slices of the rows (`slice_bounds`)."""
    sums = np.empty((slices, features.shape[1]), dtype=features.dtype)
    sizes = np.empty((slices, 1), dtype=features.dtype)
    for i, (start, stop) in enumerate(slice_bounds(len(features), slices)):
        # One reduction per slice: np.add.reduceat over all slices is ten times slower along this axis.
        np.add.reduce(features[start:stop], axis=0, out=sums[i])
        sizes[i] = stop - start
    return sums / sizes


def _normalise(rows: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    normalised: np.ndarray = rows / (lengths + lengths.dtype.type(NORM_FLOOR))[:, None]
    return normalised.astype(np.float32, copy=False)
