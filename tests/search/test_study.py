"""What Optuna records, and the decisions of a study, which a resumed search must repeat."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from support.searches import make_search, trial_epoch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.results import TrialRecord, rank_trials
from dreamprvr_ray.search.study import SearchStudy


def open_study(folder: Path, **keys: Any) -> SearchStudy:
    return SearchStudy(make_search(folder, **keys), folder / "out")


def proposed(study: SearchStudy) -> int:
    proposal = study.propose()
    assert proposal is not None
    return proposal.number


def load_with_optuna(folder: Path) -> optuna.Study:
    return optuna.load_study(
        study_name="synthetic", storage=JournalStorage(JournalFileBackend(str(folder / "out" / "optuna.journal")))
    )


def test_optuna_records_how_each_trial_ended(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 2})
    complete, pruned, failed, early = (proposed(study) for _ in range(4))
    for epoch in (trial_epoch(1, 100.0), trial_epoch(2, 120.0), trial_epoch(3, 110.0, best=120.0, finished=True)):
        study.report(complete, epoch)
    assert study.finish(complete, trial_epoch(3, 110.0, best=120.0, finished=True))
    study.report(pruned, trial_epoch(1, 50.0))
    study.report(pruned, trial_epoch(1, 50.0))  # reported again after a resume
    study.report(pruned, trial_epoch(2, 40.0, best=50.0))
    assert study.should_prune(pruned, 2)
    assert study.finish(pruned, trial_epoch(2, 40.0, best=50.0))
    study.report(failed, trial_epoch(1, 70.0))
    study.fail(failed, "the loss is not a number")
    study.fail(early, "no memory left")

    trials = load_with_optuna(tmp_path).trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert [trial.value for trial in trials] == [120.0, 50.0, None, None]  # of the best epoch, not of the last
    assert trials[0].intermediate_values == {1: 100.0, 2: 120.0, 3: 110.0} and trials[1].intermediate_values == {
        1: 50.0,
        2: 40.0,
    }
    assert [trial.user_attrs.get("reason") for trial in trials] == [
        None,
        None,
        "the loss is not a number",
        "no memory left",
    ]
    assert trials[0].user_attrs["epochs"] == 3 and trials[0].user_attrs["seconds"] == 2.5


def test_the_first_trial_is_the_configurations_own_setting(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first = study.propose()
    assert first is not None and first.values == study.search.paper_setting == {
        "model.registers": 4,
        "optimizer.learning_rate": 1e-3,
    }


def test_an_interrupted_trial_stays_open_and_is_proposed_again(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=2)
    first = study.propose()
    second = study.propose()
    assert first is not None and second is not None and study.propose() is None and not study.is_done()
    study.report(second.number, trial_epoch(1, 10.0))
    assert not study.finish(second.number, trial_epoch(1, 10.0))
    assert study.propose() == second
    again = open_study(tmp_path, trials=2)  # another process
    assert again.propose() == first and again.propose() == second and again.propose() is None
    for number in (0, 1):
        again.finish(number, trial_epoch(9, 1.0, finished=True))
    assert again.propose() is None and again.is_done()


def test_a_proposal_interrupted_by_a_kill_is_completed_as_it_would_have_been(tmp_path: Path) -> None:
    undisturbed = open_study(tmp_path)
    expected = [undisturbed.propose() for _ in range(3)]
    (tmp_path / "other").mkdir()
    killed = open_study(tmp_path / "other")
    killed.propose()
    killed.study.ask()  # killed before it sampled values
    killed = open_study(tmp_path / "other")
    assert [killed.propose() for _ in range(2)] == expected[:2]
    killed.search.parameters[0].suggest(killed.study.ask())  # killed after the first of two values
    assert open_study(tmp_path / "other").search.parameters[0].key == "model.registers"
    killed = open_study(tmp_path / "other")
    assert [killed.propose() for _ in range(3)] == expected


@pytest.mark.parametrize("kind", ["tpe", "gp", "random"])
def test_a_resumed_search_makes_the_decisions_of_an_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    def decisions(folder: Path, killed_at: set[int]) -> list[Any]:
        folder.mkdir()
        keys = {
            "sampler": {"kind": kind, "startup_trials": 3, "seed": 7},
            "pruning": {"grace_epochs": 2, "reduction_factor": 2},
            "trials": 10,
        }
        study, steps, decided = open_study(folder, **keys), 0, []
        while (proposal := study.propose()) is not None:
            rate, noise = proposal.values["optimizer.learning_rate"], random.Random(proposal.number)
            for epoch in range(1, 10):
                steps += 1
                if steps in killed_at:  # the epoch is lost and trained again
                    study = open_study(folder, **keys)
                    assert study.propose() == proposal
                sumr = 100 - abs(rate - 3e-3) * 1e4 + epoch + noise.random()
                study.report(proposal.number, trial_epoch(epoch, sumr, finished=epoch == 9))
                if study.should_prune(proposal.number, epoch):
                    break
            study.finish(proposal.number, trial_epoch(epoch, sumr, finished=epoch == 9))
            decided.append((proposal.values, epoch))
        states = {trial.state for trial in study.trials()}
        assert states == {TrialState.COMPLETE, TrialState.PRUNED}
        return decided

    alone = decisions(tmp_path / "alone", set())
    assert len(alone) == 10
    assert decisions(tmp_path / "killed", {1, 12, 13, 30, 31, 45}) == alone


def test_trials_are_compared_by_their_best_sumr_so_far_with_those_that_got_as_far(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 3})
    curves = [[9, 1], [8, 8], [7, 7], [8.5, 0], [6, 6], [8.7, 0]]  # SumR at epochs 1 and 2
    stopped = []
    for curve in curves:
        number = proposed(study)
        for epoch, sumr in enumerate(curve, start=1):
            study.report(number, trial_epoch(epoch, sumr))
            assert epoch == 2 or not study.should_prune(number, epoch)
        stopped.append(study.should_prune(number, 2))
    # Of n trials that got there, the best n / 3, rounded up, continue: one of one to three, two of four to six.
    assert stopped == [False, True, True, False, True, False]


def report_curve(study: SearchStudy, number: int, curve: list[float], finished: bool = False) -> None:
    """Report epochs with these SumR from the first on; with `finished`, the trial ends with the last."""
    for epoch, sumr in enumerate(curve, start=1):
        last = trial_epoch(epoch, sumr, best=max(curve[:epoch]), finished=finished and epoch == len(curve))
        study.report(number, last)
    if finished:
        assert study.finish(number, last)


def test_a_trial_that_was_kept_at_a_rung_is_kept_when_it_is_resumed_there(tmp_path: Path) -> None:
    """It reports the epoch again, and by then others may have exceeded it."""
    keys: dict[str, Any] = {"pruning": {"grace_epochs": 2, "reduction_factor": 3}, "trials": 4}
    study = open_study(tmp_path, **keys)
    first = proposed(study)
    report_curve(study, first, [50.0, 60.0])
    assert not study.should_prune(first, 2)  # nothing to compare with
    for sumr in (70.0, 80.0):  # run while the first is between two epochs
        report_curve(study, proposed(study), [sumr, sumr])
    resumed = open_study(tmp_path, **keys)  # the driver was killed
    assert proposed(resumed) == first
    resumed.report(first, trial_epoch(2, 60.0))
    assert not resumed.should_prune(first, 2)
    assert not resumed.finish(first, trial_epoch(2, 60.0))  # still open


def test_a_trial_that_was_pruned_at_a_rung_is_pruned_when_it_is_resumed_there(tmp_path: Path) -> None:
    """The driver may be killed between the decision and the record of the trial's end."""
    keys: dict[str, Any] = {"pruning": {"grace_epochs": 2, "reduction_factor": 2}, "trials": 5}
    study = open_study(tmp_path, **keys)
    good, bad = proposed(study), proposed(study)
    report_curve(study, good, [90.0, 90.0])
    report_curve(study, bad, [50.0, 50.0])
    assert study.should_prune(bad, 2)
    for _ in range(3):  # with these, half of the trials would include the bad one
        report_curve(study, proposed(study), [1.0, 1.0])
    resumed = open_study(tmp_path, **keys)
    assert [proposed(resumed), proposed(resumed)] == [good, bad]
    assert resumed.should_prune(bad, 2) and resumed.finish(bad, trial_epoch(2, 50.0))
    assert load_with_optuna(tmp_path).trials[bad].state == TrialState.PRUNED


