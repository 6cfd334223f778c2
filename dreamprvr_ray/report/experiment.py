"""What a search left in its directory, finished or not: its trials, its settings, and the final results where there are some.

The study tells how trials ended; the records beside it (`runs/*/epochs.jsonl`, `leaderboard.json`, `final.json`, `best/test.json`) are
used where they exist. Nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.errors import UserError, redact_password
from dreamprvr_ray.search.layout import FINAL, JOURNAL, LEADERBOARD, RUNS, read_epochs, trial_name
from dreamprvr_ray.search.results import STATES
from dreamprvr_ray.yaml_files import flatten, read_yaml

PAPER_PRESETS = ("tvr", "activitynet", "charades")


@dataclass(frozen=True)
class Axis:
    """One searched key: its range, and `own`, the value that the configuration itself has."""

    key: str
    name: str  # its last word, for readers
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] | None = None
    own: Any = None

    @classmethod
    def of(cls, key: str, name: str, distribution: BaseDistribution, own: Any) -> Axis:
        """The axis of an Optuna distribution."""
        if isinstance(distribution, CategoricalDistribution):
            return cls(key, name, choices=tuple(distribution.choices), own=own)
        assert isinstance(distribution, (FloatDistribution, IntDistribution))
        whole = isinstance(distribution, IntDistribution)
        return cls(key, name, distribution.low, distribution.high, distribution.log, whole, own=own)

    def position(self, value: Any) -> float | None:
        """Where a value lies between the ends, 0 to 1 inside them, on a log scale where the range has one."""
        if self.choices is not None:
            return self.choices.index(value) / max(1, len(self.choices) - 1) if value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (self.log and value <= 0):
            return None
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5


@dataclass(frozen=True)
class Trial:
    """One trial. `sumr` is the best val SumR of its epochs so far; `curve` holds (epoch, val SumR)."""

    number: int
    state: str  # finished, pruned, failed, running, waiting
    values: dict[str, Any]
    sumr: float | None
    best_epoch: int | None
    epochs: int
    curve: tuple[tuple[int, float], ...]
    cost: float | None = None  # the second objective's value
    seconds: float | None = None
    reason: str | None = None  # why it failed
    checkpoint: str | None = None
    refused: bool = False  # by a constraint: proposed, never trained

    @property
    def ended(self) -> bool:
        """Whether it was trained to its end or pruned."""
        return self.state in ("finished", "pruned")

    def best_until(self, epoch: int) -> float | None:
        """The best val SumR up to an epoch; None where none of them is recorded."""
        return max((value for at, value in self.curve if at <= epoch), default=None)


@dataclass(frozen=True)
class Run:
    """One final training: `test` is the evaluation by the names of the commands' JSON."""

    seed: int | None
    val_sumr: float | None
    best_epoch: int | None
    test: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A setting that was trained again with several seeds, or the winner's own checkpoint."""

    name: str
    trial: int | None
    runs: tuple[Run, ...]
    ablated: str | None = None  # the one key that has the configuration's own value in place of the trial's

    @property
    def mean(self) -> float:
        """Mean test SumR over the seeds."""
        return self.mean_of("SumR")

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of test SumR over the seeds; None for one seed."""
        if len(self.runs) < 2:
            return None
        return math.sqrt(sum((run.test["SumR"] - self.mean) ** 2 for run in self.runs) / (len(self.runs) - 1))

    def mean_of(self, metric: str) -> float:
        """Mean of a metric of test over the seeds."""
        return float(sum(run.test[metric] for run in self.runs) / len(self.runs))

    def moments(self) -> dict[str, list[dict[str, Any]]]:
        """The groups by moment length that hold queries, each with one evaluation a seed."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for run in self.runs:
            for name, group in (run.test.get("by_moment") or {}).items():
                if group["queries"]:
                    groups.setdefault(name, []).append(group)
        return groups


@dataclass(frozen=True)
class Comparison:
    """How much better one candidate is than another on test, with a bootstrap interval over videos and seeds."""

    better: str
    than: str
    difference: float
    low: float
    high: float
    confidence: float
    resamples: int


@dataclass(frozen=True)
class Final:
    """What test said. `retrained` is False where only the search's own best checkpoint was read."""

    retrained: bool
    split: str
    collection: str
    protocol: str
    candidates: tuple[Candidate, ...]
    comparison: Comparison | None
    versions: dict[str, str]
    commands: tuple[str, ...]
    ablations: tuple[Comparison, ...] = ()

    @property
    def own(self) -> Candidate | None:
        """The configuration's own setting, trained again."""
        return next(
            (one for one in self.candidates if one.ablated is None and (one.trial == 0 or one.name == "paper")), None
        )


