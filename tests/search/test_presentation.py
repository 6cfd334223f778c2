"""The plan of a search, as `tune --dry-run` prints it."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.preconditions import planned_sizes
from dreamprvr_ray.search.presentation import plan_lines
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.training.cost import Cost

TVR = Path(__file__).parents[2] / "search_spaces" / "tvr.yaml"


def test_a_plan_says_which_feature_sizes_it_uses_and_that_the_duration_is_not_known(demo_shards: Path) -> None:
    cost = Cost(parameters=10**6, gflop_per_video=20.0, executed_gflop_per_video=18.0, memory=2**30)
    for shards, sizes in (
        ("absent", "video 3072, text 768, from the configuration tvr, because there are no shards in absent"),
        (str(demo_shards), f"video 64, text 48, from the shards in {demo_shards}"),
    ):
        search, source = planned_sizes(load_search(TVR, {"shards": shards, "trials": 10, "hours": 3}))
        lines = plan_lines(search, TrialPlan(WorkerGroup(1, 1.0, 0.0), 1), cost, source)
        assert f"  feature sizes: {sizes}" in lines
        epochs = 10 * search.experiment.training.epochs
        duration = f"at most {epochs:,} epochs; no trial starts after 3 hours"
        assert lines[-1] == f"duration: not known before the first epoch has been measured; the trials have {duration}"
        (line,) = [line for line in lines if "GFLOP" in line]
        assert line.endswith("18.0 GFLOP are computed, because operations without effect on the result are skipped")


def test_values_are_shown_as_in_a_search_file(demo_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        f"config: demo\nshards: {demo_shards}\nout: {tmp_path / 'out'}\ntrials: 2\n"
        "space: {loss.textual_perturbation: {choice: [true, false]}, loss.margin: {choice: [0.1, 0.2]}}\n"
    )
    cost = Cost(parameters=10**6, gflop_per_video=20.0, executed_gflop_per_video=18.0, memory=2**30)
    lines = plan_lines(load_search(tmp_path / "space.yaml"), TrialPlan(WorkerGroup(1, 1.0, 0.0), 1), cost, "shards")
    assert "  loss.textual_perturbation: true | false; first true" in lines
    assert "  loss.margin: 0.1 | 0.2; first 0.2" in lines
