"""The authors' checkpoints: read completely, rejected with an explanation if something is wrong, never executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.model import DreamPRVR, read_authors_checkpoint
from dreamprvr_ray.model.authors_names import authors_names

GOLDEN = Path(__file__).parents[1] / "golden" / "model" / "authors_format.ckpt"


@pytest.fixture
def content() -> dict[str, Any]:
    """A checkpoint in the authors' format, for tests to change and save."""
    checkpoint = read_authors_checkpoint(GOLDEN)
    names = authors_names(checkpoint.experiment.model)
    weights = {
        theirs: (checkpoint.weights[ours] if index is None else checkpoint.weights[ours][index]).clone()
        for theirs, (ours, index) in names.items()
    }
    settings = {
        "visual_feat_dim": 24,
        "q_feat_size": 16,
        "hidden_size": 32,
        "max_ctx_l": 128,
        "input_drop": 0.1,
        "drop": 0.2,
        "n_heads": 4,
        "margin": 0.1,
        "hard_pool_size": 5,
        "sft_factor": 0.09,
        "num_registers": 3,
        "timesteps": 4,
        "attention_num": 8,
        "num_diffusion_layers": 2,
        "loss_factor": [0.05, 0.04, 0.008, 0.01, 0.02, 0.1],
        "neg_factor": [0.15, 32, 1],
        "deterministic_tau": 0.09,
        "lr": 0.0003,
        "wd": 0.02,
        "lr_warmup_proportion": 0.1,
        "n_epoch": 4,
        "max_es_cnt": 7,
        "batchsize": 64,
        "hard_negative_start_epoch": 3,
        "clip_scale_w": 0.6,
        "frame_scale_w": 0.4,
        "seed": 9,
    }
    return {"config": settings, "epoch": 3, "state_dict": weights, "optimizer": {}}


@pytest.fixture
def mistakes(tmp_path: Path) -> Callable[[Any], list[str]]:
    """Saves a content as a checkpoint and returns the mistakes that reading it reports."""

    def save_and_read(content: Any) -> list[str]:
        path = tmp_path / "broken.ckpt"
        torch.save(content, path)
        with pytest.raises(UserError) as error:
            read_authors_checkpoint(path)
        assert all("\n" not in line and line.startswith(str(path)) for line in error.value.mistakes)
        return [line.removeprefix(f"{path}: ") for line in error.value.mistakes]

    return save_and_read


def test_every_tensor_of_the_release_has_one_place_in_the_model() -> None:
    checkpoint = read_authors_checkpoint(GOLDEN)
    config = checkpoint.experiment.model
    model = DreamPRVR(config, checkpoint.experiment.data.video_size, checkpoint.experiment.data.text_size)
    model.load_state_dict(checkpoint.weights, strict=True)
    assert checkpoint.epoch == 3
    places = list(authors_names(config).values())
    assert len(places) == len(set(places)) == 393
    for name, tensor in model.state_dict().items():
        parts = [place.part for place in places if place.name == name]
        assert parts == [None] or sorted(parts) == list(range(len(tensor))), name


