"""What the encoders share: weights that cannot be loaded, batches on a device, hashes of weights, versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dreamprvr_ray.device import Precision, autocast, best_device, resolve_precision
from dreamprvr_ray.errors import UserError, did_you_mean, first_line
from dreamprvr_ray.video.encoders.protocols import Settings

FRAMES_AT_ONCE = 64
SENTENCES_AT_ONCE = 256

Item = TypeVar("Item")


def choose_device(device: torch.device | None) -> tuple[torch.device, Precision]:
    """Return the device, by default a GPU if there is one, and the precision: half on a GPU, else single."""
    device = device or best_device()
    return device, resolve_precision("auto", device) if device.type == "cuda" else "fp32"


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """The context in which an encoder computes: no gradients, and the precision."""
    with torch.inference_mode(), autocast(device, precision):
        yield


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in batches of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def to_array(values: torch.Tensor) -> np.ndarray:
    """Return a tensor as float32 on the CPU."""
    array: np.ndarray = values.float().cpu().numpy()
    return array


def encode_in_batches(
    frames: Sequence[np.ndarray],
    prepare: Callable[[np.ndarray], torch.Tensor],
    encode: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    precision: Precision,
    size: int,
) -> np.ndarray:
    """Return the embeddings (N, D) float32 of frames.

    Args:
        prepare: Turns an image (H, W, 3) uint8 into the model's input, (3, h, w).
        encode: Returns the embeddings (n, D) of a batch (n, 3, h, w).
    """
    rows = [np.empty((0, size), np.float32)]
    for batch in batches(frames, FRAMES_AT_ONCE):
        images = torch.stack([prepare(frame) for frame in batch])
        with computing(device, precision):
            rows.append(to_array(encode(images.to(device))))
    return np.concatenate(rows)


def is_directory_name(model: str) -> bool:
    """Whether the model part of an encoder's name is a directory: it starts with `/`, `./`, `../` or `~`."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def model_directory(name: str, model: str) -> Path:
    """Return the directory that a name such as `timm:/models/lite0` means. Raises `UserError` if it does not exist."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"encoder {name}: {path} is not a directory")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"encoder {name}: no directory {path}{did_you_mean(path.name, siblings)}")


def import_error(name: str, error: ImportError) -> UserError:
    """Return the error for a library that cannot be imported."""
    return UserError(f"encoder {name}: {first_line(error)}; install with pip install 'dreamprvr_ray[video]'")


def not_loaded(name: str, library: str, error: BaseException, repository: str | None) -> UserError:
    """Return the error for weights that could not be loaded, with the command that fetches them from the hub.

    Args:
        repository: The repository on the Hugging Face hub; None for a local directory or an unknown one.
    """
    reason = first_line(error)[:300]
    if repository is None:
        return UserError(f"encoder {name}: cannot be loaded: {reason}")
    folder = repository.rsplit("/", 1)[-1]
    return UserError(
        f"encoder {name}: its weights are not available here; on a machine with a network, run: "
        f"hf download {repository} --local-dir {folder} and use {library}:./{folder} ({reason})"
    )


def weights_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's weights: names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def plain_settings(prefix: str, settings: Mapping[str, Any]) -> Settings:
    """Return settings whose values are plain or sequences of plain values, with a prefix; sequences as strings."""
    found: Settings = {}
    for key, value in settings.items():
        if isinstance(value, (str, int, float, bool)):
            found[prefix + key] = value
        elif isinstance(value, (list, tuple, dict)):
            found[prefix + key] = str(list(value) if isinstance(value, tuple) else value)
    return found


def versions(*packages: str) -> Settings:
    """Return the installed versions of packages, without local parts such as `+cpu`."""
    return {f"{package}_version": importlib.metadata.version(package).split("+")[0] for package in packages}
