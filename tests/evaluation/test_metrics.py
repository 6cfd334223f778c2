"""Recall by hand, and the metrics' JSON in both directions."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np

from dreamprvr_ray.evaluation.metrics import Recall, Retrieval

RETRIEVAL = Retrieval(
    videos=250,
    recall=Recall(4, {1: 25.0, 5: 50.0, 10: 75.0, 100: 75.0}, 225.0),
    median_rank=4.5,
    ties=3,
    by_moment={
        "0-0.2": Recall(0, {1: 0.0, 5: 0.0, 10: 0.0, 100: 0.0}, 0.0),
        "0.4-1": Recall(2, {1: 50.0, 5: 50.0, 10: 50.0, 100: 100.0}, 250.0),
    },
    ranks=np.array([1, 2, 7, 200]),
    mean_rank=52.5,
    list_recall=Recall(4, {1: 12.5, 5: 25.0, 10: 50.0, 100: 62.5}, 150.0),
    right_videos=8,
)


def test_recall_by_hand() -> None:
    recall = Recall.from_ranks(np.array([1, 2, 5, 6, 10, 11, 100, 101]))
    assert recall.queries == 8 and recall.at == {1: 12.5, 5: 37.5, 10: 62.5, 100: 87.5} and recall.sumr == 200.0
    assert recall.to_dict() == {"R@1": 12.5, "R@5": 37.5, "R@10": 62.5, "R@100": 87.5, "SumR": 200.0}
    assert Recall.from_ranks(np.array([], dtype=np.int64)) == Recall(0, {1: 0.0, 5: 0.0, 10: 0.0, 100: 0.0}, 0.0)


def test_names_of_the_json_and_groups_without_queries_have_no_recall() -> None:
    values = json.loads(json.dumps(RETRIEVAL.to_dict()))
    none = dict.fromkeys(("R@1", "R@5", "R@10", "R@100", "SumR"))
    assert list(values.items()) == [
        ("videos", 250),
        ("queries", 4),
        ("R@1", 25.0),
        ("R@5", 50.0),
        ("R@10", 75.0),
        ("R@100", 75.0),
        ("SumR", 225.0),
        ("median_rank", 4.5),
        ("mean_rank", 52.5),
        ("ties", 3),
        (
            "by_moment",
            {
                "0-0.2": {"queries": 0, **none},
                "0.4-1": {"queries": 2, "R@1": 50.0, "R@5": 50.0, "R@10": 50.0, "R@100": 100.0, "SumR": 250.0},
            },
        ),
        ("right_videos", 8),
        ("list_recall", {"R@1": 12.5, "R@5": 25.0, "R@10": 50.0, "R@100": 62.5, "SumR": 150.0}),
    ]


def test_the_json_is_read_back() -> None:
    values = json.loads(json.dumps(RETRIEVAL.to_dict()))
    read = Retrieval.from_dict(values | {"split": "test"})
    assert read == RETRIEVAL and read.to_dict() == values and read.ranks is None
    assert Retrieval.from_dict(values | {"by_moment": None}).by_moment is None


def test_metrics_may_be_missing() -> None:
    read = Retrieval.from_dict({"SumR": 200.0})
    assert read.recall.sumr == 200.0 and read.by_moment is None and math.isnan(read.median_rank)
    assert read.mean_rank is None and read.list_recall is None and read.right_videos is None
    assert not {"mean_rank", "list_recall", "right_videos"} & read.to_dict().keys()


def test_reading_metrics_does_not_import_torch() -> None:
    code = "import sys, dreamprvr_ray.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
