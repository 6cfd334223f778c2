"""The records of the retrained settings: their runs, their comparisons, and `final.json`.

This is the only schema of `final.json`: the search writes these records and the report reads them. Nothing here imports
Ray, PyTorch or Optuna. SumR is the sum of R@1, R@5, R@10 and R@100 in percent, 0 to 400.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dreamprvr_ray.evaluation.metrics import Evaluation, Recall, Retrieval
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.search.layout import trial_name

ENCODER_ALONE = "the encoder alone"  # what candidates are compared with, in the place of a candidate's name
PAPER = "paper"  # the name of the candidate with the base configuration, which is trial 0


@dataclass(frozen=True)
class FinalRun:
    """One training of a candidate, and the result of its single evaluation on test.

    Of a search on several collections, `test` is the mean of `tests`, the evaluations on each.
    """

    seed: int | None
    val_sumr: float | None  # the best of its epochs
    best_epoch: int | None
    checkpoint: str | None  # of the best epoch
    test: Evaluation
    directory: str | None = None  # its name in `final/`; not recorded by version 0.1.0
    tests: tuple[Evaluation, ...] = ()  # on each of several collections; empty for one

    def to_dict(self) -> dict[str, Any]:
        """Return the run's entry in `final.json`."""
        return {
            "seed": self.seed,
            "val_SumR": self.val_sumr,
            "best_epoch": self.best_epoch,
            "checkpoint": self.checkpoint,
            "test": self.test.to_dict(),
            **({"tests": [test.to_dict() for test in self.tests]} if self.tests else {}),
            **({"directory": self.directory} if self.directory else {}),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> FinalRun:
        """Read a run's entry in `final.json`; only its seed and test result are required."""
        return cls(
            seed=entry["seed"],
            val_sumr=entry.get("val_SumR"),
            best_epoch=entry.get("best_epoch"),
            checkpoint=entry.get("checkpoint"),
            test=Evaluation.from_dict(entry["test"]),
            directory=entry.get("directory"),
            tests=tuple(Evaluation.from_dict(test) for test in entry.get("tests") or ()),
        )


@dataclass(frozen=True)
class Candidate:
    """Values to retrain, and the runs with them: one for each seed."""

    name: str  # "trial 5", "trial 5 with the paper's model.registers", or "paper"
    trial: int | None  # None: the search's own checkpoint was tested and nothing was retrained
    values: dict[str, Any]
    best_epoch: int | None  # of its trial in the search
    runs: tuple[FinalRun, ...] = ()
    ablated: str | None = None  # the one key that has the configuration's own value in place of the trial's
    title: str | None = None  # what people read in place of `name`; not recorded by version 0.1.0
    share: int = 1  # how many trials' resources its trial needed; not recorded
    epochs_with_val: int | None = None  # for how many epochs to train it on train and val; not recorded

    @property
    def shown_name(self) -> str:
        """What people read: `paper` in files may be any configuration, not only the paper's settings."""
        return self.title or self.name

    @property
    def is_paper(self) -> bool:
        """Whether this is the base configuration, which is the paper's for a preset."""
        return self.ablated is None and (self.trial == 0 or self.name == PAPER)

    @property
    def mean(self) -> float:
        """Mean test SumR over the seeds; NaN before any run was tested."""
        return self._mean(lambda test: test.recall.sumr) if self.runs else math.nan

    @property
    def std(self) -> float | None:
        """Sample standard deviation of test SumR over the seeds, or None if it cannot be computed: for one seed."""
        if len(self.runs) < 2:
            return None
        deviation = float(np.std([run.test.retrieval.recall.sumr for run in self.runs], ddof=1))
        return deviation if math.isfinite(deviation) else None

    @property
    def val_mean(self) -> float | None:
        """Mean over the seeds of the best val SumR, by which candidates are ranked; None if it is not recorded."""
        sumrs = [run.val_sumr for run in self.runs if run.val_sumr is not None]
        return float(np.mean(sumrs)) if sumrs else None

    def mean_recall(self, rank: int) -> float:
        """Return the mean test recall at a rank over the seeds, in percent."""
        return self._mean(lambda test: test.recall.at[rank])

    @property
    def mean_median_rank(self) -> float:
        """Mean over the seeds of the median rank on test."""
        return self._mean(lambda test: test.median_rank)

    @property
    def mean_mean_rank(self) -> float | None:
        """Mean over the seeds of the mean rank on test; None if it was not recorded, as by earlier versions."""
        ranks = [rank for run in self.runs if (rank := run.test.retrieval.mean_rank) is not None]
        return float(np.mean(ranks)) if ranks else None

    def list_recall(self) -> Recall | None:
        """Return the mean over the seeds of the recall of all right videos; None if each query has one."""
        recalls = [recall for run in self.runs if (recall := run.test.retrieval.list_recall) is not None]
        return Recall.mean(recalls) if recalls else None

    def _mean(self, metric: Callable[[Retrieval], float]) -> float:
        return float(np.mean([metric(run.test.retrieval) for run in self.runs]))

    def by_collection(self) -> dict[str, list[float]]:
        """Return test SumR on each of several collections, one for each seed; nothing for a single collection."""
        sumrs: dict[str, list[float]] = {}
        for run in self.runs:
            for test in run.tests:
                sumrs.setdefault(test.collection, []).append(test.retrieval.recall.sumr)
        return sumrs

    def by_moment(self) -> dict[str, list[Recall]]:
        """Return the test recall by moment length, one for each seed, for the groups that have queries."""
        groups: dict[str, list[Recall]] = {}
        for run in self.runs:
            for name, recall in (run.test.retrieval.by_moment or {}).items():
                if recall.queries:
                    groups.setdefault(name, []).append(recall)
        return groups

    @property
    def moments(self) -> MomentRecall | None:
        """How often moments are found on test, the mean over the seeds; None where no windows are known."""
        return MomentRecall.mean([run.test.retrieval.moments for run in self.runs])

    @property
    def zero_shot_moments(self) -> MomentRecall | None:
        """How often the encoder alone finds moments on test."""
        return self.runs[0].test.zero_shot_moments if self.runs else None

    @property
    def zero_shot(self) -> Mapping[str, Recall]:
        """The test results of the encoder alone, by name; empty where its features are not of one encoder."""
        return (self.runs[0].test.zero_shot if self.runs else None) or {}

    @property
    def best_zero_shot(self) -> tuple[str, Recall] | None:
        """The best test result of the encoder alone, with its name."""
        return self.runs[0].test.best_zero_shot if self.runs else None

    def run_name(self, seed: int) -> str:
        """Return the name of the directory of one of its trainings: `trial_005-seed_1`."""
        name = PAPER if self.trial is None or self.name == PAPER else trial_name(self.trial)
        return f"{name}{f'-paper_{self.ablated}' if self.ablated else ''}-seed_{seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the candidate's entry in `final.json`; the standard deviation of one seed is null there."""
        return {
            "name": self.name,
            "trial": self.trial,
            "values": self.values,
            "best_epoch": self.best_epoch,
            "runs": [run.to_dict() for run in self.runs],
            "mean": self.mean if math.isfinite(self.mean) else None,
            "std": self.std,
            "ablated": self.ablated,
            **({"title": self.title} if self.title else {}),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Candidate:
        """Read a candidate's entry in `final.json`. Mean and standard deviation are computed from the runs again."""
        return cls(
            name=entry["name"],
            trial=entry.get("trial"),
            values=dict(entry.get("values") or {}),
            best_epoch=entry.get("best_epoch"),
            runs=tuple(FinalRun.from_dict(run) for run in entry["runs"]),
            ablated=entry.get("ablated"),
            title=entry.get("title"),
        )


@dataclass(frozen=True)
class Comparison:
    """By how much one candidate's test SumR exceeds another's, with an interval: see `search/comparison.py`."""

    better: str
    than: str
    difference: float
    interval: tuple[float, float]
    confidence: float
    resamples: int
    seeds: int | None = None  # of each candidate; not recorded by version 0.1.0
    collection: str | None = None  # on which of several collections; None: on all, by the mean

    @property
    def covers_seeds(self) -> bool:
        """Whether the interval covers the choice of the seeds. With one seed it covers that of the videos only."""
        return self.seeds != 1

    @property
    def coverage(self) -> str:
        """What the interval covers, in words."""
        return "over videos and seeds" if self.covers_seeds else "over videos only"

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.interval[1]

    def reversed(self) -> Comparison:
        """Return the comparison of the other candidate with this one."""
        return replace(
            self, better=self.than, than=self.better, difference=-self.difference, interval=(-self.high, -self.low)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison's entry in `final.json`."""
        entry = asdict(self) | {"interval": list(self.interval)}
        if self.seeds is None:
            del entry["seeds"]
        else:
            entry["covers"] = "videos and seeds" if self.covers_seeds else "videos"
        if self.collection is None:
            del entry["collection"]
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Comparison:
        """Read a comparison's entry in `final.json`."""
        low, high = entry["interval"]
        return cls(
            better=entry["better"],
            than=entry["than"],
            difference=entry["difference"],
            interval=(low, high),
            confidence=entry["confidence"],
            resamples=entry["resamples"],
            seeds=entry.get("seeds"),
            collection=entry.get("collection"),
        )


@dataclass(frozen=True)
class FinalResult:
    """The tested candidates, the one with the best val SumR first.

    `comparison` compares the best candidate that the search found with the configuration's own settings; it is None if
    the search found none. Each of `ablations` compares a trial with itself after one of its values was set back to the
    configuration's own.
    """

    candidates: tuple[Candidate, ...]
    comparison: Comparison | None = None
    ablations: tuple[Comparison, ...] = ()
    encoder: tuple[Comparison, ...] = ()  # of candidates with the encoder alone, where one encoder made the features
    with_val: bool = False  # the runs were trained on val too, so that their val SumR means nothing
    retrained: bool = True  # False: only the search's own best checkpoint was tested
    shared_seeds: tuple[int, ...] = ()  # seeds of runs that trials had too, which favours the selected trial
    by_collection: tuple[Comparison, ...] = ()  # `comparison` on each of several collections

    @property
    def chosen(self) -> FinalRun:
        """The run whose model is kept in `best/`.

        Of the first candidate's runs, it is the one with the best val SumR, or the first if val was trained on.
        """
        runs = self.candidates[0].runs
        if self.with_val:
            return runs[0]
        return max(runs, key=lambda run: -math.inf if run.val_sumr is None else run.val_sumr)

    @property
    def paper(self) -> Candidate | None:
        """The candidate with the base configuration."""
        return next((candidate for candidate in self.candidates if candidate.is_paper), None)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All comparisons, that with the configuration's own settings first, those with the encoder alone last."""
        return (*([self.comparison] if self.comparison else []), *self.ablations, *self.encoder)

    def to_dict(self) -> dict[str, Any]:
        """Return the part of `final.json` that `tune --json` prints."""
        return {
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "ablations": [comparison.to_dict() for comparison in self.ablations],
            **({"encoder": [comparison.to_dict() for comparison in self.encoder]} if self.encoder else {}),
            **({"with_val": True} if self.with_val else {}),
            **({"shared_seeds": list(self.shared_seeds)} if self.shared_seeds else {}),
            **({"by_collection": [each.to_dict() for each in self.by_collection]} if self.by_collection else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], with_val: bool = False) -> FinalResult:
        """Read `final.json`. Candidates without runs are left out.

        `with_val` is for files of version 0.1.0, which do not hold it.
        """
        candidates = tuple(Candidate.from_dict(entry) for entry in values["candidates"] if entry["runs"])
        seeds = {candidate.name: len(candidate.runs) for candidate in candidates}

        def read(entry: Mapping[str, Any]) -> Comparison:
            comparison = Comparison.from_dict(entry)
            if comparison.seeds is None and seeds.get(comparison.better) == 1:  # of version 0.1.0
                return replace(comparison, seeds=1)
            return comparison

        return cls(
            candidates=candidates,
            comparison=read(values["comparison"]) if values.get("comparison") else None,
            ablations=tuple(read(entry) for entry in values.get("ablations") or ()),
            encoder=tuple(read(entry) for entry in values.get("encoder") or ()),
            with_val=bool(values.get("with_val", with_val and not _has_directories(candidates))),
            shared_seeds=tuple(values.get("shared_seeds") or ()),
            by_collection=tuple(read(entry) for entry in values.get("by_collection") or ()),
        )


def _has_directories(candidates: Iterable[Candidate]) -> bool:
    """Return whether the runs record their directories, which version 0.1.0 did not."""
    return any(run.directory for candidate in candidates for run in candidate.runs)


@dataclass(frozen=True)
class FinalRecord:
    """The contents of `final.json`: the final result, what it was tested on, and what is needed to reproduce it."""

    split: str
    collection: str
    protocol: str
    result: FinalResult
    versions: dict[str, str] = field(default_factory=dict)  # by package
    commands: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what `final.json` holds."""
        return {
            "split": self.split,
            "collection": self.collection,
            "protocol": self.protocol,
            **self.result.to_dict(),
            "versions": self.versions,
            "commands": list(self.commands),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], with_val: bool = False) -> FinalRecord:
        """Read `final.json`. Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for anything else."""
        return cls(
            split=values["split"],
            collection=values["collection"],
            protocol=values["protocol"],
            result=FinalResult.from_dict(values, with_val),
            versions={name: str(version) for name, version in (values.get("versions") or {}).items()},
            commands=tuple(values.get("commands") or ()),
        )
