"""What Optuna is told, and what the study decides, which a killed and resumed search must decide again."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from support.searches import make_search_settings, result

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.study import SearchStudy


def open_study(folder: Path, **keys: Any) -> SearchStudy:
    return SearchStudy(make_search_settings(folder, **keys), folder / "out")


def proposed(study: SearchStudy) -> int:
    proposal = study.propose()
    assert proposal is not None
    return proposal.number


def by_optunas_own_tools(folder: Path) -> optuna.Study:
    return optuna.load_study(
        study_name="made", storage=JournalStorage(JournalFileBackend(str(folder / "out" / "optuna.journal")))
    )


def test_optuna_is_told_how_each_trial_ended(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 2})
    complete, pruned, failed, early = (proposed(study) for _ in range(4))
    for each in (result(1, 100.0), result(2, 120.0), result(3, 110.0, best=120.0, finished=True)):
        study.report(complete, each)
    assert study.end(complete, result(3, 110.0, best=120.0, finished=True))
    study.report(pruned, result(1, 50.0))
    study.report(pruned, result(1, 50.0))  # again, after it was resumed
    study.report(pruned, result(2, 40.0, best=50.0))
    assert study.should_prune(pruned, 2)
    assert study.end(pruned, result(2, 40.0, best=50.0))
    study.report(failed, result(1, 70.0))
    study.fail(failed, "the loss is not a number")
    study.fail(early, "no memory left")

    trials = by_optunas_own_tools(tmp_path).trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert [trial.value for trial in trials] == [120.0, 50.0, None, None]  # the best epoch's, not the last one's
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
    study.report(second.number, result(1, 10.0))
    assert not study.end(second.number, result(1, 10.0))
    assert study.propose() == second
    again = open_study(tmp_path, trials=2)  # another process
    assert again.propose() == first and again.propose() == second and again.propose() is None
    for number in (0, 1):
        again.end(number, result(9, 1.0, finished=True))
    assert again.propose() is None and again.is_done()


def test_a_proposal_that_a_kill_cut_off_is_completed_as_it_would_have_been(tmp_path: Path) -> None:
    undisturbed = open_study(tmp_path)
    wanted = [undisturbed.propose() for _ in range(3)]
    (tmp_path / "other").mkdir()
    killed = open_study(tmp_path / "other")
    killed.propose()
    killed.study.ask()  # and killed before it asked for values
    killed = open_study(tmp_path / "other")
    assert [killed.propose() for _ in range(2)] == wanted[:2]
    killed.search.parameters[0].suggest(killed.study.ask())  # and killed after the first of two
    assert open_study(tmp_path / "other").search.parameters[0].key == "model.registers"
    killed = open_study(tmp_path / "other")
    assert [killed.propose() for _ in range(3)] == wanted


@pytest.mark.parametrize("kind", ["tpe", "gp", "random"])
def test_a_resumed_search_proposes_and_prunes_as_one_left_alone(tmp_path: Path, kind: str) -> None:
    def decisions(folder: Path, killed_at: set[int]) -> list[Any]:
        folder.mkdir()
        keys = {
            "sampler": {"kind": kind, "startup_trials": 3, "seed": 7},
            "pruning": {"grace_epochs": 2, "reduction_factor": 2},
            "trials": 10,
        }
        study, steps, made = open_study(folder, **keys), 0, []
        while (proposal := study.propose()) is not None:
            rate, noise = proposal.values["optimizer.learning_rate"], random.Random(proposal.number)
            for epoch in range(1, 10):
                steps += 1
                if steps in killed_at:  # the epoch is lost, and trained again
                    study = open_study(folder, **keys)
                    assert study.propose() == proposal
                sumr = 100 - abs(rate - 3e-3) * 1e4 + epoch + noise.random()
                study.report(proposal.number, result(epoch, sumr, finished=epoch == 9))
                if study.should_prune(proposal.number, epoch):
                    break
            study.end(proposal.number, result(epoch, sumr, finished=epoch == 9))
            made.append((proposal.values, epoch))
        states = {trial.state for trial in study.trials()}
        assert states == {TrialState.COMPLETE, TrialState.PRUNED}
        return made

    alone = decisions(tmp_path / "alone", set())
    assert len(alone) == 10
    assert decisions(tmp_path / "killed", {1, 12, 13, 30, 31, 45}) == alone


def test_trials_are_compared_by_their_best_so_far_with_those_that_came_as_far(tmp_path: Path) -> None:
    study = open_study(tmp_path, pruning={"grace_epochs": 2, "reduction_factor": 3})
    curves = [[9, 1], [8, 8], [7, 7], [8.5, 0], [6, 6], [8.7, 0]]  # SumR at epochs 1 and 2
    stopped = []
    for curve in curves:
        number = proposed(study)
        for epoch, sumr in enumerate(curve, start=1):
            study.report(number, result(epoch, sumr))
            assert epoch == 2 or not study.should_prune(number, epoch)
        stopped.append(study.should_prune(number, 2))
    # Of n trials that got there, the best n / 3, rounded up, continue: one of one to three, two of four to six.
    assert stopped == [False, True, True, False, True, False]


@pytest.mark.parametrize(
    ("pruning", "rungs"),
    [
        ({"grace_epochs": 2, "reduction_factor": 3}, [2, 6]),
        ({"grace_epochs": 9}, []),
        ({"enabled": False}, []),
        ({"grace_epochs": 4, "reduction_factor": 2}, [4, 8]),
    ],
)
def test_rungs_lie_before_the_last_epoch(tmp_path: Path, pruning: dict[str, Any], rungs: list[int]) -> None:
    assert make_search_settings(tmp_path, pruning=pruning).settings.pruning.rungs(9) == rungs


def test_a_trial_that_ran_out_of_memory_runs_once_more_with_that_of_two(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=2)
    first, second = study.propose(), study.propose()
    assert first is not None and second is not None and first.share == 1
    study.end(second.number, result(9, 5.0, finished=True))
    assert study.retry_with_more_memory(first.number, "CUDA out of memory") and not study.is_done()
    again = study.propose()
    assert again is not None and (again.number, again.values, again.share) == (first.number, first.values, 2)
    assert not study.retry_with_more_memory(first.number, "CUDA out of memory")
    study.fail(first.number, "CUDA out of memory")
    assert study.is_done()


def test_constraints_are_kept_and_what_was_refused_does_not_count(tmp_path: Path) -> None:
    study = open_study(tmp_path, constraints=["model.registers < 6 or optimizer.learning_rate < 2e-4"], trials=12)
    values = [proposal.values for proposal in iter(study.propose, None)]
    assert len(values) == 12 and all(
        each["model.registers"] < 6 or each["optimizer.learning_rate"] < 2e-4 for each in values
    )
    refused = [trial for trial in study.study.trials if trial.user_attrs.get("infeasible")]
    assert refused and all(
        trial.state == TrialState.FAIL and "refused: breaks" in trial.user_attrs["reason"] for trial in refused
    )


def test_a_refusal_that_a_kill_cut_off_does_not_stay_open(tmp_path: Path) -> None:
    study = open_study(tmp_path, constraints=["model.registers < 5"], trials=2)
    study.propose()
    study.study.enqueue_trial({"model.registers": 8})
    half = study.study.ask()
    study.search.suggest(half)
    half.set_user_attr("infeasible", True)  # and killed before it was told
    again = open_study(tmp_path, constraints=["model.registers < 5"], trials=2)
    for proposal in iter(again.propose, None):
        again.end(proposal.number, result(9, 1.0, finished=True))
    assert again.is_done() and not any(trial.state == TrialState.RUNNING for trial in again.study.trials)


def test_a_constraint_that_nothing_keeps_ends_with_a_clear_mistake(tmp_path: Path) -> None:
    study = open_study(tmp_path, constraints=["optimizer.learning_rate == 1e-3"])
    study.propose()
    with pytest.raises(UserError, match="100 proposals in a row break a constraint"):
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
        study.end(proposal.number, result(9, random.Random(proposal.number).random(), finished=True))
    assert seen == {True, False}


def test_two_objectives_end_with_a_pareto_front(tmp_path: Path) -> None:
    study = open_study(tmp_path, against="gflop_per_video", trials=6, pruning={"grace_epochs": 1})
    for proposal in iter(study.propose, None):
        study.report(proposal.number, result(1, 1.0))
        assert not study.should_prune(proposal.number, 1)
        study.end(proposal.number, result(9, float(proposal.values["model.registers"]), finished=True))
    told = by_optunas_own_tools(tmp_path)
    assert told.user_attrs["objectives"] == ["SumR", "gflop_per_video"] and len(told.best_trials) >= 2
    by_registers = sorted((trial.params["model.registers"], trial.values) for trial in told.trials)
    costs = [values[1] for _, values in by_registers]
    assert costs == sorted(costs) and costs[0] < costs[-1]  # more registers cost more


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    yield f"sqlite:///{tmp_path / 'studies.db'}"


def test_two_drivers_share_a_database_and_leave_each_others_trials_alone(tmp_path: Path, database: str) -> None:
    search = make_search_settings(tmp_path, store=database, trials=4)
    one, two = SearchStudy(search, tmp_path / "one"), SearchStudy(search, tmp_path / "two")
    numbers = [proposed(one), proposed(two), proposed(one), proposed(two)]
    assert numbers == [0, 1, 2, 3] and one.propose() is None and two.propose() is None
    again = SearchStudy(search, tmp_path / "one")  # killed, and taken up again
    assert [proposed(again), proposed(again)] == [0, 2] and again.propose() is None


def test_a_database_that_is_not_there_is_a_clear_mistake(tmp_path: Path) -> None:
    for url in ("sqlite:////nowhere/at/all.db", "no url"):
        with pytest.raises(UserError, match=r"store = .*: cannot be used"):
            open_study(tmp_path, store=url)


@pytest.mark.parametrize(
    ("module", "package"), [("psycopg2", "psycopg2-binary"), ("psycopg", "psycopg[binary]"), ("pymysql", "pymysql")]
)
def test_a_missing_driver_is_told_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    kind = "mysql" if module == "pymysql" else "postgresql"
    with pytest.raises(UserError) as caught:
        open_study(tmp_path, store=f"{kind}+{module}://me:hush-hush@127.0.0.1:1/studies")
    assert str(caught.value).endswith(
        f"cannot be used: this kind of database needs one more package: pip install {package}"
    )


def test_a_databases_password_is_not_said(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_study(tmp_path, store="postgresql://me:hush-hush@127.0.0.1:1/studies")
    assert "hush" not in str(caught.value) and "me:***@127.0.0.1:1/studies: cannot be used" in str(caught.value)
