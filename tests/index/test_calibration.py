"""The calibrated probability that a collection holds what a sentence describes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index.calibration import (
    CALIBRATION,
    SCHEMA_VERSION,
    Answers,
    Calibration,
    CalibrationSource,
    answer_features,
    draw_answers,
    fit,
    measure,
    read_calibration,
)
from dreamprvr_ray.storage.location import Storage

SOURCE = CalibrationSource("made", "val", 200, 1200, "0" * 64)


def made_scores(queries: int, videos: int, signal: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of which each query's own video has a higher one on average, its number, and which videos are right."""
    random = np.random.default_rng(seed)
    scores = random.standard_normal((queries, videos)).astype(np.float32) * 0.1 + 0.3
    own = random.integers(0, videos, queries)
    scores[np.arange(queries), own] += signal * (0.3 + 0.7 * random.random(queries))
    right = np.zeros(scores.shape, bool)
    right[np.arange(queries), own] = True
    return scores, own, right


def made_answers(signal: float = 0.5, queries: int = 200, seed: int = 0) -> Answers:
    return draw_answers(*made_scores(queries, 1200, signal, seed), sizes=(100, 1000), draws=4, seed=seed)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit(made_answers(), SOURCE)


def test_features_are_those_of_the_best_and_the_others() -> None:
    scores = np.array([[0.1, 0.9, 0.4, 0.3, 0.2]])
    ((top, gap, z_score, log_size),) = answer_features(scores)
    others = scores[0, [0, 2, 3, 4]]
    assert (top, gap, log_size) == pytest.approx((0.9, 0.5, np.log(5)))
    assert z_score == pytest.approx((0.9 - others.mean()) / others.std())
    assert np.isfinite(answer_features(np.full((1, 4), 0.2))).all()  # all alike


def test_collections_are_drawn_with_and_without_the_own_video() -> None:
    scores, own, right = made_scores(3, 40, 5.0)  # the own video is always first
    right[0, (own[0] + 1) % 40] = True  # another right video, with the highest score of all
    scores[0, (own[0] + 1) % 40] = 99.0
    answers = draw_answers(scores, own, right, sizes=(10, 20, 39), draws=2, seed=0)
    # 39 wrong videos do not exist for the first query, which has two right ones.
    assert sorted(answers.videos.tolist()) == sorted([10, 20] * 12 + [39] * 8)
    assert answers.present.sum() == len(answers.present) // 2
    assert (answers.right_first == answers.present).all()
    assert answers.features[:, 0].max() < 99.0
    assert answers.features[answers.present, 0].min() > answers.features[~answers.present, 0].max()
    again = draw_answers(scores, own, right, sizes=(10, 20, 39), draws=2, seed=0)
    np.testing.assert_array_equal(again.features, answers.features)
    with pytest.raises(ValueError, match="too few videos"):
        draw_answers(scores, own, right, sizes=(40,), draws=1, seed=0)


def test_probabilities_are_right_for_other_queries_at_every_size(calibration: Calibration) -> None:
    answers = made_answers(seed=1)
    for quality in measure(answers, calibration.probabilities(answers.features)):
        assert quality.calibration_error < 0.08
        assert quality.auc > 0.65 and quality.kept > 0.5 and quality.refused > 0.6
    recorded = {quality.videos: quality for quality in calibration.quality}
    assert recorded.keys() == {100, 1000} and recorded[100].answers == 1600
    assert recorded[100].auc > recorded[1000].auc + 0.02  # the best of more wrong videos is better
    assert recorded[100].right_first > recorded[1000].right_first
    # Of two answers that score alike, that of the larger collection is less probable.
    small, large = (np.array([[0.62, 0.04, 3.2, np.log(size)]]) for size in (100, 1000))
    assert calibration.probabilities(small)[0] > calibration.probabilities(large)[0] + 0.1


def test_scores_that_say_nothing_give_even_odds() -> None:
    blind = fit(made_answers(signal=0.0), SOURCE)
    assert all(abs(quality.auc - 0.5) < 0.06 and quality.calibration_error < 0.1 for quality in blind.quality)
    scores = made_scores(1, 500, 0.0)[0][0]
    probability = blind.probability(scores)
    assert probability is not None and 0.3 < probability < 0.7
    assert blind.probability(scores[:2]) is None


def test_quality_by_hand() -> None:
    present = np.array([True, True, True, False, False, False])
    answers = Answers(np.zeros((6, 4)), present, present, np.full(6, 7), np.arange(6))
    (quality,) = measure(answers, np.array([0.95, 0.85, 0.35, 0.65, 0.15, 0.05]))
    assert (quality.videos, quality.answers) == (7, 6)
    assert (quality.kept, quality.refused) == pytest.approx((2 / 3, 2 / 3))
    assert quality.auc == pytest.approx(8 / 9)
    assert quality.calibration_error == pytest.approx((0.05 + 0.15 + 0.65 + 0.65 + 0.15 + 0.05) / 6)
    assert [each.answers for each in quality.reliability] == [1] * 6
    assert quality.roc[0] == (0.0, 0.0) and quality.roc[-1] == (1.0, 1.0)


def test_a_calibration_is_read_as_it_was_written(calibration: Calibration, tmp_path: Path) -> None:
    assert read_calibration(Storage.of(tmp_path)) is None
    calibration.write(tmp_path)
    assert read_calibration(Storage.of(tmp_path)) == calibration
    assert len(calibration.lines()) == 2 and calibration.lines()[0].startswith("in 100 videos: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": SCHEMA_VERSION + 1},
        {"features": ["top_score"]},
        {"scales": [1, 1, 0, 1]},
        {"means": [1, 2, 3]},
        {"intercept": float("nan")},
        {"coefficients": "abcd"},
        {"quality": [{}]},
        {"source": {"collection": "c"}},
    ],
)
def test_a_damaged_calibration_is_one_line(
    calibration: Calibration, tmp_path: Path, changes: dict[str, object]
) -> None:
    (tmp_path / CALIBRATION).write_text(json.dumps(calibration.to_dict() | changes))
    with pytest.raises(UserError, match=f"{CALIBRATION}: damaged: ") as error:
        read_calibration(Storage.of(tmp_path))
    assert len(error.value.mistakes) == 1 and "\n" not in str(error.value)


def test_the_threshold_decides_what_is_kept(calibration: Calibration) -> None:
    answers = made_answers(seed=2)
    probabilities = calibration.probabilities(answers.features)
    strict, loose = (measure(answers, probabilities, threshold)[0] for threshold in (0.8, 0.2))
    assert strict.refused > loose.refused and strict.kept < loose.kept
    assert replace(strict, kept=0, refused=0) == replace(loose, kept=0, refused=0)
