"""A split that is held on a device gives the same batches as collating on the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dreamprvr_ray.data import resident
from dreamprvr_ray.data.batches import collate
from dreamprvr_ray.data.resident import ResidentSplit
from dreamprvr_ray.data.shards import ShardSet, Split


@pytest.fixture(scope="module")
def split(demo_shards: Path) -> Split:
    return ShardSet.open(demo_shards).split("train")


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("videos", [[], [3], [5, 0, 23, 7, 8]])
def test_batches_equal_collated_batches(device: str, trimmed: bool, videos: list[int], split: Split) -> None:
    chosen = np.array(videos, dtype=np.int64)
    resident_batch = ResidentSplit(split, torch.device(device)).collate(chosen, trimmed)
    collated = collate(split, chosen, trimmed)
    for name, tensor in vars(collated).items():
        assert getattr(resident_batch, name).device.type == device
        torch.testing.assert_close(
            getattr(resident_batch, name).cpu(), tensor, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_split_is_held_if_a_share_of_the_free_memory_is_enough(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(piece.nbytes for pieces in split.features() for piece in pieces)
    assert ResidentSplit.if_it_fits(split, torch.device("cpu")) is None
    devices = []
    monkeypatch.setattr(ResidentSplit, "__init__", lambda self, split, device: devices.append(device))
    for free, fits in ((needed * 4, True), (needed * 4 - 8, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert (ResidentSplit.if_it_fits(split, torch.device("cuda")) is not None) == fits
    assert devices == [torch.device("cuda")] and resident.SHARE == 0.25
