"""Checkpoints are restored exactly, and loading one never executes code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_models

from dreamprvr_ray.checkpoints.checkpoint import (
    EXPERIMENT,
    METRICS,
    STATE,
    WEIGHTS,
    Checkpoint,
    copy_checkpoint,
    load_model,
    read_state,
)
from dreamprvr_ray.checkpoints.checksums import CHECKSUMS
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.model.dreamprvr import DreamPRVR

GOLDEN = Path(__file__).parents[1] / "golden" / "model" / "authors_format.ckpt"


def experiment(**model: object) -> Experiment:
    values = load_experiment("demo").model_dump()
    values["model"] = small_models.model_config(**model).model_dump()
    values["data"] = {"video_size": small_models.VIDEO_SIZE, "text_size": small_models.TEXT_SIZE}
    return Experiment.model_validate(values)


def write(directory: Path, state: dict[str, Any] | None) -> DreamPRVR:
    directory.mkdir()
    model = small_models.build().float()
    Checkpoint(model.state_dict(), state, experiment(), {"epoch": 2, "SumR": 12.5}).write(directory)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write(tmp_path / "checkpoint", {"step": 3})
    return tmp_path / "checkpoint"


def refused(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    (line,) = error.value.mistakes
    assert "\n" not in line and line.startswith(str(path))
    return line


def test_round_trip(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    state = {
        "progress": {"epoch": 2, "best_sumr": float("-inf")},
        "moments": {0: torch.randn(2, 3)},
        "rates": [1e-4, 2],
    }
    model = write(directory, state)
    assert sorted(path.name for path in directory.iterdir()) == sorted([WEIGHTS, STATE, EXPERIMENT, CHECKSUMS, METRICS])
    trained = load_model(directory)
    weights = trained.model.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert (
        trained.experiment == experiment()
        and trained.metrics == {"epoch": 2, "SumR": 12.5}
        and not trained.model.training
    )
    read = read_state(directory)
    assert (
        read["progress"] == state["progress"]
        and read["rates"] == state["rates"]
        and torch.equal(read["moments"][0], state["moments"][0])
    )


def test_loading_does_not_advance_the_random_generator(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    load_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_without_a_state_can_only_be_evaluated(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    write(directory, None)
    load_model(directory)
    assert refused(read_state, directory).endswith(
        f"has no {STATE}: the checkpoint can be evaluated, but training cannot resume from it"
    )


class Malicious:
    """Creates a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "save",
    [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))],
    ids=["torch", "pickle"],
)
def test_a_state_is_never_executed(save: Callable[[object, Path], object], checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    save({"optimizer": Malicious(mark)}, checkpoint / STATE)
    (checkpoint / CHECKSUMS).unlink()
    line = refused(read_state, checkpoint)
    assert line == f"{checkpoint / STATE}: damaged, or contains objects other than tensors and plain values"
    assert not mark.exists()
    with suppress(RuntimeError):  # a plain pickle has no tensors to read next
        torch.load(checkpoint / STATE, weights_only=False)
    assert mark.exists()  # without the protection it is executed


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "text", "truncated"])
def test_damaged_files_are_reported(content: bytes | None, checkpoint: Path) -> None:
    (checkpoint / CHECKSUMS).unlink()  # as in checkpoints of earlier versions
    for name, read in ((WEIGHTS, load_model), (STATE, read_state), (METRICS, load_model)):
        path = checkpoint / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
        assert refused(read, checkpoint).startswith(f"{path}: damaged"), name
        path.write_bytes(whole)
    load_model(checkpoint)


@pytest.mark.parametrize(
    ("name", "read"),
    [(WEIGHTS, load_model), (EXPERIMENT, load_model), (METRICS, load_model), (STATE, read_state)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_changed_byte_is_found(name: str, read: Callable[[Path], object], checkpoint: Path) -> None:
    """A file whose content is valid but is not what was written, such as one with a bit flipped."""
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert refused(read, checkpoint) == (
        f"{path}: damaged: its SHA-256 differs from the one in {CHECKSUMS}; use another checkpoint"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 3}'])
def test_damaged_checksums_are_reported(content: str, checkpoint: Path) -> None:
    (checkpoint / CHECKSUMS).write_text(content)
    assert refused(load_model, checkpoint).startswith(f"{checkpoint / CHECKSUMS}: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_rejected(value: float, tmp_path: Path) -> None:
    model = small_models.build().float()
    next(model.parameters()).data.view(-1)[3] = value
    name = next(iter(dict(model.named_parameters())))
    Checkpoint(model.state_dict(), None, experiment(), {}).write(tmp_path)
    assert refused(load_model, tmp_path) == (
        f"{tmp_path / WEIGHTS}: damaged: tensor '{name}' has values that are not finite"
    )


def test_sizes_that_the_weights_do_not_have_are_not_allocated(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(DreamPRVR, "load_state_dict", _recording(devices, DreamPRVR.load_state_dict))
    (checkpoint / CHECKSUMS).unlink()
    (checkpoint / EXPERIMENT).write_text(experiment(hidden_size=8192, branches=16, denoiser_layers=64).to_yaml())
    assert "the weights do not match" in refused(load_model, checkpoint)
    assert devices == ["meta"]


def _recording(devices: list[str], load: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(model: DreamPRVR, *arguments: Any, **named: Any) -> Any:
        devices.append(next(model.parameters()).device.type)
        return load(model, *arguments, **named)

    return recorded


def test_missing_files_are_reported(checkpoint: Path, tmp_path: Path) -> None:
    assert refused(load_model, tmp_path / "none").endswith("none: checkpoint does not exist")
    assert refused(load_model, tmp_path).endswith(f"not a checkpoint: it has no {WEIGHTS}")
    for name in (METRICS, EXPERIMENT):
        (checkpoint / name).unlink()
        assert refused(load_model, checkpoint).endswith(f"{name}: no such file")


def test_weights_that_do_not_match_the_configuration_are_rejected(checkpoint: Path) -> None:
    for other, named in ((experiment(hidden_size=32), "size mismatch"), (experiment(registers=0), "Unexpected key")):
        (checkpoint / EXPERIMENT).write_text(other.to_yaml())
        (checkpoint / CHECKSUMS).unlink(missing_ok=True)
        line = refused(load_model, checkpoint)
        assert line.startswith(f"{checkpoint}: the weights do not match {EXPERIMENT}: ") and named in line


def test_an_invalid_configuration_is_reported(checkpoint: Path) -> None:
    (checkpoint / CHECKSUMS).unlink()
    (checkpoint / EXPERIMENT).write_text("preset: demo\nmodel: {registres: 3}\n")
    line = refused(load_model, checkpoint)
    assert line == f"{checkpoint / EXPERIMENT}: unknown key 'model.registres'; did you mean 'model.registers'?"


def test_a_checkpoint_of_the_authors_release_is_loaded() -> None:
    trained = load_model(GOLDEN)
    assert trained.experiment.model.registers == 3 and trained.metrics == {"epoch": 3} and not trained.model.training


def test_a_copy_is_complete_and_replaces(checkpoint: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert copy_checkpoint(checkpoint, tmp_path / "copy") == {"epoch": 2, "SumR": 12.5}
        assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
            p.name: p.read_bytes() for p in checkpoint.iterdir()
        }
    assert refused(lambda path: copy_checkpoint(path, tmp_path / "copy"), tmp_path / "none").endswith(
        "checkpoint does not exist"
    )
    assert (tmp_path / "copy" / WEIGHTS).exists()
