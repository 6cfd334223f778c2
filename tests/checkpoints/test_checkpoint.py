"""Checkpoints come back exactly, are never executed, and are never half there."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from support import small_models

from dreamprvr_ray.checkpoints import checkpoint as checkpoints
from dreamprvr_ray.checkpoints.checkpoint import (
    EXPERIMENT,
    METRICS,
    STATE,
    WEIGHTS,
    copy_checkpoint,
    load_model,
    read_state,
)
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.errors import NotWritableError, UserError
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage import files
from dreamprvr_ray.storage.files import read_json, replacing, write_text

GOLDEN = Path(__file__).parents[1] / "golden" / "model" / "authors_format.ckpt"


def experiment(**model: object) -> Experiment:
    values = load_experiment("demo").model_dump()
    values["model"] = small_models.model_config(**model).model_dump()
    values["data"] = {"video_size": small_models.VIDEO_SIZE, "text_size": small_models.TEXT_SIZE}
    return Experiment.model_validate(values)


def write(directory: Path, state: dict[str, Any] | None) -> DreamPRVR:
    directory.mkdir()
    model = small_models.build().float()
    checkpoints.write_checkpoint(directory, model.state_dict(), experiment(), {"epoch": 2, "SumR": 12.5}, state)
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
    assert sorted(path.name for path in directory.iterdir()) == sorted([WEIGHTS, STATE, EXPERIMENT, METRICS])
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


def test_loading_leaves_the_random_generator_alone(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    load_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_state_it_can_be_evaluated_only(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    write(directory, None)
    load_model(directory)
    assert refused(read_state, directory).endswith(
        f"has no {STATE}: it can be evaluated, but training cannot resume from it"
    )


class Malicious:
    """Unpickling it makes a folder."""

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
    line = refused(read_state, checkpoint)
    assert line == f"{checkpoint / STATE}: damaged, or holds more than tensors and plain values: not loaded"
    assert not mark.exists()
    with suppress(RuntimeError):  # a plain pickle has no tensors to go on with
        torch.load(checkpoint / STATE, weights_only=False)
    assert mark.exists()  # it would have been


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "text", "truncated"])
def test_damaged_files_are_named(content: bytes | None, checkpoint: Path) -> None:
    for name, read in ((WEIGHTS, load_model), (STATE, read_state), (METRICS, load_model)):
        path = checkpoint / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
        assert refused(read, checkpoint).startswith(f"{path}: damaged"), name
        path.write_bytes(whole)
    load_model(checkpoint)


def test_missing_files_are_named(checkpoint: Path, tmp_path: Path) -> None:
    assert refused(load_model, tmp_path / "none").endswith("none: no such checkpoint")
    assert refused(load_model, tmp_path).endswith(f"no checkpoint: it has no {WEIGHTS}")
    for name in (METRICS, EXPERIMENT):
        (checkpoint / name).unlink()
        assert refused(load_model, checkpoint).endswith(f"{name}: no such file")


def test_weights_that_do_not_fit_the_configuration(checkpoint: Path) -> None:
    for other, named in ((experiment(hidden_size=32), "size mismatch"), (experiment(registers=0), "Unexpected key")):
        (checkpoint / EXPERIMENT).write_text(other.to_yaml())
        line = refused(load_model, checkpoint)
        assert line.startswith(f"{checkpoint}: the weights do not fit its {EXPERIMENT}: ") and named in line


def test_a_wrong_configuration_is_named(checkpoint: Path) -> None:
    (checkpoint / EXPERIMENT).write_text("preset: demo\nmodel: {registres: 3}\n")
    line = refused(load_model, checkpoint)
    assert line == f"{checkpoint / EXPERIMENT}: unknown key 'model.registres'; did you mean 'model.registers'?"


def test_a_checkpoint_of_the_authors() -> None:
    trained = load_model(GOLDEN)
    assert trained.experiment.model.registers == 3 and trained.metrics == {"epoch": 3} and not trained.model.training


def test_json_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    assert refused(read_json, tmp_path / "list.json").endswith("must hold an object")


def listing(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def fill(directory: Path, text: str) -> None:
    (directory / "file").write_text(text)


@pytest.fixture(params=["exchange", "two renames"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of putting a directory in another's place."""
    if request.param == "two renames":
        monkeypatch.setattr(files.ctypes, "CDLL", lambda name: object())


@pytest.mark.usefixtures("ways")
def test_a_new_directory_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "a" / "best"
    for text in ("first", "second", "third"):
        with replacing(target) as directory:
            fill(directory, text)
            assert directory.parent == target.parent  # else the rename is a copy
        assert listing(tmp_path) == {"a/best/file": text}
        assert [path.name for path in target.parent.iterdir()] == ["best"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_directory_and_no_litter(exception: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "best"
    for expected in ({}, {"best/file": "first"}):
        with pytest.raises(exception), replacing(target) as directory:
            fill(directory, "half")
            raise exception
        assert listing(tmp_path) == expected
        assert [path.name for path in tmp_path.iterdir()] == (["best"] if expected else [])
        with replacing(target) as directory:
            fill(directory, "first")


def test_at_no_time_is_there_no_whole_directory(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with replacing(target) as directory:
        fill(directory, "first")
    seen = []

    def look(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        # At every line of the module's code: what a kill just here would leave.
        if frame.f_code.co_filename != files.__file__:
            return None
        seen.append((target / "file").read_text() if target.exists() else f"nothing at line {frame.f_lineno}")
        return look

    tracing = sys.gettrace()
    sys.settrace(look)
    try:
        with replacing(target) as directory:
            fill(directory, "second")
    finally:
        sys.settrace(tracing)
    assert list(dict.fromkeys(seen)) == ["first", "second"] and seen == sorted(seen)


def test_a_copy_is_whole_and_replaces(checkpoint: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert copy_checkpoint(checkpoint, tmp_path / "copy") == {"epoch": 2, "SumR": 12.5}
        assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
            p.name: p.read_bytes() for p in checkpoint.iterdir()
        }
    assert refused(lambda path: copy_checkpoint(path, tmp_path / "copy"), tmp_path / "none").endswith(
        "no such checkpoint"
    )
    assert (tmp_path / "copy" / WEIGHTS).exists()


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_text(path, json.dumps({"a": 1}))
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it, then \ud800")
    assert listing(tmp_path) == {"new/file.json": '{"a": 1}'}
    write_text(path, "second")
    assert listing(tmp_path) == {"new/file.json": "second"}


def test_a_place_that_cannot_be_written_is_named_and_no_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, named, reason in (
        (Path("/proc/x/a.json"), "/proc/x", "No such file or directory"),
        (tmp_path / "file" / "run" / "a.json", tmp_path / "file" / "run", "Not a directory"),
        (tmp_path, tmp_path, "Is a directory"),
    ):
        with pytest.raises(NotWritableError) as caught:
            write_text(path, "")
        assert str(caught.value) == f"{named}: cannot be written: {reason}"
    with pytest.raises(NotWritableError) as caught, replacing(Path("/proc/x")):
        pass
    assert str(caught.value) == "/proc/x: cannot be written: No such file or directory"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
