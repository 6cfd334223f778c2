"""Reading the directory of a search, whether or not the search has ended. Nothing is written.

The Optuna study holds how the trials ended. The files next to it (`runs/*/epochs.jsonl`, `leaderboard.json`,
`final.json`, `best/test.json`) are used if they exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.errors import UserError, first_line, redact_password
from dreamprvr_ray.evaluation.metrics import Evaluation
from dreamprvr_ray.report.parameters import searched_parameters
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.final_result import Candidate, FinalRecord, FinalResult, FinalRun
from dreamprvr_ray.search.layout import (
    BEST,
    FINAL,
    JOURNAL,
    LEADERBOARD,
    RUNS,
    SEARCH,
    TEST_RECORD,
    read_epochs,
    trial_name,
)
from dreamprvr_ray.search.results import TrialRecord, finite_curve
from dreamprvr_ray.yaml_files import flatten, read_yaml

Record = TypeVar("Record")


def read_search(directory: Path) -> SearchRecord:
    """Read a search. Raises `UserError` if the directory holds no search, or one in which no trial has started."""
    path = directory / SEARCH
    if not path.is_file():
        raise UserError(f"{directory} is not a search: it has no {SEARCH}; give the directory of `tune --out`")
    contents = read_yaml(path)
    if not isinstance(contents.get("experiment"), dict) or not isinstance(contents.get("search"), dict):
        raise UserError(f"{path}: must have the sections experiment and search")
    settings, experiment = contents["search"], contents["experiment"]
    study = _open_study(directory, settings.get("store"), contents.get("name"))
    study_trials = study.get_trials(deepcopy=False)
    leaderboard = _read_leaderboard(directory)
    trials = [_read_trial(trial, directory, leaderboard.get(trial.number)) for trial in study_trials]
    final_settings = settings.get("final") or {}
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
        final=_read_final(directory, with_val=bool(final_settings.get("with_val"))),
    )


def _open_study(directory: Path, store: str | None, name: str | None) -> optuna.Study:
    """Load the search's study from its journal, or from the database that the search names."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not store and not (directory / JOURNAL).is_file():
        raise UserError(f"{directory}: nothing to report yet: no trial has been proposed (there is no {JOURNAL})")
    shown_store = redact_password(store) if store else JOURNAL
    try:
        storage: str | BaseStorage = store or JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
        names = optuna.get_all_study_names(storage)
        if name not in names and len(names) == 1:
            name = names[0]
        if name not in names:
            raise UserError(f"{directory}: nothing to report yet: {shown_store} has no study '{name}'")
        study = optuna.load_study(study_name=name, storage=storage)
        if all(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
            raise UserError(f"{directory}: nothing to report yet: no trial has started")
        return study
    except UserError:
        raise
    except Exception as error:  # of json for a damaged journal, of SQLAlchemy for a database, or Optuna's own
        reason = first_line(error)
        if store:
            reason = reason.replace(store, redact_password(store))
        where = shown_store if store else directory / JOURNAL
        raise UserError(f"{where}: cannot read the study: {reason}") from None


def _read_trial(trial: FrozenTrial, directory: Path, entry: TrialRecord | None) -> TrialRecord:
    """Convert a trial of the study, and complete it by its epochs and its entry in the leaderboard."""
    epochs = read_epochs(directory / RUNS / trial_name(trial.number))
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
    def decode(entries: Any) -> dict[int, TrialRecord]:
        trials = [TrialRecord.from_dict(entry) for entry in entries] if isinstance(entries, list) else []
        return {trial.number: trial for trial in trials}

    return _read_json(directory / LEADERBOARD, decode) or {}


def _read_final(directory: Path, with_val: bool) -> FinalRecord | None:
    """Read the final result or, if nothing was retrained, the test result of the best trial's own checkpoint."""
    return _read_json(directory / FINAL, lambda values: FinalRecord.from_dict(values, with_val)) or _read_json(
        directory / BEST / TEST_RECORD, _best_trial_on_test
    )


def _best_trial_on_test(values: Any) -> FinalRecord | None:
    readings = values.get("readings") if isinstance(values, dict) else None
    if not readings:
        return None
    test = Evaluation.from_dict(readings[0])  # only the first one is unbiased
    run = FinalRun(seed=None, val_sumr=None, best_epoch=None, checkpoint=None, test=test)
    candidate = Candidate("the best trial", trial=None, values={}, best_epoch=None, runs=(run,))
    result = FinalResult((candidate,), retrained=False)
    return FinalRecord(test.split, test.collection, test.protocol, result)


def _read_json(path: Path, decode: Callable[[Any], Record]) -> Record | None:
    """Decode a JSON file; return None if it does not exist."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        return decode(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: was not written by `tune`: {type(error).__name__} {error}") from None


def _relative(path: str | None, directory: Path) -> str | None:
    """Return a checkpoint's path relative to the search's directory if it is inside; the directory may have moved."""
    if path is None:
        return None
    root = directory.resolve()
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def _without_password(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"store": redact_password(settings["store"])} if settings.get("store") else settings
