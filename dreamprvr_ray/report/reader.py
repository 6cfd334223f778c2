"""Reading the directory of a search, whether or not the search has ended. Nothing is written.

The Optuna study holds how the trials ended. The files next to it (`runs/*/epochs.jsonl`, `leaderboard.json`,
`final.json`, `best/test.json`) are used if they exist.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url

from dreamprvr_ray.errors import HIDDEN, UserError, first_line, redact, redact_uri
from dreamprvr_ray.evaluation.metrics import Evaluation, mean_evaluation
from dreamprvr_ray.report.parameters import searched_parameters
from dreamprvr_ray.report.record_files import (
    FinalFile,
    FinalPlanFile,
    SearchFile,
    StudyAttributes,
    TestFile,
    TrialAttributes,
    TrialEntry,
    check,
    read_epoch_lines,
    read_json_record,
)
from dreamprvr_ray.report.search_record import FinalStage, SearchRecord
from dreamprvr_ray.search.final_result import Candidate, FinalRecord, FinalResult, FinalRun
from dreamprvr_ray.search.layout import (
    BEST,
    EPOCHS,
    FINAL,
    FINAL_PLAN,
    FINAL_RUNS,
    JOURNAL,
    LEADERBOARD,
    RUNS,
    SEARCH,
    TEST_RECORD,
    trial_name,
)
from dreamprvr_ray.search.results import TrialRecord, finite_curve
from dreamprvr_ray.user_files import MAX_JSON_BYTES, parse_user_json, read_user_text
from dreamprvr_ray.yaml_files import flatten, read_yaml

STORE = "DREAMPRVR_RAY_STORE"  # environment variable: the URL of the search's database, with its password
OPTUNA_TABLES = ("studies", "trials", "version_info", "alembic_version")


def read_search(directory: Path) -> SearchRecord:
    """Read a search. Raises `UserError` if the directory holds no search, or one in which no trial has started."""
    path = directory / SEARCH
    if not directory.exists():
        raise UserError(f"{directory}: no such directory; give that of `tune --out`")
    if not path.is_file():
        raise UserError(f"{directory} is not a search: it has no {SEARCH}; give the directory of `tune --out`")
    contents = read_yaml(path)
    if not isinstance(contents.get("experiment"), dict) or not isinstance(contents.get("search"), dict):
        raise UserError(f"{path}: must have the sections experiment and search")
    check(SearchFile, contents, str(path))
    settings, experiment = contents["search"], contents["experiment"]
    study = _open_study(directory, settings.get("store"), contents.get("name"))
    study_trials = study.get_trials(deepcopy=False)
    leaderboard = _read_leaderboard(directory)
    trials = [_read_trial(trial, directory, leaderboard.get(trial.number)) for trial in study_trials]
    final_settings = settings.get("final") or {}
    shards = settings.get("shards")
    collections = len(shards) if isinstance(shards, list) else 1
    final = _read_final(directory, bool(final_settings.get("with_val")), collections)
    return SearchRecord(
        directory=directory,
        name=str(contents.get("name") or study.study_name),
        settings=_without_password(settings),
        experiment=experiment,
        parameters=searched_parameters(
            [trial.distributions for trial in study_trials], settings.get("space") or {}, flatten(experiment)
        ),
        trials=tuple(
            trial
            for trial in trials
            if not trial.infeasible and (trial.values or trial.best_sumr is not None or trial.error)
        ),
        infeasible=sum(trial.infeasible for trial in trials),
        objectives=tuple(study.user_attrs.get("objectives") or ("SumR", "cost")[: len(study.directions)]),
        final=final,
        final_stage=_read_final_stage(directory, final),
    )


def _open_study(directory: Path, store: str | None, name: str | None) -> optuna.Study:
    """Load the search's study from its journal, or from the database that the search names, and check it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not store and not (directory / JOURNAL).exists():
        raise UserError(f"{directory}: nothing to report yet: no trial has been proposed (there is no {JOURNAL})")
    shown_store = redact_uri(store) if store else JOURNAL
    where = shown_store if store else str(directory / JOURNAL)
    url = store and _database_url(store)
    try:
        storage = open_database(url) if url else open_journal(directory / JOURNAL)
        names = optuna.get_all_study_names(storage)
        if name not in names and len(names) == 1:
            name = names[0]
        if name not in names:
            raise UserError(f"{directory}: nothing to report yet: {shown_store} has no study '{name}'")
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
    except UserError:
        raise
    except Exception as error:  # of json for a damaged journal, of SQLAlchemy for a database, or Optuna's own
        reason = first_line(error)
        if store and url:
            reason = redact(reason.replace(url, redact_uri(url)))
            if STORE not in os.environ:
                reason = f"{reason}; passwords and options are not recorded: set {STORE} to the database's whole URL"
        raise UserError(f"{where}: cannot read the study: {reason}") from None
    if all(trial.state == TrialState.WAITING for trial in trials):
        raise UserError(f"{directory}: nothing to report yet: no trial has started")
    check(StudyAttributes, study.user_attrs, where)
    for trial in trials:
        contents = {
            "params": trial.params,
            "values": trial.values,
            "intermediate_values": trial.intermediate_values,
        }
        check(TrialAttributes, trial.user_attrs | contents, f"{where}, trial {trial.number}")
    return study


