"""The network that finds moments in curves of similarity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamprvr_ray.model.moment_network import FAR, NEAR, MomentNetwork, curve_inputs, smoothed


@pytest.fixture
def network() -> MomentNetwork:
    torch.manual_seed(0)
    return MomentNetwork().eval()


def curves(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.standard_normal(length) for length in lengths]


def test_a_batch_gives_what_each_curve_gives_alone(network: MomentNetwork) -> None:
    several = curves(1, 7, 40, 128)
    inputs, mask = torch.zeros(4, 5, 128), torch.zeros(4, 128)
    for row, curve in enumerate(several):
        inputs[row, :, : len(curve)] = torch.from_numpy(curve_inputs(curve))
        inputs[row, :, len(curve) :] = 100.0  # must not matter
        mask[row, : len(curve)] = 1
    odds = network(inputs, mask)
    for row, curve in enumerate(several):
        expected = odds[row, : len(curve)].sigmoid().detach().numpy()
        np.testing.assert_allclose(network.chances(curve), expected, rtol=1e-5)


@pytest.mark.parametrize("curve", curves(2, 20, 75))
def test_the_scale_of_similarities_does_not_matter(network: MomentNetwork, curve: np.ndarray) -> None:
    np.testing.assert_allclose(network.chances(0.01 * curve - 3), network.chances(curve), rtol=1e-4)


def test_inputs_are_heights_distance_and_length() -> None:
    (curve,) = curves(50)
    heights, near, far, distance, length = curve_inputs(curve)
    smooth = smoothed(curve, NEAR)
    median, peak = np.median(smooth), smooth.max()
    np.testing.assert_allclose(near, (smooth - median) / (peak - median), rtol=1e-5)
    np.testing.assert_allclose(far, (smoothed(curve, FAR) - median) / (peak - median), rtol=1e-4)
    np.testing.assert_allclose(heights, (curve - median) / (peak - median), rtol=1e-4)
    assert near.max() == 1 and distance[smooth.argmax()] == 0 and distance.max() == distance[[0, -1]].max() <= 50 / 64
    np.testing.assert_allclose(length, np.log(50 / 64))
