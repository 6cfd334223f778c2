"""A whole split in a GPU's memory, if it fits: batches are gathered there and only indices come from the host.

Shapes as in `batches`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config_sections import FRAMES
from dreamprvr_ray.data.batches import Batch, queries_of
from dreamprvr_ray.data.shards import Split

SHARE = 0.25  # fraction of a GPU's free memory that a split may use: the rest is for activations and other trials


class ResidentSplit:
    """The features of a split on a device, in the shards' dtype."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split, self._device = split, device
        self._clips, self._frames, self._tokens = (
            _concatenate(pieces, device) for pieces in zip(*split.features(), strict=True)
        )
        self._first_frame, self._first_token = (
            np.cumsum(counts) - counts for counts in (split.frame_counts, split.token_counts)
        )

    @classmethod
    def if_it_fits(cls, split: Split, device: torch.device) -> ResidentSplit | None:
        """Return the split on `device` if that is a GPU with enough free memory, else None."""
        if device.type != "cuda":
            return None
        needed = sum(piece.nbytes for pieces in split.features() for piece in pieces)
        return cls(split, device) if needed <= SHARE * torch.cuda.mem_get_info(device)[0] else None

    def collate(self, videos: np.ndarray, trimmed: bool = False) -> Batch:
        """Return the same batch as `batches.collate`, on the device."""
        queries, owner = queries_of(self._split, videos)
        lengths, token_counts = self._split.frame_counts[videos], self._split.token_counts[queries]
        frames, frame_mask = self._rows(
            self._frames, self._first_frame[videos], lengths, int(lengths.max(initial=1)) if trimmed else FRAMES
        )
        tokens, token_mask = self._rows(
            self._tokens, self._first_token[queries], token_counts, int(token_counts.max(initial=1))
        )
        clips = self._clips[self._to_device(videos)].float()
        return Batch(clips, frames, frame_mask, tokens, token_mask, self._to_device(owner))

    def _rows(self, rows: Tensor, start: np.ndarray, counts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Return rows start[i] : start[i] + counts[i] of each i, zero-padded (len(start), length, size), and a mask."""
        positions = torch.arange(length, device=self._device)
        mask = positions < self._to_device(counts).unsqueeze(1)
        index = (self._to_device(start).unsqueeze(1) + positions).masked_fill(~mask, 0)
        return rows[index].float().masked_fill_(~mask.unsqueeze(-1), 0), mask

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _concatenate(pieces: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """Return tensors concatenated on a device, copied one by one: concatenating first would need twice the memory."""
    joined = torch.empty(sum(map(len, pieces)), *pieces[0].shape[1:], dtype=pieces[0].dtype, device=device)
    for part, piece in zip(joined.split([len(piece) for piece in pieces]), pieces, strict=True):
        part.copy_(piece)
    return joined