def open_journal(path: Path) -> BaseStorage:
    """Open a journal for reading. Raises `UserError` naming the line that is not one of a journal.

    A last line that is incomplete, since it is being written or a kill cut it off, is left out.
    """
    *lines, _ = read_user_text(path, MAX_JSON_BYTES).split("\n")
    return JournalStorage(
        _ReadOnlyJournal([parse_user_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)])
    )


class _ReadOnlyJournal(BaseJournalBackend):
    """The lines of a journal. Optuna's own backend opens the file for writing."""

    def __init__(self, lines: list[Any]) -> None:
        self._lines = lines

    def read_logs(self, log_number_from: int) -> list[Any]:
        """Return the lines from a number on."""
        return self._lines[log_number_from:]

    def append_logs(self, logs: list[Any]) -> None:
        """Refuse to write."""
        raise AssertionError("a report writes nothing to a study")


def open_database(store: str) -> BaseStorage:
    """Open the database at a URL without changing it. Raises `UserError` unless it holds Optuna's tables."""
    url = make_url(store)
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith("file:"):
        if not Path(url.database).is_file():
            raise UserError(f"{redact_uri(store)}: no such database")
        path = quote(str(Path(url.database).resolve()))
        url = url.set(database=f"file:{path}", query={**url.query, "mode": "ro", "uri": "true"})
    engine = create_engine(url)
    try:
        missing = [table for table in OPTUNA_TABLES if not inspect(engine).has_table(table)]
    finally:
        engine.dispose()
    if missing:
        raise UserError(f"{redact_uri(store)}: holds no study: it has no table {missing[0]}")
    return RDBStorage(url.render_as_string(hide_password=False), skip_table_creation=True)


def _database_url(recorded: str) -> str:
    """Return the URL of the search's database: that of the environment, else the recorded one, which has no password.

    Without one, database drivers look for it in their own places, such as ~/.pgpass.
    """
    return os.environ.get(STORE) or recorded.replace(f":{HIDDEN}@", "@")


def _read_trial(trial: FrozenTrial, directory: Path, entry: TrialRecord | None) -> TrialRecord:
    """Convert a trial of the study, and complete it by its epochs and its entry in the leaderboard."""
    epochs = read_epoch_lines(directory / RUNS / trial_name(trial.number) / EPOCHS)
    curve = finite_curve((epoch["epoch"], epoch["SumR"]) for epoch in epochs)
    record = TrialRecord.from_study(trial, curve)
    if entry is None:
        return record
    return replace(
        record,
        best_epoch=record.best_epoch or entry.best_epoch,
        error=record.error or entry.error,
        checkpoint=_relative(entry.checkpoint, directory),
    )


def _read_leaderboard(directory: Path) -> dict[int, TrialRecord]:
    entries = read_json_record(directory / LEADERBOARD, list[TrialEntry])
    trials = [TrialRecord.from_dict(entry) for entry in entries or ()]
    return {trial.number: trial for trial in trials}


def _read_final(directory: Path, with_val: bool, collections: int) -> FinalRecord | None:
    """Read the final result or, if nothing was retrained, the test result of the best trial's own checkpoint."""
    values = read_json_record(directory / FINAL, FinalFile)
    if values is not None:
        return FinalRecord.from_dict(values, with_val)
    return _best_trial_on_test(read_json_record(directory / BEST / TEST_RECORD, TestFile), collections)


def _read_final_stage(directory: Path, final: FinalRecord | None) -> FinalStage | None:
    """Read how far the final runs are, from their names and their logged epochs."""
    plan = read_json_record(directory / FINAL_PLAN, FinalPlanFile)
    if not plan or not plan["runs"]:
        return None
    names = plan["runs"]
    logs = [read_epoch_lines(directory / FINAL_RUNS / name / EPOCHS) for name in names]
    finished = sum(bool(epochs and epochs[-1].get("finished")) for epochs in logs)
    times = [epoch.get("seconds") or 0.0 for epochs in logs for epoch in epochs]
    candidates = final.result.candidates if final else ()
    return FinalStage(
        planned=len(names),
        finished=finished,
        running=sum(map(bool, logs)) - finished,
        seconds=sum(seconds for seconds in times if math.isfinite(seconds)),
        is_evaluated={run.directory for candidate in candidates for run in candidate.runs} == set(names),
    )


def _best_trial_on_test(values: Any, collections: int) -> FinalRecord | None:
    """Return the test result of a search on this number of collections, if it has one.

    Only the first reading of a collection is unbiased. The search reads its own before anyone can read others.
    """
    readings = values.get("readings") if values else None
    if not readings:
        return None
    first: dict[str, Evaluation] = {}
    for reading in readings:
        test = Evaluation.from_dict(reading)
        first.setdefault(test.collection, test)
    tests = tuple(first.values())[:collections]
    test = mean_evaluation(tests)
    run = FinalRun(None, None, None, None, test, tests=tests if len(tests) > 1 else ())
    candidate = Candidate("the best trial", trial=None, values={}, best_epoch=None, runs=(run,))
    result = FinalResult((candidate,), retrained=False)
    return FinalRecord(test.split, test.collection, test.protocol, result)


def _relative(path: str | None, directory: Path) -> str | None:
    """Return a checkpoint's path relative to the search's directory if it is inside; the directory may have moved."""
    if path is None:
        return None
    root = directory.resolve()
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def _without_password(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"store": redact_uri(settings["store"])} if settings.get("store") else settings
