"""The training loop on small shards: it learns, is repeatable, resumes exactly and stops early."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprvr_ray.checkpoints.checkpoint import STATE, load_model, read_state, read_weights
from dreamprvr_ray.checkpoints.checksums import CHECKSUMS
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation import retrieval
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training import gradient_step, loop
from dreamprvr_ray.training.divergence import losses_diverged
from dreamprvr_ray.training.failure import TrainingDiverged
from dreamprvr_ray.training.flops import specified_gflop
from dreamprvr_ray.training.loop import Progress, Training, fit, with_feature_sizes
from dreamprvr_ray.training.optimizer import PartwiseAdam
from dreamprvr_ray.training.reporter import DirectoryReporter, EpochResult, Snapshot

CPU = torch.device("cpu")
TINY = {
    "model.hidden_size": 16,
    "model.heads": 2,
    "model.branches": 2,
    "model.registers": 2,
    "model.diffusion_steps": 2,
    "training.epochs": 4,
    "training.batch_videos": 10,  # the last of an epoch's three batches has 4 of the 24 videos
    "training.patience": 99,
    "training.precision": "fp32",
    "loss.hard_negative_start_epoch": 2,
}
TIMES = ("videos_per_second", "seconds", "seconds_left", "waited")


@pytest.fixture
def shards(demo_shards: Path) -> ShardSet:
    return ShardSet.open(demo_shards)


def experiment(**changes: Any) -> Experiment:
    """Return the tiny experiment with changes: `model__branches` is a dotted key, `epochs` is `training.epochs`."""
    dotted = {name.replace("__", ".") if "__" in name else f"training.{name}": value for name, value in changes.items()}
    return load_experiment("demo", TINY | dotted)


def without_times(reports: list[EpochResult]) -> list[EpochResult]:
    return [replace(report, **dict.fromkeys(TIMES, 0.0)) for report in reports]


def equal_weights(one: Path, other: Path) -> bool:
    ours, theirs = read_weights(one), read_weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def uninterrupted(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> DirectoryReporter:
    """A training of four epochs with dropout, and with hard negatives from the third epoch."""
    reporter = DirectoryReporter(tmp_path_factory.mktemp("uninterrupted"))
    report = fit(experiment(), ShardSet.open(demo_shards), reporter, device=CPU)
    assert report == reporter.results[-1]
    return reporter


def test_it_learns(shards: ShardSet, tmp_path: Path) -> None:
    reporter = DirectoryReporter(tmp_path)
    small = {"model__branches": 1, "model__registers": 1, "model__diffusion_steps": 1}
    easy = experiment(epochs=9, optimizer__learning_rate=3e-3, loss__hard_negative_start_epoch=99, **small)
    fit(easy, shards, reporter, device=CPU)
    totals = [report.losses["total"] for report in reporter.results]
    assert totals[-1] < 0.75 * totals[0]
    train = shards.split("train")
    chance = 100 * (1 + 5 + 10 + 24) / 24
    assert evaluate(load_model(reporter.last).model, train, ScoreWeights(0.5)).recall.sumr > 1.4 * chance
    # The reported metrics are those of the checkpoint.
    trained = load_model(reporter.best)
    best = evaluate(trained.model, shards.split("val"), ScoreWeights(0.5))
    assert best.recall.sumr == reporter.results[-1].best_sumr == trained.metrics["SumR"]
    assert trained.metrics["epoch"] == reporter.results[-1].best_epoch
    assert trained.experiment == with_feature_sizes(easy, shards.manifest)


def test_results_report_the_progress(uninterrupted: DirectoryReporter) -> None:
    reports = uninterrupted.results
    assert [report.epoch for report in reports] == [1, 2, 3, 4] and all(
        report.planned_epochs == 4 for report in reports
    )
    assert [report.finished for report in reports] == [False, False, False, True]
    best = [max(report.sumr for report in reports[:epoch]) for epoch in range(1, 5)]
    assert [report.best_sumr for report in reports] == best
    assert [report.best_epoch for report in reports] == [
        1 + [report.sumr for report in reports].index(value) for value in best
    ]
    # 12 steps with 5% warm-up: the epochs end with steps 2, 5, 8 and 11, counted from 0.
    peak = load_experiment("demo").optimizer.learning_rate
    assert [report.learning_rate for report in reports] == pytest.approx(
        [peak * (1 - step / 12) / 0.95 for step in (2, 5, 8, 11)]
    )
    assert reports[-1].seconds_left == 0 < reports[0].seconds_left
    assert all(report.losses["total"] > 0 and 0 <= report.waited <= 1 for report in reports)


def test_the_same_seed_gives_the_same_training_and_another_does_not(
    uninterrupted: DirectoryReporter, shards: ShardSet, tmp_path: Path
) -> None:
    torch.manual_seed(123)  # the global generator has no influence
    again, other = DirectoryReporter(tmp_path / "again"), DirectoryReporter(tmp_path / "other")
    fit(experiment(), shards, again, device=CPU)
    assert without_times(again.results) == without_times(uninterrupted.results)
    assert equal_weights(again.last, uninterrupted.last)
    fit(experiment(seed=1, epochs=1), shards, other, device=CPU)
    assert other.results[0].losses != uninterrupted.results[0].losses


class Stopping(DirectoryReporter):
    """Fails after it has written the second epoch's checkpoint."""

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        super().report(result, snapshot)
        if result.epoch == 2:
            raise ConnectionError("the node is gone")


