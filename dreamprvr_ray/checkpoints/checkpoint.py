"""Checkpoint directories: `weights.safetensors`, `state.pt`, `experiment.yaml`, `checksums.json`, `metrics.json`, and
`moments.safetensors` if the training learned to find moments.

They hold tensors and plain values only, so loading one never executes code. A directory is written under a temporary
name and renamed once it is complete, so a directory that exists can be loaded.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dreamprvr_ray import __version__
from dreamprvr_ray.checkpoints.checksums import check_file, format_checksums, with_checksum
from dreamprvr_ray.checkpoints.export_page import README, export_page
from dreamprvr_ray.checkpoints.layout import CHECKSUMS, MOMENTS, STATE, WEIGHTS, is_checkpoint_file
from dreamprvr_ray.checkpoints.layout import EXPERIMENT as EXPERIMENT
from dreamprvr_ray.checkpoints.layout import METRICS as METRICS
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.encoding import ENCODING, KEY, EncodingRecord
from dreamprvr_ray.errors import Failure, NotWritableError, UserError, first_line
from dreamprvr_ray.model.authors import read_authors_checkpoint
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.storage.files import read_json, replacing, write_json
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.storage.locks import is_lock


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, the experiment that trained it, and the metrics of its checkpoint.

    `moments` is the network that finds moments in its similarities; None if the training learned none.
    """

    model: DreamPRVR
    experiment: Experiment
    metrics: dict[str, Any]
    moments: MomentNetwork | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint directory, in memory."""

    weights: Mapping[str, torch.Tensor]
    state: dict[str, Any] | None  # what resuming needs besides the weights; None if only evaluation matters
    experiment: Experiment
    metrics: dict[str, Any]
    moments: Mapping[str, torch.Tensor] | None = None  # weights of the network that finds moments

    def write(self, directory: Path) -> None:
        """Write the files into `directory`, which must exist. Raises OSError if they cannot be written."""
        # Serialise in memory and write here: on a full disk, safetensors and torch raise their own exception types.
        # safetensors requires each tensor to have its own memory, and stacked branches may be views of one tensor.
        weights = {name: tensor.contiguous() for name, tensor in self.weights.items()}
        files: dict[str, bytes | memoryview] = {WEIGHTS: safetensors.torch.save(weights)}
        if self.moments is not None:
            files[MOMENTS] = safetensors.torch.save(dict(self.moments))
        if self.state is not None:
            buffer = io.BytesIO()
            torch.save(self.state, buffer)
            files[STATE] = buffer.getbuffer()
        files[EXPERIMENT] = self.experiment.to_yaml().encode()
        metrics = (json.dumps(self.metrics, indent=1) + "\n").encode()
        files[CHECKSUMS] = format_checksums(files | {METRICS: metrics})
        files[METRICS] = metrics
        for name, content in files.items():
            _write(directory / name, content)


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power failure can leave the file's name without its content


def read_state(directory: Path) -> dict[str, Any]:
    """Read what resuming needs besides the weights. Raises `UserError` if it is missing or damaged."""
    check_file(directory, STATE)
    try:
        state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{directory}: has no {STATE}: the checkpoint can be evaluated, but training cannot resume from it"
        ) from None
    except pickle.UnpicklingError:  # torch's message suggests loading the file without this protection
        raise UserError(
            f"{directory / STATE}: damaged, or contains objects other than tensors and plain values"
        ) from None
    except Exception as error:  # torch.load raises many types for damaged files
        raise UserError(f"{directory / STATE}: damaged: {first_line(error)}") from None
    return state


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint onto the CPU.

    Raises `UserError` if they are missing or damaged, or if a value is NaN or infinite.
    """
    if not (directory / WEIGHTS).exists():
        raise UserError(f"{directory}: not a checkpoint: it has no {WEIGHTS}")
    return _read_tensors(directory, WEIGHTS)


def read_moments(directory: Path) -> MomentNetwork | None:
    """Read the network that finds moments of a checkpoint; None if it has none. Raises `UserError` if it is damaged."""
    if not (directory / MOMENTS).exists():
        return None
    weights = _read_tensors(directory, MOMENTS)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        network = MomentNetwork()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory / MOMENTS}: damaged, or of another version: {reason}") from None
    return network.eval()


def add_moments(checkpoint: Storage, network: MomentNetwork) -> None:
    """Add the network that finds moments to a complete checkpoint, and its checksum to the others if it has any.

    A kill in between leaves a checkpoint that can be read.
    """
    content = safetensors.torch.save(network.state_dict())
    checksums, path = None, f"{checkpoint}/{CHECKSUMS}"
    if checkpoint.exists(CHECKSUMS):
        checksums = checkpoint.read_text(CHECKSUMS)
        without = with_checksum(checksums, path, MOMENTS, None)
        if without != checksums:  # that of an earlier network
            checkpoint.write_text(CHECKSUMS, without)
    checkpoint.write_bytes(MOMENTS, content)
    if checksums is not None:
        checkpoint.write_text(CHECKSUMS, with_checksum(checksums, path, MOMENTS, content))


