"""The whole network: equal to the plain one, and right at its edges."""

from __future__ import annotations

import pytest
import torch
from support import reference_model
from torch import Tensor

from dreamprvr_ray.config import ModelConfig, load_experiment
from dreamprvr_ray.model.dreamprvr import DreamPRVR, VideoEncoding
from dreamprvr_ray.model.registers import perturbed_start, variational_divergences
from dreamprvr_ray.model.scoring import fused_scores

VIDEO_SIZE, TEXT_SIZE = 12, 10


def config(**changes: object) -> ModelConfig:
    values = {
        "registers": 3,
        "diffusion_steps": 4,
        "hidden_size": 16,
        "heads": 2,
        "branches": 4,
        "fusion_temperature": 0.2,
    }
    return ModelConfig(**({"dropout": 0.0, "input_dropout": 0.0} | values | changes))


def build(seed: int = 0, **changes: object) -> DreamPRVR:
    """A model whose every weight matters: noise on top of the initialisation, which leaves biases at 0 and norms at 1."""
    torch.manual_seed(seed)
    model = DreamPRVR(config(**changes), VIDEO_SIZE, TEXT_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def videos(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([128, 60, 5, 1, 97])[:count, None]
    mask = torch.arange(128) < lengths
    frames = torch.randn(count, 128, VIDEO_SIZE, dtype=dtype) * mask.unsqueeze(-1)
    return torch.randn(count, 32, VIDEO_SIZE, dtype=dtype), frames, mask


def queries(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 2, 6])[:count, None]
    return torch.randn(count, 7, TEXT_SIZE, dtype=dtype), mask


def parts(encoding: VideoEncoding | reference_model.ReferenceEncoding) -> dict[str, Tensor]:
    return {name: value for name, value in vars(encoding).items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"registers": 0},
        {"registers": 1, "diffusion_steps": 1},
        {"branches": 1, "denoiser_layers": 1},
        {"heads": 4, "branches": 8},
    ],
    ids=["usual", "no registers", "one register, one step", "one branch", "eight branches"],
)
def test_equals_the_plain_model_in_value_and_gradient(changes: dict[str, int]) -> None:
    model = build(**changes).double()
    video_batch, query_batch = videos(3, torch.float64), queries(4, torch.float64)
    start = torch.randn(3, model.config.registers, 16, dtype=torch.float64)

    def run(plain: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if plain:
            weights = reference_model.reference_weights(model)
            encoding = reference_model.encode_videos(weights, model.config, *video_batch)
            outputs = parts(encoding) | {"queries": reference_model.encode_queries(weights, model.config, *query_batch)}
            if encoding.mu is not None and encoding.condition is not None:
                outputs["errors"] = reference_model.denoising_errors(
                    weights, model.config, start, encoding.mu, encoding.condition
                )
        else:
            fast = model.encode_videos(*video_batch)
            outputs = parts(fast) | {"queries": model.encode_queries(*query_batch)}
            if fast.mu is not None:
                outputs["errors"] = model.denoising_errors(fast, start)
        torch.manual_seed(3)
        loss = sum((output * torch.randn_like(output)).sum() for output in outputs.values())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return outputs, dict(zip(dict(model.named_parameters()), gradients, strict=True))

    (fast, fast_gradients), (plain, plain_gradients) = run(False), run(True)
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for name, gradient in fast_gradients.items():
        # Relative to the tensor's largest entry; the floor is for gradients that are zero by symmetry.
        error = (gradient - plain_gradients[name]).abs().max()
        assert error <= 1e-5 * plain_gradients[name].abs().max() + 1e-6, name


@pytest.mark.parametrize("changes", [{}, {"registers": 0}, {"registers": 1, "diffusion_steps": 1}])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_any_number_of_videos_and_queries_trains(changes: dict[str, int], count: int) -> None:
    model = build(dropout=0.1, input_dropout=0.1, **changes)
    encoding, embedded = model.encode_videos(*videos(count)), model.encode_queries(*queries(count))
    assert (
        encoding.clip_tokens.shape == (count, 32, 16)
        and encoding.frame_tokens.shape == (count, 128, 16)
        and embedded.shape == (count, 16)
    )
    loss = sum(part.square().sum() for part in parts(encoding).values()) + embedded.square().sum()
    if encoding.mu is not None and encoding.logvar is not None:
        noise = torch.randn(2, count, model.config.registers, 16)
        errors = model.denoising_errors(encoding, perturbed_start(embedded, noise[0], noise[1]))
        assert errors.shape == (count,)
        loss = loss + errors.sum() + variational_divergences(encoding.mu, encoding.logvar).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert count > 0 or not parameter.grad.any(), name


def test_features_of_another_size_are_named() -> None:
    (clips, frames, mask), (tokens, token_mask) = videos(1), queries(1)
    with pytest.raises(ValueError, match="features have size 11; this model takes 12"):
        build().encode_videos(clips[..., 1:], frames[..., 1:], mask)
    with pytest.raises(ValueError, match="features have size 9; this model takes 10"):
        build().encode_queries(tokens[..., 1:], token_mask)


def test_permuted_videos_give_permuted_encodings() -> None:
    model, batch = build(), videos(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    straight = parts(model.encode_videos(*batch))
    permuted = parts(model.encode_videos(*(part[order] for part in batch)))
    for name, value in straight.items():
        torch.testing.assert_close(permuted[name], value[order], rtol=1e-4, atol=1e-5)


def test_what_padding_holds_changes_nothing() -> None:
    model, (clips, frames, mask), (tokens, token_mask) = build(), videos(3), queries(4)
    noise = torch.randn_like(frames).masked_fill(mask.unsqueeze(-1), 0)
    straight, padded = model.encode_videos(clips, frames, mask), model.encode_videos(clips, frames + noise, mask)
    assert torch.equal(straight.frame_tokens, padded.frame_tokens)
    assert not straight.frame_tokens[~mask].any()
    noisy = tokens + torch.randn_like(tokens).masked_fill(token_mask.unsqueeze(-1), 0)
    torch.testing.assert_close(model.encode_queries(noisy, token_mask), model.encode_queries(tokens, token_mask))


def test_longer_padding_of_queries_changes_nothing() -> None:
    model, (tokens, mask) = build(), queries(2)
    longer = torch.nn.functional.pad(tokens, (0, 0, 0, 23)), torch.nn.functional.pad(mask, (0, 23))
    torch.testing.assert_close(model.encode_queries(*longer), model.encode_queries(tokens, mask), rtol=1e-4, atol=1e-5)


def test_without_registers_there_is_nothing_to_make_them() -> None:
    model = build(registers=0)
    encoding = model.encode_videos(*videos(2))
    assert encoding.registers is encoding.condition is encoding.mu is encoding.logvar is None
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {
        "query_input", "clip_input", "frame_input", "query_attention", "query_pooling", "clip_fusion", "frame_fusion",
    }  # fmt: skip
    assert not [name for name in model.state_dict() if "register" in name]


@pytest.mark.parametrize(("preset", "millions"), [("tvr", 37.62), ("activitynet", 36.14), ("charades", 36.14)])
def test_number_of_parameters_is_the_papers(preset: str, millions: float) -> None:
    experiment = load_experiment(preset)
    with torch.device("meta"):
        model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_stacks_say_how_many_parts_they_hold() -> None:
    model = build(branches=4)
    counted = model.gradient_parts()
    assert counted.keys() == dict(model.named_parameters()).keys()
    assert counted["clip_fusion.branches.query.weight"] == 4
    assert counted["frame_fusion.branches.key_value.bias"] == 8
    assert counted["query_attention.key_value.weight"] == 2
    assert counted["frame_fusion.branches.feed_forward.output_norm.weight"] == 4
    assert (
        counted["frame_fusion.summary.key.weight"]
        == counted["query_input.positions"]
        == counted["diffusion.denoiser.output.weight"]
        == 1
    )


def test_what_does_not_decay() -> None:
    model = build()
    spared = model.undecayed()
    assert spared <= dict(model.named_parameters()).keys()
    inputs = [f"{kind}_input" for kind in ("query", "clip", "frame")]
    norms = {f"{name}.layer.norm.weight" for name in inputs} | {f"{name}.norm.weight" for name in inputs}
    norms |= {f"{kind}_fusion.register_input.norm.weight" for kind in ("clip", "frame")}
    assert {name for name in spared if ".bias" not in name} == norms
    assert all(".bias" not in name for name in dict(model.named_parameters()).keys() - spared)
    assert "sampler.pooling.gru.bias_hh_l0_reverse" in spared


def test_initial_weights_come_from_the_global_generator_and_are_as_the_page_says() -> None:
    def fresh() -> DreamPRVR:
        torch.manual_seed(5)
        return DreamPRVR(config(hidden_size=64), VIDEO_SIZE, TEXT_SIZE)

    one, state = fresh(), fresh().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    for name, parameter in one.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last.startswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "gru" not in name and parameter.numel() > 4000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert one.condition.tokens.std().item() == pytest.approx(1, rel=0.2)
    hidden = one.sampler.pooling.gru.weight_hh_l0
    torch.testing.assert_close(hidden.T @ hidden, torch.eye(32), atol=1e-5, rtol=0)  # orthogonal as a whole


@pytest.mark.parametrize(("initialization", "found"), [("aligned", 12), ("paper", 3)])
def test_an_aligned_start_retrieves_as_the_encoder_of_its_features_does(initialization: str, found: int) -> None:
    torch.manual_seed(0)
    model = DreamPRVR(config(hidden_size=64, initialization=initialization, branches=2), 48, 48).eval()
    mask = torch.ones(12, 128, dtype=torch.bool)
    shown = torch.nn.functional.normalize(torch.randn(12, 8, 48), dim=-1)  # what each video shows, one after the other
    frames = shown.repeat_interleave(16, dim=1)
    encoding = model.encode_videos(shown.repeat_interleave(4, dim=1), frames, mask)
    asked = shown[:, 3:4].expand(-1, 5, -1)  # every token of a query is what its video shows in the middle
    scores = fused_scores(model.encode_queries(asked, torch.ones(12, 5, dtype=torch.bool)), encoding, 0.5)
    right = int((scores.argmax(1) == torch.arange(12)).sum())
    assert right == found if initialization == "aligned" else right <= found


def test_an_aligned_start_is_one_orthogonal_projection_and_else_the_papers() -> None:
    def fresh(initialization: str, **sizes: int) -> DreamPRVR:
        torch.manual_seed(5)
        return DreamPRVR(config(initialization=initialization, **sizes), VIDEO_SIZE, VIDEO_SIZE)

    def same(one: DreamPRVR, other: DreamPRVR) -> set[str]:
        theirs = other.state_dict()
        return {name for name, value in one.state_dict().items() if torch.equal(value, theirs[name])}

    aligned, paper = fresh("aligned"), fresh("paper")
    projections = {f"{kind}_input.layer.project.weight" for kind in ("query", "clip", "frame")}
    assert same(aligned, paper) == paper.state_dict().keys() - projections
    assert same(aligned, fresh("aligned")) == aligned.state_dict().keys()
    first, *others = (aligned.get_parameter(name) for name in sorted(projections))
    assert all(torch.equal(first, other) and first is not other for other in others)
    torch.testing.assert_close(first.T @ first, torch.eye(VIDEO_SIZE))  # 16 x 12
    narrow = fresh("aligned", hidden_size=8).query_input.layer.project.weight
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(8))


def test_features_of_other_sizes_cannot_start_alike() -> None:
    with pytest.raises(ValueError, match=r"needs query and video features of the same size, not 10 and 12"):
        DreamPRVR(config(initialization="aligned"), VIDEO_SIZE, TEXT_SIZE)


def test_bfloat16_stays_near_and_keeps_registers_exact() -> None:
    model, batch = build(), videos(2)
    exact = parts(model.encode_videos(*batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode_videos(*batch)
        assert model.encode_queries(*queries(2)).dtype == torch.float32
        start = torch.randn(2, 3, 16)
        errors = model.denoising_errors(rough, start)
    assert torch.equal(errors, model.denoising_errors(rough, start))
    assert rough.mu is not None and torch.equal(rough.registers, model.diffusion(rough.mu, rough.condition))
    for name, value in parts(rough).items():
        assert value.dtype == torch.float32, name
        assert (value - exact[name]).norm() < 0.1 * exact[name].norm(), name


def test_training_mode_drops_and_evaluation_does_not() -> None:
    model, batch = build(dropout=0.3, input_dropout=0.3), videos(2)
    assert not torch.equal(model.encode_videos(*batch).clip_tokens, model.encode_videos(*batch).clip_tokens)
    model.eval()
    assert torch.equal(model.encode_videos(*batch).clip_tokens, model.encode_videos(*batch).clip_tokens)
