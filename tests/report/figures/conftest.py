"""A small collection, and checkpoints of small models without training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.figures import SIZE, Collection, make_collection

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage.location import Storage


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A small collection."""
    return make_collection(tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Storage]:
    """Write the checkpoint of a small model with these values of its configuration."""

    def write(**changes: object) -> Storage:
        small = {"hidden_size": 16, "heads": 2, "branches": 1, "diffusion_steps": 2, "denoiser_layers": 1} | changes
        values = {f"model.{name}": value for name, value in small.items()}
        experiment = load_experiment("demo", values | {"data.video_size": SIZE, "data.text_size": SIZE})
        torch.manual_seed(0)
        model = DreamPRVR(experiment.model, SIZE, SIZE)
        directory = tmp_path_factory.mktemp("checkpoint")
        Checkpoint(model.state_dict(), None, experiment, {"epoch": 1, "SumR": 1.0}).write(directory)
        return Storage.of(directory)

    return write


@pytest.fixture(scope="session")
def checkpoint(save: Callable[..., Storage]) -> Storage:
    """A model with three registers."""
    return save(registers=3)
