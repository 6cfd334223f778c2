"""Communication between the workers of one training: queries are exchanged, videos are not.

Every worker encodes its own videos and queries. Query embeddings are gathered, every worker scores all queries against
its own videos, the score columns are gathered, and every worker computes the same loss of the global batch. Video
tokens are never sent.

After the backward pass every worker holds its part of the gradient, and `Workers.sum_gradients` adds the parts up. For
the sum to be right, each term must be counted once:

- A tensor that each worker uses for a *different* part of the loss (queries, scored against its own videos) needs its
  gradient summed over the workers: `gather_for_own_part`.
- For a tensor that all workers use for the *same* loss (score columns, sums over videos), each worker computes the
  whole gradient of its own entries: `gather_for_same_loss` and `sum_for_same_loss` send nothing in the backward pass.

Shapes: Q queries and B videos of the global batch, `Q_r` and `B_r` of one worker, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 16 * 2**20  # entries of parameters or gradients per message


@dataclass
class Traffic:
    """Bytes that one worker has sent.

    Counted as in a ring of N workers: a gather sends each worker's rows N - 1 times, a sum sends 2 (N - 1) / N times
    its size.
    """

    loss: int = 0  # queries, score columns, sums over videos, and their gradients
    gradients: int = 0  # gradients of the parameters

    def since(self, before: Traffic) -> Traffic:
        """Return the traffic since an earlier reading."""
        return Traffic(self.loss - before.loss, self.gradients - before.gradients)


def token_traffic(counts: Sequence[int], tokens: int, size: int) -> int:
    """Return the bytes per step that a worker would send if all video tokens were gathered instead.

    `counts` are videos per worker, each of `tokens` float32 tokens with `size` entries.
    """
    entry = tokens * size * 4
    return _gather_bytes(max(counts) * entry, len(counts)) + _sum_bytes(sum(counts) * entry, len(counts))


def _gather_bytes(own: int, workers: int) -> int:
    return own * (workers - 1)


def _sum_bytes(whole: int, workers: int) -> int:
    return whole * 2 * (workers - 1) // workers


@dataclass(frozen=True)
class Division:
    """How a global batch is divided: the video of each query, `owner` (Q,), and the counts of each worker.

    `other_right` (P, 2) int64 holds the pairs of query and video of the batch in which the video is right for the
    query, but not its own; None if there are no such pairs.
    """

    owner: Tensor
    videos: tuple[int, ...]
    queries: tuple[int, ...]
    other_right: Tensor | None = None

    @classmethod
    def alone(cls, owner: Tensor, videos: int) -> Division:
        """Return the division of a batch that a single worker processes."""
        return cls(owner, (videos,), (len(owner),))


@dataclass(frozen=True)
class Workers:
    """The workers that train one model, as seen by one of them. `Workers()` is a single worker without communication.

    With several workers, `torch.distributed` must be initialised (`runtime.train_run.connected` does so).
    """

    rank: int = 0
    count: int = 1
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def divide(self, items: np.ndarray) -> list[np.ndarray]:
        """Split `items` into each worker's part: consecutive items, in the order of ranks."""
        return [worker_slice(items, rank, self.count) for rank in range(self.count)]

    def division(self, queries_per_video: np.ndarray) -> Division:
        """Return how a global batch is divided, given the number of queries of each video (B,)."""
        parts = self.divide(queries_per_video)
        owner = np.repeat(np.arange(len(queries_per_video)), queries_per_video)
        return Division(torch.from_numpy(owner), tuple(map(len, parts)), tuple(int(part.sum()) for part in parts))

    def gather_for_own_part(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Gather rows (`sum(counts)`, ...) in the order of ranks. Their gradient is summed over the workers."""
        return rows if self.count == 1 else _Gather.apply(rows, self, tuple(counts), True)

    def gather_for_same_loss(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Gather rows in the order of ranks. The gradient of the own rows is that of the own backward pass."""
        return rows if self.count == 1 else _Gather.apply(rows, self, tuple(counts), False)

    def sum_for_same_loss(self, values: Tensor) -> Tensor:
        """Sum values over the workers. The gradient of the sum is passed to the own values unchanged."""
        return values if self.count == 1 else _Sum.apply(values, self)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum every parameter's gradient over the workers, in place. A missing gradient counts as zero."""
        if self.count == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets(parameter.grad for parameter in parameters if parameter.grad is not None):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            self.traffic.gradients += _sum_bytes(flat.nbytes, self.count)
            _scatter(flat, bucket)

    def all(self, condition: bool, device: torch.device) -> bool:
        """Return whether `condition` holds on every worker. The message is sent from `device`."""
        if self.count == 1:
            return condition
        holds = torch.tensor(int(condition), device=device)
        dist.all_reduce(holds, op=dist.ReduceOp.MIN)
        return bool(holds)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite every tensor with the first worker's. All must have one dtype."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, src=0)
            _scatter(flat, bucket)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors into lists of about `BUCKET` entries."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(member.numel() for member in bucket) > BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the entries of `flat` back into the tensors that they were concatenated from."""
    for tensor, entries in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(entries.view_as(tensor))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        context, rows: Tensor, workers: Workers, counts: tuple[int, ...], sum_gradient: bool
    ) -> Tensor:
        context.workers, context.counts, context.sum_gradient = workers, counts, sum_gradient
        # gloo's all_gather requires equal sizes, but workers may hold different numbers of rows: pad to the largest.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        workers.traffic.loss += _gather_bytes(padded.nbytes, workers.count)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(context, gradient: Tensor):  # type: ignore[no-untyped-def]
        workers, counts = context.workers, context.counts
        if context.sum_gradient:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient)
            workers.traffic.loss += _sum_bytes(gradient.nbytes, workers.count)
        start = sum(counts[: workers.rank])
        return gradient[start : start + counts[workers.rank]], None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor, workers: Workers) -> Tensor:  # type: ignore[no-untyped-def]
        total = values.clone()
        dist.all_reduce(total)
        workers.traffic.loss += _sum_bytes(total.nbytes, workers.count)
        return total

    @staticmethod
    def backward(context, gradient: Tensor):  # type: ignore[no-untyped-def]
        return gradient, None


def worker_slice(batch: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """Return the consecutive part of a global batch for worker `rank` of `workers`.

    The parts' sizes differ by at most one, and a part may be empty.
    """
    return batch[len(batch) * rank // workers : len(batch) * (rank + 1) // workers]
