"""A whole split in a GPU's memory, where it fits: batches are then gathered there, and nothing crosses from the host but indices.

Shapes as in `batches`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config import FRAMES
from dreamprvr_ray.data.batches import Batch, queries_of
from dreamprvr_ray.data.shards import Split

SHARE = 0.25  # of a GPU's free memory that a split may take: activations and other trials want the rest


class ResidentSplit:
    """The features of a split on a device, in the shards' type."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split, self._device = split, device
        self._clips, self._frames, self._tokens = (
            _joined(pieces, device) for pieces in zip(*split.features(), strict=True)
        )
        self._first_frame, self._first_token = (
            np.cumsum(counts) - counts for counts in (split.frame_counts, split.token_counts)
        )

    @classmethod
    def where_it_fits(cls, split: Split, device: torch.device) -> ResidentSplit | None:
        """The split on a GPU that has room for it; None on another device."""
        if device.type != "cuda":
            return None
        needed = sum(piece.nbytes for pieces in split.features() for piece in pieces)
        return cls(split, device) if needed <= SHARE * torch.cuda.mem_get_info(device)[0] else None

    def collate(self, videos: np.ndarray, trimmed: bool = False) -> Batch:
        """What `batches.collate` makes, on the device."""
        queries, owner = queries_of(self._split, videos)
        lengths, token_counts = self._split.frame_counts[videos], self._split.token_counts[queries]
        frames, frame_mask = self._rows(
            self._frames, self._first_frame[videos], lengths, int(lengths.max(initial=1)) if trimmed else FRAMES
        )
        tokens, token_mask = self._rows(
            self._tokens, self._first_token[queries], token_counts, int(token_counts.max(initial=1))
        )
        clips = self._clips[self._here(videos)].float()
        return Batch(clips, frames, frame_mask, tokens, token_mask, self._here(owner))

    def _rows(self, rows: Tensor, first: np.ndarray, counts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Rows first[i] .. first[i] + counts[i] - 1 of each i, padded with zero rows: (len(first), length, size), and where a row is."""
        places = torch.arange(length, device=self._device)
        mask = places < self._here(counts).unsqueeze(1)
        index = (self._here(first).unsqueeze(1) + places).masked_fill(~mask, 0)
        return rows[index].float().masked_fill_(~mask.unsqueeze(-1), 0), mask

    def _here(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _joined(pieces: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """Tensors one after the other on a device, copied one by one: joining them first would take the memory twice."""
    joined = torch.empty(sum(map(len, pieces)), *pieces[0].shape[1:], dtype=pieces[0].dtype, device=device)
    for place, piece in zip(joined.split([len(piece) for piece in pieces]), pieces, strict=True):
        place.copy_(piece)
    return joined
