"""Whether a collection holds what a sentence describes at all: the calibrated probability of an answer.

The best video of a collection that does not hold the event has a score too. What tells the two apart is how far it
stands out from the others, in relation to their number: the best of 2,000 wrong videos scores higher than the best of
100. So every query of val is put to collections of several sizes with its video and to the same ones without it, and a
logistic regression learns to tell which is which from `FEATURES`. Its probability holds where half of the sentences are
of events that the collection holds.

It belongs to one model and its encoder's weight, which give the scores, so it is made when the model is exported and
kept with it: calibration.json. A model with other scores needs its own.

Shapes: Q queries and V videos of a collection; n answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import parse_json, write_json
from dreamprvr_ray.storage.location import Storage

CALIBRATION = "calibration.json"
SCHEMA_VERSION = 1
FEATURES = ("top_score", "gap_to_next", "z_score", "log_size")
SIZES = (100, 200, 465, 1000, 2000)  # videos of the collections that the probability is learned from
DRAWS = 4  # collections of each size for each query
FOLDS = 5  # of the cross-validation by which the recorded quality is measured
THRESHOLD = 0.5  # probability below which the event is taken to be absent
BINS = 10  # of the reliability


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers whose probabilities are alike: their mean probability, and the share that is present."""

    probability: float
    present: float
    answers: int


@dataclass(frozen=True)
class Quality:
    """How well answers with the event are distinguished from those without, in collections of one size.

    Attributes:
        videos: Size of the collections.
        answers: Number of answers, half of them without the event.
        auc: Area under the ROC curve.
        calibration_error: Expected calibration error: the mean difference of probability and share present over the
            reliability bins, weighted with their answers.
        kept: Share of the answers with the event that have at least the threshold's probability.
        refused: Share of the answers without the event that have less.
        right_first: Share of the answers with the event whose right video is at rank 1.
        roc: Points (share of absent events kept, share of present ones kept), from (0, 0) to (1, 1).
        reliability: Bins by probability that have answers.
    """

    videos: int
    answers: int
    auc: float
    calibration_error: float
    kept: float
    refused: float
    right_first: float
    roc: tuple[tuple[float, float], ...]
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CalibrationSource:
    """What a calibration was learned from: the split of the queries, and the videos of the collections."""

    collection: str
    split: str
    queries: int
    videos: int  # those of the split and, if more were needed, of train
    shards: str  # fingerprint of the shards


