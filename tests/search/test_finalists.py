"""The final runs: which training each one is, in which directory, and their queue."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher
from support.searches import make_search, trial_epoch

from dreamprvr_ray.data.manifest import FileRecord, Manifest, SplitRecord
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.search.candidates import choose_candidates
from dreamprvr_ray.search.final_runs import PlannedRun, is_trained, plan_runs
from dreamprvr_ray.search.finalists import RunQueue
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.ray_tune import SourceSearcher
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrialFailure


def test_runs_are_queued_in_order_and_their_failures_are_collected() -> None:
    names = ["paper-seed_0", "paper-seed_1", "lost"]
    requests = [TrialRequest(0, 1, name, {"training.seed": seed}) for seed, name in enumerate(names)]
    log: list[str] = []
    queue = RunQueue(requests, log.append)
    searcher = SourceSearcher(queue)
    configs = [searcher.suggest(trial_id) for trial_id in ("a", "b", "c")]
    assert configs == [request.to_config() for request in requests]
    assert searcher.suggest("d") == Searcher.FINISHED
    searcher.on_trial_complete("a", trial_epoch(1, 50.0).to_dict())
    searcher.on_trial_complete("b", TrialFailure("error", "cannot train").to_dict())
    searcher.on_trial_complete("c", error=True)
    assert queue.failures == {"paper-seed_1": "cannot train", "lost": "lost"}


def test_the_result_of_a_finished_run_is_logged() -> None:
    request, log = TrialRequest(0, 1, "paper-seed_0", {}), list[str]()
    queue = RunQueue([request], log.append)
    assert not queue.report(request, trial_epoch(1, 240.0)) and not log
    assert not queue.report(request, trial_epoch(2, 230.0, best=240.0, best_epoch=1, finished=True))
    assert log == ["final: paper-seed_0: val SumR 240.0 at epoch 1 of 2, 2 s (1 of 1 runs finished)"]
    log.clear()
    resumed = RunQueue([TrialRequest(0, 1, "paper-seed_1", {"training.with_val": True})], log.append, finished=2)
    assert not resumed.report(
        TrialRequest(0, 1, "paper-seed_1", {"training.with_val": True}), trial_epoch(2, 230.0, finished=True)
    )
    assert log == ["final: paper-seed_1: 2 epochs on train and val, 2 s (3 of 3 runs finished)"]


def test_a_run_that_ran_out_of_memory_is_repeated_with_the_resources_of_two() -> None:
    request, log = TrialRequest(0, 1, "paper-seed_1", {}), list[str]()
    queue = RunQueue([request], log.append, can_have_more=True)
    searcher = SourceSearcher(queue)
    assert searcher.suggest("a") == request.to_config() and searcher.suggest("b") is None  # not finished yet
    searcher.on_trial_complete("a", TrialFailure("out_of_memory", "CUDA out of memory").to_dict())
    again = searcher.suggest("b")
    assert again == TrialRequest(0, 2, "paper-seed_1", {}).to_config() and not queue.failures
    searcher.on_trial_complete("b", TrialFailure("out_of_memory", "CUDA out of memory").to_dict())
    assert searcher.suggest("c") == Searcher.FINISHED and queue.failures == {"paper-seed_1": "CUDA out of memory"}


def train(search: Search, run: PlannedRun, finished: bool = True, **changes: Any) -> Path:
    """Write what the training of a run leaves behind. `changes` are values with which it was trained instead."""
    directory = Path(search.settings.out) / "final" / run.request.run
    experiment = search.experiment.with_values(run.request.values | changes)
    checkpoint = directory / "checkpoints" / "epoch-0003"
    checkpoint.mkdir(parents=True)
    for folder in (directory, checkpoint):
        (folder / "experiment.yaml").write_text(experiment.to_yaml())
    result = trial_epoch(3, 240.0, finished=finished).result
    shards = {"shards": ShardsRecord.of(MANIFEST).to_dict()}
    (checkpoint / "metrics.json").write_text(json.dumps(result.to_dict() | shards))
    return directory


TRIALS = [
    TrialRecord(1, "finished", 70.0, 6, 9, {"model.registers": 2}, share=2),
    TrialRecord(0, "pruned", 60.0, 2, 2, {"model.registers": 4, "optimizer.learning_rate": 1e-3}),
]


SPLITS = {name: SplitRecord(2, 3, (name,)) for name in ("train", "val", "test")}
FILES = {f"{name}.{kind}.arrow": FileRecord(9, "a" * 64) for name in SPLITS for kind in ("videos", "queries")}
MANIFEST = Manifest(1, "demo", "i3d", 8, 8, "float16", "own splits", SPLITS, {}, {}, FILES)


def planned(
    folder: Path, log: list[str] | None = None, manifest: Manifest = MANIFEST, **final: Any
) -> tuple[Search, list[PlannedRun]]:
    search = make_search(folder, final={"seeds": 2} | final)
    candidates = choose_candidates(search, TRIALS)
    messages = [] if log is None else log
    return search, plan_runs(search, candidates, manifest, Storage.of(folder / "out" / "final"), messages.append)


def names(runs: list[PlannedRun]) -> list[str]:
    return [run.request.run for run in runs]


def test_every_candidate_is_trained_with_the_same_seeds_and_with_its_trials_resources(tmp_path: Path) -> None:
    search, runs = planned(tmp_path)
    assert names(runs) == ["trial_001-seed_1", "trial_001-seed_2", "paper-seed_1", "paper-seed_2"]
    assert [run.request.values["training.seed"] for run in runs] == [1, 2, 1, 2] == [run.seed for run in runs]
    assert [run.request.share for run in runs] == [2, 2, 1, 1]
    for run in runs:
        assert not is_trained(Storage.of(train(search, run, finished=False)))
    assert names(planned(tmp_path)[1]) == names(runs)  # interrupted ones are continued
    more = planned(tmp_path, seeds=3)[1]
    assert names(more)[:3] == ["trial_001-seed_1", "trial_001-seed_2", "trial_001-seed_3"]


def test_a_finished_run_is_recognized_by_what_was_trained_and_not_by_its_name(tmp_path: Path) -> None:
    search, runs = planned(tmp_path)
    for run in runs:
        train(search, run)
    log: list[str] = []
    on_val = planned(tmp_path, log, with_val=True)[1]
    assert names(on_val) == [f"{name}-version_2" for name in names(runs)]
    assert log[0] == (
        "final: trial_001-seed_1 holds another training, which is left as it is: training.epochs was 9 and is 6 now;"
        " training.with_val was false and is true now"
    )
    with_val, _ = planned(tmp_path / "out", with_val=True)  # only to have the settings
    for run in on_val:
        train(replace(with_val, settings=search.settings), run)
    assert names(planned(tmp_path, with_val=True)[1]) == names(on_val)
    assert names(planned(tmp_path)[1]) == names(runs)  # and back: val must not choose among models that learned from it


def test_a_run_with_the_hidden_size_of_the_features_is_recognized(tmp_path: Path) -> None:
    """Trials may have `model.hidden_size: 0`; what was trained has the features' size."""
    search = make_search(tmp_path, final={"seeds": 2})
    candidates = choose_candidates(search, [replace(TRIALS[0], values={"model.hidden_size": 0}), TRIALS[1]])
    final, log = Storage.of(tmp_path / "out" / "final"), list[str]()
    manifest = replace(
        MANIFEST, video_size=search.experiment.data.video_size, text_size=search.experiment.data.text_size
    )
    runs = plan_runs(search, candidates, manifest, final, log.append)
    for run in runs:
        sizes: dict[str, Any] = {"model.hidden_size": manifest.video_size}
        train(search, run, **(sizes if "model.hidden_size" in run.request.values else {}))
    assert names(plan_runs(search, candidates, manifest, final, log.append)) == names(runs) and not log


