"""A split on a device gives the batches that collating gives."""

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
def test_batches_are_the_collated_ones(device: str, trimmed: bool, videos: list[int], split: Split) -> None:
    chosen = np.array(videos, dtype=np.int64)
    ours = ResidentSplit(split, torch.device(device)).collate(chosen, trimmed)
    theirs = collate(split, chosen, trimmed)
    for name, tensor in vars(theirs).items():
        assert getattr(ours, name).device.type == device
        torch.testing.assert_close(
            getattr(ours, name).cpu(), tensor, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_split_is_held_where_a_share_of_the_free_memory_is_enough(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(piece.nbytes for pieces in split.features() for piece in pieces)
    assert ResidentSplit.if_it_fits(split, torch.device("cpu")) is None
    made = []
    monkeypatch.setattr(ResidentSplit, "__init__", lambda self, split, device: made.append(device))
    for free, fits in ((needed * 4, True), (needed * 4 - 8, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert (ResidentSplit.if_it_fits(split, torch.device("cuda")) is not None) == fits
    assert made == [torch.device("cuda")] and resident.SHARE == 0.25
