"""Learning from annotated windows where in a video the moment of a sentence is.

When a training ends, a `MomentNetwork` is learned from the curves of its best model along train's videos. It is kept
only if it finds the moments of val better than `find_moment` without a network (docs/lab-notes.md, 2026-11-27).

Shapes: L frame rows of a video, B curves of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.evaluation.moments import best_overlap, find_moment, heights_of, to_shares
from dreamprvr_ray.evaluation.own_moments import own_curves, queries_with_windows
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.moment_network import MomentNetwork, curve_inputs

LEAST, MOST = 200, 3000  # queries of train to learn from, and those that are drawn of more
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 8, 32, 3e-3, 1e-2
CROSS_ENTROPY = 0.3  # its weight; that of the expected overlap is 1


@dataclass(frozen=True, eq=False)
class Example:
    """A curve along a video and its annotated moment."""

    inputs: Tensor  # (5, L) of `curve_inputs`
    inside: Tensor  # (L,) how much of each frame is in a window, 0 to 1


def learn_moments(
    model: DreamPRVR, weights: ScoreWeights, train: Split, vals: Sequence[Split], seed: int
) -> MomentNetwork | None:
    """Return a network that finds moments in the curves of a model, learned from a train split.

    None if train has less than `LEAST` queries with annotated windows or a val split has none, or if the network finds
    val's moments no better than `find_moment` without one. `weights` are those of the model's score.
    """
    known = queries_with_windows(train)
    if len(known) < LEAST or not all(len(queries_with_windows(val)) for val in vals):
        return None
    drawn = np.sort(np.random.default_rng(seed).permutation(known)[:MOST])
    examples = list(_examples(train, own_curves(model, weights, train, drawn)))
    if not examples:
        return None
    curves = [own_curves(model, weights, val, queries_with_windows(val)) for val in vals]
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _fit(examples, seed)
        return network if _found(vals, curves, network) > _found(vals, curves, None) else None


def _examples(split: Split, curves: Mapping[int, np.ndarray]) -> Iterator[Example]:
    """Yield the examples of queries with these curves; those without a peak show nothing."""
    assert split.moment_windows is not None
    for query, curve in curves.items():
        if heights_of(curve) is not None:
            inside = _inside(split.moment_windows[query], len(curve))
            yield Example(torch.from_numpy(curve_inputs(curve)), torch.from_numpy(inside))


def _inside(windows: np.ndarray, count: int) -> np.ndarray:
    """Return how much (count,) of each frame is in one of the windows (windows, 2), shares of the video's length."""
    edges = np.arange(count + 1) / count
    inside = np.zeros(count)
    for start, end in windows.tolist():
        inside += np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None) * count
    return np.minimum(inside, 1).astype(np.float32)


def _fit(examples: Sequence[Example], seed: int) -> MomentNetwork:
    network, order = MomentNetwork(), np.random.default_rng(seed)
    steps = EPOCHS * -(-len(examples) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        numbers = order.permutation(len(examples))
        for start in range(0, len(numbers), BATCH):
            inputs, inside, mask = _batch([examples[number] for number in numbers[start : start + BATCH]])
            optimizer.zero_grad()
            _loss(network(inputs, mask), inside, mask).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _batch(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs (B, 5, L), the shares inside (B, L) and the mask (B, L) of examples, filled with zeros."""
    longest = max(len(example.inside) for example in examples)
    gaps = [longest - len(example.inside) for example in examples]
    return (
        torch.stack([F.pad(example.inputs, (0, gap)) for example, gap in zip(examples, gaps, strict=True)]),
        torch.stack([F.pad(example.inside, (0, gap)) for example, gap in zip(examples, gaps, strict=True)]),
        torch.stack([F.pad(torch.ones(longest - gap), (0, gap)) for gap in gaps]),
    )


def _loss(odds: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over curves of the cross entropy per frame and of what is missing of the expected overlap."""
    entropy = (F.binary_cross_entropy_with_logits(odds, inside, reduction="none") * mask).sum(1) / mask.sum(1)
    chances = odds.sigmoid() * mask
    common = (chances * inside).sum(1)
    overlap = common / (chances.sum(1) + inside.sum(1) - common).clamp_min(1e-6)
    return (CROSS_ENTROPY * entropy - overlap).mean()


def _found(vals: Sequence[Split], curves: Sequence[Mapping[int, np.ndarray]], network: MomentNetwork | None) -> float:
    """Return how often moments are found in the curves of val splits, summed over the least IoUs; the splits' mean."""
    results = []
    for val, own in zip(vals, curves, strict=True):
        assert val.moment_windows is not None
        found = ((query, to_shares(find_moment(curve, network), len(curve))) for query, curve in own.items())
        overlaps = np.array([best_overlap(span, val.moment_windows[query]) for query, span in found])
        results.append(MomentRecall.of(overlaps, np.zeros(len(overlaps), dtype=bool)))
    mean = MomentRecall.mean(results)
    return 0.0 if mean is None else sum(mean.found.values())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: sums over several differ in their last bits with the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
