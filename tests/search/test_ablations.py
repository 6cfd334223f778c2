"""The rows of an ablation table: what is read from the file, what is trained, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.experiments import make_test_result
from support.searches import make_session

from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import load_experiment, presets
from dreamprvr_ray.data.manifest import Manifest, SplitRecord
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.report.ablation_page import is_ablation_table, read_ablations, write_ablation_report
from dreamprvr_ray.runtime.reporting import write_checkpoint
from dreamprvr_ray.search.ablation_table import table_lines
from dreamprvr_ray.search.ablations import RowRecorder, plan_rows
from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.final_result import Candidate, FinalResult, FinalRun
from dreamprvr_ray.search.final_runs import PlannedRun
from dreamprvr_ray.search.preconditions import claim_directory, with_shard_sizes
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import EpochResult, Learn, Snapshot

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
    assert "IoU" not in head  # without annotated windows
    alone = table_lines(FinalResult((row("full", 200.0),)))  # the rows so far
    assert len(alone) == 2 and "200.0 |" in alone[1]


def test_the_table_shows_how_often_moments_are_found() -> None:
    moments = MomentRecall(9, 0.4, {0.3: 60.0, 0.5: 44.4, 0.7: 11.0}, {0.3: 50.0, 0.5: 33.0, 0.7: 9.0})
    full = row("full", 200.0)
    test = full.runs[0].test
    found = replace(full.runs[0], test=replace(test, retrieval=replace(test.retrieval, moments=moments)))
    head, line = table_lines(FinalResult((replace(full, runs=(found,)),)))
    assert [cell.strip() for cell in head.split("|")][7:] == ["IoU>=0.5", "val SumR", "seeds"]
    assert [cell.strip() for cell in line.split("|")][7:] == ["44.4", "210.0", "1"]


@dataclass(frozen=True)
class HereSession(SearchSession):
    """A session without Ray: it computes in this process."""

    def compute(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)


class StoreReporter:
    """Writes checkpoints as a trial does."""

    def __init__(self, run: Storage) -> None:
        self._store = CheckpointStore(run / "checkpoints")

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self._store.latest()

    def on_training_start(self) -> None:
        pass

    def add_moments(self, epoch: int, learn: Learn) -> None:
        self._store.add_moments(epoch, learn)

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        write_checkpoint(self._store, result, snapshot)


def test_rows_are_recorded_and_reported_as_soon_as_they_are_trained(demo_shards: Path, tmp_path: Path) -> None:
    tiny = {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 2, "training.precision": "fp32"}
    out, messages = tmp_path / "out", list[str]()
    search = with_shard_sizes(load(tmp_path, shards=str(demo_shards), out=str(out), space=tiny))
    session = HereSession(**vars(make_session(search, messages)))
    claim_directory(search, session.copy)
    shards = ShardSet.open(demo_shards)
    runs = plan_rows(search, shards.manifest, session.storage / "runs", messages.append)

    def train(run: PlannedRun) -> None:
        experiment = search.experiment.with_values(run.request.values)
        fit(experiment, shards, StoreReporter(session.storage / "runs" / run.request.run))

    def recorded() -> list[str]:
        path = out / "ablations.json"
        return [row["name"] for row in json.loads(path.read_text())["candidates"]] if path.exists() else []

    recorder = RowRecorder(session, runs, shards.manifest)
    for run, expected in zip(runs, [0, 1, 1, 2, 2, 3], strict=True):
        train(run)
        recorder.try_record()
        assert recorded() == [*ROWS][:expected]
    assert recorder.is_complete and sum("rows\n" in message for message in messages) == 3
    result = recorder.result()
    assert [comparison.better for comparison in result.ablations] == ["No registers!", "noise"]
    again = RowRecorder(session, plan_rows(search, shards.manifest, session.storage / "runs", print), shards.manifest)
    again.record()  # as a resumed table does
    assert again.result() == result
    for path in out.glob("runs/*/checkpoints/*/test.json"):
        assert len(json.loads(path.read_text())["readings"]) == 1
    assert is_ablation_table(out) and not is_ablation_table(tmp_path)
    table = read_ablations(out)
    assert write_ablation_report(table, tmp_path / "report.html") == ["Results", "Rows", "Reproduce"]
    page = (tmp_path / "report.html").read_text()
    assert "R@1, IoU ≥ 0.5" in page and "IoU&gt;=0.5" in page
    assert "3 of 3 rows are finished." in page and "model.diffusion_start = noise" in page and "against full" in page