def _read_tensors(directory: Path, name: str) -> dict[str, torch.Tensor]:
    check_file(directory, name)
    try:
        tensors = safetensors.torch.load_file(directory / name)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{directory / name}: damaged: {first_line(error)}") from None
    _check_finite(tensors, directory / name)
    return tensors


def read_experiment(directory: Path) -> Experiment:
    """Read the experiment of a checkpoint. Raises `UserError` if it is missing, damaged or invalid."""
    check_file(directory, EXPERIMENT)
    return load_experiment(directory / EXPERIMENT)


def read_metrics(directory: Path) -> dict[str, Any]:
    """Read the metrics of a checkpoint. Raises `UserError` if they are missing or damaged."""
    check_file(directory, METRICS)
    return read_json(directory / METRICS)


def check_metrics(metrics: Mapping[str, Any], path: str, required: Mapping[str, type]) -> None:
    """Raise `UserError` naming the file `path` unless every required metric is a number of its type."""
    for name, number in required.items():
        value = metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, number)):
            raise UserError(f"{path}: damaged: '{name}' must be {'an integer' if number is int else 'a number'}")


def load_model(path: Path) -> TrainedModel:
    """Load the model of a checkpoint directory, or of a checkpoint file of the authors' release.

    Raises `UserError` if the path is neither, if a file is damaged, or if the weights do not fit the configuration.
    """
    if path.is_file():
        authors = read_authors_checkpoint(path)
        experiment, weights, metrics = authors.experiment, authors.weights, {"epoch": authors.epoch}
        moments = None
        _check_finite(weights, path)
    elif path.is_dir():
        weights, experiment, metrics = read_weights(path), read_experiment(path), read_metrics(path)
        moments = read_moments(path)
    else:
        raise UserError(f"{path}: checkpoint does not exist")
    data = experiment.data
    try:
        with torch.device("meta"):  # shapes only: sizes that the weights do not have must not be allocated
            shapes = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames)
        shapes.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not match {EXPERIMENT}: {' '.join(str(error).split())[:300]}"
        ) from None
    # Building the model draws initial weights, which are then replaced: do not advance the caller's generator.
    with torch.random.fork_rng(devices=[]):
        model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames)
    model.load_state_dict(weights)
    return TrainedModel(model.eval(), experiment, metrics, moments)


def _check_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: damaged: tensor '{name}' has values that are not finite")


def check_new_export(target: Path) -> None:
    """Raise `UserError` if there is anything at `target`, the directory of a new export."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} already exists; choose another --out")


def export_checkpoint(source: Path, target: Path) -> dict[str, Any]:
    """Copy what evaluation needs of a checkpoint into a new directory, add a README and a retrieval script, and return
    the metrics.

    Raises `UserError` if `source` is not a checkpoint that can be loaded, or if `target` exists, and `Failure` if the
    disk is full; `target` is then not created.
    """
    check_new_export(target)
    if source.is_file():
        raise UserError(f"{source}: is a file; export needs the directory of a checkpoint")
    if not source.is_dir():
        raise UserError(f"{source}: checkpoint does not exist")
    trained = load_model(source)
    metrics = trained.metrics
    check_metrics(metrics, f"{source / METRICS}", {"epoch": int, "SumR": float})
    script = (resources.files("dreamprvr_ray") / "retrieve.py.txt").read_bytes()
    encoding = model_encoding(metrics, str(source / METRICS))
    page = export_page(trained.experiment, metrics, encoding, __version__)
    try:
        with replacing(target) as directory:
            for path in source.iterdir():
                if path.is_file() and path.name != STATE and not is_lock(path.name):
                    _copy(path, directory / path.name)
            _write(directory / "retrieve.py", script)
            _write(directory / README, page.encode())
            if encoding is not None:
                write_json(directory / ENCODING, encoding.to_dict())
    except NotWritableError:
        raise
    except OSError as error:
        raise Failure(f"{target}: cannot be written: {error.strerror or first_line(error)}") from None
    return metrics


def model_encoding(metrics: Mapping[str, Any], path: str) -> EncodingRecord | None:
    """Return how the videos and sentences of a model's shards were encoded; None if that is not known.

    Raises `UserError` naming the file `path` if the record is damaged.
    """
    if metrics.get(KEY) is None:
        return None
    try:
        return EncodingRecord.from_dict(metrics[KEY])
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None


def _copy(source: Path, target: Path) -> None:
    """Copy a file's content, and wait until it is on the disk: a full disk may be reported only then."""
    with source.open("rb") as content, target.open("wb") as file:
        shutil.copyfileobj(content, file, 8 * 2**20)
        file.flush()
        os.fsync(file.fileno())


def copy_checkpoint(source: Path, target: Path) -> dict[str, Any]:
    """Copy a checkpoint directory atomically and return its metrics."""
    if not source.is_dir():
        raise UserError(f"{source}: checkpoint does not exist")
    with replacing(target, is_checkpoint_file) as directory:
        copy_checkpoint_files(source, directory)
    return read_metrics(target)


def copy_checkpoint_files(source: Path, target: Path) -> None:
    """Copy the files of a checkpoint into the directory `target`; not what else a user has put next to them."""
    for path in source.iterdir():
        if path.is_file() and is_checkpoint_file(path.name):
            shutil.copy2(path, target / path.name)