def test_a_resumed_training_equals_an_uninterrupted_one(
    uninterrupted: DirectoryReporter, shards: ShardSet, tmp_path: Path
) -> None:
    stopped, resumed = Stopping(tmp_path), DirectoryReporter(tmp_path)
    with pytest.raises(ConnectionError):
        fit(experiment(), shards, stopped, device=CPU)
    torch.manual_seed(5)
    fit(experiment(), shards, resumed, device=CPU)
    assert without_times(stopped.results + resumed.results) == without_times(uninterrupted.results)
    for name in ("last", "best"):
        assert equal_weights(getattr(resumed, name), getattr(uninterrupted, name))
    ours, theirs = (read_state(reporter.last) for reporter in (resumed, uninterrupted))
    assert ours["progress"] == theirs["progress"]
    moments, expected = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert all(torch.equal(moments[key][name], expected[key][name]) for key in expected for name in ("mean", "square"))


def test_resuming_a_finished_training_does_nothing(uninterrupted: DirectoryReporter, shards: ShardSet) -> None:
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in uninterrupted.last.iterdir()}
    again = DirectoryReporter(uninterrupted.last.parent)
    assert fit(experiment(), shards, again, device=CPU) is None
    assert again.results == []
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in uninterrupted.last.iterdir()}


def test_a_checkpoint_of_another_experiment_is_rejected(uninterrupted: DirectoryReporter, shards: ShardSet) -> None:
    with pytest.raises(UserError, match=r"belongs to another experiment: model\.hidden_size was 16 and is 32 now"):
        fit(experiment(model__hidden_size=32), shards, DirectoryReporter(uninterrupted.last.parent), device=CPU)


def test_a_checkpoint_without_progress_is_rejected(
    uninterrupted: DirectoryReporter, shards: ShardSet, tmp_path: Path
) -> None:
    reporter = DirectoryReporter(tmp_path)
    reporter.last.mkdir()
    for path in uninterrupted.last.iterdir():
        (reporter.last / path.name).write_bytes(path.read_bytes())
    optimizer = read_state(reporter.last)["optimizer"]
    for state in (
        {"optimizer": optimizer},
        [1],
        {"optimizer": {}, "progress": {}},
        {"optimizer": optimizer, "progress": {"epoch": "2"}},
        {"optimizer": optimizer, "progress": [1]},
    ):
        torch.save(state, reporter.last / STATE)
        (reporter.last / CHECKSUMS).unlink(missing_ok=True)
        with pytest.raises(UserError, match="does not match this experiment"):
            fit(experiment(), shards, reporter, device=CPU)


def test_a_checkpoint_of_other_shards_is_rejected(uninterrupted: DirectoryReporter, shards: ShardSet) -> None:
    again = ShardSet(shards.directory, replace(shards.manifest, collection="other", protocol="dev"))
    with pytest.raises(UserError) as error:
        fit(experiment(), again, DirectoryReporter(uninterrupted.last.parent), device=CPU)
    assert error.value.mistakes == tuple(
        f"{uninterrupted.last}: was trained on other shards: {change}"
        for change in (
            "the shards' collection was 'demo' and is 'other' now",
            "the shards' protocol was 'own splits' and is 'dev' now",
        )
    )