def test_settings_are_translated_to_configuration_keys(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    flat = read_authors_checkpoint(tmp_path / "a.ckpt").experiment.flat()
    assert flat == {
        "model.registers": 3,
        "model.diffusion_steps": 4,
        "model.hidden_size": 32,
        "model.heads": 4,
        "model.branches": 8,
        "model.denoiser_layers": 2,
        "model.dropout": 0.2,
        "model.input_dropout": 0.1,
        "model.fusion_temperature": 0.09,
        "model.initialization": "paper",
        "model.register_source": "diffusion",
        "model.diffusion_start": "variational",
        "loss.textual_perturbation": True,
        "loss.weights.clip_nce": 0.05,
        "loss.weights.frame_nce": 0.04,
        "loss.weights.diversity": 0.008,
        "loss.weights.similarity": 0.01,
        "loss.weights.variational": 0.02,
        "loss.weights.denoising": 0.1,
        "loss.margin": 0.1,
        "loss.diversity_margin": 0.15,
        "loss.diversity_scale": 32,
        "loss.diversity_focus": 1,
        "loss.similarity_temperature": 0.09,
        "loss.hard_negative_start_epoch": 3,
        "loss.hard_negative_pool": 5,
        "optimizer.learning_rate": 0.0003,
        "optimizer.warmup_fraction": 0.1,
        "optimizer.weight_decay": 0.02,
        "data.video_size": 24,
        "data.text_size": 16,
        "data.trim_frames": "exact",
        "training.epochs": 4,
        "training.patience": 7,
        "training.batch_videos": 64,
        "training.seed": 9,
        "training.precision": "auto",
        "training.max_failures": 3,
        "training.with_val": False,
        "training.choose_epoch": "best",
        "evaluation.clip_weight": pytest.approx(0.6),
        "evaluation.encoder_weight": 0.0,
    }


def test_the_authors_noisy_time_table_is_loaded_unchanged(content: dict[str, Any], tmp_path: Path) -> None:
    noise = torch.randn(4, 32)
    content["state_dict"]["diffusion_mlp.time_embedding.timembedding.0.weight"] = noise
    torch.save(content, tmp_path / "a.ckpt")
    assert torch.equal(read_authors_checkpoint(tmp_path / "a.ckpt").weights["diffusion.denoiser.time_codes"], noise)


def test_reading_leaves_the_global_generator_unchanged() -> None:
    before = torch.get_rng_state()
    read_authors_checkpoint(GOLDEN)
    assert torch.equal(torch.get_rng_state(), before)


class _Command:
    """Runs a command when it is unpickled, as a malicious checkpoint would."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["optimizer", "config", "state_dict"])
def test_a_malicious_pickle_runs_nothing(content: dict[str, Any], tmp_path: Path, place: str) -> None:
    trace, path = tmp_path / "ran", tmp_path / "malicious.ckpt"
    content[place]["extra"] = _Command(f"touch {trace}")
    torch.save(content, path)
    if place == "state_dict":
        with pytest.raises(UserError, match="unknown tensor 'extra'"):
            read_authors_checkpoint(path)
    else:
        assert read_authors_checkpoint(path).epoch == 3
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the same file does run its command when torch trusts it
    assert trace.exists()


def test_a_malicious_pickle_cannot_reach_builtins_by_another_name(tmp_path: Path) -> None:
    """In protocol 4, names may contain dots: `_os.system` of a module that imports os as _os."""
    trace, path = tmp_path / "ran", tmp_path / "malicious.ckpt"
    command = f"touch {trace}".encode()
    program = b"\x80\x04\x8c\x08tempfile\x8c\x0a_os.system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
    with pytest.raises(UserError):
        read_authors_checkpoint(path)
    assert not trace.exists()
    pickle.loads(program)  # noqa: S301 - the same program does run when it is trusted
    assert trace.exists()


def test_every_wrong_tensor_is_reported(content: dict[str, Any], mistakes: Callable[[Any], list[str]]) -> None:
    weights = content["state_dict"]
    del weights["frame_encoder.e_attns.3.norm1.bias"]
    weights["query_encoder.norm1.weight"] = torch.zeros(31)
    weights["query_encoder.norm2.wieght"] = torch.zeros(32)
    assert mistakes(content) == [
        "unknown tensor 'query_encoder.norm2.wieght'; did you mean 'query_encoder.norm2.weight'?",
        "tensor 'query_encoder.norm1.weight' has shape (31,); its settings require (32,)",
        "tensor 'frame_encoder.e_attns.3.norm1.bias' is missing",
    ]


def test_every_wrong_setting_is_reported(content: dict[str, Any], mistakes: Callable[[Any], list[str]]) -> None:
    content["config"] |= {"max_ctx_l": 64, "neg_factor": [0.15, 32]}
    del content["config"]["n_heads"]
    assert mistakes(content) == [
        "setting 'max_ctx_l' must be 128, not 64",
        "setting 'n_heads' is missing",
        "setting 'neg_factor'[2] is missing",
    ]


def test_settings_out_of_range_are_reported(content: dict[str, Any], mistakes: Callable[[Any], list[str]]) -> None:
    content["config"]["drop"] = 1.5
    assert [line.split(":")[0] for line in mistakes(content)] == ["model.dropout = 1.5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must contain a dictionary, not a list"),
        ({"epoch": 3}, "'config' is missing"),
        ({"config": {}}, "'state_dict' is missing"),
    ],
)
def test_other_contents_are_rejected(content: Any, message: str, mistakes: Callable[[Any], list[str]]) -> None:
    assert message in "\n".join(mistakes(content))


def test_other_files_are_rejected(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(UserError, match="does not exist"):
        read_authors_checkpoint(path)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="not a checkpoint in torch's zip format"):
        read_authors_checkpoint(path)
    torch.save(content, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="not a checkpoint in torch's zip format"):
        read_authors_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02garbage")
        archive.writestr("x/version", "3\n")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_authors_checkpoint(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(UserError, match="TorchScript"):
        read_authors_checkpoint(path)
