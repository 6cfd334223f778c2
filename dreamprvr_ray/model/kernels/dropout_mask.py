"""Dropout masks on the CPU, which are stored as seeds and drawn again whenever they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KEEP_ALL = 2**16  # a mask decides by 16 random bits per entry: it keeps an entry for `keep` of their 65536 values

_INTEGER = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
keep_above = torch.ops.aten.threshold_backward.grad_input  # (x, y, t, grad_input=out): x where y > t, else 0


def keep_count(probability: float) -> int:
    """Return how many of the 65536 values of 16 random bits keep an entry, for this probability of dropping it."""
    return round((1 - probability) * KEEP_ALL)


@dataclass(frozen=True)
class DropoutMask:
    """Which entries of a tensor dropout keeps: each with probability `keep` / 65536. Kept entries are not scaled.

    The mask is drawn from `seed` on every use. That takes less time than storing it and reading it back.
    """

    keep: int
    seed: int

    @classmethod
    def draw(cls, keep: int) -> DropoutMask:
        """Draw a mask's seed from torch's global generator; a mask that keeps everything draws nothing."""
        return cls(keep, int(torch.randint(2**62, ())) if keep < KEEP_ALL else 0)

    def drop_(self, x: Tensor) -> Tensor:
        """Set the dropped entries of `x`, which must be contiguous, to zero in place."""
        if self.keep == KEEP_ALL:
            return x
        bits = torch.from_numpy(np.random.SFC64(self.seed).random_raw((x.numel() + 3) // 4).view(np.int16))
        # Comparing and keeping integers of the size of x's entries vectorises; converting a mask to numbers takes ten
        # times as long.
        flat = x.view(_INTEGER[x.dtype]).view(-1)
        last_dropped = KEEP_ALL // 2 - 1 - self.keep  # as a signed 16-bit number: the largest that drops an entry
        if x.element_size() == 2:
            keep_above(flat, bits[: len(flat)], last_dropped, grad_input=flat)
            return x
        # A 32-bit number decides for two entries: by its upper 16 bits, then by its lower ones, shifted up.
        limit, half = last_dropped * 2**16 + 2**16 - 1, (len(flat) + 1) // 2
        pairs = bits.view(torch.int32)[:half]
        keep_above(flat[:half], pairs.to(flat.dtype), limit, grad_input=flat[:half])
        lower = pairs.bitwise_left_shift_(16)[: len(flat) - half]
        keep_above(flat[half:], lower.to(flat.dtype), limit, grad_input=flat[half:])
        return x