@dataclass(frozen=True)
class SearchRecord:
    """A search as it stands on disk. `trials` are in order of proposal and hold neither refused proposals nor any without values."""

    directory: Path
    name: str
    settings: dict[str, Any]  # the search's file
    experiment: dict[str, Any]  # the configuration that trials start from, nested
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    refused: int
    objectives: tuple[str, ...]
    distributions: dict[str, BaseDistribution]
    final: Final | None

    @cached_property
    def ranked(self) -> list[Trial]:
        """Best val SumR first, the earlier proposed first among equals; failed trials and those without any last."""
        return sorted(
            self.trials,
            key=lambda trial: (
                trial.state == "failed",
                -trial.sumr if trial.sumr is not None else math.inf,
                trial.number,
            ),
        )

    @property
    def best(self) -> Trial | None:
        """The trial with the best val SumR, None where no epoch ended yet; failed ones do not count."""
        return next((trial for trial in self.ranked if trial.sumr is not None and trial.state != "failed"), None)

    @property
    def first(self) -> Trial | None:
        """Trial 0, the configuration's own setting, where it has a SumR."""
        return next((trial for trial in self.trials if trial.number == 0 and trial.sumr is not None), None)

    @property
    def first_finished(self) -> Trial | None:
        """Trial 0 where it was trained to its end: else its SumR is of fewer epochs than others', and compares with none of them."""
        return self.first if self.first is not None and self.first.state == "finished" else None

    @property
    def first_cut_off(self) -> Trial | None:
        """Trial 0 where it was not."""
        return None if self.first_finished else self.first

    @property
    def own_setting(self) -> str:
        """What trial 0 is called: the presets are the paper's settings, other configurations are not."""
        return (
            "the paper's setting" if self.settings.get("config") in PAPER_PRESETS else "the configuration's own setting"
        )

    @property
    def own_short(self) -> str:
        return "paper" if self.settings.get("config") in PAPER_PRESETS else "own setting"

    @property
    def epochs(self) -> int | None:
        """Epochs of a whole training."""
        epochs = self.experiment.get("training", {}).get("epochs")
        return int(epochs) if epochs else None

    @property
    def trained_on_val(self) -> bool:
        """Whether the final trainings had val among their videos, so that their val SumR means nothing."""
        return bool((self.settings.get("final") or {}).get("with_val"))

    @property
    def chosen(self) -> Run | None:
        """The final training whose model is in best/, as `search.final` chooses it; None where nothing was trained again."""
        if self.final is None or not self.final.retrained or not self.final.candidates:
            return None
        runs = self.final.candidates[0].runs
        return (
            runs[0]
            if self.trained_on_val
            else max(runs, key=lambda run: -math.inf if run.val_sumr is None else run.val_sumr)
        )

    def in_state(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    @property
    def ended(self) -> list[Trial]:
        """Finished and pruned trials that have a SumR."""
        return [trial for trial in self.trials if trial.ended and trial.sumr is not None]

    def best_quarter(self) -> list[Trial]:
        """The best quarter of the ended trials."""
        ended = [trial for trial in self.ranked if trial.ended and trial.sumr is not None]
        return ended[: math.ceil(len(ended) / 4)]


def read_search(directory: Path) -> SearchRecord:
    """Raises `UserError` where the directory holds no search, or one of which nothing is known yet."""
    if not (directory / "search.yaml").is_file():
        raise UserError(f"{directory}: no search: it has no search.yaml (name what `tune --out` named)")
    record = read_yaml(directory / "search.yaml")
    if not isinstance(record.get("experiment"), dict) or not isinstance(record.get("search"), dict):
        raise UserError(
            f"{directory / 'search.yaml'}: not a search's record: it needs the sections experiment and search"
        )
    settings, experiment = record["search"], record["experiment"]
    study = _open_study(directory, settings.get("store"), record.get("name"))
    frozen = study.get_trials(deepcopy=False)
    board = _leaderboard(directory)
    everything = [_trial(trial, directory, board.get(trial.number, {})) for trial in frozen]
    distributions = _distributions(frozen, settings.get("space") or {})
    own, names = flatten(experiment), short_names(list(distributions))
    return SearchRecord(
        directory=directory,
        name=str(record.get("name") or study.study_name),
        settings=_without_password(settings),
        experiment=experiment,
        axes=tuple(Axis.of(key, names[key], distribution, own.get(key)) for key, distribution in distributions.items()),
        trials=tuple(
            trial
            for trial in everything
            if not trial.refused and (trial.values or trial.sumr is not None or trial.reason)
        ),
        refused=sum(trial.refused for trial in everything),
        objectives=tuple(study.user_attrs.get("objectives") or ("SumR", "cost")[: len(study.directions)]),
        distributions=distributions,
        final=_final(directory),
    )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key, with as many words before it as tell it from the others."""
    names = {}
    for key in keys:
        words = key.split(".")
        length = next(
            (n for n in range(1, len(words)) if sum(other.split(".")[-n:] == words[-n:] for other in keys) == 1),
            len(words),
        )
        names[key] = " ".join(words[-length:]).replace("_", " ")
    return names


def _open_study(directory: Path, store: str | None, name: str | None) -> optuna.Study:
    """The search's study, from its journal or from the RDB that the search names."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not store and not (directory / JOURNAL).is_file():
        raise UserError(f"{directory}: nothing to report yet: the search has no {JOURNAL}, no trial was proposed")
    try:
        storage: str | BaseStorage = store or JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
        names = optuna.get_all_study_names(storage)
        if name not in names and len(names) == 1:
            name = names[0]
        if name not in names:
            raise UserError(
                f"{directory}: nothing to report yet: no study '{name}' in {redact_password(store) if store else JOURNAL}"
            )
        study = optuna.load_study(study_name=name, storage=storage)
        if not any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
            raise UserError(f"{directory}: nothing to report yet: no trial has started")
        return study
    except UserError:
        raise
    except (
        Exception
    ) as error:  # a journal that is none, a server that does not answer: SQLAlchemy's and json's types and Optuna's own
        line = (str(error).splitlines() or [type(error).__name__])[0]
        if store:
            line = line.replace(store, redact_password(store))
        raise UserError(
            f"{redact_password(store) if store else directory / JOURNAL}: the study cannot be read: {line}"
        ) from None


def _trial(frozen: FrozenTrial, directory: Path, board: Mapping[str, Any]) -> Trial:
    told = frozen.user_attrs
    curve = _curve(directory / RUNS / trial_name(frozen.number)) or _finite(frozen.intermediate_values.items())
    values = frozen.values or []
    sumr = _number(told.get("best_SumR"))
    if sumr is None and frozen.state == TrialState.COMPLETE:
        sumr = _number(values[0])
    if sumr is None and curve:
        sumr = max(value for _, value in curve)
    best_epoch = told.get("best_epoch") or board.get("best_epoch")
    if best_epoch is None and curve:
        best_epoch = max(curve, key=lambda point: (point[1], -point[0]))[0]
    return Trial(
        number=frozen.number,
        state=STATES[frozen.state.name],
        values=dict(frozen.params),
        sumr=sumr,
        best_epoch=best_epoch,
        epochs=told.get("epochs") or (curve[-1][0] if curve else 0),
        curve=curve,
        cost=_number(values[1]) if len(values) > 1 else None,
        seconds=_number(told.get("seconds")),
        reason=told.get("reason") or board.get("error"),
        checkpoint=_relative(board.get("checkpoint"), directory),
        refused=bool(told.get("infeasible")),
    )


def _curve(run: Path) -> tuple[tuple[int, float], ...]:
    """(epoch, val SumR) of a trial's record."""
    return _finite((epoch["epoch"], epoch["SumR"]) for epoch in read_epochs(run))


def _finite(points: Any) -> tuple[tuple[int, float], ...]:
    return tuple(sorted((int(epoch), float(value)) for epoch, value in points if math.isfinite(value)))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _distributions(trials: Sequence[FrozenTrial], space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The searched keys with their ranges, in the order of the search's file. A key with one possible value was not searched."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        found |= trial.distributions
    order = {key: place for place, key in enumerate(space)}
    return {
        key: found[key] for key in sorted(found, key=lambda key: order.get(key, len(order))) if not found[key].single()
    }


def _leaderboard(directory: Path) -> dict[int, dict[str, Any]]:
    entries = _json(directory / LEADERBOARD)
    return {entry["number"]: entry for entry in entries} if isinstance(entries, list) else {}


def _final(directory: Path) -> Final | None:
    final = _json(directory / FINAL)
    if final is not None:
        return _retrained(final, directory / FINAL)
    record = _json(directory / "best" / "test.json")
    readings = record.get("readings") if isinstance(record, dict) else None
    if not readings:
        return None
    reading = readings[0]  # later ones chose nothing
    run = Run(None, None, None, reading)
    winner = Candidate("the winner's checkpoint", None, (run,))
    return Final(False, reading["split"], reading["collection"], reading["protocol"], (winner,), None, {}, ())


def _retrained(final: Any, where: Path) -> Final:
    try:
        candidates = tuple(
            Candidate(
                candidate["name"],
                candidate.get("trial"),
                tuple(
                    Run(run["seed"], run.get("val_SumR"), run.get("best_epoch"), run["test"])
                    for run in candidate["runs"]
                ),
                candidate.get("ablated"),
            )
            for candidate in final["candidates"]
            if candidate["runs"]
        )
        comparison = _comparison(final["comparison"]) if final.get("comparison") else None
        ablations = tuple(_comparison(told) for told in final.get("ablations") or ())
        versions, commands = final.get("versions") or {}, tuple(final.get("commands") or ())
        return Final(
            True,
            final["split"],
            final["collection"],
            final["protocol"],
            candidates,
            comparison,
            versions,
            commands,
            ablations,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not what `tune` writes: {type(error).__name__} {error}") from None


def _comparison(told: Mapping[str, Any]) -> Comparison:
    low, high = told["interval"]
    return Comparison(
        told["better"], told["than"], told["difference"], low, high, told["confidence"], told["resamples"]
    )


def _json(path: Path) -> Any:
    """What a JSON file holds, None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _relative(path: str | None, directory: Path) -> str | None:
    """A checkpoint's path within the search's directory, which may have moved since."""
    if path is None:
        return None
    whole = Path(path)
    return str(whole.relative_to(directory.resolve())) if whole.is_relative_to(directory.resolve()) else path


def _without_password(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"store": redact_password(settings["store"])} if settings.get("store") else settings
