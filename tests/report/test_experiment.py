"""What the report reads from a search's directory."""

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
from dreamprvr_ray.report.experiment import read_search, short_names


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_search(tmp_path_factory.mktemp("search") / "made", trials=12, failed=(5,), refused=(7,), running=(11,))


def test_trials_are_as_the_study_holds_them(directory: Path) -> None:
    search = read_search(directory)
    assert (search.name, len(search.trials), search.refused) == ("made", 11, 1)
    assert search.first is not None and search.first.values == PAPER and search.first.epochs == EPOCHS
    (failed,) = search.in_state("failed")
    assert (
        failed.number == 5 and failed.reason == "out of memory: 38.1 GiB were asked for" and failed not in search.ended
    )
    (running,) = search.in_state("running")
    assert running.number == 11 and len(running.curve) == 7  # the line that a kill left half written is no epoch
    best = search.best
    assert best is not None and best.sumr == max(trial.sumr or 0 for trial in search.trials)
    assert best.checkpoint == f"runs/trial_{best.number:03d}/checkpoints/epoch-{best.best_epoch:04d}"


def test_axes_follow_the_file_and_know_the_configurations_own_value(directory: Path) -> None:
    axes = {axis.name: axis for axis in read_search(directory).axes}
    assert list(axes) == ["registers", "diffusion steps", "learning rate", "margin", "dropout", "branches"]
    rate = axes["learning rate"]
    assert rate.log and rate.own == 3e-4 and rate.position(1e-5) == 0 and rate.position(1e-2) == 1
    assert rate.position(3.1622776e-4) == pytest.approx(0.5)
    assert axes["registers"].position(None) is None
    assert (
        axes["branches"].choices == (4, 8)
        and axes["branches"].position(8) == 1
        and axes["branches"].position(6) is None
    )


def test_reading_changes_nothing(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    read_search(directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_without_the_epochs_records_the_curves_are_the_studys(tmp_path: Path) -> None:
    told = read_search(make_search(tmp_path / "a", trials=4, epoch_records=False, leaderboard=False))
    recorded = read_search(make_search(tmp_path / "b", trials=4))
    assert [trial.curve for trial in told.trials] == [trial.curve for trial in recorded.trials]


def test_the_store_may_be_a_servers(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=4)
    store = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.copy_study(
        from_study_name="made",
        from_storage=JournalStorage(JournalFileBackend(str(directory / "optuna.journal"))),
        to_storage=store,
    )
    record = yaml.safe_load((directory / "search.yaml").read_text())
    del record["name"]  # the store's only study is meant
    record["search"]["store"] = store
    (directory / "search.yaml").write_text(yaml.safe_dump(record))
    (directory / "optuna.journal").unlink()
    assert len(read_search(directory).trials) == 4


def test_a_stores_password_goes_nowhere(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=2)
    record = yaml.safe_load((directory / "search.yaml").read_text())
    record["search"]["store"] = "nosuch://me:secret@server/studies"
    (directory / "search.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(UserError, match=r"nosuch://me:\*\*\*@server/studies: the study cannot be read") as error:
        read_search(directory)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: made.joinpath("search.yaml").unlink(), "no search: it has no search.yaml"),
        (lambda made: made.joinpath("search.yaml").write_text("a: 1\n"), "needs the sections experiment and search"),
        (
            lambda made: made.joinpath("optuna.journal").unlink(),
            "nothing to report yet: the search has no optuna.journal",
        ),
        (lambda made: made.joinpath("optuna.journal").write_text(""), "nothing to report yet: no study 'made'"),
        (
            lambda made: made.joinpath("optuna.journal").write_text("spoilt\nspoilt\n"),
            "optuna.journal: the study cannot be read",
        ),
        (lambda made: made.joinpath("leaderboard.json").write_text("["), "leaderboard.json: cannot be read"),
        (
            lambda made: made.joinpath("final.json").write_text("{}"),
            "final.json: not what `tune` writes: KeyError 'candidates'",
        ),
    ],
)
def test_what_is_no_search_is_said_in_one_line(tmp_path: Path, spoil, message: str) -> None:
    directory = make_search(tmp_path / "made", trials=2)
    spoil(directory)
    with pytest.raises(UserError, match=message) as error:
        read_search(directory)
    assert len(error.value.mistakes) == 1 and "\n" not in str(error.value)


def test_the_winners_one_reading_of_test_stands_in_for_the_final_training(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=2)
    (directory / "best").mkdir()
    reading = {"split": "test", "collection": "made", "protocol": "own splits", "SumR": 230.5, "by_moment": None}
    (directory / "best" / "test.json").write_text(json.dumps({"readings": [reading, reading | {"SumR": 1.0}]}))
    final = read_search(directory).final
    assert (
        final is not None
        and not final.retrained
        and final.candidates[0].mean == 230.5
        and final.candidates[0].deviation is None
    )


def test_short_names_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    keys = ["model.dropout", "loss.margin", "loss.weights.margin", "optimizer.learning_rate"]
    assert list(short_names(keys).values()) == ["dropout", "loss margin", "weights margin", "learning rate"]
