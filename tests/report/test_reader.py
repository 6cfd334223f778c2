"""Reading a search from its directory."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.experiments import EPOCHS, PAPER, add_final, make_search

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
            "optuna.journal, line 1: cannot be read: not valid JSON",
        ),
        (lambda path: path.joinpath("leaderboard.json").write_text("["), "leaderboard.json: cannot be read"),
        (
            lambda path: path.joinpath("final.json").write_text("{}"),
            "final.json: was not written by `tune`: split is missing",
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


def edit_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


DAMAGES = [
    ("leaderboard.json", lambda path: edit_json(path, lambda board: board[0].update(number="0")), "0.number = '0'"),
    ("leaderboard.json", lambda path: edit_json(path, lambda board: board[1].update(values=[])), "1.values = a list"),
    ("leaderboard.json", lambda path: edit_json(path, lambda board: board[0].update(state="done")), "0.state = 'done'"),
    ("leaderboard.json", lambda path: path.write_text("{}"), "must be a valid list"),
    ("leaderboard.json", lambda path: path.write_bytes(b"\xff\xfe[]"), "not UTF-8 at byte 0"),
    ("leaderboard.json", lambda path: path.write_text("[" * 99_999), "nested too deeply"),
    ("leaderboard.json", lambda path: path.write_text(f"[{'9' * 9999}]"), "not valid JSON"),
    ("leaderboard.json", lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    ("final.json", lambda path: path.write_text("[]"), "must be a valid dictionary"),
    ("final.json", lambda path: edit_json(path, lambda final: final.update(candidates={})), "candidates = a mapping"),
    (
        "final.json",
        lambda path: edit_json(path, lambda final: final["candidates"][0]["runs"][0].update(test=None)),
        "candidates.0.runs.0.test = null",
    ),
    (
        "final.json",
        lambda path: edit_json(path, lambda final: final["comparison"].update(interval=[1])),
        "comparison.interval = a list",
    ),
    (
        "final.json",
        lambda path: edit_json(path, lambda final: final["comparison"].update(difference="large")),
        "comparison.difference = 'large': must be a number",
    ),
    ("search.yaml", lambda path: replace_bytes(path, b"trials: 4", b"trials: many"), "search.trials = 'many'"),
    ("search.yaml", lambda path: replace_bytes(path, b"  store: null", b"  store: [1]"), "search.store = a list"),
    ("search.yaml", lambda path: replace_bytes(path, b"epochs: 20", b"epochs: .nan"), "training.epochs = nan"),
    ("search.yaml", lambda path: path.write_bytes(path.read_bytes()[:100] + b"\0"), r"U\+0000"),
    ("optuna.journal", lambda path: replace_bytes(path, b'"best_SumR":', b'"best_epoch":"x","best_SumR":'), "trial 0"),
    ("optuna.journal", lambda path: path.write_bytes(path.read_bytes()[:99] + b"\n"), "optuna.journal, line"),
    ("optuna.journal", lambda path: path.write_text("[]\n"), "cannot read the study"),
    ("optuna.journal", lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    ("runs/trial_000/epochs.jsonl", lambda path: path.write_text('{"epoch": 1}\n'), "line 1: .*SumR is missing"),
    ("runs/trial_000/epochs.jsonl", lambda path: path.write_text('{"epoch": 1, "SumR": 1}\n3\n'), "line 2: "),
    (
        "runs/trial_000/epochs.jsonl",
        lambda path: path.write_text(f'{{"epoch": 1, "SumR": {10**400}}}\n'),
        "SumR = an integer of more than 18 digits: must be at most 1e.12",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_each_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, damage, message: str) -> None:
    directory = make_search(tmp_path / "synthetic", trials=4)
    add_final(directory, trial=2)
    damage(directory / name)
    with pytest.raises(UserError, match=message) as error:
        read_search(directory)
    (line,) = error.value.mistakes
    assert line.startswith(str(directory / name)) and "\n" not in line


def test_a_test_record_of_other_types_is_one_line(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=2)
    (directory / "best").mkdir()
    for contents in ({"readings": {}}, {"readings": [3]}, {"readings": [{"SumR": "high"}]}, [], 3):
        (directory / "best" / "test.json").write_text(json.dumps(contents))
        with pytest.raises(UserError, match=r"test\.json: was not written by `tune`"):
            read_search(directory)


def test_a_journal_is_read_without_its_incomplete_last_line_and_never_written(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=4)
    journal = directory / "optuna.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "trial_')
    before = journal.read_bytes()
    journal.chmod(0o400)
    assert len(read_search(directory).trials) == 4
    assert journal.read_bytes() == before and list(directory.glob("optuna.journal*")) == [journal]


def test_a_database_that_is_not_a_study_is_never_changed(tmp_path: Path) -> None:
    """A report once added Optuna's tables to any database that search.yaml named."""
    directory = make_search(tmp_path / "synthetic", trials=2)
    database = tmp_path / "other.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE addresses (name TEXT)")
    before = database.read_bytes()
    record = yaml.safe_load((directory / "search.yaml").read_text())
    for path, reason in ((database, "it has no table studies"), (tmp_path / "absent.db", "no such database")):
        record["search"]["store"] = f"sqlite:///{path}"
        (directory / "search.yaml").write_text(yaml.safe_dump(record))
        with pytest.raises(UserError, match=reason):
            read_search(directory)
    assert database.read_bytes() == before and not (tmp_path / "absent.db").exists()
    record["search"]["store"] = "sqlite:///[:@"
    (directory / "search.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(UserError, match="no such database"):
        read_search(directory)


def test_a_missing_directory_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such directory; give that of `tune --out`"):
        read_search(tmp_path / "absent")
