"""Running an ablation table: every row is trained with the same seeds, and each model is evaluated once on test.

The directory holds `search.yaml` (the configuration, the rows and the other settings), `runs/` (a directory per
training, such as `no_registers-seed_1`) and `ablations.json`, to which a row is added as soon as all of its trainings
have finished. A finished training is never repeated: its checkpoint and its test result are kept with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from dreamprvr_ray.data.collections import Collections, open_manifest
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.errors import Failure, SearchInterrupted, UserError, first_line
from dreamprvr_ray.search.ablation_rows import AblationRow
from dreamprvr_ray.search.ablation_table import table_lines
from dreamprvr_ray.search.comparison import RanksOnTest, compare_on_tests
from dreamprvr_ray.search.driver import resumable
from dreamprvr_ray.search.final_evaluation import evaluate_run, ranks_on_each
from dreamprvr_ray.search.final_record import write_final_record
from dreamprvr_ray.search.final_result import Candidate, FinalResult, FinalRun
from dreamprvr_ray.search.final_runs import PlannedRun, is_trained, with_directory
from dreamprvr_ray.search.finalists import RunQueue
from dreamprvr_ray.search.layout import ABLATIONS, FINAL_PLAN, RUNS
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.progress import FinalProgress
from dreamprvr_ray.search.ray_tune import run_trials
from dreamprvr_ray.search.seeds import SEED
from dreamprvr_ray.search.session import SearchSession, open_session
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.files import write_text
from dreamprvr_ray.storage.location import Storage


def run_ablations(search: Search, *, resume: bool, log: Callable[[str], None]) -> FinalResult:
    """Train and test all rows, or resume an interrupted table. `log` receives messages of one or more lines.

    The candidates of the result are the rows, in their order; `ablations` compares each with the first. Raises
    `UserError` if it cannot start, `SearchInterrupted` if it was interrupted, and `Failure` if a training failed: the
    other rows are finished and recorded before.
    """
    with open_session(search, resume=resume, log=log) as session, resumable(session.storage):
        search, manifest, directory = session.search, open_manifest(session.shards), session.storage / RUNS
        runs = plan_rows(search, manifest, directory, log)
        names = [run.request.run for run in runs]
        write_text(session.copy.path / FINAL_PLAN, json.dumps({"runs": names}, indent=1) + "\n")
        for line in search.table.left_out:
            log(f"ablations: {line}")
        recorder = RowRecorder(session, runs, manifest)
        recorder.record()
        waiting = [run.request for run in runs if not is_trained(directory / run.request.run)]
        failures: dict[str, str] = {}
        if waiting:
            log(f"ablations: {len(waiting)} of {len(runs)} trainings to do, {session.plan.at_a_time} at a time")
            queue = RunQueue(
                waiting,
                log,
                finished=len(runs) - len(waiting),
                can_have_more=session.plan.can_have_more,
                stage="ablations",
                on_finish=recorder.try_record if session.computes_here else None,
            )
            epochs = {request.run: search.experiment.training.epochs for request in waiting}
            run_trials(session, queue, RUNS, FinalProgress(epochs, log, stage="ablations"))
            session.copy.check_lease()
            failures = queue.failures
        recorder.record()
        if failures:
            reasons = "; ".join(f"{name} failed: {reason}" for name, reason in failures.items())
            raise Failure(f"{session.storage}: {reasons}; use --resume to train what is missing")
        if not recorder.is_complete:
            raise SearchInterrupted(f"{session.storage}: a training was interrupted")
        return recorder.result()


def plan_rows(search: Search, manifest: Manifest, runs: Storage, log: Callable[[str], None]) -> list[PlannedRun]:
    """Return a run for each row and seed, in a directory of `runs` that holds no other training."""
    planned: list[PlannedRun] = []
    for row in search.table.rows:
        for seed in search.table.seeds:
            values = row.values | {SEED: seed}
            run = PlannedRun(row.name, seed, TrialRequest(len(planned), 1, row.run_name(seed), values))
            planned.append(with_directory(run, row.experiment(search.experiment, seed), manifest, runs, log))
    return planned


class RowRecorder:
    """Evaluates the rows whose trainings have finished on test, and records them in `ablations.json`."""

    def __init__(self, session: SearchSession, runs: list[PlannedRun], manifest: Manifest) -> None:
        self._session, self._manifest = session, manifest
        self._runs = {row.name: [run for run in runs if run.candidate == row.name] for row in session.search.table.rows}
        self._directory = session.storage / RUNS
        self._tested: dict[str, Candidate] = {}
        self._ranks: dict[str, list[np.ndarray]] = {}  # by row: (seeds, Q) of each collection

    @property
    def is_complete(self) -> bool:
        """Whether all rows are recorded."""
        return len(self._tested) == len(self._runs)

    def try_record(self) -> None:
        """Record what has finished. A problem is only logged: `record` meets it again when all trainings have ended."""
        try:
            self.record()
        except (UserError, Failure) as error:
            self._session.log(f"ablations: not recorded yet: {first_line(error)}")

    def record(self) -> None:
        """Test and record every row whose trainings have all finished and that is not recorded yet."""
        self._session.copy.check_lease()
        for row in self._session.search.table.rows:
            if row.name not in self._tested and self._is_trained(row):
                self._test(row)
                self._write()

    def result(self) -> FinalResult:
        """Return the recorded rows, and their comparisons with the first one if that is recorded."""
        tested = tuple(self._tested[row.name] for row in self._session.search.table.rows if row.name in self._tested)
        first = self._session.search.table.rows[0].name
        if first not in self._tested:
            return FinalResult(tested)
        owners = [part.split("test").owner for part in Collections.open(self._session.shards).parts]
        comparisons = [
            compare_on_tests(name, first, list(map(RanksOnTest, self._ranks[name], self._ranks[first], owners)))
            for name in (row.name for row in tested if row.name != first)
        ]
        return FinalResult(tested, ablations=tuple(comparisons))

    def _is_trained(self, row: AblationRow) -> bool:
        return all(is_trained(self._directory / run.request.run) for run in self._runs[row.name])

    def _test(self, row: AblationRow) -> None:
        runs: list[FinalRun] = []
        for run in self._runs[row.name]:
            runs.append(self._session.compute(evaluate_run, self._directory, run, self._session.shards))
        self._tested[row.name] = Candidate(row.name, None, row.values, None, tuple(runs))
        self._ranks[row.name] = ranks_on_each(self._directory, runs, Collections.open(self._session.shards))

    def _write(self) -> None:
        result = self.result()
        write_final_record(result, self._manifest, self._session.copy.path, ABLATIONS)
        self._session.copy.try_push()
        lines = "\n".join(f"  {line}" for line in table_lines(result))
        self._session.log(f"ablations: {len(self._tested)} of {len(self._runs)} rows\n{lines}")
