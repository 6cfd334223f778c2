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


def replaced(path: Path, **arrays: np.ndarray | None) -> None:
    """Replace arrays of a file; None removes one. In names, `__` stands for `/`."""
    content = dict(np.load(path))
    for key, array in arrays.items():
        name = key.replace("__", "/")
        content.pop(name, None)
        if array is not None:
            content[name] = array
    np.savez(path, **content)


def refused(golden: Path) -> str:
    with pytest.raises(UserError) as error:
        verify.main([str(golden)])
    (line,) = error.value.mistakes
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".npz", ".json", ".ckpt"))])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "overwritten"])
def test_a_damaged_file_is_reported(name: str, damage: str, golden: Path) -> None:
    path = golden / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "overwritten":
        content[middle - 2000 : middle + 2000] = b"\xff" * 4000
    else:
        content = {"empty": b"", "text": b"no archive", "truncated": content[:middle]}[damage]
    path.write_bytes(content)
    assert refused(golden).startswith(f"{path}: ")


MISSING, ZEROS = None, np.zeros(3, "float32")


@pytest.mark.parametrize(
    ("name", "arrays", "expected"),
    [
        ("model/inputs.npz", {"text_feat": MISSING}, "has no array 'text_feat'"),
        ("model/inputs.npz", {"text_labels": ZEROS}, "array 'text_feat' must have shape (3, 27, 16), not (15, 27, 16)"),
        ("model/inputs.npz", {"text_labels": np.full(15, 6)}, "'text_labels' must name every one of the 6 videos"),
        ("model/inputs.npz", {"videos_mask": ZEROS}, "array 'videos_mask' must have shape (6, 128), not (3,)"),
        ("model/inputs.npz", {"text_mask": np.array(["a"])}, "array 'text_mask' must hold numbers"),
        ("model/expected.npz", {"registers": MISSING}, "has no array 'registers'"),
        ("model/expected.npz", {"loss_total": ZEROS}, "array 'loss_total' must have shape (), not (3,)"),
        ("model/expected.npz", {"loss_after_steps": np.zeros(0)}, "array 'loss_after_steps' must hold one number"),
        ("model/expected.npz", {"param_norm_after_steps": ZEROS}, "array 'param_norm_after_steps' must have shape"),
        ("model/expected.npz", {"grad__query_encodr.norm1.bias": ZEROS}, "the model has no parameter 'query_encodr."),
        ("model/optimizer.npz", {"steps": np.array(10**9)}, "'steps' must be an integer from 1 to 10000"),
        ("model/optimizer.npz", {"lr": np.array(-1.0)}, "learning_rate = -1.0: must be greater than 0"),
        ("model/optimizer.npz", {"after__query_encoder.norm1.bias": ZEROS}, "must have shape (25, 4), not (3,)"),
        ("data/expected.npz", {"clip__none": ZEROS}, ""),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value),
)
def test_arrays_that_do_not_fit_are_reported(
    name: str, arrays: dict[str, np.ndarray | None], expected: str, golden: Path
) -> None:
    replaced(golden / name, **arrays)
    assert expected in refused(golden)


def test_a_file_without_the_recorded_gradients_is_reported(golden: Path) -> None:
    """Otherwise none of 0 gradients would be out of tolerance."""
    path = golden / "model" / "expected.npz"
    replaced(path, **{name.replace("/", "__"): None for name in np.load(path) if name.startswith("grad/")})
    assert refused(golden) == f"{path}: has no arrays 'grad/...'"


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"optimizer": {"total_steps": 0}}', '{"optimizer": {"total_steps": 9}}']
)
def test_settings_that_do_not_fit_are_reported(content: str, golden: Path) -> None:
    (golden / "model" / "meta.json").write_text(content)
    assert refused(golden).startswith(f"{golden / 'model' / 'meta.json'}: ")
