"""Which settings a search retrains."""

from __future__ import annotations

from pathlib import Path

from support.searches import make_search

from dreamprvr_ray.search.candidates import choose_candidates, run_values, skipped_ablations
from dreamprvr_ray.search.results import TrialRecord


def test_candidates_are_the_best_finished_trials_and_the_paper(tmp_path: Path) -> None:
    search = make_search(tmp_path, final={"top": 2})
    trials = [
        TrialRecord(4, "pruned", 90.0, 2, 2, {"model.registers": 1}),
        TrialRecord(0, "finished", 80.0, 9, 9, search.paper_setting),
        TrialRecord(2, "finished", 70.0, 9, 9, {"model.registers": 2}),
        TrialRecord(3, "finished", 60.0, 9, 9, {"model.registers": 3}),
        TrialRecord(1, "failed", None, None, 0, {"model.registers": 5}),
    ]
    assert [candidate.name for candidate in choose_candidates(search, trials)] == ["trial 2", "trial 3", "paper"]
    assert [candidate.name for candidate in choose_candidates(search, trials[:2])] == ["trial 4", "paper"]
    assert run_values(search, choose_candidates(search, trials)[0], 1) == {"model.registers": 2, "training.seed": 1}
    assert [candidate.name for candidate in choose_candidates(search, trials[1:2])] == ["paper"]


def test_ablations_give_the_best_trial_one_value_of_the_paper(tmp_path: Path) -> None:
    search = make_search(tmp_path, final={"top": 2, "ablate": ["optimizer.learning_rate", "model.registers"]})
    trials = [
        TrialRecord(2, "finished", 70.0, 9, 9, {"model.registers": 2, "optimizer.learning_rate": 1e-3}),
        TrialRecord(0, "finished", 65.0, 9, 9, search.paper_setting),
        TrialRecord(3, "finished", 60.0, 9, 9, {"model.registers": 3, "optimizer.learning_rate": 2e-3}),
    ]
    candidates = choose_candidates(search, trials)
    assert [candidate.name for candidate in candidates] == [
        "trial 2",
        "trial 3",
        "trial 2 with the paper's model.registers",
        "paper",
    ]
    assert candidates[2].values == {"model.registers": 4, "optimizer.learning_rate": 1e-3}
    assert candidates[2].ablated == "model.registers"
    assert skipped_ablations(search, candidates) == ["optimizer.learning_rate"]  # trial 2 has the paper's rate
    assert [candidate.name for candidate in choose_candidates(search, trials[1:2])] == ["paper"]


def test_runs_on_train_and_val_last_until_the_best_epoch_of_the_trial(tmp_path: Path) -> None:
    search = make_search(tmp_path, final={"with_val": True})
    candidates = choose_candidates(
        search,
        [
            TrialRecord(1, "finished", 70.0, 6, 9, {"model.registers": 2}),
            TrialRecord(0, "finished", 60.0, 8, 9, search.paper_setting),
        ],
    )
    assert run_values(search, candidates[0], 2) == {
        "model.registers": 2,
        "training.seed": 2,
        "training.with_val": True,
        "training.epochs": 6,
    }
    assert run_values(search, candidates[1], 0)["training.epochs"] == 8