def test_progress_counts_consecutive_epochs_that_do_not_exceed_the_best() -> None:
    progress, history = Progress(), []
    patient = experiment(patience=2, epochs=99)
    for sumr in (10.0, 12.0, 12.0, 11.0, 12.5, 12.5, 12.4, 12.3):
        assert not progress.finished
        progress = progress.after(sumr, patient)
        history.append((progress.best_sumr, progress.best_epoch, progress.stale_epochs))
    assert history == [
        (10.0, 1, 0),
        (12.0, 2, 0),
        (12.0, 2, 1),
        (12.0, 2, 2),
        (12.5, 5, 0),
        (12.5, 5, 1),
        (12.5, 5, 2),
        (12.5, 5, 3),
    ]
    assert progress.finished and progress.epoch == 8
    assert Progress().after(0.0, experiment(epochs=1)).finished


def test_it_stops_when_patience_runs_out(shards: ShardSet, tmp_path: Path) -> None:
    reporter = DirectoryReporter(tmp_path)
    still = experiment(optimizer__learning_rate=1e-12, patience=1, epochs=50)  # no later epoch exceeds the first
    last = fit(still, shards, reporter, device=CPU)
    assert last is not None and (last.epoch, last.best_epoch, last.finished) == (3, 1, True)
    assert [report.finished for report in reporter.results] == [False, False, True]
    assert fit(still, shards, DirectoryReporter(tmp_path), device=CPU) is None


def test_the_last_epoch_can_be_the_result(shards: ShardSet, tmp_path: Path) -> None:
    reporter = DirectoryReporter(tmp_path)
    still = experiment(optimizer__learning_rate=1e-12, choose_epoch="last", patience=0, epochs=3)
    last = fit(still, shards, reporter, device=CPU)
    assert last is not None and (last.epoch, last.best_epoch, last.best_sumr) == (3, 3, last.sumr)
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["epoch"] == 3


def test_a_loss_that_is_not_finite_ends_the_training(shards: ShardSet, tmp_path: Path) -> None:
    reporter = DirectoryReporter(tmp_path)
    with pytest.raises(
        TrainingDiverged,
        match=r"^epoch 1, step 3 of 3: the loss is not finite \(every term: the weights are not finite since step 2\);"
        r" a lower optimizer.learning_rate may help$",
    ):
        fit(experiment(optimizer__learning_rate=1e6), shards, reporter, device=CPU)
    assert reporter.results == [] and not reporter.last.exists()