@pytest.mark.parametrize("text", ["", "[1, 2]", "tvr", "model: 3", "\t"])
def test_a_final_run_whose_configuration_cannot_be_read_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    search, runs = planned(tmp_path)
    for run in runs:
        train(search, run)
    damaged = tmp_path / "out" / "final" / names(runs)[0] / "checkpoints" / "epoch-0003" / "experiment.yaml"
    damaged.write_text(text)
    log: list[str] = []
    assert names(planned(tmp_path, log)[1]) == [f"{names(runs)[0]}-version_2", *names(runs)[1:]]
    assert log == [
        f"final: {names(runs)[0]} holds another training, which is left as it is: {damaged} cannot be read",
    ]
    assert damaged.read_text() == text


@pytest.mark.parametrize(
    "changes",
    [
        {"training.with_val": True},
        {"training.epochs": 3},
        {"model.registers": 7},
        {"training.seed": 0},
        {"model.hidden_size": 32},
        {"training.precision": "bf16"},
    ],
)
def test_any_difference_gives_a_run_its_own_directory(tmp_path: Path, changes: dict[str, Any]) -> None:
    search, (first, *others) = planned(tmp_path)
    directory = train(search, first, **changes)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert names(planned(tmp_path)[1]) == ["trial_001-seed_1-version_2", *names(others)]
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_the_checkpoint_tells_what_was_trained(tmp_path: Path) -> None:
    """The run's own file may say otherwise: version 0.1.0 rewrote it before it looked at the checkpoint."""
    search, (first, *_) = planned(tmp_path)
    directory = train(search, first, **{"training.with_val": True})
    (directory / "experiment.yaml").write_text(search.experiment.with_values(first.request.values).to_yaml())
    assert names(planned(tmp_path)[1])[0] == "trial_001-seed_1-version_2"
    (directory / "checkpoints" / "epoch-0003" / "experiment.yaml").write_text("{")
    log: list[str] = []
    assert names(planned(tmp_path, log)[1])[0] == "trial_001-seed_1-version_2" and "cannot be read" in log[0]