@dataclass(frozen=True)
class Calibration:
    """The probability that a collection holds what a sentence describes, as a function of the scores of its videos.

    Attributes:
        means: Of `FEATURES` where it was learned.
        scales: Their standard deviations there.
        coefficients: Of the standardised features.
        intercept: Of the logarithm of the odds.
        threshold: Probability below which the event is taken to be absent.
        source: What it was learned from.
        quality: By size of the collection, cross-validated over the queries.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    threshold: float
    source: CalibrationSource
    quality: tuple[Quality, ...]

    def probability(self, scores: np.ndarray) -> float | None:
        """Return the probability that the collection with these scores (V,) of a sentence holds its event.

        None for a collection of less than three videos, where no score stands out.
        """
        return float(self.probabilities(answer_features(scores[None]))[0]) if len(scores) > 2 else None

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities (n,) of answers with these features (n, 4)."""
        standardised = (features - np.array(self.means)) / np.array(self.scales)
        odds = standardised @ np.array(self.coefficients) + self.intercept
        probabilities: np.ndarray = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
        return probabilities

    def lines(self) -> list[str]:
        """Return a summary for people."""
        return [
            f"in {each.videos:,} videos: {100 * each.kept:.1f}% of the events that they hold kept,"
            f" {100 * each.refused:.1f}% of absent ones refused, ROC AUC {each.auc:.3f}, calibration error"
            f" {each.calibration_error:.3f}"
            for each in self.quality
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what calibration.json holds."""
        return {"schema_version": SCHEMA_VERSION, "features": list(FEATURES), **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Read what `to_dict` wrote. Raises ValueError if it is anything else."""
        try:
            version, features = values["schema_version"], values["features"]
            if version != SCHEMA_VERSION or features != list(FEATURES):
                raise ValueError(f"schema version must be {SCHEMA_VERSION} with the features {', '.join(FEATURES)}")
            read = cls(
                means=_floats(values["means"]),
                scales=_floats(values["scales"]),
                coefficients=_floats(values["coefficients"]),
                intercept=float(values["intercept"]),
                threshold=float(values["threshold"]),
                source=CalibrationSource(**values["source"]),
                quality=tuple(_quality(each) for each in values["quality"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a calibration: {first_line(error)}") from None
        numbers = (*read.means, *read.scales, *read.coefficients, read.intercept, read.threshold)
        if len(numbers) != 3 * len(FEATURES) + 2 or not all(map(math.isfinite, numbers)) or min(read.scales) <= 0:
            raise ValueError(f"not a calibration: must have {len(FEATURES)} finite means, scales and coefficients")
        return read

    def write(self, directory: Path) -> None:
        """Write calibration.json into a directory, atomically. Raises OSError if the disk is full."""
        write_json(directory / CALIBRATION, self.to_dict())


def read_calibration(model: Storage) -> Calibration | None:
    """Return the calibration of a model; None if it has none. Raises `UserError` if it is damaged."""
    path = f"{model}/{CALIBRATION}"
    if not model.exists(CALIBRATION):
        return None
    try:
        return Calibration.from_dict(parse_json(model.read_text(CALIBRATION), path))
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None


def answer_features(scores: np.ndarray) -> np.ndarray:
    """Return `FEATURES` (n, 4) of answers by the scores (n, V) of all videos, V at least 3.

    The z-score is that of the best score among the others, so that it does not depend on the best itself.
    """
    ordered = -np.partition(-scores.astype(np.float64), 1, axis=1)
    top, second, others = ordered[:, 0], ordered[:, 1], ordered[:, 1:]
    z_score = (top - others.mean(1)) / np.maximum(others.std(1), 1e-9)
    return np.stack([top, top - second, z_score, np.full(len(scores), math.log(scores.shape[1]))], axis=1)


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to queries by collections that hold their event or do not.

    Attributes:
        features: (n, 4).
        present: (n,) bool, whether the collection holds the query's own video.
        right_first: (n,) bool, whether that video has the highest score.
        videos: (n,) size of the collection.
        group: (n,) number of the query's own video, by which answers are kept together in the cross-validation.
    """

    features: np.ndarray
    present: np.ndarray
    right_first: np.ndarray
    videos: np.ndarray
    group: np.ndarray

    def take(self, rows: np.ndarray) -> Answers:
        """Return some of the answers, by a mask or numbers."""
        return Answers(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw_answers(
    scores: np.ndarray, own: np.ndarray, right: np.ndarray, sizes: Sequence[int], draws: int, seed: int
) -> Answers:
    """Draw collections of these sizes with and without the own video of each query, and return their answers.

    Args:
        scores: (Q, V) of all queries and videos.
        own: (Q,) the number of each query's own video.
        right: (Q, V) bool, which videos are right for a query; of these, only its own is drawn.
        sizes: Numbers of videos. Those that need more wrong videos than there are for a query are left out.
        draws: Collections of each size for each query.
        seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    features, present, first, videos, group = [], [], [], [], []
    for query, video in enumerate(own.tolist()):
        wrong = np.flatnonzero(~right[query])
        for size in sizes:
            if size > len(wrong) or size < 3:
                continue
            drawn = np.stack([random.choice(wrong, size, replace=False) for _ in range(draws)])
            absent = scores[query][drawn]
            own_score = scores[query, video]
            held = np.concatenate([np.full((draws, 1), own_score), absent[:, 1:]], axis=1)
            features += [answer_features(held), answer_features(absent)]
            present += [np.ones(draws, bool), np.zeros(draws, bool)]
            first += [(held[:, 1:] < own_score).all(1), np.zeros(draws, bool)]
            videos.append(np.full(2 * draws, size))
            group.append(np.full(2 * draws, video))
    if not features:
        raise ValueError("no collection can be drawn: there are too few videos")
    return Answers(*map(np.concatenate, (features, present, first, videos, group)))


def fit(answers: Answers, source: CalibrationSource) -> Calibration:
    """Learn a calibration from answers, and measure its quality by cross-validation over the queries' own videos."""
    from sklearn.model_selection import GroupKFold

    probabilities = np.zeros(len(answers.present))
    folds = GroupKFold(min(FOLDS, len(np.unique(answers.group))), shuffle=True, random_state=0)
    for learned, measured in folds.split(answers.features, groups=answers.group):
        part = _fit(answers.take(learned), source, ())
        probabilities[measured] = part.probabilities(answers.features[measured])
    return _fit(answers, source, measure(answers, probabilities))


def _fit(answers: Answers, source: CalibrationSource, quality: tuple[Quality, ...]) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    means, scales = answers.features.mean(0), answers.features.std(0)
    scales = np.where(scales > 1e-9, scales, 1.0)  # of one size only, its logarithm does not vary
    model = LogisticRegression(C=10.0, max_iter=1000).fit((answers.features - means) / scales, answers.present)
    coefficients = tuple(map(float, model.coef_[0]))
    return Calibration(
        tuple(map(float, means)),
        tuple(map(float, scales)),
        coefficients,
        float(model.intercept_[0]),
        THRESHOLD,
        source,
        quality,
    )


def measure(answers: Answers, probabilities: np.ndarray, threshold: float = THRESHOLD) -> tuple[Quality, ...]:
    """Return the quality of the probabilities (n,) of answers, for each size of collection."""
    results = []
    for size in np.unique(answers.videos).tolist():
        rows = answers.videos == size
        results.append(_measure(size, answers.take(rows), probabilities[rows], threshold))
    return tuple(results)


def _measure(videos: int, answers: Answers, probabilities: np.ndarray, threshold: float) -> Quality:
    from sklearn.metrics import roc_auc_score, roc_curve

    present = answers.present
    absent_kept, present_kept, _ = roc_curve(present, probabilities)
    grid = np.linspace(0, 1, 51)  # enough for a figure, and the same for every size
    roc = [
        (0.0, 0.0),
        *zip(grid.tolist(), np.interp(grid, absent_kept, present_kept).tolist(), strict=True),
        (1.0, 1.0),
    ]
    number = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins = tuple(
        ReliabilityBin(float(probabilities[rows].mean()), float(present[rows].mean()), int(rows.sum()))
        for rows in (number == place for place in range(BINS))
        if rows.any()
    )
    error = sum(each.answers * abs(each.probability - each.present) for each in bins) / len(present)
    kept = probabilities >= threshold
    return Quality(
        videos=videos,
        answers=len(present),
        auc=float(roc_auc_score(present, probabilities)),
        calibration_error=float(error),
        kept=float(kept[present].mean()),
        refused=float(1 - kept[~present].mean()),
        right_first=float(answers.right_first[present].mean()),
        roc=tuple(roc),
        reliability=bins,
    )


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _quality(values: Mapping[str, Any]) -> Quality:
    shares = {name: float(values[name]) for name in ("auc", "calibration_error", "kept", "refused", "right_first")}
    return Quality(
        videos=int(values["videos"]),
        answers=int(values["answers"]),
        roc=tuple((float(absent), float(present)) for absent, present in values["roc"]),
        reliability=tuple(
            ReliabilityBin(float(each["probability"]), float(each["present"]), int(each["answers"]))
            for each in values["reliability"]
        ),
        **shares,
    )
