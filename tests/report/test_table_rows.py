"""The rows of a table, read from checkpoints, runs and searches: what counts, what is joined, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.experiments import add_final, evaluation, make_search

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.command_line import exit_code
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.report.__main__ import main
from dreamprvr_ray.report.table_rows import Setting, read_groups
from dreamprvr_ray.report.table_text import to_markdown

SIZES = {"data.video_size": 12, "data.text_size": 10, "model.hidden_size": 16, "model.heads": 2, "model.branches": 1}
VAL = {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0, "R@100": 40.0, "SumR": 100.0}
ON_TEST = Setting("test", "synthetic", "own splits", videos=465, queries=477)
ON_VAL = Setting("val", "qvh", "own splits")


def write_run(out: Path, *readings: dict[str, Any], branches: int = 1, **metrics: Any) -> Path:
    """Write a run with a checkpoint of a small model, its val result, and its evaluations on test."""
    experiment = load_experiment("demo", SIZES | {"model.branches": branches})
    weights = DreamPRVR(experiment.model, 12, 10).state_dict()
    values = {"epoch": 3, "best_epoch": 3, "collection": "qvh", "protocol": "own splits"} | VAL | metrics
    (out / "best").mkdir(parents=True)
    Checkpoint(weights, None, experiment, values).write(out / "best")
    if readings:
        (out / "best" / "test.json").write_text(json.dumps({"readings": list(readings)}))
    return out


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_search(tmp_path_factory.mktemp("rows") / "synthetic", trials=3)


def names(*sources: str | Path) -> dict[Setting, list[str]]:
    return {group.setting: [row.name for row in group.rows] for group in read_groups(list(map(str, sources)))}


def test_test_counts_where_it_was_recorded_and_val_elsewhere(tmp_path: Path) -> None:
    tested = write_run(tmp_path / "tested", evaluation(200.0), evaluation(300.0) | {"test_reads": 2})
    untested = write_run(tmp_path / "untested")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    test, val = read_groups([str(tested), str(untested)])
    assert (test.setting, val.setting) == (ON_TEST, ON_VAL)
    (row,) = test.rows
    assert row.name == "tested" and row.mean("SumR") == 200.0 and row.mean("R@100") == 80.0  # the first reading
    assert [(row.name, row.mean("SumR"), row.deviation("SumR")) for row in val.rows] == [("untested", 100.0, None)]
    experiment = load_experiment("demo", SIZES)
    parameters = sum(weight.numel() for weight in DreamPRVR(experiment.model, 12, 10).parameters())
    assert row.parameters == parameters == val.rows[0].parameters
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_each_collection_of_a_model_has_its_first_reading(tmp_path: Path) -> None:
    other = evaluation(90.0) | {"collection": "charades"}
    run = write_run(tmp_path / "run", evaluation(200.0), other, other | {"SumR": 95.0})
    groups = read_groups([str(run / "best")])
    assert [(group.setting.collection, group.rows[0].mean("SumR")) for group in groups] == [
        ("synthetic", 200.0),
        ("charades", 90.0),
    ]


def test_the_encoder_alone_comes_first_and_once(tmp_path: Path) -> None:
    zero_shot = {"best frame": VAL, "encoder": VAL | {"R@1": 12.0, "SumR": 102.0}}
    runs = [write_run(tmp_path / f"run{seed}", evaluation(200.0) | {"zero_shot": zero_shot}) for seed in range(2)]
    (group,) = read_groups([f"ours={run}" for run in runs])
    assert [(row.name, row.mean("SumR"), len(row.recalls)) for row in group.rows] == [
        ("zero-shot, encoder", 102.0, 1),
        ("ours", 200.0, 2),
    ]
    assert "| zero-shot, encoder | 12.0 | 20.0 | 30.0 | 40.0 | 102.0 | - | - |" in to_markdown([group])


def test_runs_of_one_name_are_seeds(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s={seed}", SumR=100.0 + 10 * seed) for seed in range(3)]
    (group,) = read_groups([f"ours=v2={run}" for run in runs])
    (row,) = group.rows
    assert (row.name, len(row.recalls), row.mean("SumR"), row.deviation("SumR")) == ("ours=v2", 3, 110.0, 10.0)
    assert names(*runs)[ON_VAL] == ["s=0", "s=1", "s=2"]
    twin = write_run(tmp_path / "other" / "s=0")
    assert names(runs[0], twin)[ON_VAL] == [str(runs[0]), str(twin)]
    assert row.to_dict()["standard_deviation"]["SumR"] == 10.0


def test_a_search_has_a_row_for_each_candidate(search: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(search, tmp_path / "synthetic")
    add_final(folder, ablated=(1.0, 2.0))
    (group,) = read_groups([str(folder)])
    trial, ablation, paper = group.rows
    assert group.setting == ON_TEST and [row.name for row in group.rows] == [
        "trial 17",
        "trial 17 with the paper's optimizer.learning_rate",
        "paper",
    ]
    assert trial.mean("SumR") == pytest.approx(249.867, abs=0.001) and len(trial.recalls) == 3
    assert trial.deviation("SumR") == pytest.approx(1.222, abs=0.001) and ablation.mean("SumR") == 242.0
    assert paper.parameters == trial.parameters and paper.parameters and paper.parameters > 1_000_000
    run = write_run(tmp_path / "run", evaluation(10.0))
    assert names(run, folder)[ON_TEST][:2] == ["run", "synthetic, trial 17"]
    assert names(f"Ours={folder}")[ON_TEST][0] == "Ours, trial 17"


def test_a_search_without_retraining_has_its_best_trial(search: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(search, tmp_path / "synthetic")
    with pytest.raises(UserError, match=r"the search has no result yet: neither final.json nor best/"):
        read_groups([str(folder)])
    shutil.copytree(write_run(tmp_path / "run", evaluation(230.0)) / "best", folder / "best")
    (group,) = read_groups([str(folder)])
    assert [(row.name, row.mean("SumR")) for row in group.rows] == [("best trial", 230.0)]


def test_each_mistake_is_a_line(search: Path, tmp_path: Path) -> None:
    run, larger = write_run(tmp_path / "run"), write_run(tmp_path / "larger", branches=2)
    damaged = write_run(tmp_path / "damaged", SumR="many")
    strange = write_run(tmp_path / "strange", evaluation(1.0) | {"R@5": [1]})
    empty = write_run(tmp_path / "empty")
    (empty / "best" / "experiment.yaml").write_text("")
    (tmp_path / "file").write_text("x")
    final = shutil.copytree(search, tmp_path / "search")
    add_final(final)
    with pytest.raises(UserError) as error:
        read_groups([str(path) for path in (run, run, tmp_path / "rnu", damaged, strange, empty, tmp_path / "file")])
    assert error.value.mistakes == (
        f"{run}: given 2 times",
        f"{tmp_path / 'rnu'}: checkpoint does not exist; did you mean '{run / 'best'}'?",
        f"{damaged}/best/metrics.json: was not written by `train` or `tune`: SumR = 'many': must be a number",
        f"{strange}/best/test.json: was not written by `evaluate`: readings.0.R@5 = a list: must be a number",
        f"{empty}/best/experiment.yaml: must be a mapping of keys to values, not null",
        f"{tmp_path / 'file'}: is a file; give the directory of a checkpoint or a run",
    )
    with pytest.raises(UserError, match="ours: its models have different numbers of parameters"):
        read_groups([f"ours={run}", f"ours={larger}"])
    with pytest.raises(UserError, match="is a search, whose rows cannot be joined"):
        read_groups([f"ours={run}", f"ours={final}"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run_1"), tmp_path / "table.tex"
    assert exit_code(main, ["--table", str(run), "--json"]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    assert table[-1] == "| run\\_1 | 10.0 | 20.0 | 30.0 | 40.0 | 100.0 | 0.042 |"
    (group,) = json.loads(line)["groups"]
    assert group["split"] == "val" and group["rows"][0]["SumR"] == 100.0
    assert exit_code(main, ["--table", str(run), "--format", "latex", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"table: {out}\n" and "run\\_1 & 10.0" in out.read_text()
    for arguments, message in (
        ([str(run), "--table", str(run)], "give it after --table"),
        (["--format", "latex", str(run)], "--format is for --table"),
        ([], "the following arguments are required: experiment"),
    ):
        assert exit_code(main, arguments) == 2
        stderr = capsys.readouterr().err
        assert message in stderr and stderr.count("\n") == 1
