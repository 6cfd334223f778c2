"""The whole network: equal to the reference model, and correct in edge cases."""

from __future__ import annotations

import pytest
import torch
from support import reference_model
from torch import Tensor

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.config_sections import ModelConfig
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
    """Return a model with noise on all weights, so that biases and norms (initially 0 and 1) matter too."""
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
        {"register_source": "pooling"},
    ],
    ids=["usual", "no registers", "one register, one step", "one branch", "eight branches", "pooling"],
)
def test_values_and_gradients_equal_those_of_the_reference_model(changes: dict[str, int]) -> None:
    model = build(**changes).double()
    video_batch, query_batch = videos(3, torch.float64), queries(4, torch.float64)
    start = torch.randn(3, model.config.registers, 16, dtype=torch.float64)

    def run(reference: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if reference:
            weights = reference_model.reference_weights(model)
            encoding = reference_model.encode_videos(weights, model.config, *video_batch)
            outputs = parts(encoding) | {"queries": reference_model.encode_queries(weights, model.config, *query_batch)}
            if encoding.noise is not None and encoding.condition is not None:
                outputs["errors"] = reference_model.denoising_errors(
                    weights, model.config, start, encoding.noise, encoding.condition
                )
        else:
            encoded = model.encode_videos(*video_batch)
            outputs = parts(encoded) | {"queries": model.encode_queries(*query_batch)}
            if encoded.noise is not None:
                outputs["errors"] = model.denoising_errors(encoded, start)
        torch.manual_seed(3)
        loss = sum((output * torch.randn_like(output)).sum() for output in outputs.values())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return outputs, dict(zip(dict(model.named_parameters()), gradients, strict=True))

    (outputs, gradients), (expected, expected_gradients) = run(False), run(True)
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for name, gradient in gradients.items():
        # Relative to the tensor's largest entry. The absolute term is for gradients that are zero by symmetry.
        error = (gradient - expected_gradients[name]).abs().max()
        assert error <= 1e-5 * expected_gradients[name].abs().max() + 1e-6, name


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


def test_features_of_another_size_are_rejected() -> None:
    (clips, frames, mask), (tokens, token_mask) = videos(1), queries(1)
    with pytest.raises(ValueError, match="features have size 11; this model takes 12"):
        build().encode_videos(clips[..., 1:], frames[..., 1:], mask)
    with pytest.raises(ValueError, match="features have size 9; this model takes 10"):
        build().encode_queries(tokens[..., 1:], token_mask)


def test_permuted_videos_give_permuted_encodings() -> None:
    model, batch = build(), videos(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    original = parts(model.encode_videos(*batch))
    permuted = parts(model.encode_videos(*(part[order] for part in batch)))
    for name, value in original.items():
        torch.testing.assert_close(permuted[name], value[order], rtol=1e-4, atol=1e-5)


def test_values_in_the_padding_have_no_influence() -> None:
    model, (clips, frames, mask), (tokens, token_mask) = build(), videos(3), queries(4)
    noise = torch.randn_like(frames).masked_fill(mask.unsqueeze(-1), 0)
    original, noisy = model.encode_videos(clips, frames, mask), model.encode_videos(clips, frames + noise, mask)
    assert torch.equal(original.frame_tokens, noisy.frame_tokens)
    assert not original.frame_tokens[~mask].any()
    noisy_tokens = tokens + torch.randn_like(tokens).masked_fill(token_mask.unsqueeze(-1), 0)
    torch.testing.assert_close(model.encode_queries(noisy_tokens, token_mask), model.encode_queries(tokens, token_mask))


def test_more_padding_of_queries_has_no_influence() -> None:
    model, (tokens, mask) = build(), queries(2)
    longer = torch.nn.functional.pad(tokens, (0, 0, 0, 23)), torch.nn.functional.pad(mask, (0, 23))
    torch.testing.assert_close(model.encode_queries(*longer), model.encode_queries(tokens, mask), rtol=1e-4, atol=1e-5)


def test_a_model_without_registers_has_no_parameters_for_them() -> None:
    model = build(registers=0)
    encoding = model.encode_videos(*videos(2))
    assert encoding.registers is encoding.condition is encoding.mu is encoding.logvar is None
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {
        "query_input", "clip_input", "frame_input", "query_attention", "query_pooling", "clip_fusion", "frame_fusion",
    }  # fmt: skip
    assert not [name for name in model.state_dict() if "register" in name]


def test_pooled_registers_add_no_parameters() -> None:
    model = build(registers=4, register_source="pooling")
    encoding = model.encode_videos(*videos(2))
    assert encoding.condition is encoding.noise is encoding.mu is encoding.logvar is None
    assert encoding.registers is not None and encoding.registers.shape == (2, 4, 16)
    whole = {name.split(".")[0] for name, _ in build(registers=4).named_parameters()}
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == whole - {"condition", "sampler", "diffusion"}
    context = model.video_context(model.clip_input(videos(2)[0]), None, None, None)[0]
    torch.testing.assert_close(encoding.registers[:, 1], context[:, 8:16].mean(1))


def test_registers_from_noise_are_the_same_for_a_video_in_any_batch() -> None:
    model, batch = build(diffusion_start="noise").eval(), videos(3)
    encoding = model.encode_videos(*batch)
    assert encoding.mu is encoding.logvar is None and not hasattr(model, "sampler")
    assert encoding.noise is not None and abs(encoding.noise.std() - 1) < 0.2
    alone = model.encode_videos(*(part[2:] for part in batch))
    for name, part in parts(encoding).items():
        torch.testing.assert_close(parts(alone)[name][0], part[2])
    assert torch.equal(build(1, diffusion_start="noise").fixed_noise, model.fixed_noise)  # of any model
    assert "fixed_noise" not in model.state_dict()
    other = model.encode_videos(*batch, torch.randn(3, 3, 16))
    assert other.registers is not None and not torch.allclose(other.registers, encoding.registers)


@pytest.mark.parametrize(("preset", "millions"), [("tvr", 37.62), ("activitynet", 36.14), ("charades", 36.14)])
def test_number_of_parameters_is_that_of_the_paper(preset: str, millions: float) -> None:
    experiment = load_experiment(preset)
    with torch.device("meta"):
        model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_gradient_parts_counts_the_parts_of_stacked_parameters() -> None:
    model = build(branches=4)
    counts = model.gradient_parts()
    assert counts.keys() == dict(model.named_parameters()).keys()
    assert counts["clip_fusion.branches.query.weight"] == 4
    assert counts["frame_fusion.branches.key_value.bias"] == 8
    assert counts["query_attention.key_value.weight"] == 2
    assert counts["frame_fusion.branches.feed_forward.output_norm.weight"] == 4
    assert (
        counts["frame_fusion.summary.key.weight"]
        == counts["query_input.positions"]
        == counts["diffusion.denoiser.output.weight"]
        == 1
    )


def test_undecayed_parameters_are_biases_and_input_norms() -> None:
    model = build()
    undecayed = model.undecayed()
    assert undecayed <= dict(model.named_parameters()).keys()
    inputs = [f"{kind}_input" for kind in ("query", "clip", "frame")]
    norms = {f"{name}.layer.norm.weight" for name in inputs} | {f"{name}.norm.weight" for name in inputs}
    norms |= {f"{kind}_fusion.register_input.norm.weight" for kind in ("clip", "frame")}
    assert {name for name in undecayed if ".bias" not in name} == norms
    assert all(".bias" not in name for name in dict(model.named_parameters()).keys() - undecayed)
    assert "sampler.pooling.gru.bias_hh_l0_reverse" in undecayed


def test_initial_weights_come_from_the_global_generator_and_are_as_specified() -> None:
    def fresh() -> DreamPRVR:
        torch.manual_seed(5)
        return DreamPRVR(config(hidden_size=64), VIDEO_SIZE, TEXT_SIZE)

    model, repeated = fresh(), fresh().state_dict()
    assert all(torch.equal(value, repeated[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last.startswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "gru" not in name and parameter.numel() > 4000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert model.condition.tokens.std().item() == pytest.approx(1, rel=0.2)
    hidden = model.sampler.pooling.gru.weight_hh_l0
    torch.testing.assert_close(
        hidden.T @ hidden, torch.eye(32), atol=1e-5, rtol=0
    )  # the three gates' matrices together are orthogonal


@pytest.mark.parametrize(("initialization", "found"), [("aligned", 12), ("paper", 3)])
def test_an_aligned_model_retrieves_like_the_features_before_training(initialization: str, found: int) -> None:
    torch.manual_seed(0)
    model = DreamPRVR(config(hidden_size=64, initialization=initialization, branches=2), 48, 48).eval()
    mask = torch.ones(12, 128, dtype=torch.bool)
    scenes = torch.nn.functional.normalize(torch.randn(12, 8, 48), dim=-1)  # eight per video
    frames = scenes.repeat_interleave(16, dim=1)
    encoding = model.encode_videos(scenes.repeat_interleave(4, dim=1), frames, mask)
    tokens = scenes[:, 3:4].expand(-1, 5, -1)  # all tokens of a query have the features of a scene of its video
    scores = fused_scores(model.encode_queries(tokens, torch.ones(12, 5, dtype=torch.bool)), encoding, 0.5)
    correct = int((scores.argmax(1) == torch.arange(12)).sum())
    assert correct == found if initialization == "aligned" else correct <= found


def test_aligned_initialization_differs_from_the_papers_only_in_one_shared_orthogonal_projection() -> None:
    def fresh(initialization: str, **sizes: int) -> DreamPRVR:
        torch.manual_seed(5)
        return DreamPRVR(config(initialization=initialization, **sizes), VIDEO_SIZE, VIDEO_SIZE)

    def equal_tensors(first: DreamPRVR, second: DreamPRVR) -> set[str]:
        state = second.state_dict()
        return {name for name, value in first.state_dict().items() if torch.equal(value, state[name])}

    aligned, paper = fresh("aligned"), fresh("paper")
    projections = {f"{kind}_input.layer.project.weight" for kind in ("query", "clip", "frame")}
    assert equal_tensors(aligned, paper) == paper.state_dict().keys() - projections
    assert equal_tensors(aligned, fresh("aligned")) == aligned.state_dict().keys()
    first, *others = (aligned.get_parameter(name) for name in sorted(projections))
    assert all(torch.equal(first, other) and first is not other for other in others)
    torch.testing.assert_close(first.T @ first, torch.eye(VIDEO_SIZE))  # 16 x 12
    narrow = fresh("aligned", hidden_size=8).query_input.layer.project.weight
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(8))


def test_aligned_initialization_rejects_features_of_different_sizes() -> None:
    with pytest.raises(ValueError, match=r"needs query and video features of the same size, not 10 and 12"):
        DreamPRVR(config(initialization="aligned"), VIDEO_SIZE, TEXT_SIZE)


def test_bf16_is_close_to_fp32_and_registers_are_computed_in_fp32() -> None:
    model, batch = build(), videos(2)
    exact = parts(model.encode_videos(*batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.encode_videos(*batch)
        assert model.encode_queries(*queries(2)).dtype == torch.float32
        start = torch.randn(2, 3, 16)
        errors = model.denoising_errors(rounded, start)
    assert torch.equal(errors, model.denoising_errors(rounded, start))
    assert rounded.noise is not None and torch.equal(
        rounded.registers, model.diffusion(rounded.noise, rounded.condition)
    )
    for name, value in parts(rounded).items():
        assert value.dtype == torch.float32, name
        assert (value - exact[name]).norm() < 0.1 * exact[name].norm(), name


def test_dropout_is_active_only_in_training_mode() -> None:
    model, batch = build(dropout=0.3, input_dropout=0.3), videos(2)
    assert not torch.equal(model.encode_videos(*batch).clip_tokens, model.encode_videos(*batch).clip_tokens)
    model.eval()
    assert torch.equal(model.encode_videos(*batch).clip_tokens, model.encode_videos(*batch).clip_tokens)
