"""Reading a search from its directory."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.experiments import EPOCHS, PAPER, make_search

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.parameters import short_names
from dreamprvr_ray.report.reader import read_search


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_search(
        tmp_path_factory.mktemp("search") / "synthetic", trials=12, failed=(5,), refused=(7,), running=(11,)
    )


def test_trials_are_read_from_the_study(directory: Path) -> None:
    search = read_search(directory)
    assert (search.name, len(search.trials), search.infeasible) == ("synthetic", 11, 1)
    assert search.baseline is not None and search.baseline.values == PAPER and search.baseline.epochs == EPOCHS
    (failed,) = search.in_state("failed")
    assert failed.number == 5 and failed.error == "out of memory: 38.1 GiB were asked for"
    assert failed not in search.trained
    (running,) = search.in_state("running")
    assert running.number == 11 and len(running.curve) == 7  # a line that a kill cut off is ignored
    best = search.best
    assert best is not None and best.best_sumr == max(trial.best_sumr or 0 for trial in search.trials)
    assert best.checkpoint == f"runs/trial_{best.number:03d}/checkpoints/epoch-{best.best_epoch:04d}"


def test_parameters_follow_the_file_and_have_their_baseline_value(directory: Path) -> None:
    parameters = {parameter.name: parameter for parameter in read_search(directory).parameters}
    assert list(parameters) == ["registers", "diffusion steps", "learning rate", "margin", "dropout", "branches"]
    rate = parameters["learning rate"]
    assert rate.log and rate.baseline == 3e-4 and rate.position(1e-5) == 0 and rate.position(1e-2) == 1
    assert rate.position(3.1622776e-4) == pytest.approx(0.5)
    assert parameters["registers"].position(None) is None
    branches = parameters["branches"]
    assert branches.choices == (4, 8) and branches.position(8) == 1 and branches.position(6) is None


def test_reading_changes_nothing(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    read_search(directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_curves_come_from_the_study_if_epochs_are_not_recorded(tmp_path: Path) -> None:
    from_study = read_search(make_search(tmp_path / "a", trials=4, epoch_records=False, leaderboard=False))
    recorded = read_search(make_search(tmp_path / "b", trials=4))
    assert [trial.curve for trial in from_study.trials] == [trial.curve for trial in recorded.trials]


def test_the_study_may_be_in_a_database(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=4)
    store = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.copy_study(
        from_study_name="synthetic",
        from_storage=JournalStorage(JournalFileBackend(str(directory / "optuna.journal"))),
        to_storage=store,
    )
    record = yaml.safe_load((directory / "search.yaml").read_text())
    del record["name"]  # the only study in the database is read
    record["search"]["store"] = store
    (directory / "search.yaml").write_text(yaml.safe_dump(record))
    (directory / "optuna.journal").unlink()
    assert len(read_search(directory).trials) == 4


def test_the_password_of_a_database_is_never_shown(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=2)
    record = yaml.safe_load((directory / "search.yaml").read_text())
    record["search"]["store"] = "nosuch://me:secret@server/studies"
    (directory / "search.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(UserError, match=r"nosuch://me:\*\*\*@server/studies: cannot read the study") as error:
        read_search(directory)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.joinpath("search.yaml").unlink(), "is not a search: it has no search.yaml"),
        (
            lambda path: path.joinpath("search.yaml").write_text("a: 1\n"),
            "must have the sections experiment and search",
        ),
        (
            lambda path: path.joinpath("optuna.journal").unlink(),
            r"nothing to report yet: no trial has been proposed \(there is no optuna.journal\)",
        ),
        (
            lambda path: path.joinpath("optuna.journal").write_text(""),
            "nothing to report yet: optuna.journal has no study 'synthetic'",
        ),
        (
            lambda path: path.joinpath("optuna.journal").write_text("damaget\ndamaget\n"),
            "optuna.journal: cannot read the study",
        ),
        (lambda path: path.joinpath("leaderboard.json").write_text("["), "leaderboard.json: cannot be read"),
        (
            lambda path: path.joinpath("final.json").write_text("{}"),
            "final.json: was not written by `tune`: KeyError 'split'",
        ),
    ],
)
def test_a_damaged_search_is_reported_in_one_line(tmp_path: Path, damage, message: str) -> None:
    directory = make_search(tmp_path / "synthetic", trials=2)
    damage(directory)
    with pytest.raises(UserError, match=message) as error:
        read_search(directory)
    assert len(error.value.mistakes) == 1 and "\n" not in str(error.value)


def test_the_first_test_result_of_the_best_trial_replaces_the_final_result(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=2)
    (directory / "best").mkdir()
    reading = {"split": "test", "collection": "synthetic", "protocol": "own splits", "SumR": 230.5, "by_moment": None}
    (directory / "best" / "test.json").write_text(json.dumps({"readings": [reading, reading | {"SumR": 1.0}]}))
    final = read_search(directory).final
    assert final is not None and not final.result.retrained
    assert final.result.candidates[0].mean == 230.5 and final.result.candidates[0].std is None


def test_short_names_tell_keys_apart() -> None:
    keys = ["model.dropout", "loss.margin", "loss.weights.margin", "optimizer.learning_rate"]
    assert list(short_names(keys).values()) == ["dropout", "loss margin", "weights margin", "learning rate"]
