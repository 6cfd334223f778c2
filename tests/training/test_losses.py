"""Each loss against its definition (docs/model.md), written as loops over videos and queries in float64."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from dreamprvr_ray.config_sections import LossConfig, LossWeights
from dreamprvr_ray.training import losses
from dreamprvr_ray.training.losses import NegativeDraws, Scores

OWNER = torch.tensor([0, 0, 1, 2, 2, 2, 3])
VIDEOS, QUERIES, SIZE = 4, len(OWNER), 5
OWN = OWNER.unsqueeze(1) == torch.arange(VIDEOS)


def config(**changes: object) -> LossConfig:
    weights = LossWeights(clip_nce=0.5, frame_nce=0.25, diversity=0.125, similarity=2.0, variational=3.0, denoising=4.0)
    values = {
        "weights": weights,
        "margin": 0.2,
        "diversity_margin": 0.15,
        "diversity_scale": 32.0,
        "diversity_focus": 1.0,
        "similarity_temperature": 0.09,
        "hard_negative_start_epoch": 20,
        "hard_negative_pool": 2,
    }
    return LossConfig(**(values | changes))


def scores(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(QUERIES, VIDEOS, dtype=dtype)


def embeddings(seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(QUERIES, SIZE, dtype=torch.float64)


def cosines(queries: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(queries[:, None], queries[None], dim=2)


def own_queries(video: int) -> list[int]:
    return [q for q in range(QUERIES) if OWNER[q] == video]


def test_nce() -> None:
    s = scores()
    expected = sum(s[q].exp().sum().log() - s[q, OWNER[q]] for q in range(QUERIES)) / QUERIES
    expected += sum(s[:, b].exp().sum().log() - s[own_queries(b), b].exp().sum().log() for b in range(VIDEOS)) / VIDEOS
    torch.testing.assert_close(losses.nce(s, OWN), expected)


def test_nce_of_a_video_without_queries_is_zero_and_finite() -> None:
    s = torch.cat([scores(), torch.randn(QUERIES, 1, dtype=torch.float64)], 1).requires_grad_()
    own = torch.cat([OWN, torch.zeros(QUERIES, 1, dtype=torch.bool)], 1)
    per_query = (s.logsumexp(1) - s.masked_fill(~own, 0).sum(1)).mean()
    per_video = sum(s[:, b].logsumexp(0) - s[own_queries(b), b].logsumexp(0) for b in range(VIDEOS)) / (VIDEOS + 1)
    loss = losses.nce(s, own)
    torch.testing.assert_close(loss, per_query + per_video)
    assert torch.autograd.grad(loss, s)[0].isfinite().all()


def triplet_by_loops(s: Tensor, margin: float, query_of: list[int], video_of: list[int]) -> Tensor:
    relu = torch.nn.functional.relu
    videos = [relu(margin + s[query_of[b], b] - s[own_queries(b), b].mean()) for b in range(VIDEOS)]
    queries = [relu(margin + s[q, video_of[q]] - s[q, OWNER[q]]) for q in range(QUERIES)]
    return sum(videos) / VIDEOS + sum(queries) / QUERIES  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(5))
def test_triplet_with_random_negatives(seed: int) -> None:
    s, draws = scores(seed), torch.rand(2, QUERIES)
    others_of_video = [[q for q in range(QUERIES) if OWNER[q] != b] for b in range(VIDEOS)]
    others_of_query = [[b for b in range(VIDEOS) if b != OWNER[q]] for q in range(QUERIES)]
    query_of = [others[int(u * len(others))] for u, others in zip(draws[0].tolist(), others_of_video, strict=False)]
    video_of = [others[int(u * len(others))] for u, others in zip(draws[1].tolist(), others_of_query, strict=True)]
    expected = triplet_by_loops(s, 0.2, query_of, video_of)
    torch.testing.assert_close(losses.triplet(s, OWN, 0.2, draws[0, :VIDEOS], draws[1], None), expected)


@pytest.mark.parametrize("pool", [1, 2, 3, 20])
def test_triplet_with_hard_negatives(pool: int) -> None:
    s, draws = scores(), torch.rand(QUERIES)
    query_of = [max((q for q in range(QUERIES) if OWNER[q] != b), key=lambda q, b=b: s[q, b]) for b in range(VIDEOS)]
    ranked = [sorted((b for b in range(VIDEOS) if b != OWNER[q]), key=lambda b, q=q: -s[q, b]) for q in range(QUERIES)]
    video_of = [ranked[q][int(draws[q] * min(pool, VIDEOS - 1))] for q in range(QUERIES)]
    expected = triplet_by_loops(s, 0.2, query_of, video_of)
    torch.testing.assert_close(losses.triplet(s, OWN, 0.2, torch.rand(VIDEOS), draws, pool), expected)


@pytest.mark.parametrize("pool", [None, 2])
def test_negatives_never_belong_to_the_anchor_and_all_others_occur(pool: int | None) -> None:
    """The gradient shows the selected entries: own scores are 0, all others are distinct and violate the margin."""
    values = torch.arange(1.0, 1 + QUERIES * VIDEOS, dtype=torch.float64).view(QUERIES, VIDEOS).masked_fill(OWN, 0)
    taken: set[tuple[str, int]] = set()
    for u in (0.0, 0.2, 0.4, 0.6, 0.8, 1 - 2**-24):
        s = values.clone().requires_grad_()
        loss = losses.triplet(s, OWN, 0.5, torch.full((VIDEOS,), u), torch.full((QUERIES,), u), pool)
        (gradient,) = torch.autograd.grad(loss, s)
        chosen = (gradient > 0).nonzero().tolist()
        assert all(OWNER[q] != b for q, b in chosen)
        assert (gradient.masked_fill(OWN, 0).sum() - 2).abs() < 1e-9  # one per video and one per query, averaged
        taken |= {("query", q) for q, _ in chosen} | {("video", b) for _, b in chosen}
    assert {b for kind, b in taken if kind == "video"} == set(range(VIDEOS))
    if pool is None:
        assert {q for kind, q in taken if kind == "query"} == set(range(QUERIES))


@pytest.mark.parametrize("hard", [True, False])
def test_a_batch_of_one_video_trains(hard: bool) -> None:
    queries = torch.randn(3, SIZE, requires_grad=True)
    s = torch.randn(3, 1, requires_grad=True)
    zero = torch.zeros(())
    draws = NegativeDraws.draw(1, 3, torch.Generator().manual_seed(0))
    result = losses.combine(
        config(), Scores(s, s, s, s), queries, torch.zeros(3, dtype=torch.long), draws, hard, zero, zero
    )
    assert result.clip_triplet == result.frame_triplet == 0
    result.total.backward()
    assert s.grad is not None and s.grad.isfinite().all()
    assert queries.grad is not None and queries.grad.isfinite().all() and queries.grad.any()


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.5])
def test_diversity(focus: float) -> None:
    queries = embeddings()
    cos = cosines(queries)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(QUERIES):
        for j in range(QUERIES):
            if i != j and OWNER[i] == OWNER[j]:
                expected += (1 + cos[i, j]) ** focus * torch.log(1 + torch.exp(8 * (cos[i, j] + 0.15)))
    torch.testing.assert_close(losses.diversity(cos, OWNER, 0.15, 8.0, focus), expected / QUERIES)


def test_diversity_of_opposite_queries_has_a_finite_gradient() -> None:
    cos = torch.tensor([[1.0, -1.0 - 1e-7], [-1.0 - 1e-7, 1.0]], requires_grad=True)
    losses.diversity(cos, torch.zeros(2, dtype=torch.long), 0.15, 32.0, 0.5).backward()
    assert cos.grad is not None and cos.grad.isfinite().all()


def test_similarity() -> None:
    cos = cosines(embeddings()) / 0.3
    per_query = []
    for i in range(QUERIES):
        positives = [j for j in own_queries(int(OWNER[i])) if j != i]
        others = torch.tensor([j for j in range(QUERIES) if j != i])
        if positives:
            per_query.append(sum(cos[i, others].exp().sum().log() - cos[i, j] for j in positives) / len(positives))
    torch.testing.assert_close(losses.similarity(cos * 0.3, OWNER, 0.3), sum(per_query) / len(per_query))


def test_similarity_is_zero_if_no_query_has_a_positive() -> None:
    cos = cosines(embeddings()).requires_grad_()
    loss = losses.similarity(cos, torch.arange(QUERIES), 0.09)
    assert loss == 0
    assert torch.autograd.grad(loss, cos)[0].isfinite().all()


@pytest.mark.parametrize("hard", [True, False])
def test_total_is_the_weighted_sum_of_all_losses(hard: bool) -> None:
    parts = [scores(seed) for seed in range(4)]
    draws = NegativeDraws.draw(VIDEOS, QUERIES, torch.Generator().manual_seed(0))
    pool = 2 if hard else None
    variational, denoising = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    queries = embeddings()
    result = losses.combine(config(), Scores(*parts), queries, OWNER, draws, hard, variational, denoising)
    expected = {
        "clip_nce": (0.5, losses.nce(parts[1], OWN)),
        "clip_triplet": (1, losses.triplet(parts[0], OWN, 0.2, draws.clip_video, draws.clip_query, pool)),
        "frame_nce": (0.25, losses.nce(parts[3], OWN)),
        "frame_triplet": (1, losses.triplet(parts[2], OWN, 0.2, draws.frame_video, draws.frame_query, pool)),
        "diversity": (0.125, losses.diversity(cosines(queries), OWNER, 0.15, 32.0, 1.0)),
        "similarity": (2, losses.similarity(cosines(queries), OWNER, 0.09)),
        "variational": (3, variational),
        "denoising": (4, denoising),
    }
    for name, (_, value) in expected.items():
        torch.testing.assert_close(getattr(result, name), value, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(result.total, sum(weight * value for weight, value in expected.values()))


def test_gradients_match_finite_differences() -> None:
    draws = NegativeDraws.draw(VIDEOS, QUERIES, torch.Generator().manual_seed(0))

    def total(clip: Tensor, frame: Tensor, queries: Tensor) -> Tensor:
        scores = Scores(clip, 2 * clip, frame, 3 * frame)
        return losses.combine(
            config(diversity_scale=4.0), scores, queries, OWNER, draws, True, clip.sum(), frame.sum()
        ).total

    inputs = [scores(1).requires_grad_(), scores(2).requires_grad_(), embeddings().requires_grad_()]
    assert torch.autograd.gradcheck(total, inputs)


def test_losses_are_exact_under_autocast() -> None:
    draws = NegativeDraws.draw(VIDEOS, QUERIES, torch.Generator().manual_seed(0))
    parts, queries, zero = [scores(seed, torch.float32) for seed in range(4)], embeddings().float(), torch.zeros(())
    exact = losses.combine(config(), Scores(*parts), queries, OWNER, draws, True, zero, zero)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = losses.combine(config(), Scores(*parts), queries, OWNER, draws, True, zero, zero)
    for field in fields(exact):
        assert torch.equal(getattr(exact, field.name), getattr(under, field.name)), field.name
    rough = losses.nce(parts[0].bfloat16(), OWN)
    assert rough.dtype == torch.float32 and math.isclose(rough, losses.nce(parts[0].bfloat16().float(), OWN))


def test_the_largest_draw_is_the_last_index() -> None:
    counts = torch.arange(1, 5000)
    assert torch.equal(losses.draw_to_index(torch.full((len(counts),), 1 - 2**-24), counts), counts - 1)


def test_draws_come_from_the_generator() -> None:
    one, two, three = (NegativeDraws.draw(3, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name, length in (("clip_video", 3), ("frame_video", 3), ("clip_query", 5), ("frame_query", 5)):
        draws = getattr(one, name)
        assert draws.shape == (length,) and (draws >= 0).all() and (draws < 1).all()
        assert torch.equal(draws, getattr(two, name)) and not torch.equal(draws, getattr(three, name))
    assert not torch.equal(one.clip_query, one.frame_query)


@pytest.mark.parametrize("hard", [True, False])
def test_other_right_videos_of_a_query_are_neither_positives_nor_negatives(hard: bool) -> None:
    pairs = torch.tensor([[0, 1], [0, 3], [4, 0], [6, 2]])
    zero = torch.zeros((), dtype=torch.float64)

    def total(other: float, pairs: Tensor | None, draw: int = 0) -> tuple[losses.Losses, Tensor]:
        values = torch.stack([scores(seed) for seed in range(4)])
        values[:, [0, 0, 4, 6], [1, 3, 0, 2]] = other
        values.requires_grad_()
        draws = NegativeDraws.draw(VIDEOS, QUERIES, torch.Generator().manual_seed(draw))
        result = losses.combine(config(), Scores(*values), embeddings(), OWNER, draws, hard, zero, zero, pairs)
        return result, torch.autograd.grad(result.total, values)[0]

    for draw in range(5):
        (low, gradient), (high, _) = total(-3.0, pairs, draw), total(3.0, pairs, draw)
        assert low == high and (gradient[:, pairs[:, 0], pairs[:, 1]] == 0).all() and gradient.isfinite().all()
    assert total(-3.0, None)[0].total != total(3.0, None)[0].total
    left = torch.stack([scores(seed) for seed in range(4)])[1]
    left[pairs[:, 0], pairs[:, 1]] = -torch.inf
    torch.testing.assert_close(total(3.0, pairs)[0].clip_nce, losses.nce(left, OWN))