def test_weights_that_are_not_finite_after_the_last_step_end_the_training(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of every step is finite, but the last update is not."""
    reporter = DirectoryReporter(tmp_path)
    step = PartwiseAdam.step

    def overflowing(optimizer: PartwiseAdam, *arguments: Any) -> None:
        step(optimizer, *arguments)
        if optimizer.param_groups[0]["step"] == 6:  # the last of the second epoch
            optimizer.param_groups[0]["params"][0].data.view(-1)[0] = math.inf

    monkeypatch.setattr(PartwiseAdam, "step", overflowing)
    with pytest.raises(TrainingDiverged, match=r"^epoch 2: the weights are not finite after the last step; a lower"):
        fit(experiment(), shards, reporter, device=CPU)
    assert [result.epoch for result in reporter.results] == [1]
    assert load_model(reporter.last).metrics["epoch"] == 1


def test_scores_that_are_not_finite_end_the_training(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        retrieval,
        "fused_scores",
        lambda queries, videos, _: torch.full((len(queries), len(videos.clip_tokens)), math.nan),
    )
    reporter = DirectoryReporter(tmp_path)
    with pytest.raises(TrainingDiverged, match=r"^epoch 1: the scores on val are not finite, although the weights are"):
        fit(experiment(), shards, reporter, device=CPU)
    assert reporter.results == [] and not reporter.last.exists()


@pytest.mark.parametrize(("split", "part"), [("train", "clips"), ("train", "tokens"), ("val", "frames")])
def test_features_that_are_not_finite_are_blamed_before_the_learning_rate(
    split: str, part: str, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = ShardSet(shards.directory, shards.manifest)
    opened = {name: shards.split(name) for name in ("train", "val")}
    tensors = getattr(opened[split], f"_{part}")
    tensors[0] = tensors[0].clone()
    tensors[0].view(-1)[0] = math.inf
    monkeypatch.setattr(damaged, "split", opened.__getitem__)
    named = f"query '{opened[split].queries[0]}'" if part == "tokens" else f"video '{opened[split].videos[0]}'"
    with pytest.raises(TrainingDiverged) as error:
        fit(experiment(), damaged, DirectoryReporter(tmp_path), device=CPU)
    assert str(error.value) == (
        f"epoch 1: the features of {named} in split {split} of {shards.directory} are not finite; convert again"
    )


def test_the_first_term_that_is_not_finite_is_named(shards: ShardSet) -> None:
    losses = torch.tensor([[1.0, 2.0, 0.0], [1.0, math.nan, 0.0], [math.nan, math.nan, 0.0]])
    error = losses_diverged(3, losses, ["clip_nce", "total", "denoising"], shards.split("train"), shards.directory)
    assert str(error) == (
        "epoch 3, step 2 of 3: the loss is not finite (total); a lower optimizer.learning_rate may help"
    )
    losses[1, 0] = math.inf
    error = losses_diverged(3, losses, ["clip_nce", "total", "denoising"], shards.split("train"), shards.directory)
    assert "(every term: the weights are not finite since step 1)" in str(error)


def test_val_is_scored_in_float32_as_evaluate_does(shards: ShardSet, tmp_path: Path) -> None:
    """Also in a training in bf16: otherwise the epoch's number would not be that of its checkpoint."""
    training = Training(experiment(precision="bf16"), shards, Workers(), CPU)
    training.restore(None)
    result = training.run_epoch()
    training.snapshot(result).write(tmp_path)
    seen: list[bool] = []
    encode = training._model.encode_videos
    training._model.encode_videos = lambda *arguments: (  # type: ignore[method-assign]
        seen.append(torch.is_autocast_enabled("cpu")) or encode(*arguments)
    )
    again = training.evaluate().retrieval
    assert seen and not any(seen)
    evaluated = evaluate(load_model(tmp_path).model, shards.split("val"), ScoreWeights(0.5))
    assert again.ranks is not None and evaluated.ranks is not None
    assert again.ranks.tolist() == evaluated.ranks.tolist()
    assert result.sumr == evaluated.recall.sumr


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"batch_videos": 1}, 24),
        ({"batch_videos": 100}, 1),
        ({"batch_videos": 23}, 2),
        ({"precision": "bf16"}, 3),
        ({"model__registers": 0}, 3),
    ],
    ids=str,
)
def test_unusual_settings_train(changes: dict[str, Any], steps: int, shards: ShardSet, tmp_path: Path) -> None:
    reporter = DirectoryReporter(tmp_path)
    fit(experiment(**{"epochs": 1, "model__branches": 1} | changes), shards, reporter, device=CPU)
    (report,) = reporter.results
    assert math.isfinite(report.losses["total"]) and report.finished
    assert all(
        weight.isfinite().all() and weight.dtype == torch.float32 for weight in read_weights(reporter.last).values()
    )
    groups = read_state(reporter.last)["optimizer"]["param_groups"]
    assert {(group["step"], group["total_steps"]) for group in groups} == {(steps, steps)}


