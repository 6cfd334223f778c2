"""The runs of the final candidates, as Ray Tune asks for them."""

from __future__ import annotations

from dreamprvr_ray.search.finalists import RunQueue
from dreamprvr_ray.search.ray_tune import NO_MORE
from dreamprvr_ray.training.failure import TrialFailure


def test_runs_are_handed_out_in_order_and_their_failures_are_collected() -> None:
    requests = {name: {"training.seed": seed} for seed, name in enumerate(["paper-seed_0", "paper-seed_1", "lost"])}
    queue = RunQueue(requests)
    assert [queue.suggest(trial_id) for trial_id in ("a", "b", "c")] == list(requests.values())
    assert queue.suggest("d") == NO_MORE
    queue.on_trial_complete("a", {"epoch": 1})
    queue.on_trial_complete("b", TrialFailure("error", "cannot train").to_dict())
    queue.on_trial_complete("c", error=True)
    assert queue.failures == {"paper-seed_1": "cannot train", "lost": "lost"}
