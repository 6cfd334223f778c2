"""The recorded numbers hold here, and `verify` fails where they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray import verify
from dreamprvr_ray.errors import UserError


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the recorded numbers, to be changed."""
    shutil.copytree(verify.OWN_GOLDEN, tmp_path / "golden")
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
        "clip rows", "frame rows", "text rows", "clip tokens", "frame tokens", "query", "condition", "pvs mu", "pvs logvar", "registers",
        "clip scores", "frame scores", "fused", "loss: clip nce", "loss: clip triplet", "loss: frame nce", "loss: frame triplet",
        "loss: diversity", "loss: similarity", "loss: variational", "loss: denoising", "loss: total", "392 gradients, worst",
        "losses before 6 steps", "393 norms after 6 steps", "fused after 6 steps", "optimiser alone, 25 steps",
    ]  # fmt: skip
    assert all(row["ok"] and row["deviation"] <= row["tolerance"] for row in result["checks"])
    assert lines[-2] == "27 of 27 checks are within their tolerance on cpu"


@pytest.mark.parametrize(
    ("file", "name", "by", "check"),
    [
        ("model/expected.npz", "frame_tokens", 3e-5, "frame tokens"),
        ("model/expected.npz", "registers", 1e-3, "registers"),
        ("model/expected.npz", "loss_total", 1e-4, "loss: total"),
        ("model/expected.npz", "grad/query_encoder.norm1.bias", 1e-3, "392 gradients, worst"),
        ("model/expected.npz", "loss_after_steps", 1e-3, "losses before 6 steps"),
        ("model/expected.npz", "param_norm_after_steps", np.nan, "393 norms after 6 steps"),
        ("model/optimizer.npz", "after/query_encoder.norm1.bias", 1e-4, "optimiser alone, 25 steps"),
        ("data/expected.npz", "clip/vid_005", 1e-5, "clip rows"),
    ],
)
def test_a_number_out_of_tolerance_fails_its_row_alone(
    golden: Path, capsys: pytest.CaptureFixture[str], file: str, name: str, by: float, check: str
) -> None:
    change(golden / file, name, by)
    assert verify.main([str(golden), "--json"]) == 1
    *table, last = capsys.readouterr().out.splitlines()
    assert [row["check"] for row in json.loads(last)["checks"] if not row["ok"]] == [check]
    assert [line for line in table if line.endswith("FAIL")] == [line for line in table if line.startswith(check + " ")]
    assert table[-1] == "26 of 27 checks are within their tolerance on cpu"


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        verify.main([str(tmp_path)])
    assert error.value.mistakes == tuple(f"{tmp_path / name}: no such file or folder" for name in verify.FILES)


def test_installed_without_the_recorded_numbers_it_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "OWN_GOLDEN", tmp_path / "nowhere")
    with pytest.raises(UserError, match="GOLDEN is not given"):
        verify.main([])


def test_cuda_that_is_not_there_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        verify.main(["--device", "cuda"])
