"""Pooling and normalising equals the golden rows and the definition in docs/model.md, section 1."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.source import Source


def test_rows_equal_the_golden_rows(golden: Path) -> None:
    expected = np.load(golden / "expected.npz")
    source = Source.open(golden, "mini")
    pool = {"clip": lambda id: pooling.clips(source.video(id)), "frame": lambda id: pooling.frames(source.video(id))}
    pool["text"] = lambda id: pooling.query_tokens(source.query(id))
    for name in expected:
        kind, _, id = name.partition("/")
        rows = pool[kind](id)
        assert rows.dtype == np.float32
        assert rows.shape == expected[name].shape, name
        np.testing.assert_allclose(rows, expected[name], atol=1e-6, rtol=0, err_msg=name)
    assert len(expected) == 2 * 16 + 44


@pytest.mark.parametrize("count", [1, 2, 31, 33, 128, 129, 1000])
def test_slices_of_any_length(count: int) -> None:
    features = np.random.default_rng(count).standard_normal((count, 5))
    for pooled, slices in ((pooling.clips(features), 32), (pooling.frames(features), 128)):
        if slices == 128 and count <= 128:
            rows = list(features)
        else:
            cuts = [min(round(i * count / slices), count - 1) for i in range(slices + 1)]
            rows = [features[a:b].mean(axis=0) if b > a else features[a] for a, b in pairwise(cuts)]
        expected = np.stack([row / (np.linalg.norm(row) + 1e-5) for row in rows])
        np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    assert not pooling.frames(np.zeros((3, 4))).any()
    assert not pooling.clips(np.zeros((3, 4))).any()
