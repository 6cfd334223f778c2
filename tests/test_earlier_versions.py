"""Files of version 0.1.0 can be resumed, reported, evaluated and exported; tests/golden/README.md describes them."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from dreamprvr_ray import load_model, score_queries
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.search.layout import read_epochs

Call = Callable[..., subprocess.CompletedProcess[str]]
ARCHIVE = Path(__file__).parent / "golden" / "earlier" / "version_0.1.0.tar.xz"
# `retrieve.py` as version 0.1.0 exported it.
RETRIEVE = """
import sys
from pathlib import Path

from dreamprvr_ray.checkpoints import load_model
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.retrieval import score_split

trained = load_model(Path(__file__).parent)
test = ShardSet.open(Path(sys.argv[1])).split("test")
scores = score_split(trained.model, test, trained.experiment.evaluation.clip_weight)  # queries x videos
for query, best in zip(test.captions[:10], scores[:10].topk(5).indices.tolist()):
    print(query, "->", ", ".join(test.videos[video] for video in best))
"""


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the earlier version, in the working directory: their YAML files have relative paths."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def study_trials(search: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(search / "optuna.journal")))
    return optuna.load_study(study_name=None, storage=storage).trials


def leaderboard(search: Path) -> list[dict[str, Any]]:
    """The entries without their checkpoints' paths, which depend on where the search lies."""
    entries = json.loads((search / "leaderboard.json").read_text())
    return [{key: value for key, value in entry.items() if key != "checkpoint"} for entry in entries]


def trained_files(search: Path) -> dict[Path, bytes]:
    """The checkpoints of a search with their test records, and its epoch logs."""
    names = ("runs/*/checkpoints/*/*", "final/*/checkpoints/*/*", "best/*", "*/*/epochs.jsonl")
    return {path: path.read_bytes() for name in names for path in search.glob(name) if path.is_file()}


def test_a_finished_search_is_resumed_without_training_or_testing(earlier: Path, call: Call, local_ray: None) -> None:
    search = earlier / "search"
    files, entries, trials = trained_files(search), leaderboard(search), study_trials(search)
    assert len(files) > 20
    recorded = json.loads((search / "best" / "test.json").read_text())["readings"]
    done = call("tune", "--space", "space.yaml", "--resume", "--json")
    outcome = last_json(done)
    # Its final runs have seeds 0 and 1, and its trials seed 0.
    assert "share seed 0 with the search: the comparison favours the trial" in done.stderr
    assert json.loads((search / "final.json").read_text())["shared_seeds"] == [0]
    assert trained_files(search) == files and leaderboard(search) == entries and study_trials(search) == trials
    assert outcome["trials"] == 4 and outcome["test"] == recorded[0] and outcome["test"]["test_reads"] == 1


def test_an_interrupted_search_is_resumed_to_its_end(earlier: Path, call: Call, local_ray: None) -> None:
    search = earlier / "search_interrupted"
    trials, epochs = study_trials(search), read_epochs(search / "runs" / "trial_000")
    ended = [trial for trial in trials if trial.state.is_finished()]
    assert len(ended) == 2
    outcome = last_json(call("tune", "--space", "space_interrupted.yaml", "--resume", "--json"))
    assert outcome["trials"] == 4 == len(study_trials(search)) and outcome["failed"] == 0
    assert study_trials(search)[:2] == ended and read_epochs(search / "runs" / "trial_000") == epochs
    assert {entry["number"] for entry in leaderboard(search)} == {0, 1, 2, 3}
    candidates = outcome["final"]["candidates"]
    assert [len(candidate["runs"]) for candidate in candidates] == [2, 2]
    assert all(run["test"]["test_reads"] == 1 for candidate in candidates for run in candidate["runs"])
    assert (search / "best" / "weights.safetensors").is_file()


@pytest.mark.parametrize(("name", "trained"), [("search", 4), ("search_interrupted", 2)])
def test_a_search_is_reported(earlier: Path, call: Call, name: str, trained: int) -> None:
    record = read_search(earlier / name)
    states = [trial.state for trial in record.trials]
    assert states.count("finished") + states.count("pruned") == trained
    assert record.best is not None and record.best.number == leaderboard(earlier / name)[0]["number"]
    done = call("report", earlier / name, "--out", earlier / "report.html")
    assert done.returncode == 0, done.stderr
    assert f"trial {record.best.number}" in (earlier / "report.html").read_text()


def test_an_interrupted_run_is_resumed_to_its_end(earlier: Path, call: Call, local_ray: None) -> None:
    (before,) = (earlier / "run_interrupted" / "checkpoints").glob("epoch-*/metrics.json")
    metrics = json.loads(before.read_text())
    assert not metrics["finished"]
    epochs = ("--set", "training.epochs=40", "training.patience=40")
    done = call(
        "train",
        "--config",
        "tiny.yaml",
        "--shards",
        "shards",
        "--out",
        "run_interrupted",
        *epochs,
        "--resume",
        "--json",
    )
    best = last_json(done)
    assert f"epoch {metrics['epoch'] + 1:>2}/40" in done.stderr and "epoch 40/40" in done.stderr
    assert f"epoch {metrics['epoch']:>2}/40" not in done.stderr  # resumed after it, not before
    assert best["best_SumR"] >= metrics["best_SumR"]


def test_a_model_is_evaluated_and_exported(earlier: Path, call: Call) -> None:
    best = earlier / "run" / "best"
    recorded = json.loads((best / "metrics.json").read_text())
    evaluated = last_json(call("evaluate", "--checkpoint", best, "--shards", "shards", "--split", "val", "--json"))
    assert evaluated["SumR"] == pytest.approx(recorded["SumR"])
    assert call("export", "--checkpoint", best, "--out", "model").returncode == 0
    again = last_json(call("evaluate", "--checkpoint", "model", "--shards", "shards", "--split", "val", "--json"))
    assert again == evaluated


def test_the_script_of_an_exported_model_retrieves(earlier: Path, call: Call) -> None:
    assert call("export", "--checkpoint", "run/best", "--out", "model").returncode == 0
    (earlier / "model" / "retrieve.py").write_text(RETRIEVE)
    command = [sys.executable, "model/retrieve.py", "shards"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    split = ShardSet.open(earlier / "shards").split("test")
    best = score_queries(load_model(earlier / "model"), split)[:10].topk(5).indices.tolist()
    expected = [
        f"{query} -> {', '.join(split.videos[video] for video in videos)}"
        for query, videos in zip(split.captions[:10], best, strict=True)
    ]
    assert done.stdout.splitlines() == expected
