"""The comparison of this machine's numbers with recorded ones, which the `verify` command prints.

The recorded numbers are in a directory with the layout of `tests/golden`, which its README describes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamprvr_ray.config import Experiment, validated
from dreamprvr_ray.config_sections import FRAMES, OptimizerConfig
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError, did_you_mean, first_line
from dreamprvr_ray.model.authors import AuthorsCheckpoint, read_authors_checkpoint
from dreamprvr_ray.model.authors_names import authors_names
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.scoring import token_scores
from dreamprvr_ray.training.golden_files import RecordedArrays, check_inputs, read_meta
from dreamprvr_ray.training.losses import Losses, NegativeDraws
from dreamprvr_ray.training.objective import StepRandomness, training_losses
from dreamprvr_ray.training.optimizer import PartwiseAdam, build_optimizer

PROJECT_GOLDEN = Path(__file__).parents[2] / "tests" / "golden"  # exists in a checkout of the project only
FILES = (
    *(f"model/{name}" for name in ("authors_format.ckpt", "meta.json", "inputs.npz", "expected.npz", "optimizer.npz")),
    "data/expected.npz",
    "data/mini",
)
CUDA_FACTOR = 10.0  # tolerances of the model are this many times as wide on CUDA
GRADIENT_FLOOR = 1e-2  # added to a tensor's largest entry: 1e-4 of the sum is 1e-4 of the entry, plus 1e-6
LOSSES = {
    "clip_nce": "clip_nce",
    "clip_triplet": "clip_triplet",
    "frame_nce": "frame_nce",
    "frame_triplet": "frame_triplet",
    "diversity": "div",
    "similarity": "qsp",
    "variational": "pvs",
    "denoising": "dre",
    "total": "total",
}  # by field of `Losses`, the recorded name


@dataclass(frozen=True)
class Check:
    """The worst deviation of one kind of number from the recorded ones."""

    name: str
    deviation: float
    tolerance: float
    relative: bool = False  # to the recorded value; for gradients, to their tensor's largest entry

    @property
    def within(self) -> bool:
        """Whether the deviation is within the tolerance; nan is not."""
        return self.deviation <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return the check as `--json` prints it, with null for a deviation that is not finite."""
        deviation = self.deviation if math.isfinite(self.deviation) else None
        return {
            "check": self.name,
            "deviation": deviation,
            "tolerance": self.tolerance,
            "relative": self.relative,
            "ok": self.within,
        }


def verify(golden: Path | None, device: torch.device) -> list[Check]:
    """Run every check on `device` against the directory `golden`, by default the project's own.

    Raises `UserError` if files are missing or unreadable, or if there is no such device.
    """
    golden = golden or PROJECT_GOLDEN
    if golden == PROJECT_GOLDEN and not golden.is_dir():
        raise UserError(
            "GOLDEN is required: this installation does not include the project's tests/golden; name a directory"
            " laid out like it"
        )
    missing = [f"{golden / name} does not exist" for name in FILES if not (golden / name).exists()]
    if missing:
        raise UserError(*missing)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device on this machine")
    try:
        return _checks(golden, device)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if golden == PROJECT_GOLDEN:
            raise
        raise UserError(f"{golden}: the recorded numbers do not fit together: {first_line(error)}") from None


def _checks(golden: Path, device: torch.device) -> list[Check]:
    factor = CUDA_FACTOR if device.type == "cuda" else 1.0
    model = golden / "model"
    checkpoint = read_authors_checkpoint(model / "authors_format.ckpt")
    inputs, expected, alone = (
        RecordedArrays.read(model / name) for name in ("inputs.npz", "expected.npz", "optimizer.npz")
    )
    check_inputs(inputs, checkpoint.experiment)
    total_steps, parameters = read_meta(model / "meta.json")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return [
            *conversion_checks(golden / "data"),
            *model_checks(checkpoint, inputs, expected, device, factor),
            *training_checks(checkpoint, total_steps, parameters, inputs, expected, device, factor),
            optimizer_check(checkpoint, alone, device, factor),
        ]