def test_a_decision_at_one_rung_does_not_hold_at_the_next(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 2})
    first, second = proposed(study), proposed(study)
    report_curve(study, first, [50.0] * 4)
    assert not study.should_prune(first, 2)
    report_curve(study, second, [60.0] * 4)
    assert not study.should_prune(second, 2) and not study.should_prune(second, 4)
    assert study.should_prune(first, 4)


def test_a_trial_that_ended_by_patience_counts_at_later_rungs(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 3})
    best = proposed(study)
    report_curve(study, best, [10.0, 90.0, 80.0, 80.0], finished=True)  # has no sixth epoch
    worse = proposed(study)
    report_curve(study, worse, [10.0, 20.0, 20.0, 20.0, 20.0, 85.0])
    assert study.should_prune(worse, 6)


def test_a_pruned_trial_does_not_count_at_rungs_that_it_did_not_reach(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 2})
    best, pruned = proposed(study), proposed(study)
    report_curve(study, best, [95.0, 95.0])
    report_curve(study, pruned, [90.0, 90.0])
    assert study.should_prune(pruned, 2) and study.finish(pruned, trial_epoch(2, 90.0))
    alone = proposed(study)
    report_curve(study, alone, [10.0, 20.0, 30.0, 40.0])
    assert not study.should_prune(alone, 4)


