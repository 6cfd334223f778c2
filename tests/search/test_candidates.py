"""Which settings a search retrains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.searches import SPACE, make_search

from dreamprvr_ray.config import baseline_name, load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.candidates import choose_candidates, run_values, skipped_ablations
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.seeds import shared_seeds
from dreamprvr_ray.search.space import Search


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
    assert [candidate.shown_name for candidate in candidates[2:]] == [
        "trial 2 with the configuration's own model.registers",  # the preset is the demo's
        "the configuration's own settings",
    ]
    assert skipped_ablations(search, candidates) == ["optimizer.learning_rate"]  # trial 2 has the configuration's rate
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


def epochs_of_candidates(search: Search, *trials: TrialRecord) -> list[int]:
    return [run_values(search, candidate, 1)["training.epochs"] for candidate in choose_candidates(search, trials)]


def test_a_pruned_trial_is_trained_on_val_for_as_long_as_is_typical(tmp_path: Path) -> None:
    """Its best epoch is not known: the few epochs that it got would decide the comparison."""
    search = make_search(tmp_path, final={"with_val": True, "ablate": ["model.registers"]})
    best = TrialRecord(1, "finished", 70.0, 6, 9, {"model.registers": 2})
    own = TrialRecord(0, "pruned", 60.0, 2, 2, search.paper_setting)
    failed = TrialRecord(0, "failed", None, None, 0, search.paper_setting)
    other = TrialRecord(2, "finished", 65.0, 9, 9, {"model.registers": 3})
    assert epochs_of_candidates(search, best, own) == [6, 6, 6]  # the ablation's trial is the best one
    assert epochs_of_candidates(search, best, other, own) == [6, 6, 8]
    assert epochs_of_candidates(search, best, failed) == [6, 6, 6]
    assert epochs_of_candidates(search, best, replace(own, best_epoch=7, epochs=7)) == [6, 6, 7]
    pruned = replace(best, state="pruned", best_epoch=2, epochs=2)
    assert epochs_of_candidates(search, pruned, own) == [9, 9, 9]  # no trial has trained in full


def test_candidates_need_the_resources_of_their_trials(tmp_path: Path) -> None:
    search = make_search(tmp_path, final={"ablate": ["model.registers"]})
    trials = [
        TrialRecord(1, "finished", 70.0, 6, 9, {"model.registers": 8}, share=2),
        TrialRecord(0, "finished", 60.0, 8, 9, search.paper_setting),
    ]
    assert [candidate.share for candidate in choose_candidates(search, trials)] == [2, 2, 1]


def test_final_seeds_are_none_of_the_searchs(tmp_path: Path) -> None:
    def seeds(count: int, seed: Any = None) -> tuple[int, ...]:
        space = SPACE if seed is None else SPACE | {"training.seed": seed}
        return make_search(tmp_path, space, final={"seeds": count}).final_seeds

    assert seeds(3) == (1, 2, 3)  # the demo's seed is 0
    assert seeds(5)[:3] == seeds(3)  # resumed with more seeds
    assert seeds(3, seed=1) == (0, 2, 3)  # fixed by the search
    assert seeds(3, seed=7) == (0, 1, 2)
    assert seeds(3, seed={"int": [0, 9]}) == (10, 11, 12)  # sampled
    assert seeds(3, seed={"choice": [0, 2, 4]}) == (1, 3, 5)
    assert seeds(1, seed={"int": [0, 2**31 - 2]}) == (2**31 - 1,)
    search = make_search(tmp_path, SPACE | {"training.seed": {"int": [0, 9]}}, final={"seeds": 1})
    trials = [
        TrialRecord(1, "finished", 70.0, 6, 9, {"model.registers": 8, "training.seed": 7}),
        TrialRecord(0, "finished", 60.0, 8, 9, search.paper_setting),
    ]
    candidates = choose_candidates(search, trials)
    assert candidates[0].values == {"model.registers": 8}  # the seed of its trial is none of its settings
    assert [run_values(search, candidate, 10)["training.seed"] for candidate in candidates] == [10, 10]
    with pytest.raises(UserError, match=r"training.seed leaves 1 seeds to the final trainings, which need 2"):
        seeds(2, seed={"int": [0, 2**31 - 2]})
    with pytest.raises(UserError, match=r"ablate: training.seed has no effect"):
        make_search(tmp_path, SPACE | {"training.seed": {"int": [0, 9]}}, final={"ablate": ["training.seed"]})


def test_runs_of_earlier_versions_may_share_the_searchs_seeds() -> None:
    assert shared_seeds([0, 1, 2], 0, []) == (0,)
    assert shared_seeds([0, 1, 2, None], 5, [{"training.seed": 2}, {"training.seed": 0}, {}]) == (0, 2)
    assert shared_seeds([1, 2, 3], 0, [{"model.registers": 1}]) == ()


def test_only_the_papers_values_are_called_the_papers(tmp_path: Path) -> None:
    same = {"data.video_size": 10, "data.text_size": 10, "training.seed": 3, "training.precision": "fp32"}
    own = "the configuration's own settings"
    for preset in ("tvr", "activitynet", "charades"):
        assert baseline_name(load_experiment(preset)) == "the paper's settings"
        assert baseline_name(load_experiment(preset, same | {"training.max_failures": 0})) == "the paper's settings"
        for change in ({"model.hidden_size": 32}, {"training.epochs": 1}, {"data.trim_frames": "batch"}):
            assert baseline_name(load_experiment(preset, change)) == own
    assert baseline_name(load_experiment("demo")) == own
    file = tmp_path / "mine.yaml"
    file.write_text("preset: tvr\n")
    assert baseline_name(load_experiment(file)) == "the paper's settings"
    file.write_text("preset: tvr\nmodel: {hidden_size: 32}\n")
    assert baseline_name(load_experiment(file)) == own


def test_trials_must_not_learn_from_val(tmp_path: Path) -> None:
    for value in (True, {"choice": [False, True]}):
        with pytest.raises(UserError, match=r"training.with_val must be false in a search: .* final.with_val"):
            make_search(tmp_path, SPACE | {"training.with_val": value})