def format_checks(checks: Sequence[Check]) -> list[str]:
    """Return a table with one line per check."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':<{width}}  {'deviation':>9}  {'tolerance':>9}"]
    for check in checks:
        kind = "relative" if check.relative else "absolute"
        verdict = "ok" if check.within else "FAIL"
        lines.append(f"{check.name:<{width}}  {check.deviation:>9.1e}  {check.tolerance:>9.0e} {kind}  {verdict}")
    return lines


def conversion_checks(data: Path) -> Iterator[Check]:
    """Check the rows that conversion computes of the source tree `data`/mini: clips, frames and queries."""
    source, expected = Source.open(data, "mini"), RecordedArrays.read(data / "expected.npz")
    converters: dict[str, Callable[[str], np.ndarray]] = {
        "clip": lambda name: pooling.clips(source.video(name)),
        "frame": lambda name: pooling.frames(source.video(name)),
        "text": lambda name: pooling.query_tokens(source.query(name)),
    }
    for kind, rows in converters.items():
        worst = max(_difference(rows(name), expected[f"{kind}/{name}"]) for name in expected.below(kind))
        yield Check(f"{kind} rows", worst, 1e-6)


def model_checks(
    checkpoint: AuthorsCheckpoint, inputs: RecordedArrays, expected: RecordedArrays, device: torch.device, factor: float
) -> Iterator[Check]:
    """Check one forward and backward pass: encodings, scores, losses and every gradient."""
    experiment, model, batch = _recorded_setting(checkpoint, inputs, device)
    with torch.no_grad():
        queries = model.encode_queries(batch.tokens, batch.token_mask)
        videos = model.encode_videos(batch.clips, batch.frames, batch.frame_mask)
        clip, frame, fused = _scores(model, batch, experiment.evaluation.clip_weight)
    assert (
        videos.condition is not None
        and videos.mu is not None
        and videos.logvar is not None
        and videos.registers is not None
    )
    outputs = {
        "clip_tokens": videos.clip_tokens,
        "frame_tokens": videos.frame_tokens,
        "query": queries,
        "condition": videos.condition,
        "pvs_mu": videos.mu,
        "pvs_logvar": videos.logvar,
        "registers": videos.registers,
        "clip_scores": clip,
        "frame_scores": frame,
        "fused": fused,
    }
    for name, output in outputs.items():
        yield Check(
            name.replace("_", " "),
            _difference(output, expected[name]),
            factor * (5e-4 if name == "registers" else 1e-5),
        )
    losses = _losses(model, batch, experiment)
    for name, recorded_name in LOSSES.items():
        deviation = _relative(getattr(losses, name), expected.number(f"loss_{recorded_name}"))
        yield Check(f"loss: {name.replace('_', ' ')}", deviation, factor * 1e-5, relative=True)
    losses.total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    worst = 0.0
    names = authors_names(experiment.model)
    recorded = expected.below("grad")
    for theirs in recorded:
        reference = expected[f"grad/{theirs}"]
        difference = _difference(_part(gradients, _ours(names, theirs, expected)), reference)
        worst = _worse(worst, difference / (float(np.abs(reference).max()) + GRADIENT_FLOOR))
    yield Check(f"{len(recorded)} gradients, worst", worst, factor * 1e-4, relative=True)


def training_checks(
    checkpoint: AuthorsCheckpoint,
    total_steps: int,
    parameters: Sequence[str],
    inputs: RecordedArrays,
    expected: RecordedArrays,
    device: torch.device,
    factor: float,
) -> Iterator[Check]:
    """Check optimiser steps on one batch: the loss before each step, then every parameter norm and the fused scores."""
    experiment, model, batch = _recorded_setting(checkpoint, inputs, device)
    optimizer = build_optimizer(model, experiment.optimizer, total_steps)
    worst, recorded_losses = 0.0, expected.steps("loss_after_steps")
    for recorded in recorded_losses.tolist():
        losses = _losses(model, batch, experiment)
        worst = _worse(worst, _relative(losses.total, recorded))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    steps = len(recorded_losses)
    yield Check(f"losses before {steps} steps", worst, factor * 1e-4, relative=True)
    state = model.state_dict()
    names = authors_names(experiment.model)
    norms = [_part(state, _ours(names, name, expected)).double().norm() for name in parameters]
    worst = 0.0
    recorded_norms = expected.shaped("param_norm_after_steps", (len(parameters),))
    for norm, recorded in zip(norms, recorded_norms.tolist(), strict=True):
        worst = _worse(worst, _relative(norm, recorded))
    yield Check(f"{len(norms)} norms after {steps} steps", worst, factor * 1e-3, relative=True)
    with torch.no_grad():
        fused = _scores(model, batch, experiment.evaluation.clip_weight)[2]
    yield Check(f"fused after {steps} steps", _difference(fused, expected["fused_after_steps"]), factor * 1e-5)


def optimizer_check(
    checkpoint: AuthorsCheckpoint, recorded: RecordedArrays, device: torch.device, factor: float
) -> Check:
    """Check the optimiser alone, on recorded gradients of a few tensors."""
    experiment = checkpoint.experiment
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    initial = {name: recorded[f"initial/{name}"] for name in recorded.below("initial")}
    parameters = {
        name: nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device)) for name, value in initial.items()
    }
    names, without_decay = authors_names(experiment.model), model.undecayed()
    settings = {"learning_rate": recorded.number("lr"), "warmup_fraction": recorded.number("warmup_fraction")}
    config, steps = validated(OptimizerConfig, settings, str(recorded.path)), recorded.count("steps")
    gradients, after = (
        {name: recorded.shaped(f"{kind}/{name}", (steps, *value.shape)) for name, value in initial.items()}
        for kind in ("gradient", "after")
    )
    undecayed = {name for name in parameters if _ours(names, name, recorded)[0] in without_decay}
    total_steps = recorded.count("total_steps")
    optimizer = PartwiseAdam(parameters, dict.fromkeys(parameters, 1), undecayed, config, total_steps)
    worst = 0.0
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][step], dtype=torch.float32, device=device)
        optimizer.step()
        for name, parameter in parameters.items():
            worst = _worse(worst, _difference(parameter, after[name][step]))
    return Check(f"optimiser alone, {steps} steps", worst, factor * 1e-5)


def _recorded_setting(
    checkpoint: AuthorsCheckpoint, inputs: RecordedArrays, device: torch.device
) -> tuple[Experiment, DreamPRVR, Batch]:
    """Return the recorded setting: the checkpoint's model in training mode without dropout, and its batch."""
    experiment = checkpoint.experiment.with_values({"model.dropout": 0.0, "model.input_dropout": 0.0})
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    model.load_state_dict(checkpoint.weights)
    frames = torch.from_numpy(inputs["frame_video_features"])
    missing = FRAMES - frames.shape[1]
    batch = Batch(
        clips=torch.from_numpy(inputs["clip_video_features"]),
        frames=F.pad(frames, (0, 0, 0, missing)),
        frame_mask=F.pad(torch.from_numpy(inputs["videos_mask"]).bool(), (0, missing)),
        tokens=torch.from_numpy(inputs["text_feat"]),
        token_mask=torch.from_numpy(inputs["text_mask"]).bool(),
        owner=torch.from_numpy(inputs["text_labels"]),
    )
    return experiment, model.to(device), batch.to(device)


