"""A whole search, from its plan to the published checkpoint.

A search's directory holds `search.yaml` (what decides its result), `optuna.journal` (the study, readable with Optuna's
own tools), `runs/` (a directory per trial, laid out like a training run), `leaderboard.json`, `final/` and `final.json`
(the retrained settings and their comparison), and `best/`, the selected checkpoint. It may be on a disk, on a file
system that all nodes share, or in an object store: see `working_copy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dreamprvr_ray.data.collections import open_manifest
from dreamprvr_ray.errors import PATH_ERRORS, Failure, SearchInterrupted, UserError, first_line
from dreamprvr_ray.search.candidates import choose_candidates
from dreamprvr_ray.search.final_evaluation import evaluate_candidates
from dreamprvr_ray.search.final_record import write_final_record
from dreamprvr_ray.search.final_result import FinalResult
from dreamprvr_ray.search.finalists import retrain_candidates
from dreamprvr_ray.search.layout import FINAL_RUNS, RUNS
from dreamprvr_ray.search.progress import SearchProgress
from dreamprvr_ray.search.publication import SearchOutcome, publish_best_trial, publish_final
from dreamprvr_ray.search.ray_tune import run_trials
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.session import SearchSession, open_session
from dreamprvr_ray.search.shared_store import driving
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.study_trials import StudyTrials
from dreamprvr_ray.storage.location import Storage


def run_search(search: Search, *, resume: bool, log: Callable[[str], None]) -> SearchOutcome:
    """Run a search, or resume an interrupted one. `log` receives progress messages of one or more lines.

    Raises `UserError` if the search cannot start, `SearchInterrupted` if it was interrupted, and `Failure` if no trial
    succeeded or a final run failed.
    """
    if search.table.rows:
        raise UserError(f"{search.name}: has ablations in place of a search; run it with the tune command")
    with open_session(search, resume=resume, log=log) as session:  # checks the search and plans its trials
        copy = session.copy
        study = SearchStudy(session.search, copy.path, session.owner or str(session.storage), copy.check_lease)
        with driving(study, session.search.settings.store) as check, resumable(session.storage):
            copy.checks.append(check)
            return _run(session, study)


@contextmanager
def resumable(storage: Storage) -> Iterator[None]:
    """Turn an OSError such as that of a full disk into a `Failure` that says how to continue the search."""
    try:
        yield
    except OSError as error:
        if error.errno in PATH_ERRORS:  # a path that is wrong: a mistake of the user
            raise
        place, reason = error.filename or storage, error.strerror or first_line(error)
        raise Failure(f"{place}: {reason}; nothing is lost: fix the cause, then use --resume to continue") from error


def _run(session: SearchSession, study: SearchStudy) -> SearchOutcome:
    source = StudyTrials(session, study)
    trials = _run_study(session, source)
    best, checkpoint = _best_trial(session, source, trials)
    session.copy.check_lease()
    if session.search.settings.final is None:
        return publish_best_trial(session, trials, best, checkpoint)
    final = _run_finalists(session, trials)
    session.copy.check_lease()
    return publish_final(session, trials, final)


def _run_study(session: SearchSession, source: StudyTrials) -> list[TrialRecord]:
    """Run the trials that the study still lacks, and return all of them, best first.

    With a time limit, there may be fewer than planned. Raises `SearchInterrupted` if some are missing otherwise.
    """
    study = source.study
    source.delete_leftovers()
    if not source.is_exhausted():
        progress = SearchProgress(study, session.log, session.gauges, lambda: source.retention.stored_bytes)
        run_trials(session, source, RUNS, progress)
        session.copy.check_lease()
        source.write_leaderboard()
        if source.store_failure:
            raise Failure(f"{source.store_failure}; use --resume to continue when the object store responds again")
        if source.interruption:
            raise Failure(f"{source.interruption}; no trial is lost: fix the cause, then use --resume to continue")
        source.settle()
        source.delete_leftovers()
    trials = source.leaderboard.trials()
    is_open = any(trial.state in ("running", "waiting") for trial in trials)
    if is_open or not (study.is_done() or session.search.settings.hours):
        raise SearchInterrupted(f"{session.storage}: the search was interrupted")
    return trials


def _best_trial(session: SearchSession, source: StudyTrials, trials: list[TrialRecord]) -> tuple[TrialRecord, Storage]:
    """Return the best trial that has a checkpoint, and the checkpoint. Raises `Failure` if none has."""
    for trial in trials:
        if checkpoint := source.retention.checkpoint(trial):
            return trial, checkpoint
    reasons = "; ".join(sorted({trial.error for trial in trials if trial.error}))
    raise Failure(f"{session.storage}: no trial has a checkpoint: {reasons}")


def _run_finalists(session: SearchSession, trials: list[TrialRecord]) -> FinalResult:
    """Retrain the best trials' settings and the configuration's own, test each run once, and write `final.json`."""
    search, final_runs = session.search, session.storage / FINAL_RUNS
    candidates = choose_candidates(search, trials)
    runs = retrain_candidates(session, candidates)
    session.copy.check_lease()
    final = session.compute(evaluate_candidates, search, candidates, runs, trials, final_runs, session.shards)
    write_final_record(final, open_manifest(session.shards), session.copy.path)
    return final
