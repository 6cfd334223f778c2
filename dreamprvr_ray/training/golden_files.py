"""Reads the recorded numbers of `verify` and checks what they hold: a damaged file is one line that names it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.errors import UserError, did_you_mean, first_line
from dreamprvr_ray.storage.files import read_json

MAX_STEPS = 10_000  # recorded optimiser steps; the project's own are 6 and 25


class RecordedArrays(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` file. Looking up one that is missing raises `UserError` naming the file."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.path = path
        self._arrays = arrays

    @classmethod
    def read(cls, path: Path) -> RecordedArrays:
        """Read a file. Raises `UserError` if it is damaged, or if an array does not hold numbers."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except Exception as error:  # a damaged archive can fail in any way
            raise UserError(f"{path}: cannot be read as .npz: {first_line(error)}") from None
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
                raise UserError(f"{path}: array '{name}' must hold numbers")
        return cls(path, arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise UserError(f"{self.path}: has no array '{name}'{did_you_mean(name, self._arrays)}")
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def below(self, prefix: str) -> list[str]:
        """Return what follows `prefix/` in the names that begin with it. Raises `UserError` if none does."""
        names = [name.removeprefix(f"{prefix}/") for name in self if name.startswith(f"{prefix}/")]
        if not names:
            raise UserError(f"{self.path}: has no arrays '{prefix}/...'")
        return names

    def shaped(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array. Raises `UserError` if it has another shape."""
        array = self[name]
        if array.shape != shape:
            raise UserError(f"{self.path}: array '{name}' must have shape {shape}, not {array.shape}")
        return array

    def number(self, name: str) -> float:
        """Return a single number."""
        return float(self.shaped(name, ()))

    def count(self, name: str) -> int:
        """Return a number of steps. Raises `UserError` if it is none from 1 to `MAX_STEPS`."""
        value = self.number(name)
        if not 1 <= value <= MAX_STEPS or value != int(value):
            raise UserError(f"{self.path}: '{name}' must be an integer from 1 to {MAX_STEPS}, not {value:g}")
        return int(value)

    def steps(self, name: str) -> np.ndarray:
        """Return a number per step (S,), for 1 to `MAX_STEPS` steps."""
        array = self[name]
        if array.ndim != 1 or not 1 <= len(array) <= MAX_STEPS:
            raise UserError(f"{self.path}: array '{name}' must hold one number for each of 1 to {MAX_STEPS} steps")
        return array


def check_inputs(inputs: RecordedArrays, experiment: Experiment) -> None:
    """Raise `UserError` unless the arrays of `inputs.npz` are one batch for the model of this experiment."""
    if not experiment.model.registers:
        raise UserError(f"{inputs.path.with_name('authors_format.ckpt')}: num_registers must not be 0")
    data, videos = experiment.data, len(np.atleast_1d(inputs["clip_video_features"]))
    frames = inputs["frame_video_features"].shape[1] if inputs["frame_video_features"].ndim == 3 else FRAMES
    queries = len(np.atleast_1d(inputs["text_labels"]))
    tokens = inputs["text_feat"].shape[1] if inputs["text_feat"].ndim == 3 else QUERY_TOKENS
    inputs.shaped("clip_video_features", (videos, CLIPS, data.video_size))
    inputs.shaped("frame_video_features", (videos, min(frames, FRAMES), data.video_size))
    inputs.shaped("videos_mask", (videos, frames))
    inputs.shaped("text_feat", (queries, min(tokens, QUERY_TOKENS), data.text_size))
    inputs.shaped("text_mask", (queries, tokens))
    owner = inputs.shaped("text_labels", (queries,))
    if not videos or owner.dtype.kind not in "iu" or not np.array_equal(np.unique(owner), np.arange(videos)):
        raise UserError(f"{inputs.path}: 'text_labels' must name every one of the {videos} videos at least once")


def read_meta(path: Path) -> tuple[int, list[str]]:
    """Return the planned optimiser steps and the parameters' names of `meta.json`. Raises `UserError` if damaged."""
    meta: dict[str, Any] = read_json(path)
    optimizer, names = meta.get("optimizer"), meta.get("param_names")
    steps = optimizer.get("total_steps") if isinstance(optimizer, dict) else None
    if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise UserError(f"{path}: optimizer.total_steps must be an integer from 1 to {MAX_STEPS}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: param_names must be a list of names")
    return steps, names