def _losses(model: DreamPRVR, batch: Batch, experiment: Experiment) -> Losses:
    """Compute the losses as recorded: with hard negatives, and without noise in the perturbation sampler."""
    noise = torch.zeros(len(batch.clips), experiment.model.registers, experiment.model.hidden_size)
    negatives = NegativeDraws.draw(len(batch.clips), len(batch.owner), torch.Generator().manual_seed(0))
    return training_losses(
        model, batch, experiment.loss, hard_negatives=True, randomness=StepRandomness(noise, noise, negatives)
    )


def _scores(model: DreamPRVR, batch: Batch, clip_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return clip, frame and fused scores, each (Q, B)."""
    queries = model.encode_queries(batch.tokens, batch.token_mask)
    videos = model.encode_videos(batch.clips, batch.frames, batch.frame_mask)
    clip = token_scores(queries, videos.clip_tokens).cosine
    frame = token_scores(queries, videos.frame_tokens).cosine
    return clip, frame, clip_weight * clip + (1 - clip_weight) * frame


def _part(tensors: Mapping[str, Tensor], place: tuple[str, int | None]) -> Tensor:
    """Return the tensor that `authors_names` maps a name of theirs to: a whole one of ours or an entry of a stack."""
    name, index = place
    return tensors[name] if index is None else tensors[name][index]


def _ours(names: Mapping[str, tuple[str, int | None]], theirs: str, recorded: RecordedArrays) -> tuple[str, int | None]:
    """Return the place of a parameter by the authors' name. Raises `UserError` if the model has no such parameter."""
    if theirs not in names:
        raise UserError(f"{recorded.path}: the model has no parameter '{theirs}'{did_you_mean(theirs, names)}")
    return names[theirs]


def _difference(value: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference, infinite if the shapes differ."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.shape != expected.shape:
        return float("inf")
    return float(np.abs(array.astype(np.float64) - expected).max())


def _relative(value: Tensor, expected: float) -> float:
    """Return the difference relative to the expected number."""
    difference = abs(float(value.detach()) - expected)
    return difference / abs(expected) if expected else difference


def _worse(one: float, other: float) -> float:
    """Return the larger of two deviations; nan is the worst."""
    return one if one != one or one > other else other