def test_every_step_has_its_own_draws_and_every_epoch_its_own_order(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard, draws, videos, losses = [], [], [], gradient_step.training_losses

    def watched(model: Any, batch: Any, *arguments: Any, **named: Any) -> Any:
        hard.append(named["hard_negatives"])
        draws.append(named["randomness"].negatives.clip_query[0].item())
        videos.extend(batch.clips.sum((1, 2)).tolist())
        return losses(model, batch, *arguments, **named)

    monkeypatch.setattr(gradient_step, "training_losses", watched)
    fit(experiment(epochs=3), shards, DirectoryReporter(tmp_path), device=CPU)
    assert hard == [False] * 6 + [True] * 3  # hard negatives start at epoch 2, counted from 0
    assert len(set(draws)) == 9
    epochs = [videos[start : start + 24] for start in (0, 24, 48)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2]) and len(set(epochs[0])) == 24
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_losses_of_an_epoch_are_means_over_its_batches(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals, compute = [], gradient_step.training_losses

    def watched(*arguments: Any, **named: Any) -> Any:
        totals.append(compute(*arguments, **named))
        return totals[-1]

    monkeypatch.setattr(gradient_step, "training_losses", watched)
    report = fit(experiment(epochs=1), shards, DirectoryReporter(tmp_path), device=CPU)
    assert report is not None
    for name, value in report.losses.items():
        assert value == pytest.approx(sum(getattr(losses, name).item() for losses in totals) / 3, rel=1e-5), name


def test_only_long_trainings_are_compiled_for(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(DreamPRVR, "compile_chains", lambda model, compiled_: compiled.append(compiled_))
    monkeypatch.setattr(loop, "WORTH_COMPILING", 24 * 1000 * specified_gflop(experiment()))  # of 24 videos
    for epochs in (999, 1001):
        Training(experiment(epochs=epochs), shards, Workers(), CPU)
    assert compiled == [False, True]


def test_a_restored_training_continues_with_the_state_of_its_snapshot(shards: ShardSet, tmp_path: Path) -> None:
    first = Training(experiment(), shards, Workers(), CPU)
    first.restore(None)
    result = first.run_epoch()
    first.snapshot(result).write(tmp_path)
    second = Training(experiment(), shards, Workers(), CPU)
    second.restore(tmp_path)
    assert second.progress == first.progress and second.progress.epoch == 1
    assert second.evaluate() == first.evaluate()
    assert second.train_epoch(1).losses == first.train_epoch(1).losses


def test_metrics_of_checkpoints_name_the_data(uninterrupted: DirectoryReporter, shards: ShardSet) -> None:
    metrics = json.loads((uninterrupted.last / "metrics.json").read_text())
    assert metrics["collection"] == "demo" and metrics["protocol"] == shards.manifest.protocol
    assert metrics["epoch"] == 4 and metrics["finished"] is True


def test_feature_sizes_come_from_the_shards(shards: ShardSet) -> None:
    wrong = experiment(data__video_size=7, data__text_size=9)
    assert with_feature_sizes(wrong, shards.manifest).data == load_experiment("demo").data
    assert with_feature_sizes(wrong, shards.manifest).model == wrong.model


def test_aligned_initialization_requires_equal_feature_sizes(shards: ShardSet) -> None:
    aligned = experiment(model__initialization="aligned")
    with pytest.raises(UserError, match="videos have 64 features per row and their queries 48; use 'paper'"):
        with_feature_sizes(aligned, shards.manifest)
    assert with_feature_sizes(aligned, replace(shards.manifest, text_size=64)).model.initialization == "aligned"


def test_with_val_it_trains_on_train_and_val_until_the_last_epoch(shards: ShardSet, tmp_path: Path) -> None:
    reporter = DirectoryReporter(tmp_path)
    fit(experiment(with_val=True, patience=0, epochs=3), shards, reporter, device=CPU)
    assert [report.best_epoch for report in reporter.results] == [
        1,
        2,
        3,
    ]  # the last epoch always counts as the best, so nothing stops it early
    assert math.isclose(reporter.results[-1].best_sumr, reporter.results[-1].sumr)
    joined = shards.joined("train", "val")
    assert len(joined) == 34 and joined.videos == [*shards.split("train").videos, *shards.split("val").videos]
    assert (
        len(joined.owner) == len(shards.split("train").owner) + len(shards.split("val").owner)
        and joined.owner[-1] == 33
    )
    torch.testing.assert_close(joined.frames(33), shards.split("val").frames(9))


def test_training_on_a_val_split_that_is_test_is_rejected(shards: ShardSet, tmp_path: Path) -> None:
    splits = dict(shards.manifest.splits) | {"val": shards.manifest.splits["test"]}
    same = ShardSet(shards.directory, replace(shards.manifest, splits=splits, protocol="paper"))
    with pytest.raises(UserError, match="cannot train on val: it is the test split"):
        fit(experiment(with_val=True), same, DirectoryReporter(tmp_path), device=CPU)
