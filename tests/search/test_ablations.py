"""The rows of an ablation table: what is read from the file, what is trained, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.experiments import make_test_result

from dreamprvr_ray.config import load_experiment, presets
from dreamprvr_ray.data.manifest import Manifest, SplitRecord
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.ablation_table import table_lines
from dreamprvr_ray.search.ablations import plan_rows
from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.final_result import Candidate, FinalResult, FinalRun
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.storage.location import Storage

SHIPPED = Path(__file__).parents[2] / "search_spaces" / "ablations.yaml"
ROWS = {"full": {}, "No registers!": {"model.registers": 0}, "noise": {"model.diffusion_start": "noise"}}


def load(
    folder: Path, rows: dict[str, Any] | None = None, overrides: dict[str, Any] | None = None, **keys: Any
) -> Search:
    path = folder / "table.yaml"
    values = {"config": "demo", "shards": "shards", "out": "out", "ablations": {"seeds": 2, "rows": rows or ROWS}}
    path.write_text(yaml.safe_dump(values | keys, sort_keys=False))
    return load_search(path, overrides)


def mistakes(folder: Path, rows: dict[str, Any] | None = None, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, rows, **keys)
    assert all(line.startswith((f"{folder / 'table.yaml'}: ", "--set")) for line in caught.value.mistakes)
    return "\n".join(caught.value.mistakes)


def test_the_shipped_table_has_the_papers_rows_for_every_preset() -> None:
    for preset in presets():
        search = load_search(SHIPPED, {"config": preset, "ablations.seeds": 2})
        base = load_experiment(preset).flat()
        changes = {
            row.name: {key for key, value in row.experiment(search.experiment, 0).flat().items() if value != base[key]}
            for row in search.table.rows
        }
        names = ("diversity", "similarity", "variational", "denoising")
        assert list(changes.values()) == [
            set(),
            {"model.registers"},
            {"model.register_source"},
            {"model.diffusion_start"},
            {"loss.textual_perturbation"},
            {f"loss.weights.{name}" for name in names},
            {"loss.weights.diversity"},
            {"loss.weights.similarity"},
        ]
        assert search.table.seeds == (0, 1) and search.settings.trials == 16 and not search.table.left_out


def test_every_row_is_trained_with_the_same_seeds_in_a_directory_of_its_name(tmp_path: Path) -> None:
    search = load(tmp_path, overrides={"training.seed": 5}, space={"training.epochs": 1})
    splits = {name: SplitRecord(2, 3, (name,)) for name in ("train", "val", "test")}
    manifest = Manifest(1, "demo", "i3d", 8, 8, "float16", "own splits", splits, {}, {}, {})
    runs = plan_rows(search, manifest, Storage.of(tmp_path / "runs"), print)
    assert [run.request.run for run in runs] == [
        f"{name}-seed_{seed}" for name in ("full", "no_registers", "noise") for seed in (5, 6)
    ]
    assert runs[3].request.values == {"model.registers": 0, "training.seed": 6} and runs[3].candidate == "No registers!"
    assert search.experiment.training.epochs == 1


def test_a_row_that_changes_nothing_is_left_out(tmp_path: Path) -> None:
    search = load(tmp_path, overrides={"model.registers": 0})
    assert [row.name for row in search.table.rows] == ["full", "noise"] and search.settings.trials == 4
    assert search.table.left_out == ("row 'No registers!' is left out: here it has the same settings as 'full'",)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            {"a": {}, "b": {"model.regsters": 0}},
            "rows: b: unknown key 'model.regsters'; did you mean 'model.registers'?",
        ),
        ({"a": {}, "b": {"model.registers": -1}}, "rows: b: model.registers = -1: must be greater than or equal to 0"),
        ({"a": {}, "b": {"training.seed": 3}}, "rows: b: training.seed must be the same in all rows"),
        ({"a": {}, "b": {"model.registers": {"int": [0, 3]}}}, "rows: b: model.registers must have a single value"),
        ({"a b": {}, "a-b": {"model.registers": 1}}, "rows: a-b: too similar to the name of the row 'a b'"),
        ({"a": {}, "!": {"model.registers": 1}}, "rows: !: a row's name must have letters or digits"),
        ({"a": {}}, "rows: there must be at least two"),
    ],
)
def test_mistakes_in_rows_are_named(tmp_path: Path, rows: dict[str, Any], expected: str) -> None:
    assert expected in mistakes(tmp_path, rows)


def test_a_table_searches_nothing(tmp_path: Path) -> None:
    for key, value in {"trials": 3, "pruning": {"enabled": False}, "final": {"seeds": 2}}.items():
        assert f"{key} has no effect with ablations" in mistakes(tmp_path, **{key: value})
    searched = {"model.branches": {"choice": [2, 4]}}
    assert "space: model.branches cannot be searched with ablations" in mistakes(tmp_path, space=searched)
    with pytest.raises(UserError, match=r"unknown key 'ablations.rows'"):
        load(tmp_path, overrides={"ablations.rows": {}})


def row(name: str, *sumrs: float) -> Candidate:
    runs = tuple(FinalRun(seed, 210.0, 3, "checkpoint", make_test_result(sumr)) for seed, sumr in enumerate(sumrs))
    return Candidate(name, None, {}, None, runs)


def test_the_table_compares_each_row_with_the_first() -> None:
    ranks = {"full": np.ones((2, 6)), "noise": np.array([[1, 1, 1, 1, 1, 7], [1, 1, 1, 7, 1, 7]])}
    comparison = compare_on_test("noise", ranks["noise"], "full", ranks["full"], np.arange(6))
    head, full, noise, note = table_lines(
        FinalResult((row("full", 200.0, 202.0), row("noise", 190.0, 191.0)), ablations=(comparison,))
    )
    assert [cell.strip() for cell in head.split("|")][5:] == [
        "SumR",
        "against full (95% interval)",
        "val SumR",
        "seeds",
    ]
    assert [cell.strip() for cell in full.split("|")][5:] == ["201.0 ± 1.4", "", "210.0", "2"]
    cells = [cell.strip() for cell in noise.split("|")]
    assert cells[0] == "noise" and cells[5] == "190.5 ± 0.7"
    assert cells[6] == f"-50.0 ({comparison.low:+.1f} to {comparison.high:+.1f})" and comparison.low < -50
    assert note == "intervals over videos and seeds"
    alone = table_lines(FinalResult((row("full", 200.0),)))  # the rows so far
    assert len(alone) == 2 and "200.0 |" in alone[1]
