"""The queue of the final runs."""

from __future__ import annotations

from ray.tune.search import Searcher
from support.searches import trial_epoch

from dreamprvr_ray.search.finalists import RunQueue
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.ray_tune import SourceSearcher
from dreamprvr_ray.training.failure import TrialFailure


def test_runs_are_queued_in_order_and_their_failures_are_collected() -> None:
    names = ["paper-seed_0", "paper-seed_1", "lost"]
    requests = [TrialRequest(0, 1, name, {"training.seed": seed}) for seed, name in enumerate(names)]
    log: list[str] = []
    queue = RunQueue(requests, log.append)
    searcher = SourceSearcher(queue)
    configs = [searcher.suggest(trial_id) for trial_id in ("a", "b", "c")]
    assert configs == [request.to_config() for request in requests]
    assert searcher.suggest("d") == Searcher.FINISHED
    searcher.on_trial_complete("a", trial_epoch(1, 50.0).to_dict())
    searcher.on_trial_complete("b", TrialFailure("error", "cannot train").to_dict())
    searcher.on_trial_complete("c", error=True)
    assert queue.failures == {"paper-seed_1": "cannot train", "lost": "lost"}


def test_the_result_of_a_finished_run_is_logged() -> None:
    request, log = TrialRequest(0, 1, "paper-seed_0", {}), list[str]()
    queue = RunQueue([request], log.append)
    assert not queue.report(request, trial_epoch(1, 240.0)) and not log
    assert not queue.report(request, trial_epoch(2, 230.0, best=240.0, best_epoch=1, finished=True))
    assert log == ["final: paper-seed_0: val SumR 240.0 at epoch 1 of 2, 2 s"]
