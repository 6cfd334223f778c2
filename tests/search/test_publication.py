"""Publishing the model that a search selected."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamprvr_ray.search.publication import publish
from dreamprvr_ray.storage.location import Storage


@pytest.mark.parametrize("place", ["disk", "object store"])
def test_a_newly_selected_model_replaces_its_files_only(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue("s3").uri("out") if place == "object store" else None
    search = Storage.of(uri or tmp_path / "out")
    first, second = search / "runs/trial_000/checkpoints/epoch-0001", search / "final/trial_001/checkpoints/epoch-0002"
    for epoch, checkpoint in enumerate((first, second)):
        checkpoint.write_text("metrics.json", f'{{"epoch": {epoch}}}')
        checkpoint.write_text("weights.safetensors", str(epoch))
    best = publish(first, {"model.registers": 1}, search)
    best.write_text("test.json", '{"readings": []}')
    for name in ("notes.txt", "plots/curve.svg"):
        best.write_text(name, "mine")
    assert publish(first, {"model.registers": 1}, search) == best and best.exists("test.json")
    publish(second, {"model.registers": 2}, search)
    assert best.files() == ["metrics.json", "notes.txt", "plots/curve.svg", "values.json", "weights.safetensors"]
    assert [best.read_text(name) for name in ("weights.safetensors", "notes.txt", "plots/curve.svg")] == [
        *("1", "mine", "mine")
    ]