def test_a_run_on_other_shards_is_repeated(tmp_path: Path) -> None:
    search, runs = planned(tmp_path)
    for run in runs:
        train(search, run)
    files = FILES | {"train.videos.arrow": FileRecord(9, "b" * 64)}
    log: list[str] = []
    converted_again = planned(tmp_path, log, replace(MANIFEST, files=files))[1]
    assert names(converted_again) == [f"{name}-version_2" for name in names(runs)]
    assert "the shards' features or captions differ" in log[0]


def test_how_often_a_training_may_fail_is_no_difference(tmp_path: Path) -> None:
    search, (first, *_) = planned(tmp_path)
    train(search, first, **{"training.max_failures": 0})
    assert names(planned(tmp_path)[1])[0] == "trial_001-seed_1"


def earlier_runs(folder: Path, seeds: range) -> list[PlannedRun]:
    """Write runs as version 0.1.0 did: with the seeds 0, 1, ..., whatever that of the search."""
    search, runs = planned(folder)
    for run in runs[::2]:
        for seed in seeds:
            name = run.request.run.replace("seed_1", f"seed_{seed}")
            values = run.request.values | {"training.seed": seed}
            train(search, replace(run, seed=seed, request=TrialRequest(run.request.number, 1, name, values)))
    return runs


def test_a_final_stage_that_an_earlier_version_finished_is_kept_and_called_biased(tmp_path: Path) -> None:
    runs, log = earlier_runs(tmp_path, range(2)), list[str]()
    again = planned(tmp_path, log)[1]
    assert [run.seed for run in again] == [0, 1, 0, 1]
    assert len(log) == 1 and "share seed 0 with the search: the comparison favours the trial that the search" in log[0]
    shutil.rmtree(tmp_path / "out" / "final" / "paper-seed_0")  # as the message advises
    assert names(planned(tmp_path)[1]) == names(runs)


def test_the_seed_of_the_search_is_left_out_if_runs_of_an_earlier_version_are_missing(tmp_path: Path) -> None:
    runs = earlier_runs(tmp_path, range(1))  # interrupted after the first seed
    assert names(planned(tmp_path)[1]) == names(runs)
    earlier_runs(tmp_path / "out", range(2))
    more = planned(tmp_path / "out", seeds=3)[1]  # resumed with more seeds
    assert [run.seed for run in more] == [1, 2, 3] * 2 and all("version" not in name for name in names(more))
