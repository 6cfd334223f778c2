"""What crosses between the workers of one training: queries travel, videos stay.

Every worker encodes its own videos and queries. Query embeddings are gathered, every worker scores all queries against
its own videos, the score columns are gathered, and every worker computes the same loss of the global batch. Video
tokens never cross.

After the backward pass every worker holds its part of the gradient, and `Workers.sum_gradients` adds the parts up; for
that each term must be counted once:

- what each worker uses for *different* parts of the loss (queries, against its own videos) sends its gradient back from
all of
  them: `gather_for_own_part`;
- what all workers use for the *same* loss (score columns, sums over videos) already holds the whole gradient on its
owner:
  `gather_for_same_loss` and `sum_for_same_loss` keep it there.

Shapes: Q queries and B videos of the global batch, `Q_r` and `B_r` of one worker, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 16 * 2**20  # entries of parameters or gradients that cross in one message


@dataclass
class Traffic:
    """Bytes that one worker has sent, as rings of workers send them: a gather each worker's rows N - 1 times, a sum 2 (N - 1) / N times."""

    loss: int = 0  # queries, score columns, sums over videos, and their gradients
    gradients: int = 0  # the parameters'

    def since(self, before: Traffic) -> Traffic:
        """What was sent after `before` was noted."""
        return Traffic(self.loss - before.loss, self.gradients - before.gradients)


def token_traffic(counts: Sequence[int], tokens: int, size: int) -> int:
    """Bytes that a worker would send a step if all video tokens were gathered instead: videos by worker, tokens of D entries a video."""
    entry = tokens * size * 4
    return _gather_bytes(max(counts) * entry, len(counts)) + _sum_bytes(sum(counts) * entry, len(counts))


def _gather_bytes(own: int, workers: int) -> int:
    return own * (workers - 1)


def _sum_bytes(whole: int, workers: int) -> int:
    return whole * 2 * (workers - 1) // workers


@dataclass(frozen=True)
class Division:
    """How a global batch is divided: `owner` (Q,) is each query's video in the global batch; counts are per worker."""

    owner: Tensor
    videos: tuple[int, ...]
    queries: tuple[int, ...]

    @classmethod
    def alone(cls, owner: Tensor, videos: int) -> Division:
        """The division of a batch that one worker holds whole."""
        return cls(owner, (videos,), (len(owner),))


@dataclass(frozen=True)
class Workers:
    """This process among those that train one model; `Workers()` is a worker alone and communicates with nobody.

    With several workers `torch.distributed` must be initialised (Ray Train does that).
    """

    rank: int = 0
    count: int = 1
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def divide(self, items: np.ndarray) -> list[np.ndarray]:
        """Each worker's part of `items`."""
        return [worker_slice(items, rank, self.count) for rank in range(self.count)]

    def division(self, queries_per_video: np.ndarray) -> Division:
        """How a global batch is divided, from the number of queries of each of its videos (B,)."""
        parts = self.divide(queries_per_video)
        owner = np.repeat(np.arange(len(queries_per_video)), queries_per_video)
        return Division(torch.from_numpy(owner), tuple(map(len, parts)), tuple(int(part.sum()) for part in parts))

    def gather_for_own_part(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Everybody's rows (`sum(counts)`, ...), in the order of ranks; the gradient is summed over the workers."""
        return rows if self.count == 1 else _Gather.apply(rows, self, tuple(counts), True)

    def gather_for_same_loss(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Everybody's rows; the gradient of the own rows is what this worker's own backward pass says."""
        return rows if self.count == 1 else _Gather.apply(rows, self, tuple(counts), False)

    def sum_for_same_loss(self, values: Tensor) -> Tensor:
        """The sum of everybody's values; its gradient goes to the own values unchanged."""
        return values if self.count == 1 else _Sum.apply(values, self)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up every parameter's gradient over the workers, in place; a missing gradient counts as zero."""
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
        """Return whether `condition` holds on every worker; `device` is one that the workers can communicate from."""
        if self.count == 1:
            return condition
        holds = torch.tensor(int(condition), device=device)
        dist.all_reduce(holds, op=dist.ReduceOp.MIN)
        return bool(holds)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites every tensor, all of one type, by the first worker's."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, src=0)
            _scatter(flat, bucket)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in lists of about `BUCKET` entries."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(member.numel() for member in bucket) > BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copies the entries of `flat` back to where they came from."""
    for tensor, entries in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(entries.view_as(tensor))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: Tensor, workers: Workers, counts: tuple[int, ...], sum_gradient: bool) -> Tensor:  # type: ignore[no-untyped-def]
        context.workers, context.counts, context.sum_gradient = workers, counts, sum_gradient
        # Workers may hold different numbers of rows, which gloo's gather does not take: pad to the largest.
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
    """The part of a global batch that worker `rank` of `workers` takes: consecutive, sizes differ by at most one, possibly empty."""
    return batch[len(batch) * rank // workers : len(batch) * (rank + 1) // workers]
