"""This machine meets the recorded numbers, and `verify` fails if one is changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray import verify
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.training import golden as checks
from dreamprvr_ray.training.golden import FILES, PROJECT_GOLDEN


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the recorded numbers, for tests that change it."""
    shutil.copytree(PROJECT_GOLDEN, tmp_path / "golden")
    return tmp_path / "golden"


def change(path: Path, name: str, by: float) -> None:
    arrays = dict(np.load(path))
    changed = arrays[name].copy()
    changed.flat[0] += by
    arrays[name] = changed
    np.savez(path, **arrays)


def test_this_machine_meets_every_recorded_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["ok"] and result["device"] == "cpu"
    assert [row["check"] for row in result["checks"]] == [
        "clip rows", "frame rows", "text rows", "clip tokens", "frame tokens", "query", "condition", "pvs mu",
        "pvs logvar", "registers", "clip scores", "frame scores", "fused", "loss: clip nce", "loss: clip triplet",
        "loss: frame nce", "loss: frame triplet", "loss: diversity", "loss: similarity", "loss: variational",
        "loss: denoising", "loss: total", "392 gradients, worst", "losses before 6 steps", "393 norms after 6 steps",
        "fused after 6 steps", "optimiser alone, 25 steps",
    ]  # fmt: skip
    assert all(row["ok"] and row["deviation"] <= row["tolerance"] for row in result["checks"])
    assert lines[-2] == "27 of 27 checks are within their tolerance on cpu"


def test_numbers_out_of_tolerance_fail_only_their_checks(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(golden / "data/expected.npz", "clip/vid_005", 1e-5)
    change(golden / "model/expected.npz", "frame_tokens", 3e-5)
    change(golden / "model/expected.npz", "registers", 1e-3)
    change(golden / "model/expected.npz", "loss_total", 1e-4)
    change(golden / "model/expected.npz", "grad/query_encoder.norm1.bias", 1e-3)
    change(golden / "model/expected.npz", "loss_after_steps", 1e-3)
    change(golden / "model/expected.npz", "param_norm_after_steps", np.nan)
    change(golden / "model/optimizer.npz", "after/query_encoder.norm1.bias", 1e-4)
    failing = [
        "clip rows",
        "frame tokens",
        "registers",
        "loss: total",
        "392 gradients, worst",
        "losses before 6 steps",
        "393 norms after 6 steps",
        "optimiser alone, 25 steps",
    ]
    assert verify.main([str(golden), "--json"]) == 1
    *table, last = capsys.readouterr().out.splitlines()
    rows = {row["check"]: row for row in json.loads(last)["checks"]}
    assert [name for name, row in rows.items() if not row["ok"]] == failing
    assert rows["393 norms after 6 steps"]["deviation"] is None  # JSON has no nan
    assert [line.split("  ")[0] for line in table if line.endswith("FAIL")] == failing
    assert table[-1] == "19 of 27 checks are within their tolerance on cpu"


def test_every_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        verify.main([str(tmp_path)])
    assert error.value.mistakes == tuple(f"{tmp_path / name} does not exist" for name in FILES)


def test_an_installation_without_the_recorded_numbers_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PROJECT_GOLDEN", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^GOLDEN is required: "):
        verify.main([])


def test_a_missing_cuda_device_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        verify.main(["--device", "cuda"])