def test_optunas_dashboard_shows_the_names_of_the_objectives(tmp_path: Path) -> None:
    open_study(tmp_path)
    assert load_with_optuna(tmp_path).metric_names == ["val SumR"]
    (tmp_path / "two").mkdir()
    open_study(tmp_path / "two", against="encode_ms")
    assert load_with_optuna(tmp_path / "two").metric_names == ["val SumR", "encode_ms"]


@pytest.mark.parametrize(
    ("pruning", "rungs"),
    [
        ({"grace_epochs": 2, "reduction_factor": 3}, [2, 6]),
        ({"grace_epochs": 9}, []),
        ({"enabled": False}, []),
        ({"grace_epochs": 4, "reduction_factor": 2}, [4, 8]),
    ],
)
def test_trials_are_compared_before_the_last_epoch_only(
    tmp_path: Path, pruning: dict[str, Any], rungs: list[int]
) -> None:
    assert make_search(tmp_path, pruning=pruning).settings.pruning.rungs(9) == rungs


def test_a_trial_that_ran_out_of_memory_runs_once_more_with_the_resources_of_two(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=2)
    first, second = study.propose(), study.propose()
    assert first is not None and second is not None and first.share == 1
    study.finish(second.number, trial_epoch(9, 5.0, finished=True))
    assert study.retry_with_more_memory(first.number, "CUDA out of memory") and not study.is_done()
    again = study.propose()
    assert again is not None and (again.number, again.values, again.share) == (first.number, first.values, 2)
    assert not study.retry_with_more_memory(first.number, "CUDA out of memory")
    study.fail(first.number, "CUDA out of memory")
    assert study.is_done()


def test_constraints_hold_and_rejected_proposals_do_not_count(tmp_path: Path) -> None:
    study = open_study(tmp_path, constraints=["model.registers < 6 or optimizer.learning_rate < 2e-4"], trials=12)
    values = [proposal.values for proposal in iter(study.propose, None)]
    assert len(values) == 12 and all(
        proposed["model.registers"] < 6 or proposed["optimizer.learning_rate"] < 2e-4 for proposed in values
    )
    rejected = [trial for trial in study.study.trials if trial.user_attrs.get("infeasible")]
    assert rejected and all(
        trial.state == TrialState.FAIL and "rejected: violates" in trial.user_attrs["reason"] for trial in rejected
    )


def test_a_rejection_interrupted_by_a_kill_does_not_stay_open(tmp_path: Path) -> None:
    study = open_study(tmp_path, constraints=["model.registers < 5"], trials=2)
    study.propose()
    study.study.enqueue_trial({"model.registers": 8})
    half = study.study.ask()
    study.search.suggest(half)
    half.set_user_attr("infeasible", True)  # killed before it recorded the failure
    again = open_study(tmp_path, constraints=["model.registers < 5"], trials=2)
    for proposal in iter(again.propose, None):
        again.finish(proposal.number, trial_epoch(9, 1.0, finished=True))
    assert again.is_done() and not any(trial.state == TrialState.RUNNING for trial in again.study.trials)


def test_a_constraint_that_cannot_be_satisfied_is_reported(tmp_path: Path) -> None:
    study = open_study(tmp_path, constraints=["optimizer.learning_rate == 1e-3"])
    study.propose()
    with pytest.raises(UserError, match="100 consecutive proposals violate a constraint"):
        study.propose()


def test_keys_whose_condition_does_not_hold_are_not_proposed(tmp_path: Path) -> None:
    space = {
        "model.diffusion_steps": {"int": [1, 9], "when": "model.registers > 0"},
        "model.registers": {"int": [0, 4]},
        "training.epochs": 9,
    }
    study = open_study(tmp_path, space=space, trials=30, sampler={"startup_trials": 5})
    seen = set()
    for proposal in iter(study.propose, None):
        assert ("model.diffusion_steps" in proposal.values) == (proposal.values["model.registers"] > 0)
        seen.add(proposal.values["model.registers"] > 0)
        study.finish(proposal.number, trial_epoch(9, random.Random(proposal.number).random(), finished=True))
    assert seen == {True, False}


def test_two_objectives_end_with_a_pareto_front(tmp_path: Path) -> None:
    study = open_study(tmp_path, against="gflop_per_video", trials=6, pruning={"grace_epochs": 1})
    for proposal in iter(study.propose, None):
        study.report(proposal.number, trial_epoch(1, 1.0))
        assert not study.should_prune(proposal.number, 1)
        study.finish(proposal.number, trial_epoch(9, float(proposal.values["model.registers"]), finished=True))
    study_on_disk = load_with_optuna(tmp_path)
    assert study_on_disk.user_attrs["objectives"] == ["SumR", "gflop_per_video"] and len(study_on_disk.best_trials) >= 2
    by_registers = sorted((trial.params["model.registers"], trial.values) for trial in study_on_disk.trials)
    costs = [values[1] for _, values in by_registers]
    assert costs == sorted(costs) and costs[0] < costs[-1]  # more registers cost more


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    yield f"sqlite:///{tmp_path / 'studies.db'}"


def test_two_drivers_share_a_database_without_running_each_others_trials(tmp_path: Path, database: str) -> None:
    search = make_search(tmp_path, store=database, trials=4)
    one, two = SearchStudy(search, tmp_path / "one"), SearchStudy(search, tmp_path / "two")
    numbers = [proposed(one), proposed(two), proposed(one), proposed(two)]
    assert numbers == [0, 1, 2, 3] and one.propose() is None and two.propose() is None
    again = SearchStudy(search, tmp_path / "one")  # killed and resumed
    assert [proposed(again), proposed(again)] == [0, 2] and again.propose() is None


def test_a_database_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    for url in ("sqlite:////nowhere/at/all.db", "no url"):
        with pytest.raises(UserError, match=r"store = .*: cannot be used"):
            open_study(tmp_path, store=url)


@pytest.mark.parametrize(
    ("module", "package"), [("psycopg2", "psycopg2-binary"), ("psycopg", "psycopg[binary]"), ("pymysql", "pymysql")]
)
def test_a_missing_database_driver_is_reported_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    kind = "mysql" if module == "pymysql" else "postgresql"
    with pytest.raises(UserError) as caught:
        open_study(tmp_path, store=f"{kind}+{module}://me:hush-hush@127.0.0.1:1/studies")
    assert str(caught.value).endswith(f"cannot be used: its driver is not installed: pip install {package}")


def test_a_databases_password_is_not_printed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_study(tmp_path, store="postgresql://me:hush-hush@127.0.0.1:1/studies")
    assert "hush" not in str(caught.value) and "me:***@127.0.0.1:1/studies: cannot be used" in str(caught.value)


def test_trials_are_ranked_as_they_end(tmp_path: Path) -> None:
    """Records of ended trials are kept; the ranking equals that of all trials."""
    study = open_study(tmp_path, trials=12)
    running = []
    for number in range(12):
        proposed(study)
        study.report(number, trial_epoch(1, (number * 37.0) % 50))
        running.append(number)
        if number % 3 == 1:
            study.finish(running.pop(0), trial_epoch(9, (number * 29.0) % 50, finished=True))
        if number == 7:
            study.fail(running.pop(), "broken")
        expected = rank_trials(replace(TrialRecord.from_study(trial), curve=()) for trial in study.trials())
        assert study.ranked() == expected and study.ranked() == expected
    assert SearchStudy(study.search, tmp_path / "out").ranked() == expected
